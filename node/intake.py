"""From a peer's blocks to signed ops that hold: decoding on the loop, signatures on other cores.

A few blocks are verified at once, here, many in a process of their own (`verifier`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from crdtchain.codec import compute_op_id
from crdtchain.errors import SignatureError
from crdtchain.ops import SignedOp
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op
from node.verifier import Rows, Verifier, VerifierDiedError, start_verifier, verify_many

INLINE_MAX: Final = 32
"""So many signatures (2 ms) are verified on the loop itself."""

log = logging.getLogger(__name__)


class Intake:
    """Decodes and verifies; it knows nothing of links."""

    def __init__(self, network: OpId) -> None:
        self._network = bytes(network)
        self.verifier: Verifier | None = None
        """The verifying process, once it has started."""
        self._starting: asyncio.Task[None] | None = None

    def warm_up(self) -> None:
        """Start the verifying process, because much is about to come."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            self.verifier = await start_verifier(self._network)
        except OSError as error:
            log.warning("The process that verifies signatures can't be started: %s", error)

    def close(self) -> None:
        """End the verifying process, without waiting for it."""
        if self._starting is not None:
            self._starting.cancel()
        if self.verifier is not None:
            self.verifier.close()
        self._starting = self.verifier = None

    async def prepare(self, blocks: Sequence[bytes], is_known: Callable[[OpId], bool]) -> list[SignedOp]:
        """Decode and verify those of some blocks that are not known, each once.

        Raises:
            InvalidOpError: one of them breaks a rule.
        """
        by_id = {compute_op_id(block): block for block in blocks}
        decoded = [decode_op(block, op) for op, block in by_id.items() if not is_known(op)]
        rows = [(bytes(signed.op.author), signed.block) for signed in decoded]
        if len(rows) <= INLINE_MAX:
            bad = verify_many(self._network, rows)
        else:
            bad = await self._verify_elsewhere(rows)
        if bad >= 0:
            raise SignatureError("signature", f"the signature of op {decoded[bad].op.id.hex()} does not hold")
        return decoded

    async def _verify_elsewhere(self, rows: Rows) -> int:
        """Verify in the process, or, until it is up, or when it has died, slowly in a thread."""
        self.warm_up()
        verifier = self.verifier
        if verifier is not None and (verifier.is_up or verifier.is_dead):
            try:
                return await verifier.verify(rows)
            except VerifierDiedError:
                # Others that have asked it learn the same; the first one makes room for the next process.
                if verifier is self.verifier:
                    log.warning("The process that verifies signatures has died; it is started again.")
                    self.close()
        return await asyncio.to_thread(verify_many, self._network, rows)
