"""The blobs of one node: those that are here, and those that are fetched from peers when somebody needs them.

A blob is one file, whatever its size. Up to 1 MiB its CID is that of its bytes; above, that of the list of its 1 MiB
chunks, which lies beside it, so that what comes from peers is checked chunk by chunk.

Invariant: nothing is fetched that nobody asked for, and never more than the quota has room for.

Source: protocol section 2, "Links".
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from crdtchain import codec, limits
from crdtchain.adapters.blob_index import FETCHED
from crdtchain.adapters.store import BlobIndex
from crdtchain.errors import NoPeerError, PeerError, StoreError, StoreFullError, UsageError
from crdtchain.scalars import BlobId
from node.blobs.fetching import Faults, Fetch, race
from node.blobs.files import Part, compute_chunk_id
from node.blobs.keeping import PART, Item
from node.blobs.lists import Layout, is_list_of, read_layout
from node.blobs.progress import Meter
from node.blobs.shelf import Shelf, run_file_work
from node.blobs.sources import BlobPeer, Port, Source, Wire, open_http
from node.events import BlobProgress

RELAY_WAIT_S: Final = 2.0
"""So long an asker waits for one answer while a blob is fetched for it; then it is told to ask again."""
RELAY_PAUSE_S: Final = 2.0
"""After a vain search for others' sake the next one has to wait so long."""
RELAY_HEDGE_S: Final = 10.0
"""So long one peer may look for a blob at its own peers before the next one is asked to."""
RELAYS_MAX: Final = 16
"""With so many blobs under way no more are fetched for others' sake."""
LIARS_MAX: Final = 256
"""Of so many blobs it is remembered who sent other bytes."""


class Blobs(Shelf):
    """The blobs of one node; arguments as of `Shelf`."""

    def __init__(self, folder: Path, index: BlobIndex, quota_bytes: int) -> None:
        super().__init__(folder, index, quota_bytes)
        self._fetching: dict[BlobId, asyncio.Task[None]] = {}
        self._meters: dict[BlobId, Meter] = {}
        self.find_sources: Callable[[], Sequence[URL]] = list
        """Returns the addresses of connected peers' peer ports."""
        self.find_links: Callable[[], Sequence[BlobPeer]] = list
        """Returns the connections over which blobs can be asked for."""
        self.find_port: Callable[[BlobPeer], URL | None] = self._find_own_port
        """Returns the address of a connected peer's own port."""
        self.tls_context: ssl.SSLContext | None = None
        """Checks the certificates of ports; None: as this machine does."""
        self.on_progress: Callable[[BlobProgress], None] = lambda _: None
        """Called a few times a second while a blob is fetched."""
        self._askers: dict[BlobId, set[str]] = {}
        """For whom a blob is being fetched: they are not asked for it."""
        self._asked: dict[BlobId, set[str]] = {}
        """Who is being asked to look for a blob now."""
        self._failed: dict[BlobId, float] = {}
        """When a blob was last looked for in vain for others' sake."""
        self._liars: dict[BlobId, set[str]] = {}

    async def close(self) -> None:
        """End what is being fetched; what has come of it stays for the next time."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def list_progress(self) -> list[BlobProgress]:
        """Return how far all blobs are that are being fetched."""
        return [meter.show("fetching") for meter in self._meters.values()]

    async def remove(self, blob: BlobId, force: bool = False) -> int:
        """Remove a blob; a fetch of it ends. See `Shelf.remove`."""
        if blob in self._fetching:
            self._fetching[blob].cancel()
            await asyncio.gather(self._fetching[blob], return_exceptions=True)
        return await super().remove(blob, force)

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
            NoPeerError: no connected peer has it, or the fetch was ended.
            PeerError: its id names no blob.
            UsageError: it is larger than `size_max`.
            StoreFullError: the quota or the disk is used up.
        """
        while blob not in self._items:
            task, is_first = self._fetching.get(blob), False
            if task is None:
                task, is_first = asyncio.create_task(self._fetch(blob, size_max, hops, for_others)), True
                self._fetching[blob] = task
                self._active.add(blob)
                task.add_done_callback(lambda done: self._end_fetch(blob, done))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if not task.cancelled() or (current is not None and current.cancelling()):
                    raise
                raise NoPeerError(f"fetching the blob {codec.format_cid(blob)} was ended") from None
            except StoreFullError:
                # What was begun for others' sake has less room than what is wanted here.
                if is_first or for_others:
                    raise
        await self.note_use(blob)
        return self._items[blob].size

    def _end_fetch(self, blob: BlobId, done: asyncio.Task[None]) -> None:
        for kept in (self._fetching, self._askers, self._asked, self._meters):
            kept.pop(blob, None)
        self._active.discard(blob)
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
        limit = self.quota_bytes * (limits.QUOTA_PERCENT if for_others else 100) // 100
        state = "failed"
        try:
            await self._reserve(blob, 0, limit)
            async with open_http(self.tls_context) as http:
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
            await run_file_work(self._folder.write, self._folder.list_of(blob), block)
            part = await run_file_work(Part, self._folder, layout)
            if known is not None:
                await run_file_work(part.check)
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
