"""The blobs of one node: what is here, what is let in, what goes when there is no room, and what is fetched from peers.

A blob is one file, whatever its size. Up to 1 MiB its CID is that of its bytes; above, that of the list of its 1 MiB
chunks, which lies beside it, so that what comes from peers is checked chunk by chunk.

Invariants:

1. A file under its CID's name is whole and was checked.
2. Nothing is fetched that nobody asked for, and never more than the quota has room for.
3. What was put here, is pinned, or is needed by an open job is removed by nobody but the node's own user.

Source: protocol section 2, "Links".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import aiohttp
from yarl import URL

from crdtchain import codec, limits
from crdtchain.adapters.blob_index import COMPLETE, FETCHED, PINNED, WHOLE
from crdtchain.adapters.store import BlobIndex
from crdtchain.errors import NoPeerError, PeerError, StoreError, StoreFullError, UsageError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.scalars import Author, BlobId
from node.blobs.fetching import Faults, Fetch, race
from node.blobs.files import Folder, FoundFile, Part, compute_chunk_id, convert_error
from node.blobs.keeping import PART, Item, choose_victims, find_reason
from node.blobs.lists import Layout, is_list_of, read_layout
from node.blobs.progress import Meter
from node.blobs.sources import BlobPeer, Port, Source, Wire, open_http
from node.events import BlobProgress

P = ParamSpec("P")
T = TypeVar("T")

RELAY_WAIT_S: Final = 2.0
"""So long an asker waits for one answer while a blob is fetched for it; then it is told to ask again."""
RELAY_PAUSE_S: Final = 2.0
"""After a vain search for others' sake the next one has to wait so long."""
RELAY_HEDGE_S: Final = 10.0
"""So long one peer may look for a blob at its own peers before the next one is asked to."""
RELAYS_MAX: Final = 16
"""With so many blobs under way no more are fetched for others' sake."""
QUOTA_PART: Final = (9, 10)
"""What is fetched for others' sake leaves the rest of the quota free."""
LIARS_MAX: Final = 256
"""Of so many blobs it is remembered who sent other bytes."""
TOUCH_MS: Final = 60_000
"""The time of the last use is written to the disk at most so often."""

log = logging.getLogger(__name__)


async def _run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what blocks on files in a thread; faults of the disk become ours."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except OSError as error:
        raise convert_error(error) from error


class Blobs:
    """The blobs of one node.

    Args:
        folder: where the files are.
        index: which blobs are here, and why.
        quota_bytes: what all files may take.
    """

    def __init__(self, folder: Path, index: BlobIndex, quota_bytes: int) -> None:
        self._folder = Folder(folder)
        self._index = index
        self.quota_bytes = quota_bytes
        self._items: dict[BlobId, Item] = {}
        self._parts: dict[BlobId, Item] = {}
        """Unfinished blobs that nobody fetches now."""
        self._pending: dict[object, int] = {}
        """Room that is taken for what is being written."""
        self._version = 0
        self._used_ms = 0
        self._changing = asyncio.Lock()
        """Held while files get their names, or go."""
        self._commitments: dict[Author, tuple[int, dict[bytes, tuple[BlobId, int]]]] = {}
        self._fetching: dict[BlobId, asyncio.Task[None]] = {}
        self._meters: dict[BlobId, Meter] = {}
        self.find_sources: Callable[[], Sequence[URL]] = list
        """Returns the addresses of connected peers' peer ports."""
        self.find_links: Callable[[], Sequence[BlobPeer]] = list
        """Returns the connections over which blobs can be asked for."""
        self.find_port: Callable[[BlobPeer], URL | None] = self._find_own_port
        """Returns the address of a connected peer's own port."""
        self.find_needed: Callable[[], Mapping[BlobId, str]] | None = None
        """Returns what open jobs need, and what for; without it no whole blob is removed to make room."""
        self.on_progress: Callable[[BlobProgress], None] = lambda _: None
        """Called a few times a second while a blob is fetched."""
        self._askers: dict[BlobId, set[str]] = {}
        """For whom a blob is being fetched: they are not asked for it."""
        self._asked: dict[BlobId, set[str]] = {}
        """Who is being asked to look for a blob now."""
        self._failed: dict[BlobId, float] = {}
        """When a blob was last looked for in vain for others' sake."""
        self._liars: dict[BlobId, set[str]] = {}

    async def open(self) -> None:
        """Make the folder, remove leftovers, and compare the index with the files.

        Raises:
            StoreError: the folder can't be used.
        """
        try:
            wholes, parts = await asyncio.to_thread(self._folder.open)
        except OSError as error:
            raise StoreError(f"the folder {self._folder.path} can't be used: {error.strerror}") from error
        states = {row.cid: (row.state, row.size) for row in await self._index.list()}
        for blob, found in wholes.items():
            await self._open_one(blob, found, *states.pop(blob, ("", -1)))
        for blob in states:
            await self._index.remove(blob)
        self._parts = {blob: Item(found.size, PART, found.used_ms) for blob, found in parts.items()}

    async def _open_one(self, blob: BlobId, found: FoundFile, state: str, size: int) -> None:
        if state not in COMPLETE or size != found.size:
            # A crash between the file's name and its row; or the file was changed by somebody.
            if not await _run(self._folder.is_sound, blob, found.size):
                log.warning("The file of the blob %s is damaged, and is removed.", codec.format_cid(blob))
                await _run(self._folder.remove, blob)
                await self._index.remove(blob)
                return
            state = state if state in COMPLETE else FETCHED
            await self._index.put(blob, found.size, found.used_ms, state)
        self._items[blob] = Item(found.size, state, found.used_ms)

    async def close(self) -> None:
        """End what is being fetched; what has come of it stays for the next time."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what is here --

    @property
    def total_bytes(self) -> int:
        """Bytes of all blobs here."""
        return sum(item.size for item in self._items.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of all that counts for the quota: blobs, unfinished ones, and room taken for what is being written."""
        return self.total_bytes + sum(item.size for item in self._parts.values()) + sum(self._pending.values())

    def path(self, blob: BlobId) -> Path:
        """Return where a blob's file is, or would be."""
        return self._folder.whole(blob)

    def find_size(self, blob: BlobId) -> int | None:
        """Return the size of a blob in bytes, or None when it is not here."""
        item = self._items.get(blob)
        return None if item is None else item.size

    def commitments(self, author: Author) -> dict[bytes, tuple[BlobId, int]]:
        """Return what an author's bid would commit to, for each blob here: commitment to blob and size."""
        version, known = self._commitments.get(author, (-1, {}))
        if version != self._version:
            before = {blob: commit for commit, (blob, _) in known.items()}
            known = {
                before.get(blob) or compute_commitment(author, blob): (blob, item.size)
                for blob, item in self._items.items()
            }
            self._commitments[author] = self._version, known
        return known

    def list_items(self) -> list[tuple[BlobId, Item, str]]:
        """Return whole blobs and unfinished ones, each with why it stays; the one that was used last is first."""
        needed = self._find_needed()
        rows = chain(self._items.items(), self._parts.items())
        found = [(blob, item, find_reason(blob, item, needed)) for blob, item in rows]
        return sorted(found, key=lambda row: (-row[1].used_ms, row[0]))

    def list_progress(self) -> list[BlobProgress]:
        """Return how far all blobs are that are being fetched."""
        return [meter.show("fetching") for meter in self._meters.values()]

    def _find_needed(self) -> Mapping[BlobId, str]:
        return {} if self.find_needed is None else self.find_needed()

    # -- what stays --

    async def pin(self, blob: BlobId) -> None:
        """Have a blob stay until it is let go.

        Raises:
            UsageError: it is not here.
        """
        await self._set_state(blob, PINNED)

    async def unpin(self, blob: BlobId) -> None:
        """Let a blob go when there is no room, also one that was put here.

        Raises:
            UsageError: it is not here.
        """
        await self._set_state(blob, FETCHED)

    async def _set_state(self, blob: BlobId, state: str) -> None:
        async with self._changing:
            item = self._find_item(blob)
            await self._index.put(blob, item.size, item.used_ms, state)
            item.state = state

    def _find_item(self, blob: BlobId) -> Item:
        if blob not in self._items:
            raise UsageError(f"the blob {codec.format_cid(blob)} is not here")
        return self._items[blob]

    async def remove(self, blob: BlobId, force: bool = False) -> int:
        """Remove a blob, or what there is of an unfinished one; returns the bytes that it had.

        Raises:
            UsageError: it is not here; or an open job needs it, and `force` is not given.
        """
        if blob in self._fetching:
            self._fetching[blob].cancel()
            await asyncio.gather(self._fetching[blob], return_exceptions=True)
        item = self._parts.get(blob) or self._find_item(blob)
        if not force and item.state != PART and (why := self._find_needed().get(blob)):
            raise UsageError(f"the blob {codec.format_cid(blob)} is needed: {why}; remove it with --force")
        self._forget(blob)
        await self._delete(blob)
        return item.size

    async def _reserve(self, token: object, size: int, limit: int) -> None:
        """Take room for what is being written, removing what may go if need be.

        Raises:
            StoreFullError: there is not so much.
        """
        before = self._pending.get(token, 0)
        self._pending[token] = size
        excess = self.used_bytes - limit
        if excess <= 0:
            return
        needed = self._items.keys() if self.find_needed is None else self.find_needed().keys()
        victims = choose_victims(chain(self._items.items(), self._parts.items()), needed, excess)
        if victims is None:
            self._pending[token] = before
            quota = self.quota_bytes // 2**20
            raise StoreFullError(
                f"the blob quota of {quota} MiB is used up by what has to stay ('blob list'); raise blob_quota_mib"
            )
        for blob, _ in victims:
            self._forget(blob)
        for blob, item in victims:
            await self._delete(blob)
            log.info("Removed the blob %s, %d bytes, to make room.", codec.format_cid(blob), item.size)

    def _forget(self, blob: BlobId) -> None:
        self._items.pop(blob, None)
        self._parts.pop(blob, None)
        self._version += 1

    async def _delete(self, blob: BlobId) -> None:
        async with self._changing:
            if blob not in self._items and blob not in self._fetching:
                await _run(self._folder.remove, blob)
                await self._index.remove(blob)

    # -- in --

    async def put(self, parts: AsyncIterable[bytes], size_max: int = limits.BLOB_BYTES_MAX) -> tuple[BlobId, int]:
        """Store a blob that comes in parts; returns its id and size.

        Raises:
            UsageError: it is larger than allowed.
            StoreFullError: the quota or the disk is used up.
            StoreError: it can't be written.
        """
        token = object()
        sink = await _run(self._folder.open_sink)
        try:
            async for part in parts:
                if sink.size + len(part) > size_max:
                    raise UsageError(f"the blob has more than {size_max} bytes")
                await self._reserve(token, sink.size + len(part), self.quota_bytes)
                await _run(sink.write, part)
            blob, block = await _run(sink.finish)
            await self._keep(blob, sink.size, WHOLE, partial(self._folder.keep, sink.path, blob, block))
            return blob, sink.size
        finally:
            self._pending.pop(token, None)
            await asyncio.to_thread(sink.close)

    async def put_bytes(self, data: bytes) -> BlobId:
        """Store a blob; see `put`."""
        blob, _ = await self.put(_iterate(data))
        return blob

    async def _keep(self, blob: BlobId, size: int, state: str, move: Callable[[], None]) -> None:
        """Take a complete blob in; `move` gives its file its name."""
        async with self._changing:
            item = self._items.get(blob)
            if item is not None:
                # Whoever put it here, or pinned it, still wants it to stay.
                state = state if item.state == FETCHED else item.state
            await _run(move)
            used_ms = self._next_ms()
            await self._index.put(blob, size, used_ms, state)
            self._items[blob] = Item(size, state, used_ms)
            self._parts.pop(blob, None)
            self._version += 1

    # -- out --

    async def read(self, blob: BlobId) -> bytes:
        """Return the content of a blob that is here.

        Raises:
            StoreError: it is not, or can't be read.
        """
        await self.note_use(blob)
        try:
            return await asyncio.to_thread(self.path(blob).read_bytes)
        except OSError as error:
            raise StoreError(f"the blob {codec.format_cid(blob)} can't be read: {error.strerror}") from error

    async def read_list(self, blob: BlobId) -> bytes | None:
        """Return the list of a blob's chunks, or None for one without, or that is not here as a whole."""
        if blob not in self._items:
            return None
        try:
            return await asyncio.to_thread(self._folder.list_of(blob).read_bytes)
        except FileNotFoundError:
            return None

    async def read_piece(self, blob: BlobId, offset: int, is_list: bool) -> tuple[int, bytes] | bool:
        """Return the size of a blob, or of its list, and a piece; False when it is not here, or ends before."""
        if blob not in self._items:
            return False
        await self.note_use(blob)
        path = self._folder.list_of(blob) if is_list else self.path(blob)
        try:
            size, data = await asyncio.to_thread(self._folder.read_piece, path, offset)
        except OSError:
            return False
        return (size, data) if offset <= size else False

    async def note_use(self, blob: BlobId) -> None:
        """Note that a blob is used: others go before it when there is no room."""
        item = self._items.get(blob)
        if item is None:
            return
        before, item.used_ms = item.used_ms, self._next_ms()
        if item.used_ms - before > TOUCH_MS:
            await asyncio.to_thread(self._folder.touch, blob)

    def _next_ms(self) -> int:
        """Return the time, ms since the Unix epoch; later than the last one, so that uses have an order."""
        self._used_ms = max(time.time_ns() // 1_000_000, self._used_ms + 1)
        return self._used_ms

    # -- from peers --

    def is_fetching(self, blob: BlobId, asker: str) -> bool:
        """Whether a blob is being fetched, and the asker is not the one who looks for it."""
        return blob in self._fetching and asker not in self._asked.get(blob, ())

    async def relay(self, blob: BlobId, hops: int, asker: str) -> bool:
        """Fetch a blob for a peer; returns whether it is here within a short time."""
        now_s = time.monotonic()
        self._failed = {other: at_s for other, at_s in self._failed.items() if now_s - at_s < RELAY_PAUSE_S}
        if blob in self._failed or (blob in self._fetching and not self.is_fetching(blob, asker)):
            return False
        if blob not in self._fetching and len(self._fetching) >= RELAYS_MAX:
            return False
        self._askers.setdefault(blob, set()).add(asker)
        try:
            async with asyncio.timeout(RELAY_WAIT_S):
                await self.ensure(blob, hops=hops, for_others=True)
        except TimeoutError:
            return False
        except (PeerError, StoreError):
            self._failed[blob] = time.monotonic()
            return False
        return True

    async def ensure(
        self,
        blob: BlobId,
        size_max: int = limits.BLOB_BYTES_MAX,
        hops: int = limits.BLOB_HOPS_MAX,
        for_others: bool = False,
    ) -> int:
        """Fetch a blob from those peers that have it, unless it is here; returns its size.

        Raises:
            NoPeerError: no connected peer has it.
            PeerError: its id names no blob.
            UsageError: it is larger than `size_max`.
            StoreFullError: the quota or the disk is used up.
        """
        while blob not in self._items:
            task, is_first = self._fetching.get(blob), False
            if task is None:
                task, is_first = asyncio.create_task(self._fetch(blob, size_max, hops, for_others)), True
                self._fetching[blob] = task
                task.add_done_callback(lambda done: self._end_fetch(blob, done))
            try:
                await asyncio.shield(task)
            except StoreFullError:
                # What was begun for others' sake has less room than what is wanted here.
                if is_first or for_others:
                    raise
        await self.note_use(blob)
        return self._items[blob].size

    def _end_fetch(self, blob: BlobId, done: asyncio.Task[None]) -> None:
        for kept in (self._fetching, self._askers, self._asked, self._meters):
            kept.pop(blob, None)
        self._pending.pop(blob, None)
        if not done.cancelled():
            # Whoever asked may be gone.
            done.exception()

    async def _fetch(self, blob: BlobId, size_max: int, hops: int, for_others: bool) -> None:
        meter = self._meters[blob] = Meter(blob, self._tell)
        liars = self._liars.setdefault(blob, set())
        while len(self._liars) > LIARS_MAX:
            del self._liars[next(iter(self._liars))]
        faults = Faults(liars)
        part, whole = QUOTA_PART if for_others else (1, 1)
        limit = self.quota_bytes * part // whole
        state = "failed"
        try:
            await self._reserve(blob, 0, limit)
            async with open_http() as http:
                small = await self._fetch_small(http, blob, hops, faults)
                if codec.is_raw_blob_id(blob):
                    _check_size(len(small), size_max)
                    await self._reserve(blob, len(small), limit)
                    meter.begin(len(small), 0)
                    meter.add(len(small), "")
                    await self._keep(blob, len(small), FETCHED, partial(self._folder.write, self.path(blob), small))
                else:
                    layout = read_layout(blob, small)
                    _check_size(layout.size, size_max)
                    find = partial(self._list_sources, http, blob)
                    await self._fetch_chunks(layout, small, limit, lambda part: Fetch(part, find, meter, faults), meter)
            state = "done"
        finally:
            meter.tell(state)

    async def _fetch_small(self, http: aiohttp.ClientSession, blob: BlobId, hops: int, faults: Faults) -> bytes:
        """Return the list of a blob's chunks, or the blob itself if it has but one."""
        is_list = not codec.is_raw_blob_id(blob)

        async def read(source: Source) -> bytes:
            data = await source.read_all(blob, is_list)
            if not (is_list_of(blob, data) if is_list else compute_chunk_id(data) == blob):
                raise PeerError(
                    f"the peer sent {'another list of chunks' if is_list else 'other bytes'} than the blob's"
                )
            return data

        async def read_far(source: Source) -> bytes:
            asked = self._asked.setdefault(blob, set())
            asked.add(source.name)
            try:
                return await read(source)
            finally:
                asked.discard(source.name)

        found = await race(self._list_sources(http, blob), read, faults)
        if found is None and hops:
            # Who has it comes first; only then do peers look for it at theirs.
            links = [link for link in self.find_links() if link.name not in self._askers.get(blob, ())]
            far = [Source(link.name, None, Wire(link, hops)) for link in links]
            found = await race(far, read_far, faults, RELAY_HEDGE_S)
        if found is None:
            text = codec.format_cid(blob)
            raise NoPeerError(f"no connected peer has the blob {text}{faults.describe()}; it is fetched when one does")
        return found

    async def _fetch_chunks(
        self, layout: Layout, block: bytes, limit: int, make: Callable[[Part], Fetch], meter: Meter
    ) -> None:
        """Fetch a blob of many chunks; what comes stays for the next time when not all does."""
        blob = layout.blob
        known = self._parts.pop(blob, None)
        part: Part | None = None
        try:
            await self._reserve(blob, layout.size, limit)
            await _run(self._folder.write, self._folder.list_of(blob), block)
            part = await _run(Part, self._folder, layout)
            if known is not None:
                await _run(part.check)
            meter.begin(layout.size, part.done_bytes)
            await make(part).run()
            await self._keep(blob, layout.size, FETCHED, part.finish)
            known = None
        except StoreFullError:
            if part is not None:
                # Nothing half written stays on a full disk: the ledger needs the room.
                known = None
                part.missing.update(range(len(layout.chunks)))
            raise
        finally:
            self._pending.pop(blob, None)
            if part is not None:
                if blob not in self._items:
                    known = Item(part.taken_bytes(), PART, self._next_ms()) if part.done_bytes else None
                part.close()
            if blob not in self._items:
                if known is None:
                    await asyncio.to_thread(self._folder.remove, blob)
                else:
                    self._parts[blob] = known

    def _tell(self, progress: BlobProgress) -> None:
        self.on_progress(progress)

    def _list_sources(self, http: aiohttp.ClientSession, blob: BlobId) -> list[Source]:
        """Return the peers that may be asked for a blob, each once."""
        found, ports = list[Source](), dict.fromkeys(self.find_sources())
        liars = self._liars.get(blob, set())
        for link in self.find_links():
            url = self.find_port(link)
            if url is not None:
                ports.pop(url, None)
            if link.name not in self._askers.get(blob, ()):
                name = link.name if url is None else str(url)
                found.append(Source(name, None if url is None else Port(http, url), Wire(link)))
        found.extend(Source(str(url), Port(http, url), None) for url in ports)
        return [source for source in found if source.name not in liars]

    def _find_own_port(self, link: BlobPeer) -> URL | None:
        """Return a peer's port when the connection was made to it."""
        url = URL(link.address) if link.address.startswith("http") else None
        return url if url in self.find_sources() else None


def _check_size(size: int, size_max: int) -> None:
    if size > size_max:
        raise UsageError(f"the blob has {size} bytes, more than the {size_max} that were asked for")


async def _iterate(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), limits.CHUNK_BYTES):
        yield data[start : start + limits.CHUNK_BYTES]
