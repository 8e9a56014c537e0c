"""One connection: drives a sync session over a WebSocket.

Four kinds of task, all in one group that ends with the connection: the *reader* gives frames to the session and starts
to verify blocks; the *applier* hands verified ops to the runtime, page by page and in order; the *sender* empties the
outbox; readers of the store serve pages. While one page is applied, the next one is verified and a third is under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol, TypeAlias

import aiohttp
from aiohttp import web
from msgspec import Struct

from crdtchain import limits
from crdtchain.errors import CrdtchainError, InvalidOpError, NoPeerError, PeerError, StoreError
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.sync.messages import TEXT_MAX, BlobGet
from crdtchain.sync.session import BlobAsked, BlobCame, Found, Output, Read, Ready, SendFrame, Session, Take
from node.pace import Bucket

CLOSE_CODE: Final = 4_000
"""Of a WebSocket that a node closes with a reason of its own."""
LIVE_BYTES_MAX: Final = 512 * 1024
"""Above it live ops are not queued; the peer is told the heads later."""
TAKES_MAX: Final = 4
PIECE_S: Final = 20.0
"""So long a peer may take for a piece of a blob."""
LIVE_OPS: Final = (200.0, 2_000.0)
"""Live ops of one connection: a second, and in a burst."""
LIVE_BYTES: Final = (2.0**20, 2.0**23)
"""Live bytes of one connection: a second, and in a burst."""

Socket: TypeAlias = web.WebSocketResponse | aiohttp.ClientWebSocketResponse

log = logging.getLogger(__name__)


class LinkOwner(Protocol):
    """What a link needs of its node."""

    async def prepare(self, blocks: Sequence[bytes]) -> list[SignedOp]:
        """Decode and verify the blocks that are not known."""

    async def take(self, ops: Sequence[SignedOp], link: Link) -> asyncio.Future[None]:
        """Add ops; the future is done when they are stored."""

    async def read_blocks(self, ids: Sequence[OpId]) -> list[bytes]:
        """Return stored blocks."""

    async def read_piece(self, get: BlobGet, link: Link) -> tuple[int, bytes] | bool:
        """Return the size of a blob and a piece of it; without it, whether it is being fetched for the peer."""

    def on_ready(self, link: Link) -> None:
        """The peer has said hello.

        Raises:
            PeerError: it is not wanted.
        """

    def on_found(self, link: Link, ids: Sequence[OpId]) -> None:
        """The peer holds ops that are not here."""

    def on_page(self, link: Link, is_last: bool) -> None:
        """A page of an answer has been stored."""

    def on_closed(self, link: Link, reason: str) -> None:
        """The connection has ended."""


class _Pending(Struct):
    request: int
    is_last: bool
    ops: asyncio.Future[list[SignedOp]]


class Link:
    """One connection to one peer."""

    def __init__(
        self, owner: LinkOwner, session: Session, socket: Socket, name: str, address: str, is_configured: bool
    ) -> None:
        self.name = name
        self.address = address
        self.is_configured = is_configured
        """Whether this node dialled it because its settings say so."""
        self.session = session
        self.is_ready = False
        self.is_synced = False
        """Whether all that the peer has named is here."""
        self.close_reason = ""
        self.asked: dict[OpId, int] = {}
        """How often the peer was asked for an op."""
        self._owner = owner
        self._socket = socket
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._stirred = asyncio.Event()
        self._takes: asyncio.Queue[_Pending] = asyncio.Queue(TAKES_MAX)
        self._blob_turn = asyncio.Lock()
        self._piece: asyncio.Future[BlobCame] | None = None
        self._op_bucket = Bucket(*LIVE_OPS)
        self._byte_bucket = Bucket(*LIVE_BYTES)
        self._group: asyncio.TaskGroup | None = None
        self._done = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the connection has ended, and nothing of it is under way."""

    @property
    def node(self) -> Author:
        """The key that the peer's node says it has; empty before hello."""
        return Author(b"" if self.session.peer is None else self.session.peer.node)

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

    def drop(self, reason: str) -> None:
        """End the connection; the first reason counts."""
        self.close_reason = self.close_reason or reason
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
            self.drop(str(error))
        except InvalidOpError as error:
            log.warning("%s sent an op that breaks a rule: %s: %s", self.address, error.code, error)
            self.drop(f"the peer sent an op that breaks a rule ({error.code})")
        except StoreError as error:
            self.drop("this node can't store more for now")
            log.warning("A page from %s was given up: %s", self.address, error)
        except (OSError, aiohttp.ClientError) as error:
            self.drop(f"the connection broke: {error}")

    async def _watch_handshake(self) -> None:
        await asyncio.sleep(limits.HANDSHAKE_S)
        if not self.is_ready:
            raise PeerError("the peer did not say hello in time")

    # -- in --

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                await self._perform_slowly(self.session.receive(message.data))
            elif message.type is aiohttp.WSMsgType.CLOSE:
                reason = str(message.extra or "").strip()
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
                    await self._pace(output.blocks)
                ops = asyncio.ensure_future(self._owner.prepare(output.blocks))
                # When the connection ends first, nobody asks what became of them.
                ops.add_done_callback(lambda done: done.cancelled() or done.exception())
                await self._takes.put(_Pending(output.request, output.last, ops))
            else:
                self._perform([output])

    async def _pace(self, blocks: Sequence[bytes]) -> None:
        """Wait when the peer sends more than its share of live ops; what it asks for waits with them."""
        wait_s = max(self._op_bucket.take(len(blocks)), self._byte_bucket.take(sum(map(len, blocks))))
        if wait_s:
            await asyncio.sleep(wait_s)

    def _perform(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case SendFrame():
                    self._put(output.frame)
                case Read():
                    if self._group is not None:
                        self._group.create_task(self._guard(self._supply(output)))
                case Found():
                    self.is_synced = False
                    self._owner.on_found(self, output.ids)
                case Ready():
                    self.is_ready = True
                    self._owner.on_ready(self)
                case BlobAsked():
                    if self._group is not None:
                        self._group.create_task(self._guard(self._give_piece(output.get)))
                case BlobCame():
                    if self._piece is not None and not self._piece.done():
                        self._piece.set_result(output)
                case Take():
                    raise AssertionError("blocks come by receive alone")

    async def _supply(self, read: Read) -> None:
        self._perform(self.session.supply(read.request, await self._owner.read_blocks(read.ids)))

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
            self.session.note_known(signed.op.id for signed in ops)
            stored = await self._owner.take(ops, self)
            if pending.request and self._group is not None:
                # The next page is added while this one is stored; how many may be under way is the session's credit.
                self._group.create_task(self._guard(self._acknowledge(stored, pending)))
            else:
                await stored

    async def _acknowledge(self, stored: asyncio.Future[None], pending: _Pending) -> None:
        await stored
        self._perform(self.session.stored(pending.request))
        self._owner.on_page(self, pending.is_last)

    # -- out --

    def fetch(self, ids: Sequence[OpId]) -> None:
        """Ask the peer for the past of some ops."""
        for op in ids:
            self.asked[op] = self.asked.get(op, 0) + 1
        self._perform(self.session.fetch(ids))

    def push(self, ops: Sequence[SignedOp]) -> None:
        """Send new ops, unless the peer is too slow for them."""
        if self._outbox_bytes > LIVE_BYTES_MAX:
            self.session.set_behind()
        else:
            self._perform(self.session.push([(signed.op.id, signed.block) for signed in ops]))

    def probe(self) -> None:
        """Tell the peer the heads, if they have changed."""
        if self.is_ready and not self._outbox:
            self._perform(self.session.probe())

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
                await self._socket.send_bytes(frame)
                self._outbox_bytes -= len(frame)
            self._stirred.clear()
            if not self._outbox:
                await self._stirred.wait()


def cut_reason(reason: str) -> bytes:
    """Return a reason as a close frame can hold it."""
    return reason.encode()[:TEXT_MAX].decode(errors="ignore").encode()


class _EndedError(CrdtchainError):
    """Ends the task group of a link from within."""
