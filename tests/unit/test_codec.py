"""The codec by example; its bounds are in tests/vectors, its laws in tests/property."""

from __future__ import annotations

import enum
import time
from hashlib import sha256

import pytest

from crdtchain import codec
from crdtchain.codec import Link
from crdtchain.errors import DecodeError, UsageError
from crdtchain.limits import BLOCK_BYTES_MAX, CHUNK_BYTES, INT_MAX
from crdtchain.scalars import Author

OP_CID = codec.OP_CID_PREFIX + bytes(range(32))
RAW_CID = codec.RAW_CID_PREFIX + bytes(range(32))


def test_a_link_is_equal_to_its_bytes_but_decodes_as_a_link() -> None:
    data = codec.encode([Link(OP_CID), OP_CID])
    value = codec.decode(data)
    assert isinstance(value, list)
    assert [type(item) for item in value] == [Link, bytes]
    assert value[0] == value[1] == OP_CID
    assert hash(value[0]) == hash(OP_CID)
    assert codec.encode(value) == data


def test_a_link_has_no_room_for_attributes() -> None:
    with pytest.raises(AttributeError):
        Link(OP_CID).note = 1  # type: ignore[attr-defined]


def test_known_values_have_known_bytes() -> None:
    assert codec.encode({"b": 1, "a": -1, "aa": [True, False, None, "é", b"\x01"]}) == bytes.fromhex(
        "a3" + "6161" + "20" + "6162" + "01" + "626161" + "85" + "f5f4f6" + "62c3a9" + "4101"
    )
    assert codec.encode(Link(RAW_CID)) == bytes.fromhex("d82a582500") + RAW_CID


@pytest.mark.parametrize(
    "number", [INT_MAX, -INT_MAX, 0, -1, 23, 24, -24, -25, 255, 256, 65535, 65536, 2**32 - 1, 2**32]
)
def test_integers_come_back(number: int) -> None:
    assert codec.decode(codec.encode(number)) == number


class Colour(enum.IntEnum):
    """Equal to an integer, but not one that decoding gives back."""

    RED = 1


class Word(enum.StrEnum):
    """The same of a text."""

    YES = "yes"


@pytest.mark.parametrize(
    "value",
    [
        0.0,
        1.5,
        float("nan"),
        INT_MAX + 1,
        -INT_MAX - 1,
        10**400,
        (1, 2),
        {1, 2},
        bytearray(b"x"),
        memoryview(b"x"),
        object(),
        Colour.RED,
        Word.YES,
        {1: 2},
        {b"a": 2},
        {None: 2},
        {Word.YES: 2},
        {"a": 0.5},
        [[{"a": [0.5]}]],
        "\ud800",
        {"\udfff": 1},
        Link(b""),
        Link(OP_CID[:-1]),
        Link(b"\x01\x70" + OP_CID[2:]),
    ],
)
def test_what_the_profile_cannot_carry_is_refused(value: codec.Value) -> None:
    with pytest.raises(UsageError):
        codec.encode(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[codec.Value] = []
    value.append(value)
    with pytest.raises(UsageError, match="deep"):
        codec.encode(value)


def test_depth_is_bounded_when_encoding_as_when_decoding() -> None:
    value: codec.Value = 1
    for _ in range(16):
        value = [value]
    assert codec.decode(codec.encode(value)) == value
    with pytest.raises(UsageError):
        codec.encode([value])


@pytest.mark.parametrize(
    "value",
    [[0] * 4096, "x" * 8193, b"x" * 32769, {"k" * 65: 1}, [b"x" * 32000] * 3],
    ids=["items", "text", "bytes", "key", "block"],
)
def test_lengths_beyond_a_block_are_refused_only_when_asked(value: codec.Value) -> None:
    data = codec.encode(value)
    with pytest.raises(UsageError):
        codec.encode(value, bounded=True)
    with pytest.raises(DecodeError):
        codec.decode(data)


def test_bounded_encoding_is_the_same_bytes() -> None:
    value: codec.Value = {"a": [1, Link(OP_CID)]}
    assert codec.encode(value, bounded=True) == codec.encode(value)


@pytest.mark.parametrize(
    "block",
    [
        b"\x80" * BLOCK_BYTES_MAX,
        b"\x81" * BLOCK_BYTES_MAX,
        b"\x9f" * BLOCK_BYTES_MAX,
        b"\xd8\x2a" * (BLOCK_BYTES_MAX // 2),
        b"\x99\x0f\xff" + b"\x60" * (BLOCK_BYTES_MAX - 3),
        b"\x99\x0f\xff" + b"\x80" * 4094,
        b"\xb9\x07\xff" + b"".join(b"\x78\x1c" + b"%028d" % n + b"\x00" for n in range(2047)) + b"\x00",
        b"\x98\xff" + (b"\x78\xfe" + b"\xc3\xa9" * 127) * 254,
        b"\xff" * 2**20,
    ],
    ids=["empties", "nest", "indefinite", "tags", "texts", "cut", "keys", "utf8", "MiB"],
)
def test_no_input_takes_long(block: bytes) -> None:
    """50 ms is the bound for 1 MiB; the slowest of these takes about 1 ms."""
    started = time.perf_counter()
    with pytest.raises(DecodeError):
        codec.decode(block)
    assert time.perf_counter() - started < 0.05


def test_op_ids_are_the_cid_of_the_block() -> None:
    assert codec.compute_op_id(b"block") == bytes.fromhex("01711220") + sha256(b"block").digest()
    assert codec.is_op_id(codec.compute_op_id(b"block"))
    assert not codec.is_raw_blob_id(codec.compute_op_id(b"block"))


def test_blob_ids_are_raw_cids_of_at_most_one_chunk() -> None:
    blob_id = codec.compute_blob_id(bytes(CHUNK_BYTES))
    assert blob_id == bytes.fromhex("01551220") + sha256(bytes(CHUNK_BYTES)).digest()
    assert codec.is_raw_blob_id(blob_id)
    assert not codec.is_op_id(blob_id)
    with pytest.raises(UsageError, match="chunks"):
        codec.compute_blob_id(bytes(CHUNK_BYTES + 1))


@pytest.mark.parametrize("cid", [b"", OP_CID[:-1], OP_CID + b"\x00", b"\x12\x20" + bytes(34)])
def test_other_bytes_are_no_ids(cid: bytes) -> None:
    assert not codec.is_op_id(cid)
    assert not codec.is_raw_blob_id(cid)


def test_a_published_cid_is_written_as_everybody_writes_it() -> None:
    """The CID of the empty raw block is well known."""
    text = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    assert codec.format_cid(codec.compute_blob_id(b"")) == text
    assert codec.parse_cid(text) == codec.compute_blob_id(b"")


def test_a_cid_has_one_spelling() -> None:
    text = codec.format_cid(OP_CID)
    assert codec.parse_cid(text) == OP_CID
    assert codec.parse_cid(codec.format_cid(RAW_CID)) == RAW_CID
    # The last character carries two bits that must be zero.
    same_bytes = text[:-1] + "abcdefghijklmnopqrstuvwxyz234567"["abcdefghijklmnopqrstuvwxyz234567".index(text[-1]) + 1]
    for other in (
        "",
        "b",
        text.upper(),
        text[:-1],
        text + "a",
        text + "=",
        " " + text,
        "z" + text[1:],
        text[:-1] + "1",
        same_bytes,
    ):
        with pytest.raises(UsageError):
            codec.parse_cid(other)


def test_cids_of_other_kinds_are_not_parsed() -> None:
    for cid in (b"\x01\x70" + OP_CID[2:], b"\x01\x71\x13" + OP_CID[3:], OP_CID[:-1], OP_CID + b"\x00"):
        with pytest.raises(UsageError):
            codec.parse_cid(codec.format_cid(cid))


def test_a_published_did_key_is_read_and_written() -> None:
    """The example key of the did:key method."""
    text = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
    author = codec.parse_did(text)
    assert author.hex() == "2e6fcce36701dc791488e0d0b1745cc1e33a4c1c9fcc41c63bd343dbbe0970e6"
    assert codec.format_did(author) == text


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32, bytes(31) + b"\x01", b"\x01" + bytes(31)])
def test_every_key_has_a_did(key: bytes) -> None:
    assert codec.parse_did(codec.format_did(Author(key))) == key


def test_other_dids_are_refused() -> None:
    good = codec.format_did(Author(bytes(32)))
    x25519 = "did:key:z6LSbysY2xFMRpGMhb7tFTLMpeuPRaqaWM1yECx2AtzE3KCc"
    others = [
        "",
        "did:key:",
        "did:key:z",
        good[:-1],
        good + "1",
        good.replace("z6", "z16"),
        good.upper(),
        " " + good,
        good + "\n",
    ]
    others += ["did:web:example.org", x25519, "did:key:z" + "z" * 10_000, "did:key:z0OIl", "did:key:zé", good[8:]]
    for text in others:
        with pytest.raises(UsageError) as caught:
            codec.parse_did(text)
        assert len(str(caught.value)) < 200
