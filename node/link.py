"""One connection: drives a sync session over a WebSocket.

Four kinds of task, all in one group that ends with the connection: the *reader* gives frames to the session and starts
to verify blocks; the *applier* hands verified ops to the runtime, page by page and in order; the *sender* empties the
outbox; readers of the store serve pages. While one page is applied, the next one is verified and others are under way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from itertools import groupby
from typing import Final, Protocol, TypeAlias

import aiohttp
from aiohttp import web
from msgspec import Struct

from crdtchain import limits
from crdtchain.adapters.keys import is_accepted
from crdtchain.errors import CrdtchainError, InvalidOpError, NoPeerError, PeerError, StoreError
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.sync.live import Urgency
from crdtchain.sync.messages import TEXT_MAX, BlobGet
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
)
from crdtchain.sync.pull import Trip
from crdtchain.sync.session import Session
from node.admission import LinkPace

CLOSE_CODE: Final = 4_000
"""Of a WebSocket that a node closes with a reason of its own."""
LIVE_BYTES_MAX: Final = 512 * 1024
"""Above it live ops are not queued; the peer is told the heads later."""
TAKES_MAX: Final = 8
"""Pages that may wait to be added; more than a session lets a peer send."""
CALM_S: Final = 0.1
GATHER_S: Final = 0.03
"""So long new ops are gathered for one frame, when others went out less than `CALM_S` ago."""
UNREAD_S: Final = 60.0
"""So long a peer may leave a frame unread, though it answers pings."""
PIECE_S: Final = 20.0
"""So long a peer may take for a piece of a blob."""

Socket: TypeAlias = web.WebSocketResponse | aiohttp.ClientWebSocketResponse

log = logging.getLogger(__name__)


class LinkOwner(Protocol):
    """What a link needs of its node."""

    async def prepare(self, blocks: Sequence[bytes]) -> list[SignedOp]:
        """Decode and verify the blocks that are not known."""

    def make_pace(self) -> LinkPace:
        """Return the paces of a new connection."""

    def admit(self, ops: Sequence[SignedOp], link: Link) -> list[SignedOp]:
        """Return which of a peer's live ops are to be taken now."""

    async def take(self, ops: Sequence[SignedOp], link: Link) -> asyncio.Future[None]:
        """Add ops; the future is done when they are stored."""

    async def read_blocks(self, ids: Sequence[OpId]) -> list[bytes]:
        """Return stored blocks."""

    async def read_piece(self, get: BlobGet, link: Link) -> tuple[int, bytes] | bool:
        """Return the size of a blob and a piece of it; without it, whether it is being fetched for the peer."""

    def sign(self, message: bytes) -> bytes:
        """Sign with the node's key."""

    def count_held(self, ops: Sequence[SignedOp]) -> int:
        """Return how many of some ops are here, waiting ones not among them."""

    def is_second(self, link: Link) -> bool:
        """Whether the node that the peer says it is is connected already, and that connection must not be replaced."""

    def on_second(self, link: Link) -> None:
        """The peer of such a connection has proved its key, and this side has not.

        Raises:
            PeerError: always, to end it.
        """

    def on_ready(self, link: Link) -> None:
        """The peer has proved its key.

        Raises:
            PeerError: it is not wanted.
        """

    def on_found(self, link: Link, is_sure: bool) -> None:
        """The peer holds ops that are not here; unless it is sure, they may be on their way."""

    def on_page(self, link: Link, is_last: bool) -> None:
        """A page of an answer has been stored."""

    def on_pulled(self, link: Link, trip: Trip) -> None:
        """All that was asked of the peer has come."""

    def on_live(self, link: Link, new: Sequence[SignedOp], blocks: Sequence[bytes]) -> None:
        """The peer sent live ops, some of them new."""

    def on_announced(self, link: Link, prefixes: Sequence[bytes]) -> None:
        """The peer holds new ops with these prefixes."""

    def on_told(self, link: Link, urls: Sequence[str]) -> None:
        """The peer says where other nodes answer."""

    def on_closed(self, link: Link, reason: str) -> None:
        """The connection has ended."""


class _Pending(Struct):
    take: Take
    ops: asyncio.Future[list[SignedOp]]


class Link:
    """One connection to one peer."""

    def __init__(
        self,
        owner: LinkOwner,
        session: Session,
        socket: Socket,
        name: str,
        address: str,
        is_configured: bool,
        is_dialler: bool,
    ) -> None:
        self.name = name
        self.address = address
        self.is_configured = is_configured
        """Whether this node dialled it because its settings say so."""
        self.is_dialler = is_dialler
        """Whether this node dialled."""
        self.session = session
        self.is_ready = False
        """Whether the peer has proved its key and was taken."""
        self.pruned: dict[Author, None] = {}
        """Whose ops the peer was asked to announce only."""
        self.pushed_s = 0.0
        """When a live op was last sent."""
        self.live_s = 0.0
        """When a live op last came."""
        self.useful_s = time.monotonic()
        """When a new op last came, or the connection began."""
        self.pulled_s = 0.0
        """When a pull last ended."""
        self.vain = 0
        """How often the peer was asked in vain, one time after the other."""
        self.last_trip: Trip | None = None
        """What the last pull took."""
        self.close_reason = ""
        self.close_code = ""
        """The word for the reason, if it is a fault of the peer."""
        self._owner = owner
        self._is_second = False
        """Whether this side does not prove its key, for it only wants to know who is there."""
        self._socket = socket
        self._gathered: list[tuple[Urgency, tuple[OpId, bytes]]] = []
        """New ops that go out together soon."""
        self._gather_timer: asyncio.TimerHandle | None = None
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._stirred = asyncio.Event()
        self._takes: asyncio.Queue[_Pending] = asyncio.Queue(TAKES_MAX)
        self._blob_turn = asyncio.Lock()
        self._piece: asyncio.Future[BlobCame] | None = None
        self._pace = owner.make_pace()
        self._group: asyncio.TaskGroup | None = None
        self._done = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the connection has ended, and nothing of it is under way."""

    @property
    def node(self) -> Author:
        """The key that the peer's node has proved; empty before."""
        return self.session.node

    @property
    def is_synced(self) -> bool:
        """Whether the peer held nothing that is not here, when it last said."""
        return self.is_ready and not self.session.is_pulling and self.session.is_in_step

    async def run(self) -> str:
        """Talk until the connection ends; returns the reason."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for task in (self._read(), self._apply(), self._send(), self._watch_handshake()):
                    group.create_task(self._guard(task))
                self._perform(self.session.start())
                await self._done.wait()
                await self._close()
                raise _EndedError
        except* _EndedError:
            pass
        finally:
            self._group = None
            while not self._takes.empty():
                self._takes.get_nowait().ops.cancel()
            self._owner.on_closed(self, self.close_reason)
            self.ended.set()
        return self.close_reason

    def drop(self, reason: str, code: str = "") -> None:
        """End the connection; the first reason counts."""
        if not self.close_reason:
            self.close_reason, self.close_code = reason, code
        self._done.set()
        if self._piece is not None and not self._piece.done():
            self._piece.set_exception(NoPeerError("the connection ended"))

    async def _close(self) -> None:
        # A peer that does not answer must not hold anybody up.
        try:
            async with asyncio.timeout(1):
                await self._socket.close(code=CLOSE_CODE, message=cut_reason(self.close_reason))
        except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError):
            log.debug("The connection to %s did not close properly.", self.address)

    async def _guard(self, work: Awaitable[None]) -> None:
        """Turn the faults of a peer into the end of its connection."""
        try:
            await work
        except PeerError as error:
            self.drop(str(error), error.code)
        except InvalidOpError as error:
            log.warning("%s sent an op that breaks a rule: %s: %s", self.address, error.code, error)
            self.drop(f"the peer sent an op that breaks a rule ({error.code})")
        except StoreError as error:
            self.drop("this node can't store more for now")
            log.warning("A page from %s was given up: %s", self.address, error)
        except (OSError, aiohttp.ClientError) as error:
            self.drop(f"the connection broke: {error}")
        except Exception:
            # A fault of this program: it costs one connection, and not the node.
            log.exception("The connection to %s met an error.", self.address)
            self.drop("this node met an error")

    async def _watch_handshake(self) -> None:
        await asyncio.sleep(limits.HANDSHAKE_S)
        if not self.is_ready:
            raise PeerError("the peer did not say hello and prove its key in time", "handshake")

    # -- in --

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                outputs = self.session.receive(message.data)
                await self._wait(self._pace.note_work(self.session.received_kind))
                await self._perform_slowly(outputs)
            elif message.type is aiohttp.WSMsgType.CLOSE:
                # A stranger's text is shown to people and stands in logs.
                reason = "".join(filter(str.isprintable, str(message.extra or ""))).strip()
                self.drop(f"the peer closed: {reason}" if reason else "the peer closed the connection")
                return
            elif message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
                self.drop("the connection broke")
                return
            else:
                raise PeerError("the peer sent a frame that is not binary")

    async def _perform_slowly(self, outputs: Sequence[Output]) -> None:
        """Perform outputs; waits while pages pile up, and with it the peer does."""
        for output in outputs:
            if isinstance(output, Take):
                if not output.request:
                    await self._wait(self._pace.note_live(output.blocks))
                ops = asyncio.ensure_future(self._owner.prepare(output.blocks))
                # When the connection ends first, nobody asks what became of them.
                ops.add_done_callback(lambda done: done.cancelled() or done.exception())
                await self._takes.put(_Pending(output, ops))
            else:
                self._perform([output])

    async def _wait(self, wait_s: float) -> None:
        """Wait when the peer sends more than its share; all that it sends waits with it."""
        if wait_s:
            await asyncio.sleep(wait_s)

    def _perform(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case SendFrame():
                    self._put(output.frame)
                case Prove():
                    self._is_second = self._owner.is_second(self)
                    if not self._is_second:
                        self._perform(self.session.prove(self._owner.sign(output.message)))
                case Check():
                    if not is_accepted(Author(output.key), output.message, output.signature):
                        raise PeerError("the peer could not prove its key", "handshake")
                    if self._is_second:
                        self._owner.on_second(self)
                    self._perform(self.session.accept())
                case Ready():
                    self._owner.on_ready(self)
                    self.is_ready = True
                case Read():
                    self._start(self._supply(output))
                case BlobAsked():
                    self._start(self._give_piece(output.get))
                case BlobCame():
                    if self._piece is not None and not self._piece.done():
                        self._piece.set_result(output)
                case Take():
                    raise AssertionError("blocks come by receive alone")
                case _:
                    self._report(output)

    def _report(self, output: Found | Pulled | Announced | Told) -> None:
        match output:
            case Found():
                self._owner.on_found(self, output.is_sure)
            case Pulled():
                self.last_trip = output.trip
                self._owner.on_pulled(self, output.trip)
            case Announced():
                self._owner.on_announced(self, output.prefixes)
            case Told():
                self._owner.on_told(self, output.urls)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        if self._group is None:
            work.close()
        else:
            self._group.create_task(self._guard(work))

    async def _supply(self, read: Read) -> None:
        self._perform(self.session.supply(read, await self._owner.read_blocks(read.ids)))

    async def _give_piece(self, get: BlobGet) -> None:
        found = await self._owner.read_piece(get, self)
        while self._outbox_bytes:  # noqa: ASYNC110 - what is awaited is a count
            # Ops go first: a piece is queued only when nothing else is.
            await asyncio.sleep(0.005)
        if isinstance(found, bool):
            self._perform(self.session.refuse_blob(found))
        else:
            self._perform(self.session.give_blob(*found))

    async def ask_piece(self, blob: BlobId, offset: int, hops: int, is_list: bool) -> BlobCame:
        """Ask the peer for a piece of a blob.

        Raises:
            NoPeerError: it does not answer, or its connection ended.
        """
        try:
            async with asyncio.timeout(PIECE_S), self._blob_turn:
                if self._done.is_set() or self.session.is_blob_wanted:
                    raise NoPeerError("it has not answered the last time")
                self._piece = asyncio.get_running_loop().create_future()
                self._perform(self.session.ask_blob(blob, offset, hops, is_list))
                return await self._piece
        except TimeoutError:
            raise NoPeerError("it does not answer") from None

    async def _apply(self) -> None:
        while True:
            pending = await self._takes.get()
            ops = await pending.ops
            self.session.live.note_known(signed.op.id for signed in ops)
            taken = ops
            if not pending.take.request:
                self.live_s = time.monotonic()
                self._owner.on_live(self, ops, pending.take.blocks)
                taken = self._owner.admit(ops, self)
            stored = await self._owner.take(taken, self)
            if pending.take.request:
                # The next page is added while this one is stored; how many may be under way is the session's credit.
                self._start(self._acknowledge(stored, pending.take, ops))
            else:
                await self._acknowledge(stored, pending.take, ops)

    async def _acknowledge(self, stored: asyncio.Future[None], take: Take, ops: Sequence[SignedOp]) -> None:
        await stored
        refused = sum(map(len, take.blocks)) - sum(len(signed.block) for signed in ops)
        accepted = self._owner.count_held(ops)
        if accepted:
            self.useful_s = time.monotonic()
        if accepted < len(ops):
            refused += sum(len(signed.block) for signed in ops) * (len(ops) - accepted) // len(ops)
        outputs = self.session.stored(take, accepted, refused)
        if take.request:
            self._owner.on_page(self, take.last)
        self._perform(outputs)

    # -- out --

    def pull(self) -> None:
        """Get what the peer holds and is not here."""
        self.act(self.session.pull)

    def push(self, ops: Sequence[SignedOp], urgency: Urgency) -> None:
        """Send new ops, or announce them; a peer that is too slow for that is probed later.

        The first ones after a while go at once. What follows closely is gathered for some milliseconds: a frame of
        several ops costs both sides hardly more than one of one, and what the peer sends meanwhile need not go back.
        """
        self._gathered.extend((urgency, (signed.op.id, signed.block)) for signed in ops)
        if self._gather_timer is None:
            now_s = time.monotonic()
            wait_s = 0.0 if now_s - self.pushed_s > CALM_S else GATHER_S
            self.pushed_s = now_s
            if wait_s:
                self._gather_timer = asyncio.get_running_loop().call_later(wait_s, self._push_gathered)
            else:
                self._push_gathered()

    def _push_gathered(self) -> None:
        self._gather_timer = None
        gathered, self._gathered = self._gathered, []
        if self._done.is_set():
            return
        if self._outbox_bytes > LIVE_BYTES_MAX:
            self.session.live.is_behind = True
            return
        self.pushed_s = time.monotonic()
        for urgency, group in groupby(gathered, key=lambda pair: pair[0]):
            pairs = [pair for _, pair in group]
            self.act(partial(self.session.push, pairs, urgency))

    def probe(self, is_forced: bool = False) -> None:
        """Tell the peer what is here, if that has changed."""
        if self.is_ready and not self._outbox:
            self.act(lambda: self.session.probe(is_forced))

    def act(self, step: Callable[[], Sequence[Output]]) -> None:
        """Take a step of the session; a peer that is found at fault is dropped."""
        try:
            self._perform(step())
        except PeerError as error:
            self.drop(str(error), error.code)

    def _put(self, frame: bytes) -> None:
        self._outbox.append(frame)
        self._outbox_bytes += len(frame)
        self._stirred.set()
        if self._outbox_bytes > limits.OUTBOUND_BYTES_MAX:
            self.drop("the peer reads too slowly")

    async def _send(self) -> None:
        while True:
            while self._outbox:
                frame = self._outbox.pop(0)
                try:
                    async with asyncio.timeout(UNREAD_S):
                        await self._socket.send_bytes(frame)
                except TimeoutError:
                    raise PeerError("the peer reads too slowly", "slow") from None
                self._outbox_bytes -= len(frame)
            self._stirred.clear()
            if not self._outbox:
                await self._stirred.wait()


def cut_reason(reason: str) -> bytes:
    """Return a reason as a close frame can hold it."""
    return reason.encode()[:TEXT_MAX].decode(errors="ignore").encode()


class _EndedError(CrdtchainError):
    """Ends the task group of a link from within."""
