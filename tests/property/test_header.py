"""The two ways to a header agree: what the short one takes, the long one takes too, and reads the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtchain import codec
from crdtchain.errors import InvalidOpError
from crdtchain.header import decode_header, read_header
from crdtchain.ops import SignedOp
from crdtchain.shapes import _make_op, decode_op
from tests.builders import bulk_history

HISTORY = bulk_history(jobs=2, authors=4, seed="headers")
BLOCKS = [signed.block for signed in HISTORY]
LINK_AT = codec.LINK_HEAD + codec.OP_CID_PREFIX


def decode_plainly(block: bytes) -> SignedOp | str:
    try:
        return _make_op(block, None, decode_header(block))
    except InvalidOpError as error:
        return f"{type(error).__name__} {error.code} {error}"


def decode(block: bytes) -> SignedOp | str:
    try:
        return decode_op(block)
    except InvalidOpError as error:
        return f"{type(error).__name__} {error.code} {error}"


def test_every_kind_takes_the_short_way() -> None:
    taken = {signed.op.kind for signed in HISTORY if read_header(signed.block) is not None}
    assert {signed.op.kind for signed in HISTORY} <= taken
    for signed in HISTORY:
        header = read_header(signed.block)
        assert header is None or header == decode_header(signed.block)
        assert decode_op(signed.block) == decode_plainly(signed.block)


@given(st.sampled_from(BLOCKS), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3))
def test_changed_blocks_are_judged_alike(block: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(block)
    for place, byte in changes:
        data[place % len(data)] = byte
    assert decode(bytes(data)) == decode_plainly(bytes(data))


@given(st.sampled_from(BLOCKS), st.integers(0, 700), st.integers(0, 80), st.binary(max_size=80))
def test_cut_and_stretched_blocks_are_judged_alike(block: bytes, place: int, length: int, more: bytes) -> None:
    start = place % len(block)
    data = block[:start] + more + block[start + length :]
    assert decode(data) == decode_plainly(data)


@given(
    st.sampled_from(BLOCKS),
    st.sampled_from([b"\x03", b"\x80", b"\xa0", b"\xf6", b"\x60", b"\xa1\x61a\x00", b"\x20", b""]),
)
def test_other_bodies_are_judged_alike(block: bytes, body: bytes) -> None:
    start = block.index(b"\x64body") + 5
    data = block[:start] + body + block[codec.find_end(block, start) :]
    assert decode(data) == decode_plainly(data)


@given(st.sampled_from(BLOCKS), st.integers(0, 5), st.sampled_from([codec.RAW_CID_PREFIX, bytes(4), b"\x01\x71\x12"]))
def test_other_links_are_judged_alike(block: bytes, which: int, prefix: bytes) -> None:
    places = [at for at in range(len(block)) if block.startswith(LINK_AT, at)]
    if places:
        at = places[which % len(places)] + len(codec.LINK_HEAD)
        data = block[:at] + prefix + block[at + 4 :]
        assert decode(data) == decode_plainly(data)


NUMBERS = st.sampled_from([0, 23, 24, 255, 256, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**52, 2**52 + 1, 2**53 - 1])


@given(NUMBERS, NUMBERS, st.integers(0, 70), st.sampled_from(["bid", "beat", "profile", "", "none"]))
def test_bounds_are_the_same(seq: int, time: int, parents: int, kind: str) -> None:
    links = [codec.Link(codec.OP_CID_PREFIX + bytes([number]) * 32) for number in range(parents)]
    plain: dict[str, codec.Value] = {
        "v": 1,
        "author": bytes(HISTORY[1].op.author),
        "seq": seq,
        "prev": None if seq == 0 else links[0] if links else None,
        "parents": list(links),
        "time": time,
        "kind": kind,
        "body": {} if kind == "beat" else {"name": "n" * (parents * 40), "about": ""},
    }
    block = codec.encode([plain, bytes(64)])
    assert decode(block) == decode_plainly(block)
