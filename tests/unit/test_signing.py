"""The signature rule: which keys and signatures are refused before any library sees them."""

from __future__ import annotations

import pytest

from crdtchain import signing
from crdtchain.adapters.keys import SigningKey, sodium_verifier
from crdtchain.errors import SignatureError

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
ALICE = SigningKey.from_seed(bytes(32))
MESSAGE = b"message"
SIGNATURE = ALICE.sign(MESSAGE)


def encode_y(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def add_points(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Add on edwards25519, affine."""
    d = -121665 * pow(121666, -1, P)
    k = d * a[0] * b[0] * a[1] * b[1]
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, -1, P) % P
    return x, (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, -1, P) % P


def find_x(y: int) -> int | None:
    d = -121665 * pow(121666, -1, P)
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
    return x if x * x % P == square else None


def derive_small_order_ys() -> set[int]:
    """Multiply points by the order of the prime group; what remains are the eight points of small order."""
    ys: set[int] = set()
    for y in range(2, 40):
        x = find_x(y)
        if x is not None:
            result, base, bits = (0, 1), (x, y), L
            while bits:
                result = add_points(result, base) if bits & 1 else result
                base, bits = add_points(base, base), bits >> 1
            point = result
            for _ in range(8):
                ys.add(point[1])
                point = add_points(point, result)
    return ys


def test_the_refused_ys_are_those_of_all_points_of_small_order() -> None:
    ys = derive_small_order_ys()
    assert len(ys) == 5
    for y in ys:
        for sign in (0, 1):
            with pytest.raises(SignatureError):
                signing.validate_key(encode_y(y, sign))


@pytest.mark.parametrize("y", [0, 1, P - 1, P, P + 1, P + 2, 2**255 - 1])
@pytest.mark.parametrize("sign", [0, 1])
def test_keys_of_small_order_or_not_canonical_are_refused(y: int, sign: int) -> None:
    with pytest.raises(SignatureError) as caught:
        signing.validate_key(encode_y(y, sign))
    assert caught.value.code == "key"


@pytest.mark.parametrize("y", [2, 3, 4, P - 2, P - 3])
def test_other_keys_pass_even_when_they_are_no_points(y: int) -> None:
    signing.validate_key(encode_y(y))
    signing.validate_key(encode_y(y, 1))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(SignatureError):
        signing.validate_key(b"\x05" * length)


@pytest.mark.parametrize("length", [0, 32, 63, 65, 128])
def test_signatures_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(SignatureError, match="64 bytes"):
        signing.validate_signature_form(ALICE.author, (SIGNATURE * 2)[:length])


@pytest.mark.parametrize("y", [0, 1, P - 1, P, 2**255 - 1])
def test_r_is_held_to_the_rule_of_keys(y: int) -> None:
    with pytest.raises(SignatureError, match="R"):
        signing.validate_signature_form(ALICE.author, encode_y(y) + SIGNATURE[32:])


def test_s_is_below_the_order() -> None:
    signing.validate_signature_form(ALICE.author, SIGNATURE[:32] + (L - 1).to_bytes(32, "little"))
    for s in (L, L + 1, 2**253, 2**256 - 1):
        with pytest.raises(SignatureError, match="S"):
            signing.validate_signature_form(ALICE.author, SIGNATURE[:32] + s.to_bytes(32, "little"))


def test_the_same_signature_with_a_larger_s_is_refused() -> None:
    s = int.from_bytes(SIGNATURE[32:], "little") + L
    with pytest.raises(SignatureError):
        signing.verify_signature(sodium_verifier, ALICE.author, MESSAGE, SIGNATURE[:32] + s.to_bytes(32, "little"))


def test_a_true_signature_holds_and_any_change_breaks_it() -> None:
    signing.verify_signature(sodium_verifier, ALICE.author, MESSAGE, SIGNATURE)
    bob = SigningKey.from_seed(b"\x01" * 32)
    changed = bytes([SIGNATURE[0] ^ 1]) + SIGNATURE[1:]
    for key, message, signature in (
        (bob.author, MESSAGE, SIGNATURE),
        (ALICE.author, MESSAGE + b"x", SIGNATURE),
        (ALICE.author, MESSAGE, changed),
    ):
        with pytest.raises(SignatureError) as caught:
            signing.verify_signature(sodium_verifier, key, message, signature)
        assert caught.value.code == "signature"


def test_the_library_is_not_asked_about_what_the_rule_refuses() -> None:
    def never(key: bytes, message: bytes, signature: bytes) -> bool:
        raise AssertionError("asked")

    with pytest.raises(SignatureError):
        signing.verify_signature(never, bytes(32), MESSAGE, SIGNATURE)
    with pytest.raises(SignatureError):
        signing.verify_signature(never, ALICE.author, MESSAGE, bytes(64))


def test_what_is_signed_starts_with_the_prefix_and_the_network() -> None:
    assert signing.signing_bytes(b"n" * 36, b"payload") == b"crdtchain/op/1:" + b"n" * 36 + b"payload"
    assert signing.GENESIS_NETWORK == b"\x00" * 36
