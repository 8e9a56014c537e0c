"""Two sync sessions that talk in memory: a driver that performs what they ask for, as `node.link` and `node.peers` do.

A `Shelf` is where one replica keeps its ops: `LedgerShelf` a real ledger, `TableShelf` ops without content, of any
shape. An `End` is one end of one connection, a session with its driver; `talk` carries frames between two ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Protocol, cast

import msgspec

from crdtchain.adapters.keys import SigningKey, is_accepted
from crdtchain.dag import Dag
from crdtchain.errors import PeerError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, OpId
from crdtchain.shapes import decode_op
from crdtchain.sync.holdings import Holdings, PartIndex
from crdtchain.sync.messages import PROTOCOL_VERSION, Frame, Head, Hello, decode_frame, encode_frame
from crdtchain.sync.outputs import (
    Announced,
    Check,
    Found,
    Output,
    Prove,
    Pulled,
    Read,
    SendFrame,
    Take,
)
from crdtchain.sync.pull import Trip
from crdtchain.sync.session import Session

OP_PREFIX = b"\x01\x71\x12\x20"
NETWORK = OP_PREFIX + sha256(b"network").digest()


class Shelf(Protocol):
    """Where one replica keeps its ops."""

    holdings: Holdings
    blocks: dict[OpId, bytes]

    def find_id(self, block: bytes) -> OpId:
        """Return the id of a block's op."""

    def put(self, block: bytes) -> bool:
        """Keep a block; returns whether it is new."""

    def key(self, op: OpId) -> str:
        """Return the key of an op that is here."""


class LedgerShelf:
    """A real ledger, and its blocks."""

    def __init__(
        self, history: Sequence[SignedOp], scope: bytes = b"", find_part: Callable[[bytes], PartIndex] | None = None
    ) -> None:
        self.ledger = Ledger(history[0].op)
        self.blocks = {history[0].op.id: history[0].block}
        for signed in history[1:]:
            self.put(signed.block)
        self.holdings = Holdings(self.ledger.dag, scope, find_part)

    def find_id(self, block: bytes) -> OpId:
        return decode_op(block).op.id

    def put(self, block: bytes) -> bool:
        signed = decode_op(block)
        if signed.op.id in self.blocks:
            return False
        self.ledger.add(signed.op)
        self.blocks[signed.op.id] = block
        return True

    def key(self, op: OpId) -> str:
        number = self.ledger.dag.find(op)
        assert number is not None
        return f"{self.ledger.dag.depths[number]:010x}{op[4:].hex()}"


class TableShelf:
    """Ops that are nothing but a key: blocks of 5 bytes of depth, 32 of digest, and as many more as one likes."""

    def __init__(self, keys: Iterable[str] = (), padding: int = 0) -> None:
        self.ids: list[OpId] = []
        self.depths: list[int] = []
        self.blocks: dict[OpId, bytes] = {}
        self.valid: frozenset[str] | None = None
        """The keys of valid ops, where a test knows them."""
        for key in keys:
            self.put(bytes.fromhex(key) + bytes(padding))
        # Of the op table holdings use these columns alone.
        self.holdings = Holdings(cast("Dag", self))

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, op: OpId) -> int | None:
        return self.ids.index(op) if op in self.blocks else None

    def author_key(self, number: int) -> Author:
        """Every op is of one of four authors."""
        return Author(bytes(31) + bytes([self.ids[number][4] % 4]))

    def find_id(self, block: bytes) -> OpId:
        return OpId(OP_PREFIX + block[5:37])

    def put(self, block: bytes) -> bool:
        op = self.find_id(block)
        if op in self.blocks:
            return False
        if self.valid is not None and block[:37].hex() not in self.valid:
            raise PeerError("the peer sent an op that breaks a rule")
        self.blocks[op] = block
        self.depths.append(int.from_bytes(block[:5], "big"))
        self.ids.append(op)
        return True

    def key(self, op: OpId) -> str:
        return self.blocks[op][:37].hex()


def make_hello(name: str, network: bytes = NETWORK, **changes: Any) -> Hello:
    """Return what a name says first; `changes` replace fields."""
    hello = Hello(
        version=PROTOCOL_VERSION,
        network=bytes(network),
        node=bytes(make_key(name).author),
        nonce=sha256(b"nonce of " + name.encode()).digest(),
        root=bytes(32),
        count=0,
        scope=b"",
        time_ms=1_800_000_000_000,
        blobs="",
    )
    return msgspec.structs.replace(hello, **changes)


def make_key(name: str) -> SigningKey:
    """Return the key of a name."""
    return SigningKey.from_seed(sha256(b"key of " + name.encode()).digest())


class End:
    """One end of one connection."""

    def __init__(
        self, shelf: Shelf, name: str, is_dialler: bool, network: bytes = NETWORK, seed: bytes = bytes(32)
    ) -> None:
        self.shelf = shelf
        self.key = make_key(name)
        self.session = Session(shelf.holdings, make_hello(name, network), is_dialler, name.encode() + seed)
        self.out: deque[bytes] = deque()
        self.takes: deque[Take] = deque()
        self.reads: deque[Read] = deque()
        self.outputs: list[Output] = []
        """What came out, frames aside."""
        self.trips: list[Trip] = []
        self.copies: list[OpId] = []
        """Ops that came and were here already."""
        self.got = 0
        """Ops that came and were not."""
        self.stores, self.reads_at_once, self.pulls, self.grafts = True, True, True, True
        self.is_found = False
        self.is_honest = True
        """Whether the other end is."""
        self._last_key = ""
        self._request = 0

    def act(self, outputs: Sequence[Output]) -> None:
        """Perform outputs."""
        for output in outputs:
            if not isinstance(output, SendFrame):
                self.outputs.append(output)
            match output:
                case SendFrame():
                    self.out.append(output.frame)
                case Prove():
                    self.act(self.session.prove(self.key.sign(output.message)))
                case Check():
                    if not is_accepted(Author(output.key), output.message, output.signature):
                        raise PeerError("the peer could not prove its key", "handshake")
                    self.act(self.session.accept())
                case Read():
                    self.reads.append(output)
                    if self.reads_at_once:
                        self.read()
                case Take():
                    self.takes.append(output)
                    if self.stores:
                        self.store()
                case Found():
                    self.is_found = True
                    self.pull()
                case Pulled():
                    self.trips.append(output.trip)
                    self.pull()
                    self.act(self.session.probe())
                case Announced():
                    missing = self.shelf.holdings.find_missing(output.prefixes)
                    if missing and self.grafts:
                        self.act(self.session.graft(missing))
                case _:
                    pass

    def pull(self) -> None:
        """Pull, when there is reason to and nothing else is under way."""
        if self.is_found and self.pulls and not self.session.is_pulling:
            self.is_found = False
            if self.session.pulling.has_found or not self.session.is_in_step:
                self.act(self.session.pull())

    def read(self) -> None:
        """Read what the session asked for first."""
        read = self.reads.popleft()
        self.act(self.session.supply(read, [self.shelf.blocks[op] for op in read.ids]))

    def store(self, most: int | None = None) -> None:
        """Store the page that came first, or, before the machine fails, some ops of it."""
        take = self.takes.popleft()
        refused = accepted = 0
        for block in take.blocks if most is None else take.blocks[:most]:
            op = self.shelf.find_id(block)
            if op in self.shelf.blocks:
                self.copies.append(op)
            if self.shelf.put(block):
                accepted += 1
            else:
                refused += len(block)
            if take.request:
                # An answer comes in key order, so that parents come first.
                key = self.shelf.key(op)
                assert not self.is_honest or take.request != self._request or key > self._last_key
                self._request, self._last_key = take.request, key
        self.got += accepted
        if most is None:
            self.session.live.note_known(self.shelf.find_id(block) for block in take.blocks)
            self.act(self.session.stored(take, accepted, refused))

    def receive(self, frame: bytes) -> None:
        """Take a frame."""
        self.act(self.session.receive(frame))

    def hear(self, head: Head, blocks: Sequence[bytes] = ()) -> None:
        """Take a message of a peer that the test plays."""
        self.receive(encode_frame(head, blocks))

    def said(self) -> list[Frame]:
        """Return what was said since the last call, and deliver it to nobody."""
        frames = [decode_frame(frame) for frame in self.out]
        self.out.clear()
        return frames

    @property
    def root(self) -> bytes:
        return self.shelf.holdings.tree().root()


def connect(
    one: Shelf, other: Shelf, network: bytes = NETWORK, names: tuple[str, str] = ("dialler", "listener"), seed: int = 0
) -> tuple[End, End]:
    """Return the ends of a new connection; both have said hello, and nothing was carried."""
    salt = seed.to_bytes(32, "big")
    ends = End(one, names[0], True, network, salt), End(other, names[1], False, network, salt)
    for end in ends:
        end.act(end.session.start())
    return ends


def talk(one: End, other: End, frames: int = 100_000) -> int:
    """Carry at most so many frames, until nobody says anything; returns how many."""
    carried = 0
    while one.out or other.out:
        for source, target in ((one, other), (other, one)):
            if source.out:
                if carried == frames:
                    return carried
                carried += 1
                target.receive(source.out.popleft())
    return carried


def settle(one: End, other: End, rounds: int = 12) -> int:
    """Talk, and probe as time would make them, until both hold the same; returns how many rounds of probes it took."""
    talk(one, other)
    for taken in range(rounds):
        if one.root == other.root:
            return taken
        for end in (one, other):
            end.act(end.session.probe(is_forced=True))
        talk(one, other)
    assert one.root == other.root, "they do not come to hold the same"
    return rounds
