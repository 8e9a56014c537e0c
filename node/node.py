"""A node: the parts of the program put together, over one data folder.

    async with Node.open(folder, settings) as node: ...

Theory of operation: `open` takes the folder's lock, opens store, ledger and blobs, and starts the runtime and the
dialling of peers in one task group; leaving the block ends what is under way, saves a snapshot and gives the lock
back. The two ports (`server.app`) are added by `serve`; tests may do without them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from yarl import URL

from crdtchain import codec
from crdtchain.adapters.address_book import SqliteAddresses
from crdtchain.adapters.data_folder import DataFolderLock
from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.penalties import SqlitePenalties
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.errors import PeerError, StoreError, UsageError
from crdtchain.ledger.snapshot import dump_ledger
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Job, Reveal, SignedOp
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.scopes import Selector
from crdtchain.sync.holdings import Holdings
from crdtchain.sync.messages import PROTOCOL_VERSION, BlobGet, Hello
from crdtchain.sync.pull import Trip
from crdtchain.sync.session import Session
from node.addresses import parse_peer_url
from node.admission import LinkPace
from node.allow import REFUSED, Allow
from node.blobs import Blobs
from node.blobs.sources import BlobPeer
from node.book import Book, pick_addresses_to_tell
from node.config import Settings
from node.datadir import BLOBS_FOLDER, PEERS_FILE, load_key, write_private
from node.dialer import ALREADY_CONNECTED, Dialer
from node.dialing import make_http
from node.events import PeerConnected, PeerDropped, SyncProgress
from node.guards import Guards
from node.intake import Intake
from node.ledger_file import open_ledger
from node.link import Link
from node.partial import EVERYTHING, Partial, choose_selector, load_selector
from node.peers import Peers
from node.place import WARNING as PLACE_WARNING
from node.place import Place
from node.runtime import Runtime
from node.tls import make_client_context
from node.watched import read_lines

TELL_S = 600.0
"""So often a peer is told addresses."""
SLOW_START_S = 0.5
"""After a start that took longer a snapshot is saved at the stop, even when nothing has come."""
COOL_S = 30.0
"""The process that verifies is ended when nothing was caught up for so long."""

log = logging.getLogger(__name__)


class Node:
    """One running node; make it with `Node.open`."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        key: SigningKey,
        store: SqliteStore,
        ledger: Ledger,
        selector: Selector = EVERYTHING,
    ) -> None:
        """`selector`: what a partial replica keeps."""
        self.folder = folder
        self.settings = settings
        self.author = key.author
        self.store = store
        self.runtime = Runtime(ledger, store, key, settings.witness, debounce_ms=settings.debounce_ms)
        self.blobs = Blobs(folder / BLOBS_FOLDER, store.blobs, settings.blob_quota_mib * 2**20)
        self.intake = Intake(ledger.params.network)
        self._penalties = SqlitePenalties.of(store)
        find_waiters = self.runtime.replica.waiting.find_waiters
        self.guards = Guards(self.runtime, find_waiters, store.path, settings.op_quota_mib * 2**20)
        self.partial = Partial(ledger, key.author, selector)
        self.holdings = Holdings(ledger.dag, self.partial.scope, self.partial.find_part)
        gate, may_pull = self.guards.gate, self.guards.may_pull
        self.partial.find_used = self._list_scopes
        self.peers = Peers(self, key.author, self._make_session, self.holdings.find_missing, gate, may_pull)
        self._key = key
        self.peer_port = 0
        """The port on which other nodes find this one; 0: none."""
        self.allow = Allow.open(folder, settings.allow)
        self.place = Place(folder, store, write_private)
        self.book = Book(SqliteAddresses.of(store), lambda: time.time_ns() // 1_000_000)
        self.blobs.tls_context = tls = make_client_context(settings.tls_ca)
        self.dialer = Dialer(
            self.book,
            self.peers.talk,
            partial(make_http, tls),
            settings,
            self.peers.is_connected,
            own=key.author,
            peers_file=folder / PEERS_FILE,
        )
        self.peers.failures = self.dialer.failures
        self.runtime.on_stored = self._on_stored
        self.runtime.on_wanted = self._want
        self.runtime.is_catching_up = lambda: self.peers.is_fetching
        self.runtime.find_models = lambda: self.blobs.commitments(self.author)
        self.runtime.save_snapshot = self.save_snapshot
        self.blobs.find_sources = self._find_sources
        self.blobs.find_links = self.peers.ready
        self.blobs.find_port = self._find_blob_port
        self._named = set[bytes]()
        """Blobs that ops name."""
        self._named_count = 0
        """How many ops were looked at for them."""
        self._is_unsettled = False

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, settings: Settings, passphrase: str | None = None) -> AsyncIterator[Node]:
        """Run a node for the length of a block.

        Raises:
            StoreBusyError, StoreVersionError, StoreError, KeyFileError: the data folder can't be used.
            UsageError: the folder belongs to no network yet.
            ExceptionGroup: the node failed while it ran.
        """
        with DataFolderLock(folder) as lock:
            key = await asyncio.to_thread(load_key, folder, passphrase)
            store = SqliteStore(folder, lock)
            await store.open()
            try:
                started_s = time.monotonic()
                ledger = await open_ledger(store, folder)
                noted = await load_selector(store)
                node = cls(folder, settings, key, store, ledger, choose_selector(settings, key.author, noted))
                if node.partial.selector != noted:
                    await node.partial.save(store)
                if time.monotonic() - started_s > SLOW_START_S:
                    node.runtime.note_snapshot(0)
                node.guards.scores.load(await node._penalties.load())
                await node.blobs.open()
                async with node._running():
                    yield node
            finally:
                await store.close()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        await self.book.load()
        suspicion = await self._check_place()
        async with asyncio.TaskGroup() as group:
            background: list[asyncio.Task[None]] = []
            if suspicion and not self.settings.force_offline:
                self.runtime.hold_signing(f"a peer's copy of the own chain: {suspicion}")
            elif self._has_configured_peers():
                self.runtime.hold_signing("a configured peer's copy of the own chain")
                background.append(group.create_task(self._stop_waiting()))
            background.append(group.create_task(self.runtime.run()))
            background.append(group.create_task(self.peers.watch()))
            background.append(group.create_task(self.guards.run(self._take, self._penalties)))
            background.append(group.create_task(self.dialer.run()))
            background.append(group.create_task(self._tell_and_check()))
            try:
                yield
            finally:
                await self._stop(background)

    def _has_configured_peers(self) -> bool:
        try:
            return bool(self.settings.peers or read_lines(self.folder / PEERS_FILE))
        except UsageError:
            # Who can't be read may be there.
            return True

    async def _check_place(self) -> str:
        """Return why the data folder looks copied or restored, after which nothing is signed without a peer's word."""
        tip = await self.store.own_tip(self.author)
        reason = await self.place.check(0 if tip is None else tip.seq + 1)
        if reason and self.settings.force_offline:
            log.warning("%s.", PLACE_WARNING.format(reason=reason))
        if not reason or self.settings.force_offline:
            await self.place.settle()
            return ""
        log.warning(
            "The data folder looks copied or restored (%s): nothing is signed before a peer is in step.", reason
        )
        self._is_unsettled = True
        return f"the data folder looks copied or restored ({reason}); --force-offline signs without it, at your risk"

    async def _settle(self) -> None:
        """Note that the data folder is right where it is, once a peer's word has ended the waiting."""
        if self._is_unsettled and not self.runtime.waits_for_tip:
            self._is_unsettled = False
            tip = await self.store.own_tip(self.author)
            self.place.reset_signed(0 if tip is None else tip.seq + 1)
            await self.place.settle()

    def _on_stored(self, ops: Sequence[SignedOp], source: str) -> None:
        self.peers.push(ops, source)
        for signed in ops:
            if signed.op.author == self.author:
                self.place.note_signed(signed.op.seq + 1)

    async def _tell_and_check(self) -> None:
        """Tell peers addresses, and drop those that are not allowed any more."""
        told: dict[str, float] = {}
        while True:
            await asyncio.sleep(1)
            self._note_synced()
            await self._settle()
            for link in self.peers.ready():
                if not self.allow.is_allowed(link.node):
                    link.drop(REFUSED)
                elif self.settings.discover and time.monotonic() - told.get(link.name, -1e9) > TELL_S:
                    told[link.name] = time.monotonic()
                    urls = pick_addresses_to_tell(self.book, link.address, self.settings.public_url, link.node)
                    if urls:
                        link.act(partial(link.session.tell, urls))
            told = {name: at for name, at in told.items() if name in self.peers.links}

    async def say_goodbye(self) -> None:
        """End connections and streams of events, so that open requests end too; doing it twice is no fault."""
        self.runtime.events.close()
        self.guards.gate.is_stopping = True
        await self.peers.close("this node is stopping")

    async def _stop(self, background: Sequence[asyncio.Task[None]]) -> None:
        await self.say_goodbye()
        await self.runtime.stop()
        await self._settle()
        for task in background:
            task.cancel()
        self.intake.close()
        await self.guards.save(self._penalties)
        try:
            if self.runtime.unsaved_count:
                await self.save_snapshot()
        except StoreError as error:
            log.warning("No snapshot was saved, so the next start takes longer: %s", error)

    async def _stop_waiting(self) -> None:
        wait_s = self.settings.tip_wait_s
        for _ in range(wait_s * 20):
            # A peer may say only after its hello that both hold the same.
            self._note_synced()
            if not self.runtime.waits_for_tip:
                return
            await asyncio.sleep(0.05)
        if self.runtime.waits_for_tip:
            log.warning("No configured peer answered within %d s; this node signs without its word.", wait_s)
            self.runtime.allow_signing()

    async def save_snapshot(self) -> None:
        """Save what the next start needs to be fast."""
        data, position = dump_ledger(self.runtime.ledger), len(self.runtime.ledger) - 1
        # Numbers of ops here and positions in the store are the same; what is dumped has to be stored before.
        await self.runtime.writer.drain()
        await self.store.save_snapshot(position, data)
        self.runtime.note_snapshot(position + 1)

    async def widen(self, more: Selector | None) -> bool:
        """Keep more than before, None for everything; returns whether that is a change.

        Raises:
            UsageError: everything is kept already, or it would be more than a scope holds.
        """
        is_changed = self.partial.widen_to_all() if more is None else self.partial.widen(more)
        if is_changed:
            await self.partial.save(self.store)
            self.holdings.scope = self.partial.scope
            # What a node keeps is said at the start of a connection.
            for link in self.peers.ready():
                link.drop("this node keeps more now")
        return is_changed

    def _list_scopes(self) -> set[bytes]:
        """Return what the peers keep that have said hello."""
        return {link.session.peer.scope for link in self.peers.links.values() if link.session.peer is not None}

    # -- what links need: LinkOwner --

    def _make_session(self, is_dialler: bool) -> Session:
        hello = Hello(
            version=PROTOCOL_VERSION,
            network=bytes(self.runtime.ledger.params.network),
            node=bytes(self.author),
            nonce=secrets.token_bytes(32),
            root=bytes(32),
            count=0,
            scope=b"",
            time_ms=self.runtime.now_ms(),
            blobs=self._describe_port(),
        )
        return Session(self.holdings, hello, is_dialler, secrets.token_bytes(32))

    def _describe_port(self) -> str:
        """Return where this node serves blobs, as seen from outside, without a host."""
        if self.settings.public_url:
            url = parse_peer_url(self.settings.public_url)
            return f"{url.scheme}://:{url.port}{url.path.rstrip('/')}"
        if not self.peer_port:
            return ""
        scheme = "https" if self.settings.tls_cert else "http"
        return f"{scheme}://:{self.peer_port}{self.settings.path_prefix.rstrip('/')}"

    def sign(self, message: bytes) -> bytes:
        """Sign what proves this node's key to a peer."""
        return self._key.sign(message)

    def count_held(self, ops: Sequence[SignedOp]) -> int:
        """Return how many of some ops are here, waiting ones not among them."""
        ledger = self.runtime.ledger
        return sum(signed.op.id in ledger for signed in ops)

    def _want(self, name: str, ids: Sequence[OpId]) -> None:
        if self.guards.may_want(name, ids):
            self.peers.want_from(name)

    def make_pace(self) -> LinkPace:
        """Return the paces of a new connection."""
        return self.guards.make_pace()

    def admit(self, ops: Sequence[SignedOp], link: Link) -> list[SignedOp]:
        """Return which of a peer's live ops are to be taken now, and what they need of those held or laid aside."""
        return self.guards.admit(self.partial.admit(ops), link.name)

    def _is_known(self, op: OpId) -> bool:
        return op in self.runtime.ledger or op in self.runtime.rejected

    async def prepare(self, blocks: Sequence[bytes]) -> list[SignedOp]:
        """Decode and verify what a peer sent, without what is known."""
        return await self.intake.prepare(blocks, self._is_known)

    async def take(self, ops: Sequence[SignedOp], link: Link) -> asyncio.Future[None]:
        """Add a peer's ops; the future is done when they are stored. Who sent an op that breaks a rule is dropped."""
        return await self._take(ops, link.name)

    async def _take(self, ops: Sequence[SignedOp], source: str) -> asyncio.Future[None]:
        rejected, stored = await self.runtime.take(ops, source)
        for effect in rejected:
            # An op that waited may have come from somebody else than the one that let it go.
            if effect.source in self.peers.links:
                self.peers.links[effect.source].drop(
                    f"the peer sent an op that breaks a rule ({effect.error.code})", "invalid_op"
                )
        return stored

    async def read_blocks(self, ids: Sequence[OpId]) -> list[bytes]:
        """Return stored blocks; those of ops that were just added may have to be waited for."""
        # Numbers of ops here and positions in the store are the same.
        numbers = [number for number in map(self.runtime.ledger.dag.find, ids) if number is not None]
        positions = numbers if len(numbers) == len(ids) else ()
        blocks = await self.store.get_blocks(ids, positions)
        while None in blocks:
            await asyncio.sleep(0.02)
            blocks = await self.store.get_blocks(ids, positions)
        return [block for block in blocks if block is not None]

    async def read_piece(self, get: BlobGet, link: Link) -> tuple[int, bytes] | bool:
        """Return the size of a blob and a piece of it; without it, whether it is being fetched for the peer."""
        blob = BlobId(get.cid)
        if self.blobs.find_size(blob) is None:
            if not get.hops or not self._is_named(get.cid):
                return False
            if not await self.blobs.relay(blob, get.hops - 1, link.name):
                return self.blobs.is_fetching(blob, link.name)
        return await self.blobs.read_piece(blob, get.offset, get.list)

    def _is_named(self, blob: bytes) -> bool:
        """Whether an op of the ledger names a blob: nothing else is fetched for others."""
        ledger = self.runtime.ledger
        for number in range(self._named_count, len(ledger)):
            body = ledger.jobs.bodies.get(number)
            if isinstance(body, Job):
                files = (*body.task.code, *body.data.train, *body.data.features)
                self._named.update((bytes(body.data.labels), *(bytes(link) for _, link in files)))
            elif isinstance(body, Reveal):
                self._named.add(bytes(body.model))
        self._named_count = len(ledger)
        return blob in self._named

    def is_second(self, link: Link) -> bool:
        """Whether there is a connection already to the node that a peer says it is, which this one must not replace."""
        return self.peers.is_second(link)

    def on_second(self, link: Link) -> None:
        """Note where a node answers that is connected already.

        Raises:
            PeerError: always, to end the second connection.
        """
        assert link.session.peer is not None
        self.dialer.note_node(link.address, Author(link.session.peer.node))
        raise PeerError(ALREADY_CONNECTED, "duplicate")

    def on_ready(self, link: Link) -> None:
        """Take a peer that has proved its key.

        Raises:
            PeerError: it is not wanted.
        """
        self.allow.check(link.node)
        if link.is_dialler:
            self.dialer.note_node(link.address, link.node)
        elif (
            self.settings.discover
            and link.session.peer is not None
            and (url := _find_port(link.session.peer.blobs, link.address))
        ):
            self.book.note_inbound(str(url), link.node)
        self.peers.choose(link)
        assert link.session.peer is not None
        self.guards.note_ready(link.name, link.node, link.session.peer.time_ms, link.is_dialler)
        log.info("Connected to %s, node %s.", link.address, codec.format_did(link.node))
        self.runtime.events.publish([PeerConnected(link.name, link.address, link.node)])
        if link.node == self.author:
            log.warning("A peer uses the same key as this node: two copies of one key end in an equivocation.")
        asyncio.get_running_loop().call_soon(self._note_synced)

    def on_found(self, link: Link, is_sure: bool) -> None:
        """Ask for what a peer has, when it is its turn."""
        # At the start of a connection nothing is on its way.
        self.peers.want(link, is_sure or not link.is_ready or not link.session.traffic.received_ops)

    def on_page(self, link: Link, is_last: bool) -> None:
        """Go on after a page has been stored."""
        ledger = self.runtime.ledger
        self.runtime.events.publish([SyncProgress(link.name, len(ledger), max(len(ledger), link.session.peer_count))])
        self.peers.note_page(link)

    def on_pulled(self, link: Link, trip: Trip) -> None:
        """Go on after all has come that was asked of a peer."""
        self.peers.note_pulled(link)
        if not self.peers.is_fetching:
            self.runtime.stir_agenda()
            asyncio.get_running_loop().call_later(COOL_S, self._cool_down)
        self._note_synced()

    def on_live(self, link: Link, new: Sequence[SignedOp], blocks: Sequence[bytes]) -> None:
        """Ask a peer to announce, when others are faster."""
        for signed in new:
            link.pruned.pop(signed.op.author, None)
        if len(new) < len(blocks):
            known, dag = {signed.block for signed in new}, self.runtime.ledger.dag
            numbers = [dag.find(codec.compute_op_id(block)) for block in blocks if block not in known]
            self.peers.note_copies(link, {dag.author_key(number) for number in numbers if number is not None})

    def on_announced(self, link: Link, prefixes: Sequence[bytes]) -> None:
        """Wait for what a peer has announced, and then ask for it."""
        self.peers.note_announced(link, prefixes)

    def on_told(self, link: Link, urls: Sequence[str]) -> None:
        """Note where other nodes answer, says a peer."""
        if self.settings.discover:
            self.book.note_told(urls, link.node, link.address)

    def _cool_down(self) -> None:
        if not self.peers.is_fetching:
            self.intake.close()

    def _note_synced(self) -> None:
        if self.runtime.waits_for_tip and any(link.is_synced and self._may_vouch(link) for link in self.peers.ready()):
            self.runtime.allow_signing()

    def _may_vouch(self, link: Link) -> bool:
        """Whether a peer's word on the own chain counts: anybody can say that it holds what is here.

        It has to be a node at an address that people chose; only who chose none believes the others. Who uses the same
        key is the very copy that there may be.
        """
        if link.node == self.author:
            return False
        chosen = self.book.list_chosen()
        return link.is_configured or link.node in chosen or not (chosen or self._has_configured_peers())

    def on_closed(self, link: Link, reason: str) -> None:
        """Note that a connection has ended."""
        self.guards.forget(link.name)
        log.info("The connection to %s ended: %s.", link.address, reason)
        self.runtime.events.publish([PeerDropped(link.name, link.address, reason)])

    def _find_blob_port(self, link: BlobPeer) -> URL | None:
        """Return the peer port of a connected node, or None when it serves none."""
        if not isinstance(link, Link) or link.session.peer is None:
            return None
        return URL(link.address) if link.is_dialler else _find_port(link.session.peer.blobs, link.address)

    def _find_sources(self) -> list[URL]:
        """Return the peer ports of connected nodes that serve blobs."""
        found: dict[URL, None] = {}
        for link in self.peers.ready():
            if link.is_dialler:
                found[URL(link.address)] = None
            elif link.session.peer is not None and (url := _find_port(link.session.peer.blobs, link.address)):
                found[url] = None
        return list(found)


_PORT: Final = re.compile(r"(https?)://:([0-9]{1,5})((?:/[A-Za-z0-9._~-]{1,64}){0,4})")


def _find_port(blobs: str, address: str) -> URL | None:
    """Return the address of a peer that dialled in, from what it says and where it was seen."""
    found = _PORT.fullmatch(blobs)
    if found is None or not 0 < int(found[2]) < 65_536 or not address or ".." in found[3]:
        return None
    # The host is not taken from the peer: one of its choice would let it aim this node's requests at others.
    return URL.build(scheme=found[1], host=address, port=int(found[2]), path=found[3])
