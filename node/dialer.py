"""Keeps the connections that this node dials: the configured peers for ever, else up to eight from the address book.

Theory of operation: `run` looks every half second whom to dial. A connection is a task of its own from the first
attempt to its end; what came of it is noted in the book, which says when an address is tried again. An address counts
as reached when the node there has proven its key (`note_node`), not before: any server can take a connection.

A machine that slept, or whose addresses changed, sits on dead connections and on pauses that mean nothing any more:
both are ended, so that a laptop is back within seconds.

Not here: which of two connections to one node is kept (`peers`; the other ends with `ALREADY_CONNECTED`), what is
known of addresses (`book`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Set
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import aiohttp

from crdtchain import limits
from crdtchain.adapters.address_book import AddressRow
from crdtchain.errors import PeerError, StoreError, UsageError
from crdtchain.scalars import Author
from node.addresses import group_of, parse_peer_url
from node.book import Book, Source
from node.config import Settings
from node.dialing import MakeHttp, end_socket, explain, explain_end, find_local_addresses, is_local_address
from node.link import Socket
from node.watched import WatchedFile, read_lines

ALREADY_CONNECTED: Final = "already connected"
"""Reason with which the second connection to a node ends."""
OUTBOUND_MAX: Final = limits.CONNECTIONS_OUT_MAX
TRYING_MAX: Final = 4
"""Addresses tried at once, besides configured ones."""
TICK_S: Final = 0.5
LOOK_S: Final = 2.0
"""So often files and the machine's addresses are looked at, and the book is written."""
SLEPT_S: Final = 15.0
"""After a gap this long the other side has given up a connection."""
STEADY_S: Final = 5.0
"""A connection that held for so long is redialled without a pause that grows."""
OWN_PAUSE_MS: Final = 60_000
"""After it a configured address that led to this node itself may lead elsewhere."""

log = logging.getLogger(__name__)


class Talk(Protocol):
    """Runs one connection until it ends."""

    def __call__(self, socket: Socket, address: str, is_configured: bool) -> Awaitable[str]:
        """Return the reason for the end; raises PeerError when there are too many connections."""


class IsConnected(Protocol):
    """Says whether there is a connection to a node."""

    def __call__(self, node: Author, is_chosen: bool = False) -> bool:
        """`is_chosen`: not one that was dialled at a stranger's word."""


class _Call:
    """One connection, from the attempt to its end."""

    def __init__(self, is_configured: bool) -> None:
        self.is_configured = is_configured
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self.deadline: asyncio.Timeout | None = None
        self.key: Author | None = None
        self.started_s = time.monotonic()


class Dialer:
    """The dialling of one node. `failures` says of addresses that people care for why they are not connected."""

    def __init__(
        self,
        book: Book,
        talk: Talk,
        make_http: MakeHttp,
        settings: Settings,
        is_connected: IsConnected,
        now: Callable[[], float] = time.time,
        *,
        own: Author | None = None,
        peers_file: Path | None = None,
    ) -> None:
        """`own` is this node's key; `peers_file` the list that `crdtchain peers add` writes; `now` the wall clock.

        Raises:
            UsageError: a configured address is none.
        """
        self.book = book
        self.failures: dict[str, str] = {}
        self._talk = talk
        self._make_http = make_http
        self._is_connected = is_connected
        self._now = now
        self._own = own
        self._configured = settings.peers
        self._discovers = settings.discover
        self._file = None if peers_file is None else WatchedFile(peers_file)
        self._calls: dict[str, _Call] = {}
        self._group: asyncio.TaskGroup | None = None
        self._woken = asyncio.Event()
        self._clocks = (now(), time.monotonic())
        self._addresses = find_local_addresses()
        self._ending: set[asyncio.Task[None]] = set()
        for text in settings.peers:
            parse_peer_url(text)

    @property
    def outbound_count(self) -> int:
        """Connections that are dialled now, those that are under way included."""
        return len(self._calls)

    async def run(self) -> None:
        """Dial for ever."""
        look_s = 0.0
        self._clocks = self._now(), time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                while True:
                    self._watch_clocks()
                    if time.monotonic() >= look_s:
                        look_s = time.monotonic() + LOOK_S
                        self._read_peers()
                        self._watch_addresses()
                        self.book.note_alive(self._is_connected)
                        await self._flush()
                    self._start_calls()
                    self._woken.clear()
                    try:
                        async with asyncio.timeout(TICK_S):
                            await self._woken.wait()
                    except TimeoutError:
                        continue
        finally:
            self._group = None
            await self._flush()

    async def _flush(self) -> None:
        try:
            await self.book.flush()
        except StoreError as error:
            log.warning("The address book was not saved: %s", error)

    def _read_peers(self) -> None:
        """Take the configured peers from the settings and from the list, when it has changed."""
        if self._file is None:
            if not self.book.configured and self._configured:
                self.book.configure(self._configured)
            return
        if not self._file.has_changed():
            return
        texts = list(self._configured)
        try:
            lines = read_lines(self._file.path) or []
        except UsageError as error:
            log.warning("%s", error)
            lines = []
        for line in lines:
            try:
                texts.append(str(parse_peer_url(line)))
            except UsageError as error:
                log.warning("A line of %s is passed over: %s", self._file.path, error)
        before = self.book.configured
        self.book.configure(texts)
        for url in before - self.book.configured:
            # Whoever takes an address out of the list means it.
            self.book.forget(url)
            self.failures.pop(url, None)
            self._end(url)

    # -- changes of this machine --

    def _watch_clocks(self) -> None:
        """Notice that the machine slept, or that this program did not run for a while."""
        wall_s, steady_s = self._now(), time.monotonic()
        gap_s = max(wall_s - self._clocks[0], steady_s - self._clocks[1])
        self._clocks = wall_s, steady_s
        if gap_s > TICK_S + SLEPT_S:
            log.info("This machine slept for about %d s; all connections are made anew.", gap_s)
            self._renew(lambda socket: True)

    def _watch_addresses(self) -> None:
        """Notice that the machine is in another network."""
        addresses = find_local_addresses()
        if addresses != self._addresses:
            self._addresses = addresses
            log.info("This machine's addresses have changed; peers are looked for anew.")
            self._renew(_is_stranded)

    def _renew(self, is_dead: Callable[[aiohttp.ClientWebSocketResponse], bool]) -> None:
        """Forget pauses, end attempts that began before the change, and connections that are dead by now."""
        self.book.reset_pauses()
        loop = asyncio.get_running_loop()
        for url, call in list(self._calls.items()):
            if call.socket is not None:
                if is_dead(call.socket):
                    self._end(url)
            elif call.deadline is not None and not call.deadline.expired():
                call.deadline.reschedule(loop.time())

    def _end(self, url: str) -> None:
        call = self._calls.get(url)
        if call is not None and call.socket is not None:
            task = asyncio.ensure_future(end_socket(call.socket))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    # -- whom to dial --

    def _start_calls(self) -> None:
        rows = self._find_free()
        for row in rows:
            if row.source == Source.CONFIGURED:
                self._start(row)
        while self._discovers and len(self._calls) < OUTBOUND_MAX and self._count_trying() < TRYING_MAX:
            busy = {group_of(parse_peer_url(url).host or "") for url in self._calls}
            # Found anew each time: one that was started may have used up what its machine and its node are allowed.
            chosen = self.book.choose([row for row in self._find_free() if row.source != Source.CONFIGURED], busy)
            if chosen is None:
                return
            self._start(chosen)

    def _find_free(self) -> list[AddressRow]:
        """Return the addresses that are due, and lead to no node that is connected or being connected."""
        nodes = {self.book.rows[url].node for url in self._calls if url in self.book.rows}
        return [row for row in self.book.due() if row.url not in self._calls and not self._has_node(row, nodes)]

    def _has_node(self, row: AddressRow, nodes: Set[Author | None]) -> bool:
        if row.node is None:
            return False
        if row.node == self._own:
            return row.source != Source.CONFIGURED
        if self._is_connected(row.node, is_chosen=row.source == Source.CONFIGURED):
            self.failures.pop(row.url, None)
            return True
        return row.node in nodes and row.source != Source.CONFIGURED

    def _count_trying(self) -> int:
        return sum(call.key is None and not call.is_configured for call in self._calls.values())

    def _start(self, row: AddressRow) -> None:
        if self._group is None:
            return
        call = self._calls[row.url] = _Call(row.source == Source.CONFIGURED)
        self.book.note_try(row.url)
        self._group.create_task(self._run_call(row.url, call))

    async def _run_call(self, url: str, call: _Call) -> None:
        try:
            try:
                async with self._make_http(partial(self.book.may_connect, url)) as http:
                    async with asyncio.timeout(limits.HANDSHAKE_S) as call.deadline:
                        call.socket = await http.ws_connect(
                            parse_peer_url(url) / "sync",
                            compress=0,
                            max_msg_size=limits.FRAME_BYTES_MAX + 1,
                            heartbeat=limits.PING_S,
                        )
                    try:
                        reason = explain_end(await self._talk(call.socket, url, is_configured=call.is_configured))
                    finally:
                        if not call.socket.closed:
                            await end_socket(call.socket)
            except (OSError, ValueError, aiohttp.ClientError, TimeoutError, PeerError) as error:
                reason = explain(error, url)
        finally:
            del self._calls[url]
        self._judge(url, call, reason)
        self._woken.set()

    def note_node(self, url: str, key: Author) -> None:
        """Note that the node at a dialled address has proven its key."""
        if url in self._calls:
            self._calls[url].key = key
            self.book.note_node(url, key)
            self.failures.pop(url, None)

    def _judge(self, url: str, call: _Call, reason: str) -> None:
        """Note in the book what came of a connection."""
        row, pause_ms = self.book.rows.get(url), random.randint(250, 750)
        if row is None:
            return
        if call.key is not None and call.key == self._own:
            self._note_own(row)
        elif ALREADY_CONNECTED in reason and (call.key is not None or call.is_configured):
            # Whoever is connected is not dialled again before that ends; of whom this is not known, later.
            self.book.postpone(url, pause_ms if call.key is not None else 30_000)
        elif call.key is not None and time.monotonic() - call.started_s > STEADY_S:
            self.book.postpone(url, pause_ms)
            self._note_failure(row, reason)
        else:
            self.book.note_failure(url)
            self._note_failure(row, reason)
        log.debug("The connection to %s ended: %s.", url, reason)

    def _note_own(self, row: AddressRow) -> None:
        if row.source == Source.CONFIGURED:
            self._note_failure(row, "this is this node's own address")
        self.book.postpone(row.url, OWN_PAUSE_MS)

    def _note_failure(self, row: AddressRow, reason: str) -> None:
        """Keep the reason for people, who did not ask for what strangers told."""
        is_asked_for = row.source in (Source.CONFIGURED, Source.MDNS, Source.REMEMBERED)
        if is_asked_for and row.url in self.book.rows:
            self.failures[row.url] = reason
        else:
            self.failures.pop(row.url, None)


def _is_stranded(socket: aiohttp.ClientWebSocketResponse) -> bool:
    """Whether a connection began at an address that this machine has no more."""
    name = socket.get_extra_info("sockname")
    return isinstance(name, tuple) and not is_local_address(str(name[0]))


def describe_book(book: Book) -> list[dict[str, str | int | None]]:
    """Return the book for people: addresses, where they are from, how they did."""
    rows = sorted(book.rows.values(), key=lambda row: (row.source != Source.CONFIGURED, -row.success_ms, row.url))
    return [
        {
            "address": row.url,
            "source": row.source,
            "reached": row.success_ms or None,
            "failures": row.failures,
            "next_try": row.next_ms or None,
        }
        for row in rows
    ]
