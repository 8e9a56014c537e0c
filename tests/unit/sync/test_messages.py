"""Frames that are messages, frames that are not, and messages that have nothing to do with sets of ops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.scalars import BlobId
from crdtchain.sync.live import Urgency
from crdtchain.sync.messages import (
    PREFIX_BYTES,
    Addresses,
    Announce,
    Blob,
    BlobGet,
    BlobNone,
    Credit,
    Get,
    Graft,
    Head,
    Ops,
    Probe,
    Tree,
    TreeReply,
    decode_frame,
    encode_frame,
    encode_ops,
)
from crdtchain.sync.outputs import Announced, BlobAsked, BlobCame, Found, Read, SendFrame
from crdtchain.sync.regions import LeafView, Whole, encode_items
from tests.sync_pair import talk
from tests.unit.sync.test_session import ALL, SALT, make_pair, met, say_new, spread

# -- frames --


def test_ops_come_back_with_their_blocks() -> None:
    assert decode_frame(encode_ops([b"one", b"three"], 4, True)) == (Ops(4, True, (3, 5)), [b"one", b"three"])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_peer_error(data: bytes) -> None:
    try:
        head, blocks = decode_frame(data)
    except PeerError as error:
        assert str(error)
    else:
        assert encode_frame(head, blocks) == data


_MESSAGES: list[tuple[Head, list[bytes]]] = [
    (Probe(bytes(32), 7), []),
    (Tree(b"", SALT, encode_items([LeafView("", (b"abcd",)), Whole("0000000001", 7)])), []),
    (TreeReply(1, encode_items([LeafView("", ())])), []),
    (Get(3, b"", SALT, ALL), []),
    (Ops(0, True, (3, 5)), [b"one", b"three"]),
    (Announce(bytes(16)), []),
    (Graft(bytes(8)), []),
    (Credit(70_000), []),
    (BlobGet(b"\x01\x71\x12\x20" + bytes(32), 0, 4, True), []),
    (Blob(3, 3), [b"abc"]),
]


@given(st.data())
def test_a_damaged_frame_is_a_message_or_a_peer_error_and_the_session_lives(data: st.DataObject) -> None:
    end = met()
    end.stores = False
    end.act(end.session.pull())
    frame = bytearray(encode_frame(*data.draw(st.sampled_from(_MESSAGES))))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    try:
        end.receive(bytes(frame))
    except PeerError as error:
        assert str(error)


def test_a_frame_above_the_bound_is_refused() -> None:
    with pytest.raises(PeerError, match="at most"):
        decode_frame(bytes(limits.FRAME_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "frame",
    [
        encode_frame(Blob(3, 3), [b"ab"]),
        encode_frame(Blob(3, 3), [b"abcd"]),
        encode_frame(Blob(2**20, limits.BLOB_PIECE_BYTES + 1), [bytes(limits.BLOB_PIECE_BYTES + 1)]),
        encode_frame(Blob(limits.BLOB_BYTES_MAX + 1, 1), [b"a"]),
        encode_frame(BlobGet(bytes(36), 0, limits.BLOB_HOPS_MAX + 1, False)),
        encode_frame(BlobGet(bytes(35), 0, 0, False)),
        encode_frame(BlobNone(False), [b"a"]),
        encode_frame(Addresses(tuple("x" for _ in range(17)))),
        encode_frame(Ops(0, True, (1,) * 201), [b"x"] * 201),
        encode_frame(Ops(0, True, (limits.BLOCK_BYTES_MAX + 1,)), [bytes(limits.BLOCK_BYTES_MAX + 1)]),
    ],
)
def test_frames_beyond_their_bounds_are_refused(frame: bytes) -> None:
    with pytest.raises(PeerError):
        decode_frame(frame)


def test_a_piece_of_a_blob_is_asked_for_and_answered_one_at_a_time() -> None:
    end = met()
    session, blob = end.session, BlobId(b"\x01\x71\x12\x20" + bytes(32))
    session.ask_blob(blob, 0, 0)
    with pytest.raises(ValueError, match="one piece"):
        session.ask_blob(blob, 0, 0)
    with pytest.raises(PeerError, match="does not fit"):
        session.receive(encode_frame(Blob(4, 3), [b"abc"]))
    assert session.receive(encode_frame(Blob(3, 3), [b"abc"])) == [BlobCame(Blob(3, 3), b"abc")]
    assert not session.is_blob_wanted
    get = BlobGet(bytes(blob), 0, 4, True)
    assert session.receive(encode_frame(get)) == [BlobAsked(get)]
    with pytest.raises(PeerError, match="before its last answer"):
        session.receive(encode_frame(get))
    assert session.give_blob(3, b"abc") == [SendFrame(encode_frame(Blob(3, 3), [b"abc"]))]
    with pytest.raises(PeerError, match="no blob"):
        session.receive(encode_frame(BlobGet(bytes(36), 0, 0, False)))


def test_announced_prefixes_come_out_and_live_ops_are_read_for_a_graft() -> None:
    world, ends = make_pair()
    (signed,) = spread(world, 1)
    ends[1].grafts = False
    say_new(ends[0], signed, Urgency.ANNOUNCED)
    ends[0].act(ends[0].session.announce())
    talk(*ends)
    prefix = signed.op.id[4 : 4 + PREFIX_BYTES]
    assert Announced([prefix]) in ends[1].outputs
    assert ends[0].session.receive(encode_frame(Graft(prefix))) == [Read(0, [signed.op.id])]
    assert Found(True) not in ends[0].outputs
