"""One side of a conversation between two replicas: frames in, outputs out; no I/O, no clock, no randomness.

The driver (`node.link`, or a browser's bridge) owns a socket, a key and a store. It gives frames to `receive`, performs
the outputs in order, and reports back by `prove`, `accept`, `supply` and `stored`. A `PeerError` from any of them ends
the session: its text is the reason to close with.

Theory of operation:

1. Both sides say `hello` at once: version, network, key, nonce, root. Each then proves its key over both hellos;
   nothing else is taken before that.
2. Equal roots mean equal sets. When they differ, `Found` comes out, and the driver decides when to `pull`, so that two
   peers are never asked for the same thing. A pull walks (`reconcile`) and gets; what the walk finds that the other
   side lacks comes out there as `Found`. Of two sides that differ the one with fewer ops goes first; the other waits
   for the next probe, so that one walk serves both.
3. The side that is asked answers from its tree and keeps nothing, but for the pages of one `get`: six are in flight,
   and each further one is sent when the asking side has stored one (`more`).
4. New ops go live to peers that want them so, up to a credit of bytes that comes back when they are stored. A peer that
   got an author's ops from others before says `prune`: it is only told their prefixes from then on (`announce`), until
   it misses one and says `graft`. Whatever is lost on the way is found by the next `probe`.
5. Negotiation has a budget: 64 KiB, and 1 KiB for each op that came or was asked for, and what the driver adds for
   time and for ops that came elsewhere. A side that talks on without end and without ops is dropped.

Source: docs/protocol/sync.md. Not here: signatures, waiting ops (`replica`), limits by rate (the driver).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct, field

from crdtchain import codec, limits
from crdtchain.errors import PeerError
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.sync.holdings import EVERYTHING, Holdings
from crdtchain.sync.live import ANNOUNCED_MAX, Live, Urgency, split_authors, split_prefixes
from crdtchain.sync.messages import (
    ADDRESSES_MAX,
    Addresses,
    Announce,
    Auth,
    Blob,
    BlobGet,
    BlobNone,
    Credit,
    Get,
    Graft,
    Head,
    Hello,
    More,
    Ops,
    Probe,
    Prune,
    Tree,
    TreeReply,
    auth_bytes,
    decode_frame,
    encode_frame,
)
from crdtchain.sync.outputs import (
    Announced,
    BlobAsked,
    BlobCame,
    Check,
    Found,
    Output,
    Prove,
    Pulled,
    Read,
    Ready,
    SendFrame,
    Take,
    Told,
    Traffic,
)
from crdtchain.sync.pull import Pull
from crdtchain.sync.reconcile import Selection, answer
from crdtchain.sync.regions import decode_items
from crdtchain.sync.tree import RangeTree

PAGES_IN_FLIGHT: Final = 6
"""One is read, one on its way, one verified, one added, one stored: with three, they had to wait for each other."""
BUDGET_BYTES: Final = 64 * 1024
BUDGET_OP_BYTES: Final = 1_024
BUDGET_MAX: Final = 2**24
ANSWER_RESERVE: Final = 32 * 1024
"""What is left of the budget for an answer, when a question is asked."""
PASSED_OPS: Final = 4
"""So many ops that were looked at for a request, and not wanted, cost a byte of negotiation."""
SERVED_SLACK: Final = 10_000
"""So many ops beyond twice what is here are given to one peer in one session."""


class _Plan(Struct):
    """An answer that is being paged out."""

    request: int
    selection: Selection
    credit: int
    buffer: list[bytes] = field(default_factory=list)
    is_reading: bool = False
    is_over: bool = False
    """Whether nothing is left to read."""


_NEGOTIATING: Final = (Tree, TreeReply, Get, More, Credit, Announce, Graft, Prune, Probe, Addresses)


class Session:
    """The state of one conversation."""

    def __init__(self, holdings: Holdings, hello: Hello, is_dialler: bool, seed: bytes) -> None:
        """`hello` is what this side says first, its root and count are filled in by `start`; `seed` is random."""
        self._holdings = holdings
        self._hello = hello
        self._is_dialler = is_dialler
        self.peer: Hello | None = None
        """What the other side said first."""
        self.is_ready = False
        """Whether the other side has proved its key."""
        self.peer_root = b""
        self.peer_count = 0
        """What the other side held when it last said."""
        self.traffic = Traffic()
        self.received_kind = ""
        """The name of the message that came last, in small letters."""
        self.live = Live()
        self.pulling = Pull(seed)
        self._plan: _Plan | None = None
        self._answered = 0
        """The last request of the peer."""
        self._expected = 0
        """Pages that may still come before another `more`."""
        self._held = 0
        """Ops that were here when the request was sent, and those that its pages brought or that came meanwhile."""
        self._mismatches = 0
        self._told_root = b""
        self._budget = BUDGET_BYTES
        self._blob_wanted: BlobGet | None = None
        """What this side waits for."""
        self._is_blob_due = False
        """Whether the peer waits for a piece of a blob."""

    # -- what both agree on --

    @property
    def is_pulling(self) -> bool:
        """Whether this side is getting what it lacks."""
        return self.pulling.is_active

    @property
    def is_serving(self) -> bool:
        """Whether the other side waits for pages."""
        return self._plan is not None

    @property
    def pull_scope(self) -> bytes:
        """What this side asks the other for: what it keeps, as far as the other side keeps it."""
        theirs = EVERYTHING if self.peer is None else self.peer.scope
        return self._holdings.scope or theirs

    @property
    def is_in_step(self) -> bool:
        """Whether the other side held nothing that is not here, when it last said."""
        if self.pull_scope == EVERYTHING and self._holdings.was_root(self.peer_root):
            return True
        try:
            return self.is_ready and self.peer_root == self._holdings.tree(self.pull_scope).root()
        except PeerError:
            # Whoever asks about many connections must not fail by one whose scope is followed no more.
            return False

    def _send(self, head: Head, blocks: Sequence[bytes] = ()) -> SendFrame:
        frame = encode_frame(head, blocks)
        self.traffic.sent_bytes += len(frame)
        if isinstance(head, Tree | Get | More):
            self.pulling.trip.sent_bytes += len(frame)
        if isinstance(head, _NEGOTIATING):
            self._charge(len(frame))
        return SendFrame(frame)

    def _charge(self, size: int) -> None:
        self.traffic.negotiated_bytes += size
        self._budget -= size
        if self._budget < 0:
            raise PeerError("the peer negotiates without an end, and without ops", "negotiation")

    def refill(self, size: int) -> None:
        """Add to the budget of negotiation, up to what a session starts with."""
        self._budget = max(self._budget, min(self._budget + size, BUDGET_BYTES))

    def _earn(self, ops: int) -> None:
        self._budget = min(self._budget + BUDGET_OP_BYTES * ops, BUDGET_MAX)

    # -- handshake --

    def start(self) -> list[Output]:
        """Say hello."""
        tree = self._holdings.tree(self._holdings.scope)
        hello = self._hello
        self._hello = Hello(
            version=hello.version,
            network=hello.network,
            node=hello.node,
            nonce=hello.nonce,
            root=tree.root(),
            count=len(tree),
            scope=self._holdings.scope,
            time_ms=hello.time_ms,
            blobs=hello.blobs,
        )
        self._told_root = tree.root()
        self._holdings.note_root()
        return [self._send(self._hello)]

    def receive(self, frame: bytes) -> list[Output]:
        """Take a frame from the peer.

        Raises:
            PeerError: the peer broke the protocol, or is of another version or network.
        """
        head, blocks = decode_frame(frame)
        self.received_kind = type(head).__name__.lower()
        self.traffic.received_bytes += len(frame)
        if isinstance(head, _NEGOTIATING):
            self._charge(len(frame))
        if isinstance(head, Hello):
            return self._receive_hello(head)
        if isinstance(head, Auth):
            return self._receive_auth(head)
        if not self.is_ready:
            raise PeerError("the peer did not say hello and prove its key first", "handshake")
        return self._receive_more_of(head, blocks)

    def _receive_more_of(self, head: Head, blocks: list[bytes]) -> list[Output]:
        match head:
            case Probe():
                return self._note_probe(head.root, head.count)
            case Tree():
                return self._receive_tree(head)
            case TreeReply():
                self.pulling.trip.received_bytes += len(head.items)
                self._take_in()
                return self._go_on(self.pulling.take_reply(head.answered, head.items))
            case Get():
                return self._receive_get(head)
            case More():
                return self._receive_more(head)
            case Ops():
                return self._receive_ops(head, blocks)
            case Credit():
                self.live.gain(head.size)
                return []
            case Announce():
                return self._receive_announce(head)
            case Prune():
                self.live.take_prune(split_authors(head.authors))
                return []
            case Graft():
                return self._receive_graft(head)
            case Addresses():
                return [Told(head.urls)]
            case BlobGet():
                return self._receive_blob_get(head)
            case Blob() | BlobNone():
                return self._receive_blob(head, blocks)
        raise AssertionError("hello and auth are dealt with before")

    def _receive_hello(self, hello: Hello) -> list[Output]:
        if self.peer is not None:
            raise PeerError("the peer said hello twice", "handshake")
        if hello.network != self._hello.network:
            raise PeerError("the peer is of another network", "network")
        if hello.nonce == self._hello.nonce:
            raise PeerError("the peer is this node itself", "self")
        self.peer = hello
        if self.pull_scope != EVERYTHING:
            # A scope that nobody can read is told now.
            self._holdings.tree(self.pull_scope)
        return [Prove(self._auth_bytes(self._is_dialler))]

    def _auth_bytes(self, is_dialler: bool) -> bytes:
        assert self.peer is not None
        pair = (self._hello, self.peer) if self._is_dialler else (self.peer, self._hello)
        return auth_bytes(*pair, is_dialler)

    def prove(self, signature: bytes) -> list[Output]:
        """Take the signature that a `Prove` asked for."""
        return [self._send(Auth(signature))]

    def _receive_auth(self, auth: Auth) -> list[Output]:
        if self.peer is None or self.is_ready:
            raise PeerError("the peer proved its key before its hello, or twice", "handshake")
        return [Check(self.peer.node, self._auth_bytes(not self._is_dialler), auth.signature)]

    def accept(self) -> list[Output]:
        """Note that the signature of a `Check` holds."""
        assert self.peer is not None
        self.is_ready = True
        outputs: list[Output] = [Ready(self.peer)]
        if self._holdings.scope == self.peer.scope:
            return [*outputs, *self._note_probe(self.peer.root, self.peer.count)]
        # The roots of the hellos are of different sets; probes say more.
        self._told_root = b""
        return [*outputs, *self.probe()]

    @property
    def node(self) -> Author:
        """The key that the other side has proved; empty before."""
        return Author(b"" if self.peer is None or not self.is_ready else self.peer.node)

    # -- anti-entropy --

    def probe(self, is_forced: bool = False) -> list[Output]:
        """Say what is here, if that has changed since it was last said."""
        if self.peer is None or not self.is_ready or self._plan is not None:
            return []
        tree = self._holdings.tree(self.peer.scope or self._holdings.scope)
        if tree.root() == self._told_root and not (is_forced or self.live.is_behind):
            return []
        self._told_root, self.live.is_behind = tree.root(), False
        self._holdings.note_root()
        return [self._send(Probe(tree.root(), len(tree)))]

    def _note_probe(self, root: bytes, count: int) -> list[Output]:
        self.peer_root, self.peer_count = root, count
        if self.is_in_step:
            self._mismatches = 0
            return []
        self._mismatches += 1
        assert self.peer is not None
        mine = len(self._holdings.tree(self.pull_scope))
        is_first = (mine, self._hello.node) < (count, self.peer.node)
        return [Found(False)] if is_first or self._mismatches > 1 else []

    def _tree_of(self, scope: bytes) -> RangeTree:
        """Return the tree that the peer asks about: of what it keeps, or, if that is everything, of what is kept here.

        A scope costs a look at every op when it is new, so there is one for a connection.
        """
        assert self.peer is not None
        if scope != (self.peer.scope or self._holdings.scope):
            raise PeerError("the peer asks about another scope than that of this connection", "unasked")
        return self._holdings.tree(scope)

    def _receive_tree(self, tree: Tree) -> list[Output]:
        found = answer(self._tree_of(tree.scope), tree.salt, decode_items(tree.items))
        outputs: list[Output] = [self._send(TreeReply(found.answered, found.items))]
        if found.lacking and tree.scope == self.pull_scope:
            self.pulling.note_found(tree.salt, found.lacking)
            outputs.append(Found(True))
        return outputs

    # -- asking --

    def pull(self) -> list[Output]:
        """Get what the other side holds and is not here; one pull at a time.

        Raises:
            ValueError: another one is under way.
        """
        if self.pulling.is_active:
            raise ValueError("one pull at a time")
        return self._go_on(self.pulling.start(self._holdings.tree(self.pull_scope), self.pull_scope))

    def _take_in(self) -> None:
        """Take what has come since into the tree that the walk goes by, so that it is not asked for."""
        self._holdings.tree(self.pull_scope)

    def _go_on(self, head: Head | None) -> list[Output]:
        if isinstance(head, Tree) and self._budget < len(head.items) + ANSWER_RESERVE:
            # The other side may lack much and be busy: it asks when it is not, and that pays for more. Or it lies.
            self._charge(BUDGET_OP_BYTES)
            head = self.pulling.cut_walk()
        if head is None:
            return [Pulled(self.pulling.trip)]
        if isinstance(head, Get):
            self._expected = PAGES_IN_FLIGHT
            self._held = len(self._holdings.dag)
        return [self._send(head)]

    def _receive_ops(self, ops: Ops, blocks: list[bytes]) -> list[Output]:
        self.traffic.received_ops += len(blocks)
        if not ops.request:
            if not blocks:
                raise PeerError("the peer sent a page of live ops without any", "unasked")
            self.traffic.live_copies += len(blocks)
            self.live.note_come(sum(map(len, blocks)))
            return [Take(0, blocks, True)]
        if not self.pulling.is_asking or ops.request != self.pulling.request:
            raise PeerError("the peer sent an answer that nobody asked for", "unasked")
        if not self._expected:
            raise PeerError("the peer sent a page before the last one was acknowledged", "unasked")
        if not blocks and not ops.last:
            raise PeerError("the peer sent an empty page that is not the last", "unasked")
        self.pulling.trip.op_bytes += sum(map(len, blocks))
        self._expected -= 1
        return [Take(ops.request, blocks, ops.last)]

    def stored(self, take: Take, accepted: int, refused_bytes: int) -> list[Output]:
        """Say that a page has been stored: so many of its ops were new, and blocks of so many bytes were not."""
        self._earn(accepted)
        if not take.request:
            owed = self.live.note_stored(sum(map(len, take.blocks)))
            return [self._send(Credit(owed))] if owed else []
        self.pulling.trip.ops += accepted
        self._charge_refused(len(take.blocks) - accepted, accepted, refused_bytes)
        if take.last:
            self._take_in()
            return self._go_on(self.pulling.end_request())
        self._expected += 1
        return [self._send(More(take.request))]

    def _charge_refused(self, refused: int, accepted: int, size: int) -> None:
        """Charge for what a page did not bring, but for what others have brought since it was asked for."""
        self._held += accepted
        late = min(refused, max(0, len(self._holdings.dag) - self._held))
        self._held += late
        if refused:
            self._charge(size * (refused - late) // refused)

    # -- answering --

    def _receive_get(self, get: Get) -> list[Output]:
        if self._plan is not None:
            raise PeerError("the peer asked again before its last answer had ended", "unasked")
        if get.request <= self._answered:
            raise PeerError("the peer's requests do not ascend", "unasked")
        self._answered = get.request
        tree = self._tree_of(get.scope)
        self._plan = _Plan(get.request, Selection(tree, get.salt, decode_items(get.items)), PAGES_IN_FLIGHT)
        return self._page()

    def _receive_more(self, more: More) -> list[Output]:
        plan = self._plan
        if plan is None or more.request != plan.request:
            return []
        plan.credit += 1
        if plan.credit > PAGES_IN_FLIGHT:
            raise PeerError("the peer acknowledged a page that it was not sent", "unasked")
        return self._page()

    def supply(self, read: Read, blocks: Sequence[bytes]) -> list[Output]:
        """Take the blocks that a `Read` asked for, in its order."""
        if not read.request:
            return self._send_live(self.live.spend(list(blocks)))
        plan = self._plan
        if plan is None or plan.request != read.request:
            return []
        plan.is_reading = False
        plan.buffer.extend(blocks)
        return self._page()

    def _page(self) -> list[Output]:
        """Send pages as long as there is credit; read ahead when the buffer runs out."""
        plan, outputs = self._plan, list[Output]()
        while plan is not None and not plan.is_reading:
            if not plan.buffer and not plan.is_over:
                numbers = plan.selection.take(limits.BATCH_OPS_MAX)
                plan.is_over = plan.selection.is_done
                self._charge(plan.selection.passed // PASSED_OPS)
                plan.selection.passed = 0
                if numbers or not plan.is_over:
                    # Without numbers the driver reads nothing, and others have their turn meanwhile.
                    plan.is_reading = True
                    ids = self._holdings.dag.ids
                    return [*outputs, Read(plan.request, [ids[number] for number in numbers])]
            if not plan.credit:
                return outputs
            blocks, plan.buffer = _split_page(plan.buffer)
            plan.credit -= 1
            is_last = not plan.buffer and plan.is_over
            self._note_served(len(blocks))
            outputs.append(self._send(Ops(plan.request, is_last, tuple(map(len, blocks))), blocks))
            if is_last:
                plan = self._plan = None
        if plan is None and self.live.is_behind:
            outputs.extend(self.probe())
        return outputs

    def _note_served(self, count: int) -> None:
        self.traffic.sent_ops += count
        self._earn(count)
        if self.traffic.sent_ops > 2 * len(self._holdings.dag) + SERVED_SLACK:
            raise PeerError("the peer asks for the same ops again and again", "negotiation")

    # -- live --

    def push(self, ops: Sequence[tuple[OpId, bytes]], urgency: Urgency = Urgency.AS_WANTED) -> list[Output]:
        """Send or announce new ops, ids and blocks, as far as the peer keeps them and is not known to hold them."""
        if self.peer is None or not self.is_ready:
            return []
        if self._plan is not None:
            self.live.is_behind = True
            return []
        scope = self.peer.scope
        within = ops if scope == EVERYTHING else [pair for pair in ops if self._holdings.is_within(scope, pair[0])]
        return self._send_live(self.live.push(within, self._author_of, urgency))

    def _send_live(self, blocks: list[bytes]) -> list[Output]:
        outputs: list[Output] = []
        while blocks:
            page, blocks = _split_page(blocks)
            self.traffic.sent_ops += len(page)
            outputs.append(self._send(Ops(0, True, tuple(map(len, page))), page))
        return outputs

    def announce(self) -> list[Output]:
        """Tell the peer the prefixes of what was not sent since the last time."""
        prefixes = self.live.take_announcement()
        return [self._send(Announce(prefixes))] if prefixes else []

    def _author_of(self, op: OpId) -> Author:
        dag = self._holdings.dag
        number = dag.find(op)
        return Author(b"") if number is None else dag.author_key(number)

    def prune(self, authors: Sequence[Author] = ()) -> list[Output]:
        """Ask the peer to announce ops of some authors, or all, because what it sends comes from others before."""
        return [self._send(Prune(b"".join(authors)))]

    def graft(self, prefixes: Sequence[bytes]) -> list[Output]:
        """Ask for announced ops, and for live ops from now on."""
        return [self._send(Graft(b"".join(prefixes[:ANNOUNCED_MAX])))]

    def _receive_announce(self, announce: Announce) -> list[Output]:
        return [Announced(split_prefixes(announce.prefixes))]

    def _receive_graft(self, graft: Graft) -> list[Output]:
        ids = self.live.take_graft(split_prefixes(graft.prefixes), self._author_of)
        return [Read(0, ids)] if ids else []

    def tell(self, urls: Sequence[str]) -> list[Output]:
        """Tell the peer where other nodes answer."""
        return [self._send(Addresses(tuple(urls[:ADDRESSES_MAX])))]

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
        return [self._send(self._blob_wanted)]

    def give_blob(self, total: int, data: bytes) -> list[Output]:
        """Answer the peer with a piece."""
        self._is_blob_due = False
        return [self._send(Blob(total, len(data)), [data])]

    def refuse_blob(self, later: bool = False) -> list[Output]:
        """Answer the peer that the blob is not here; `later`: that it is being fetched."""
        self._is_blob_due = False
        return [self._send(BlobNone(later))]

    def _receive_blob_get(self, get: BlobGet) -> list[Output]:
        if self._is_blob_due:
            raise PeerError("the peer asked for a blob before its last answer had come", "unasked")
        if not (codec.is_op_id(get.cid) or (codec.is_raw_blob_id(get.cid) and not get.list)):
            raise PeerError("the peer asked for what is no blob")
        self._is_blob_due = True
        return [BlobAsked(get)]

    def _receive_blob(self, head: Blob | BlobNone, blocks: list[bytes]) -> list[Output]:
        wanted = self._blob_wanted
        if wanted is None:
            raise PeerError("the peer sent a blob that nobody asked for", "unasked")
        if isinstance(head, Blob) and head.size != min(limits.BLOB_PIECE_BYTES, head.total - wanted.offset):
            raise PeerError("the peer sent a piece of a blob that does not fit")
        self._blob_wanted = None
        return [BlobCame(head, blocks[0] if blocks else b"")]


def _split_page(blocks: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Cut one page off: at most 200 blocks and 256 KiB, but at least one block."""
    size, count = 0, 0
    for block in blocks[: limits.BATCH_OPS_MAX]:
        size += len(block)
        if count and size > limits.PAGE_BYTES:
            break
        count += 1
    return blocks[:count], blocks[count:]
