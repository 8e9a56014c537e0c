"""One side of a conversation between two replicas: frames in, outputs out; no I/O, no clock.

The driver (`node.peers`, or a browser's bridge) owns a socket and a store. It gives frames to `receive`, performs the
outputs in order, and reports back by `supply` (blocks that were read) and `stored` (a page is on disk). A `PeerError`
from any of them ends the session: its text is the reason to close with.

Theory of operation:

1. Both sides say `hello` at once: version, network, heads. Heads that are not here come out as `Found`, and the driver
   decides when to `fetch` them, so that two peers are never asked for the same thing.
2. The answering side computes past(want) - past(have) once for a request and pages from it, parents first; three pages
   are in flight, and each further one is sent when the asking side has stored one (`more`).
3. New ops go live to peers, but not to the one that they came from, nor while a page of an answer is under way: then,
   and when a live queue was dropped, `heads` afterwards lets the other side ask.

Set reconciliation (`tree`, `tree_reply`) will replace the way in which a side finds what it lacks: it takes the place
of `Hello.heads`, `Heads` and `compute_delta`, and `get` will name ids and ranges; `Found`, `fetch`, pages, `more` and
live push stay as they are.

Source: docs/protocol/README.md. Not here: signatures, waiting ops (`replica`), limits by rate (the driver).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from msgspec import Struct, field

from crdtchain import codec, limits
from crdtchain.dag import Dag
from crdtchain.errors import PeerError
from crdtchain.scalars import BlobId, OpId
from crdtchain.sync.delta import compute_delta
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
    join_ids,
    split_ids,
)

PAGES_IN_FLIGHT: Final = 3
"""While one page is added and one is verified, the third is on its way: with two, verification had to wait."""
_KNOWN_MAX: Final = 4_096


class SendFrame(Struct, frozen=True):
    """Send these bytes as one frame."""

    frame: bytes


class Read(Struct, frozen=True):
    """Read the blocks of these ops, all of them here, and hand them to `supply`."""

    request: int
    ids: list[OpId]


class Take(Struct, frozen=True):
    """Decode, verify and add these blocks, in this order; then, for a request other than 0, call `stored`."""

    request: int
    blocks: list[bytes]
    last: bool
    """Whether the answer to the request ends here."""


class Found(Struct, frozen=True):
    """The peer holds ops that are not here: `fetch` them, unless somebody else is being asked already."""

    ids: tuple[OpId, ...]


class Ready(Struct, frozen=True):
    """The peer has said hello, and it is of this network."""

    hello: Hello


class BlobAsked(Struct, frozen=True):
    """The peer wants a piece of a blob: call `give_blob` or `refuse_blob`, once."""

    get: BlobGet


class BlobCame(Struct, frozen=True):
    """The peer's answer to `ask_blob`."""

    head: Blob | BlobNone
    data: bytes


Output: TypeAlias = SendFrame | Read | Take | Found | Ready | BlobAsked | BlobCame


class _Plan(Struct):
    """An answer that is being paged out."""

    request: int
    ids: list[OpId]
    credit: int
    place: int = 0
    buffer: list[bytes] = field(default_factory=list)
    is_reading: bool = False


class Session:
    """The state of one conversation."""

    def __init__(self, dag: Dag, hello: Hello) -> None:
        """`hello` is what this side says first; its heads and count are filled in by `start`."""
        self._dag = dag
        self._hello = hello
        self.peer: Hello | None = None
        """What the other side said first."""
        self.peer_heads: set[OpId] = set()
        """The heads that it named last."""
        self.peer_count = 0
        self._known: dict[OpId, None] = {}
        self._request = 0
        self._asking = 0
        """The request that this side waits for, 0 for none."""
        self._expected = 0
        """Pages that may still come before another `more`."""
        self._plan: _Plan | None = None
        self._answered = 0
        """The last request of the peer."""
        self._is_behind = False
        self._told: tuple[OpId, ...] = ()
        self._blob_wanted: BlobGet | None = None
        """What this side waits for."""
        self._is_blob_due = False
        """Whether the peer waits for a piece of a blob."""

    @property
    def is_fetching(self) -> bool:
        """Whether this side waits for pages."""
        return self._asking != 0

    @property
    def is_serving(self) -> bool:
        """Whether the other side waits for pages."""
        return self._plan is not None

    def start(self) -> list[Output]:
        """Say hello."""
        hello = self._hello
        self._told = tuple(self._dag.head_ids())
        frame = encode_frame(
            Hello(
                version=hello.version,
                network=hello.network,
                node=hello.node,
                nonce=hello.nonce,
                heads=join_ids(self._told),
                count=len(self._dag),
                blobs=hello.blobs,
            )
        )
        return [SendFrame(frame)]

    def missing(self) -> tuple[OpId, ...]:
        """Return those of the peer's heads that are not here, sorted."""
        return tuple(sorted(head for head in self.peer_heads if self._dag.find(head) is None))

    def receive(self, frame: bytes) -> list[Output]:
        """Take a frame from the peer.

        Raises:
            PeerError: the peer broke the protocol, or is of another version or network.
        """
        head, blocks = decode_frame(frame)
        if self.peer is None and not isinstance(head, Hello):
            raise PeerError("the peer did not say hello first")
        match head:
            case Hello():
                return self._receive_hello(head)
            case Heads():
                return self._note_heads(head.heads, head.count)
            case Get():
                return self._receive_get(head)
            case More():
                return self._receive_more(head)
            case Ops():
                return self._receive_ops(head, blocks)
            case BlobGet():
                return self._receive_blob_get(head)
            case Blob() | BlobNone():
                return self._receive_blob(head, blocks)

    def _receive_hello(self, hello: Hello) -> list[Output]:
        if self.peer is not None:
            raise PeerError("the peer said hello twice")
        if hello.version != PROTOCOL_VERSION:
            raise PeerError(f"the peer speaks version {hello.version} of the protocol, this node {PROTOCOL_VERSION}")
        if hello.network != self._hello.network:
            raise PeerError("the peer is of another network")
        if hello.nonce == self._hello.nonce:
            raise PeerError("the peer is this node itself")
        self.peer = hello
        return [Ready(hello), *self._note_heads(hello.heads, hello.count)]

    def _note_heads(self, heads: bytes, count: int) -> list[Output]:
        self.peer_heads = set(split_ids(heads))
        self.peer_count = count
        missing = self.missing()
        return [Found(missing)] if missing else []

    # -- answering --

    def _receive_get(self, get: Get) -> list[Output]:
        # A walk may be long: the next one is for who has taken what the last one found.
        if self._plan is not None:
            raise PeerError("the peer asked again before its last answer had ended")
        if get.request <= self._answered:
            raise PeerError("the peer's requests do not ascend")
        self._answered = get.request
        dag = self._dag
        want = [number for number in map(dag.find, split_ids(get.want)) if number is not None]
        have = [number for number in map(dag.find, split_ids(get.have)) if number is not None]
        ids = [dag.ids[number] for number in compute_delta(dag, want, have)]
        self._plan = _Plan(get.request, ids, PAGES_IN_FLIGHT)
        return self._page()

    def _receive_more(self, more: More) -> list[Output]:
        plan = self._plan
        if plan is None or more.request != plan.request:
            return []
        plan.credit += 1
        if plan.credit > PAGES_IN_FLIGHT:
            raise PeerError("the peer acknowledged a page that it was not sent")
        return self._page()

    def supply(self, request: int, blocks: Sequence[bytes]) -> list[Output]:
        """Take the blocks that a `Read` asked for, in its order."""
        plan = self._plan
        if plan is None or plan.request != request:
            return []
        plan.is_reading = False
        plan.buffer.extend(blocks)
        return self._page()

    def _page(self) -> list[Output]:
        """Send pages as long as there is credit; read ahead when the buffer runs out."""
        plan, outputs = self._plan, list[Output]()
        while plan is not None and not plan.is_reading:
            rest = len(plan.ids) - plan.place
            if not plan.buffer and rest:
                ids = plan.ids[plan.place : plan.place + limits.BATCH_OPS_MAX]
                plan.place += len(ids)
                plan.is_reading = True
                return [*outputs, Read(plan.request, ids)]
            if not plan.credit:
                return outputs
            blocks, plan.buffer = _split_page(plan.buffer)
            plan.credit -= 1
            is_last = not plan.buffer and not rest
            outputs.append(SendFrame(encode_ops(blocks, plan.request, is_last)))
            if is_last:
                plan = self._plan = None
        if plan is None and self._is_behind:
            outputs.extend(self.probe())
        return outputs

    # -- asking --

    def fetch(self, want: Sequence[OpId]) -> list[Output]:
        """Ask for the past of some ops, as far as it is not here; one request at a time.

        Raises:
            ValueError: another request is under way.
        """
        if self.is_fetching:
            raise ValueError("one request at a time")
        self._request += 1
        self._asking, self._expected = self._request, PAGES_IN_FLIGHT
        return [SendFrame(encode_frame(Get(self._request, join_ids(want), join_ids(self._have()))))]

    def _have(self) -> list[OpId]:
        """Return what says best what is here: heads, and ops from ever longer ago, for the newest may be new there."""
        dag = self._dag
        numbers, distance = list[int](), 1
        while distance < len(dag):
            numbers.append(len(dag) - distance)
            distance += 1 + distance // 4
        heads = sorted(dag.heads, key=dag.depths.__getitem__, reverse=True)
        return [dag.ids[number] for number in dict.fromkeys([0, *numbers, *heads])]

    def _receive_ops(self, ops: Ops, blocks: list[bytes]) -> list[Output]:
        if ops.request:
            if ops.request != self._asking:
                raise PeerError("the peer sent an answer that nobody asked for")
            if not self._expected:
                raise PeerError("the peer sent a page before the last one was acknowledged")
            self._expected -= 1
            if ops.last:
                self._asking = 0
        return [Take(ops.request, blocks, ops.last)]

    def stored(self, request: int) -> list[Output]:
        """Say that a page of an answer has been stored: the next one may come."""
        if not request or request != self._asking:
            return []
        self._expected += 1
        return [SendFrame(encode_frame(More(request)))]

    # -- blobs --

    @property
    def is_blob_wanted(self) -> bool:
        """Whether this side waits for a piece of a blob."""
        return self._blob_wanted is not None

    def ask_blob(self, blob: BlobId, offset: int, hops: int, is_list: bool = False) -> list[Output]:
        """Ask for a piece of a blob; one at a time.

        Raises:
            ValueError: another one is under way.
        """
        if self._blob_wanted is not None:
            raise ValueError("one piece at a time")
        self._blob_wanted = BlobGet(bytes(blob), offset, hops, is_list)
        return [SendFrame(encode_frame(self._blob_wanted))]

    def give_blob(self, total: int, data: bytes) -> list[Output]:
        """Answer the peer with a piece."""
        self._is_blob_due = False
        return [SendFrame(encode_frame(Blob(total, len(data)), [data]))]

    def refuse_blob(self, later: bool = False) -> list[Output]:
        """Answer the peer that the blob is not here; `later`: that it is being fetched."""
        self._is_blob_due = False
        return [SendFrame(encode_frame(BlobNone(later)))]

    def _receive_blob_get(self, get: BlobGet) -> list[Output]:
        if self._is_blob_due:
            raise PeerError("the peer asked for a blob before its last answer had come")
        if not (codec.is_op_id(get.cid) or (codec.is_raw_blob_id(get.cid) and not get.list)):
            raise PeerError("the peer asked for what is no blob")
        self._is_blob_due = True
        return [BlobAsked(get)]

    def _receive_blob(self, head: Blob | BlobNone, blocks: list[bytes]) -> list[Output]:
        wanted = self._blob_wanted
        if wanted is None:
            raise PeerError("the peer sent a blob that nobody asked for")
        if isinstance(head, Blob) and head.size != min(limits.BLOB_PIECE_BYTES, head.total - wanted.offset):
            raise PeerError("the peer sent a piece of a blob that does not fit")
        self._blob_wanted = None
        return [BlobCame(head, blocks[0] if blocks else b"")]

    # -- live --

    def note_known(self, ids: Iterable[OpId]) -> None:
        """Note that the peer holds some ops: they are not pushed to it."""
        for op in ids:
            self._known.pop(op, None)
            self._known[op] = None
        while len(self._known) > _KNOWN_MAX:
            del self._known[next(iter(self._known))]

    def push(self, ops: Sequence[tuple[OpId, bytes]]) -> list[Output]:
        """Send new ops, ids and blocks, that the peer is not known to hold."""
        if self.peer is None:
            return []
        if self._plan is not None:
            self._is_behind = True
            return []
        blocks = [block for op, block in ops if op not in self._known]
        self.note_known(op for op, _ in ops)
        outputs: list[Output] = []
        while blocks:
            page, blocks = _split_page(blocks)
            outputs.append(SendFrame(encode_ops(page)))
        return outputs

    def set_behind(self) -> None:
        """Note that a push was dropped: the next `probe` says the heads."""
        self._is_behind = True

    def probe(self) -> list[Output]:
        """Say the heads, if they have changed since they were last said."""
        heads = tuple(self._dag.head_ids())
        if self.peer is None or self._plan is not None or (heads == self._told and not self._is_behind):
            return []
        self._told, self._is_behind = heads, False
        return [SendFrame(encode_frame(Heads(join_ids(heads), len(self._dag))))]


def _split_page(blocks: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Cut one page off: at most 200 blocks and 256 KiB, but at least one block."""
    size, count = 0, 0
    for block in blocks[: limits.BATCH_OPS_MAX]:
        size += len(block)
        if count and size > limits.PAGE_BYTES:
            break
        count += 1
    return blocks[:count], blocks[count:]
