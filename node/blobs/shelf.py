"""The blobs that are here: what is let in, what goes when there is no room, what is read.

Invariants:

1. A file under its CID's name is whole and was checked.
2. What is here, unfinished, or being written takes no more than the quota.
3. What was put here, is pinned, or is needed by an open job is removed by nobody but the node's own user.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from crdtchain import codec, limits
from crdtchain.adapters.blob_index import COMPLETE, FETCHED, PINNED, WHOLE
from crdtchain.adapters.store import BlobIndex
from crdtchain.errors import StoreError, StoreFullError, UsageError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.scalars import Author, BlobId
from node.blobs.files import Folder, FoundFile, convert_error
from node.blobs.keeping import PART, Item, choose_victims, find_reason

P = ParamSpec("P")
T = TypeVar("T")

TOUCH_MS: Final = 60_000
"""The time of the last use is written to the disk at most so often."""

log = logging.getLogger(__name__)


async def run_file_work(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what blocks on files in a thread; faults of the disk become ours."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except OSError as error:
        raise convert_error(error) from error


class Shelf:
    """The blobs that are here.

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
        self._active: set[BlobId] = set()
        """Blobs that are being fetched: their parts are nobody else's business."""
        self._parts: dict[BlobId, Item] = {}
        """Unfinished blobs that nobody fetches now."""
        self._pending: dict[object, int] = {}
        """Room that is taken for what is being written."""
        self._version = 0
        self._used_ms = 0
        self._changing = asyncio.Lock()
        """Held while files get their names, or go."""
        self._commitments: dict[Author, tuple[int, dict[bytes, tuple[BlobId, int]]]] = {}
        self.find_needed: Callable[[], Mapping[BlobId, str]] | None = None
        """Returns what open jobs need, and what for; without it no whole blob is removed to make room."""

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
            if not await run_file_work(self._folder.is_sound, blob, found.size):
                log.warning("The file of the blob %s is damaged, and is removed.", codec.format_cid(blob))
                await run_file_work(self._folder.remove, blob)
                await self._index.remove(blob)
                return
            state = state if state in COMPLETE else FETCHED
            await self._index.put(blob, found.size, found.used_ms, state)
        self._items[blob] = Item(found.size, state, found.used_ms)

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
                f"the blob quota of {quota} MiB has no room for it beside what has to stay ('blob list'); "
                "raise the setting blob_quota_mib"
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
            if blob not in self._items and blob not in self._active:
                await run_file_work(self._folder.remove, blob)
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
        sink = await run_file_work(self._folder.open_sink)
        try:
            async for part in parts:
                if sink.size + len(part) > size_max:
                    raise UsageError(f"the blob has more than {size_max} bytes")
                await self._reserve(token, sink.size + len(part), self.quota_bytes)
                await run_file_work(sink.write, part)
            blob, block = await run_file_work(sink.finish)
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
            await run_file_work(move)
            used_ms = self._next_ms()
            try:
                await self._index.put(blob, size, used_ms, state)
            except StoreError:
                if item is None:
                    # What the index does not have would count for no quota.
                    await run_file_work(self._folder.remove, blob)
                raise
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


async def _iterate(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), limits.CHUNK_BYTES):
        yield data[start : start + limits.CHUNK_BYTES]
