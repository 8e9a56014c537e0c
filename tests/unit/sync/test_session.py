"""Two sessions that talk in memory, and one that is lied to."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Profile, SignedOp
from crdtchain.scalars import BlobId, OpId
from crdtchain.shapes import decode_op
from crdtchain.sync.messages import (
    PROTOCOL_VERSION,
    Blob,
    BlobGet,
    BlobNone,
    Get,
    Heads,
    Hello,
    More,
    Ops,
    decode_frame,
    encode_frame,
    encode_ops,
)
from crdtchain.sync.session import (
    PAGES_IN_FLIGHT,
    BlobAsked,
    BlobCame,
    Found,
    Output,
    Read,
    Ready,
    SendFrame,
    Session,
    Take,
)
from tests.builders import World, bulk_history, bulk_world


def make_hello(network: bytes, number: int = 1, version: int = PROTOCOL_VERSION) -> Hello:
    return Hello(version, network, bytes([number]) * 32, bytes([number]) * 16, b"", 0, "")


class Side:
    """A session with a ledger and blocks in memory; the test carries frames."""

    def __init__(self, history: list[SignedOp], number: int) -> None:
        self.blocks = {signed.op.id: signed.block for signed in history}
        self.ledger = Ledger(history[0].op)
        for signed in history[1:]:
            self.ledger.add(signed.op)
        self.session = Session(self.ledger.dag, make_hello(bytes(history[0].op.id), number))
        self.out: deque[bytes] = deque()
        self.takes: list[Take] = []
        self.stores_at_once = True

    def perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendFrame():
                    self.out.append(output.frame)
                case Read():
                    self.perform(self.session.supply(output.request, [self.blocks[op] for op in output.ids]))
                case Found():
                    if not self.session.is_fetching:
                        self.perform(self.session.fetch(output.ids))
                case Take():
                    self.takes.append(output)
                    if self.stores_at_once:
                        self.store(output)
                case Ready():
                    assert self.session.peer is output.hello

    def store(self, take: Take) -> None:
        for block in take.blocks:
            signed = decode_op(block)
            self.ledger.add(signed.op)
            self.blocks[signed.op.id] = block
        self.perform(self.session.stored(take.request))


def talk(*sides: Side) -> int:
    """Carry frames until nobody has anything to say; returns how many ops were carried."""
    first, second = sides
    carried = 0
    while first.out or second.out:
        for source, target in ((first, second), (second, first)):
            if source.out:
                frame = source.out.popleft()
                carried += len(decode_frame(frame)[1])
                target.perform(target.session.receive(frame))
    return carried


def start(*sides: Side) -> None:
    for side in sides:
        side.perform(side.session.start())


def test_a_newcomer_gets_everything_once_parents_first() -> None:
    history = bulk_history(jobs=4, authors=5)
    full, fresh = Side(history, 1), Side(history[:1], 2)
    start(full, fresh)
    assert talk(full, fresh) == len(history) - 1
    assert fresh.ledger.state_digest() == full.ledger.state_digest()
    assert max(len(take.blocks) for take in fresh.takes) <= limits.BATCH_OPS_MAX
    assert [take.last for take in fresh.takes] == [False] * (len(fresh.takes) - 1) + [True]


@given(st.data())
def test_two_sides_that_both_lack_something_come_to_hold_the_same(data: st.DataObject) -> None:
    world = _WORLD
    size = len(world.log)
    sides = []
    for number in (1, 2):
        tops = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
        past = sorted({0, *world.ledger.dag.iterate_past(tops)})
        sides.append(Side([world.log[op] for op in past], number))
    lacking = sum(len(set(other.blocks) - set(side.blocks)) for side, other in (sides, sides[::-1]))
    start(*sides)
    assert talk(*sides) >= lacking
    assert sides[0].ledger.heads_digest() == sides[1].ledger.heads_digest()


_WORLD = bulk_world(jobs=1, authors=4)


def test_what_both_have_is_found_below_heads_that_only_one_has() -> None:
    world = bulk_world(jobs=4, authors=4, seed="apart")
    size = len(world.log)
    mine, theirs = Side(list(world.log), 1), Side(list(world.log), 2)
    for side, name in ((mine, "person00"), (theirs, "person01")):
        before = world.tip(name)
        for number in range(5):
            before = world.sign(name, Profile(name=name, about=str(number)), prev=before)
            side.ledger.add(before.op)
            side.blocks[before.op.id] = before.block
    start(mine, theirs)
    assert 10 <= talk(mine, theirs) < 40 < size
    assert mine.ledger.heads_digest() == theirs.ledger.heads_digest()


def test_equal_sides_send_two_frames_and_no_ops() -> None:
    history = bulk_history(jobs=1, authors=3)
    sides = Side(history, 1), Side(history, 2)
    start(*sides)
    assert [len(side.out) for side in sides] == [1, 1]
    assert talk(*sides) == 0


def test_three_pages_are_in_flight_and_another_only_after_one_is_stored() -> None:
    history = bulk_history(jobs=6, authors=6)
    full, fresh = Side(history, 1), Side(history[:1], 2)
    fresh.stores_at_once = False
    start(full, fresh)
    talk(full, fresh)
    assert len(fresh.takes) == PAGES_IN_FLIGHT == 3
    fresh.store(fresh.takes[0])
    talk(full, fresh)
    assert len(fresh.takes) == PAGES_IN_FLIGHT + 1


def test_new_ops_are_pushed_to_who_does_not_have_them() -> None:
    world = World()
    sides = Side(list(world.log), 1), Side(list(world.log), 2)
    start(*sides)
    talk(*sides)
    signed = world.find(world.transfer("alice", "bob", 1))
    sides[0].ledger.add(signed.op)
    sides[0].perform(sides[0].session.push([(signed.op.id, signed.block)]))
    assert talk(*sides) == 1
    assert signed.op.id in sides[1].ledger
    sides[0].perform(sides[0].session.push([(signed.op.id, signed.block)]))
    assert talk(*sides) == 0


def test_what_is_new_while_a_peer_catches_up_is_found_by_the_heads_afterwards() -> None:
    world = bulk_world(jobs=6, authors=6)
    full, fresh = Side(list(world.log), 1), Side(world.log[:1], 2)
    fresh.stores_at_once = False
    start(full, fresh)
    talk(full, fresh)
    signed = world.find(world.transfer("person00", "person01", 1))
    full.ledger.add(signed.op)
    full.blocks[signed.op.id] = signed.block
    full.perform(full.session.push([(signed.op.id, signed.block)]))
    assert not full.out
    fresh.stores_at_once = True
    for take in fresh.takes[:PAGES_IN_FLIGHT]:
        fresh.store(take)
    talk(full, fresh)
    assert signed.op.id in fresh.ledger


def make_met() -> tuple[Session, bytes]:
    """Return a session whose peer has said hello, and the network."""
    world = World()
    session = Session(world.ledger.dag, make_hello(bytes(world.network), 1))
    session.start()
    session.receive(encode_frame(make_hello(bytes(world.network), 2)))
    return session, bytes(world.network)


def test_hello_comes_first_and_once() -> None:
    world = World()
    network = bytes(world.network)
    session = Session(world.ledger.dag, make_hello(network, 1))
    with pytest.raises(PeerError, match="hello first"):
        session.receive(encode_frame(Get(1, b"", b"")))
    session.receive(encode_frame(make_hello(network, 2)))
    with pytest.raises(PeerError, match="hello twice"):
        session.receive(encode_frame(make_hello(network, 2)))


def test_other_versions_other_networks_and_oneself_are_refused() -> None:
    world = World()
    network = bytes(world.network)
    for hello, reason in (
        (make_hello(network, 2, version=9), "version 9"),
        (make_hello(network[:-1] + b"x", 2), "another network"),
        (make_hello(network, 1), "itself"),
    ):
        session = Session(world.ledger.dag, make_hello(network, 1))
        with pytest.raises(PeerError, match=reason):
            session.receive(encode_frame(hello))


def test_answers_that_nobody_asked_for_are_refused() -> None:
    session, _ = make_met()
    with pytest.raises(PeerError, match="nobody asked for"):
        session.receive(encode_ops([b"x"], 1))
    session.fetch([OpId(b"\x01\x71\x12\x20" + bytes(32))])
    for _ in range(PAGES_IN_FLIGHT):
        session.receive(encode_ops([b"x"], 1))
    with pytest.raises(PeerError, match="before the last one was acknowledged"):
        session.receive(encode_ops([b"x"], 1))


def test_acknowledgements_of_pages_that_were_not_sent_are_refused() -> None:
    history = bulk_history(jobs=6, authors=6)
    session = Session(Side(history, 1).ledger.dag, make_hello(bytes(history[0].op.id), 1))
    session.receive(encode_frame(make_hello(bytes(history[0].op.id), 2)))
    want = b"".join(session._dag.head_ids())
    (read,) = session.receive(encode_frame(Get(1, want, b"")))
    assert isinstance(read, Read) and len(read.ids) == limits.BATCH_OPS_MAX
    with pytest.raises(PeerError, match="was not sent"):
        session.receive(encode_frame(More(1)))
    with pytest.raises(PeerError, match="before its last answer had ended"):
        session.receive(encode_frame(Get(2, want, b"")))


def test_requests_ascend() -> None:
    session, network = make_met()
    session.receive(encode_frame(Get(4, network, network)))
    with pytest.raises(PeerError, match="do not ascend"):
        session.receive(encode_frame(Get(4, network, network)))


def test_one_request_at_a_time() -> None:
    session, _ = make_met()
    session.fetch([])
    with pytest.raises(ValueError, match="one request"):
        session.fetch([])


@pytest.mark.parametrize(
    "message",
    [
        make_hello(bytes(36)),
        Heads(b"\x01\x71\x12\x20" + bytes(32), 7),
        Get(3, b"", bytes(36)),
        More(9),
        BlobGet(bytes(36), 7, 4, True),
        BlobNone(True),
    ],
)
def test_messages_come_back_as_they_were(message: Hello | Heads | Get | More | BlobGet | BlobNone) -> None:
    assert decode_frame(encode_frame(message)) == (message, [])


def test_ops_come_back_with_their_blocks() -> None:
    assert decode_frame(encode_ops([b"one", b"three"], 4, True)) == (Ops(4, True, (3, 5)), [b"one", b"three"])


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_peer_error(data: bytes) -> None:
    try:
        decode_frame(data)
    except PeerError as error:
        assert str(error)


@given(st.data())
def test_a_damaged_frame_is_a_message_or_a_peer_error_and_the_session_lives(data: st.DataObject) -> None:
    session, network = make_met()
    frame = bytearray(
        data.draw(
            st.sampled_from(
                [
                    encode_frame(Heads(network, 7)),
                    encode_frame(Get(3, network, network)),
                    encode_ops([b"one", b"three"]),
                    encode_frame(BlobGet(network, 0, 4, True)),
                    encode_frame(Blob(3, 3), [b"abc"]),
                ]
            )
        )
    )
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] = data.draw(st.integers(0, 255))
    try:
        session.receive(bytes(frame))
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
    ],
)
def test_frames_of_blobs_beyond_their_bounds_are_refused(frame: bytes) -> None:
    with pytest.raises(PeerError):
        decode_frame(frame)


def test_a_piece_of_a_blob_is_asked_for_and_answered_one_at_a_time() -> None:
    session, network = make_met()
    blob = BlobId(network)
    with pytest.raises(PeerError, match="nobody asked for"):
        session.receive(encode_frame(Blob(3, 3), [b"abc"]))
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
