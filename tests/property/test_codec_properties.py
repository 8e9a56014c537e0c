"""Laws of the codec, on values and bytes that Hypothesis makes, and against another encoder and decoder.

The other one is a reading of the profile that is as plain as can be, recursive and without any care for speed.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crdtchain import codec
from crdtchain.codec import Link, Value
from crdtchain.errors import DecodeError, UsageError
from crdtchain.limits import INT_MAX
from crdtchain.scalars import Author

DIGESTS = st.binary(min_size=32, max_size=32)
LINKS = st.builds(
    lambda prefix, digest: Link(prefix + digest), st.sampled_from([b"\x01\x71\x12\x20", b"\x01\x55\x12\x20"]), DIGESTS
)
KEYS = st.text(max_size=16)
SCALARS = (
    st.none() | st.booleans() | st.integers(-INT_MAX, INT_MAX) | st.text(max_size=40) | st.binary(max_size=300) | LINKS
)
VALUES: st.SearchStrategy[Value] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=30
)
HEADS = st.sampled_from(
    [bytes([byte]) for byte in range(256)]
    + [b"\xd8\x2a\x58\x25\x00\x01\x71\x12\x20" + bytes(32), b"\x61a", b"\x18\x18"]
)
NEARLY = st.lists(HEADS, max_size=12).map(b"".join)
"""Bytes that are more often nearly in the profile than random ones."""


def read_plainly(data: bytes) -> Value:
    """Decode like `codec.decode`, from the words of the profile; ValueError says that they refuse the bytes."""
    stream, counted = BytesIO(data), [0]
    value = read_item(stream, 0, counted)
    if stream.read(1) or counted[0] > 4096 or len(data) > 65_536:
        raise ValueError
    return value


def take(stream: BytesIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise ValueError
    return data


def read_item(stream: BytesIO, depth: int, counted: list[int]) -> Value:
    """Read one item that has so many containers around it."""
    counted[0] += 1
    major, info = divmod(take(stream, 1)[0], 32)
    if major == 7:
        if info not in (20, 21, 22):
            raise ValueError
        return {20: False, 21: True, 22: None}[info]
    argument = info
    if info > 23:
        if info > 27:
            raise ValueError
        argument = int.from_bytes(take(stream, 2 ** (info - 24)), "big")
        if argument < {24: 24, 25: 2**8, 26: 2**16, 27: 2**32}[info]:
            raise ValueError
    if (major in (4, 5) and depth == 16) or (major < 2 and argument > INT_MAX - major):
        raise ValueError
    if (major in (2, 3, 4, 5)) and argument > {2: 32_768, 3: 8_192, 4: 4_096, 5: 4_096}[major]:
        raise ValueError
    if major < 2:
        return argument if major == 0 else -1 - argument
    if major == 2:
        return take(stream, argument)
    if major == 3:
        return take(stream, argument).decode("utf-8")
    if major == 4:
        return [read_item(stream, depth + 1, counted) for _ in range(argument)]
    if major == 5:
        return read_map(stream, depth + 1, counted, argument)
    inner = read_item(stream, depth, counted)
    if argument != 42 or type(inner) is not bytes or len(inner) != 37:
        raise ValueError
    if inner[:5] not in (b"\x00\x01\x71\x12\x20", b"\x00\x01\x55\x12\x20"):
        raise ValueError
    return Link(inner[1:])


def read_map(stream: BytesIO, depth: int, counted: list[int], count: int) -> Value:
    """Read the pairs of a map."""
    pairs: list[tuple[str, Value]] = []
    for _ in range(count):
        key = read_item(stream, depth, counted)
        if type(key) is not str or len(key.encode()) > 64:
            raise ValueError
        pairs.append((key, read_item(stream, depth, counted)))
    order = [(len(key.encode()), key.encode()) for key, _ in pairs]
    if order != sorted(set(order)):
        raise ValueError
    return dict(pairs)


def is_same(a: Value, b: Value) -> bool:
    """Compare values and their types: to Python True is 1, and a link its bytes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    return a == b


def check_bytes(data: bytes) -> None:
    """Hold what the codec does with bytes against the plain reading, and encode again what it accepts."""
    try:
        expected = read_plainly(data)
    except ValueError:
        try:
            value = codec.decode(data)
        except DecodeError:
            return
        raise AssertionError(f"accepted as {value!r}: {data.hex()}") from None
    value = codec.decode(data)
    assert is_same(value, expected)
    assert codec.encode(value, bounded=True) == data


@given(VALUES)
def test_every_value_comes_back(value: Value) -> None:
    data = codec.encode(value)
    assert is_same(codec.decode(data), value)
    assert codec.encode(codec.decode(data)) == data


@given(st.dictionaries(KEYS, st.none(), max_size=30), st.randoms())
def test_the_order_in_which_a_map_was_filled_does_not_matter(value: dict[str, None], random: object) -> None:
    names = list(value)
    random.shuffle(names)  # type: ignore[attr-defined]
    assert codec.encode(dict.fromkeys(names)) == codec.encode(dict.fromkeys(value))


@given(
    st.recursive(
        SCALARS.filter(lambda item: type(item) is not Link),
        lambda x: st.lists(x) | st.dictionaries(KEYS, x),
        max_leaves=20,
    )
)
def test_another_encoder_writes_the_same_bytes(value: Value) -> None:
    """cbor2's canonical form is the profile's, for values without floats, links or large integers."""
    assert codec.encode(value) == cbor2.dumps(value, canonical=True)


@given(st.binary(max_size=60))
@example(b"\xa1\x61")
@example(b"\xd8")
@example(b"\xd8\x2a")
@example(b"\x58")
@example(b"\x78")
def test_random_bytes_are_judged_as_the_plain_reading_judges_them(data: bytes) -> None:
    check_bytes(data)


@given(NEARLY)
@settings(max_examples=500)
def test_nearly_right_bytes_are_judged_as_the_plain_reading_judges_them(data: bytes) -> None:
    check_bytes(data)


@given(VALUES, st.data())
@settings(max_examples=300)
def test_single_byte_mutations_raise_nothing_but_decode_errors(value: Value, data: st.DataObject) -> None:
    block = codec.encode(value)
    position = data.draw(st.integers(0, len(block) - 1))
    byte = data.draw(st.integers(0, 255))
    check_bytes(block[:position] + bytes([byte]) + block[position + 1 :])
    check_bytes(block[:position] + block[position + 1 :])
    check_bytes(block[:position] + bytes([byte]) + block[position:])


def test_all_single_byte_mutations_of_an_op_are_judged_as_the_plain_reading_judges_them() -> None:
    op: Value = {
        "v": 1,
        "author": bytes(32),
        "seq": 300,
        "prev": Link(b"\x01\x71\x12\x20" + bytes(32)),
        "parents": [],
        "time": 1_700_000_000_000,
        "kind": "profile",
        "body": {"name": "Zoë", "about": "x" * 30},
    }
    block = codec.encode([op, bytes(64)])
    for position in range(len(block)):
        for byte in range(256):
            check_bytes(block[:position] + bytes([byte]) + block[position + 1 :])


@given(VALUES)
def test_no_prefix_of_an_encoding_is_one(value: Value) -> None:
    block = codec.encode(value)
    for end in range(len(block)):
        with pytest.raises(DecodeError):
            codec.decode(block[:end])
    with pytest.raises(DecodeError):
        codec.decode(block + b"\x00")


@given(VALUES, st.sampled_from([0.5, 2**53, -(2**53), (), {1}, b"".join, {1: 1}, {"\ud800": 1}]), st.integers(0, 3))
def test_one_bad_value_anywhere_is_refused(value: Value, bad: Value, depth: int) -> None:
    nested: Value = bad
    for _ in range(depth):
        nested = {"x": [value, nested]}
    with pytest.raises(UsageError):
        codec.encode(nested)


@given(DIGESTS, st.sampled_from([codec.OP_CID_PREFIX, codec.RAW_CID_PREFIX]))
def test_cids_and_their_texts_are_one_to_one(digest: bytes, prefix: bytes) -> None:
    assert codec.parse_cid(codec.format_cid(prefix + digest)) == prefix + digest


@given(st.binary(min_size=32, max_size=32))
def test_authors_and_their_dids_are_one_to_one(key: bytes) -> None:
    assert codec.parse_did(codec.format_did(Author(key))) == key


@given(
    st.text()
    | st.text(alphabet="123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", max_size=60).map(
        "did:key:z6Mk".__add__
    )
)
def test_any_text_is_an_id_in_its_one_spelling_or_refused(text: str) -> None:
    with suppress(UsageError):
        assert codec.format_cid(codec.parse_cid(text)) == text
    with suppress(UsageError):
        assert codec.format_did(codec.parse_did(text)) == text
