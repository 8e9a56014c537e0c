"""What is signed, and the one signature rule of every platform.

Libraries differ in what edge cases they take. So our own code first refuses whatever they could differ on: keys and
points that are not canonically encoded or of small order, and S that is not reduced. What remains goes to an injected
`Verifier` (libsodium in a process; a browser calls the pre-checks, then WebCrypto, which is asynchronous there).

The checks are on encodings alone. With bit 255 (the sign of x) cleared, a point is its y; y must be below p, and not
one of the five values of y that points of small order have: 0 (order 4), 1 (order 1), p - 1 (order 2), and two of
order 8. A key that is no point at all passes: nothing verifies under it.

Sources: RFC 8032; protocol section 2. Not here: keys on disk (`crdtchain.adapters.keys`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

from crdtchain.errors import SignatureError

OP_PREFIX: Final = b"crdtchain/op/1:"
"""What no other use of the key can start its messages with."""
GENESIS_NETWORK: Final = bytes(36)
"""Stands for the network's id in genesis, which can't know its own."""
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

Verifier: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""(key, message, signature) -> does it hold, by RFC 8032 without cofactor; called with pre-checked input only."""

_FIELD: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_SIGN_CLEARED: Final = 2**255 - 1
_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_YS: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})


def signing_bytes(network: bytes, payload: bytes) -> bytes:
    """Put together what an author signs: prefix, network id (36 bytes), encoded op."""
    return OP_PREFIX + network + payload


def validate_key(key: bytes) -> None:
    """Check the key rule: 32 bytes, canonically encoded, not of small order.

    Raises:
        SignatureError: the key breaks it.
    """
    if len(key) != KEY_BYTES:
        raise SignatureError("key", f"a key has {KEY_BYTES} bytes, this one {len(key)}")
    if _is_refused_key(key):
        raise SignatureError("key", f"the key {key.hex()} is not canonical, or of small order")


def validate_signature_form(key: bytes, signature: bytes) -> None:
    """Check all of the signature rule that needs neither message nor curve: key, R, and S below the group's order.

    Raises:
        SignatureError: the key or the signature breaks it.
    """
    validate_key(key)
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError("signature", f"a signature has {SIGNATURE_BYTES} bytes, this one {len(signature)}")
    if _is_refused_point(signature[:32]):
        raise SignatureError("signature", "the signature's R is not canonical, or of small order")
    if int.from_bytes(signature[32:], "little") >= _ORDER:
        raise SignatureError("signature", "the signature's S is not below the order of the group")


def verify_signature(verifier: Verifier, key: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature by the whole rule: first its form, then by the platform's library.

    Raises:
        SignatureError: it does not hold.
    """
    validate_signature_form(key, signature)
    if not verifier(key, message, signature):
        raise SignatureError("signature", f"the signature does not hold under the key {key.hex()}")


def _is_refused_point(encoded: bytes) -> bool:
    """Say whether the y of a point is not below p, or one of small order."""
    y = int.from_bytes(encoded, "little") & _SIGN_CLEARED
    return y >= _FIELD or y in _SMALL_ORDER_YS


_is_refused_key: Final = lru_cache(maxsize=1_024)(_is_refused_point)
"""The same of a key: few authors sign many ops."""
