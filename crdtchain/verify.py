"""From a stranger's bytes to an op whose form and signature hold.

The one way for blocks into the ledger that did not come from the own key. The batch version, with threads, is in
`crdtchain.adapters.verifying`.
"""

from __future__ import annotations

from crdtchain.ops import Kind, SignedOp
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op
from crdtchain.signing import GENESIS_NETWORK, Verifier, signing_bytes, verify_signature


def verify_block(block: bytes, network: OpId, verifier: Verifier) -> SignedOp:
    """Decode a block and check its form and its signature for a network.

    Raises:
        InvalidOpError: the rule that it breaks, of those that need nothing but the block.
    """
    signed = decode_op(block)
    verify_op(signed, network, verifier)
    return signed


def verify_op(signed: SignedOp, network: OpId, verifier: Verifier) -> None:
    """Check the signature of a decoded op for a network.

    Raises:
        SignatureError: it does not hold.
    """
    # Genesis can't name itself, so zeros stand for the network there; whether it is this network's is for the ledger.
    signed_for = GENESIS_NETWORK if signed.op.kind is Kind.GENESIS else network
    message = signing_bytes(signed_for, signed.payload)
    verify_signature(verifier, signed.op.author, message, signed.signature)
