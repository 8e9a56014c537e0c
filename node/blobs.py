"""Blobs by their CIDs: files in the data folder, checked on the way in, pulled from peers when somebody needs them.

A blob is one file, whatever its size. Up to 1 MiB its CID is that of its bytes; above, that of the list of its 1 MiB
chunks (`{size, chunks}`), which lies beside it, so that what is streamed from a peer is checked chunk by chunk.

Invariants:

1. A file under its CID's name is whole and was checked; what is being written has another name and goes away when it
   fails.
2. Nothing is fetched that nobody here asked for, one blob at a time from one peer, and never more than the bound that
   was asked for.

Source: protocol section 2, "Links".
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import aiohttp
from yarl import URL

from crdtchain import codec, limits
from crdtchain.adapters.store import BlobIndex
from crdtchain.codec import Link
from crdtchain.errors import DecodeError, NoPeerError, PeerError, StoreError, StoreFullError, UsageError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.scalars import Author, BlobId
from crdtchain.sync.messages import Blob
from crdtchain.sync.session import BlobCame

FETCH_STALL_S: Final = 20
RELAY_WAIT_S: Final = 2.0
"""So long an asker waits for one answer while a blob is fetched for it; then it is told to ask again."""
RELAY_MAX_S: Final = 30.0
"""So long, for each hop, a peer that fetches a blob is asked again."""
RELAY_PAUSE_S: Final = 2.0
"""After a vain search for others' sake the next one has to wait so long."""
RELAYS_MAX: Final = 16
"""With so many blobs under way no more are fetched for others' sake."""
QUOTA_PART: Final = (9, 10)
"""Above this part of the quota nothing is fetched for others' sake."""
_LIST_SUFFIX: Final = ".list"
_MANIFEST_BYTES_MAX: Final = 32_768


def encode_chunk_list(size: int, chunks: Sequence[BlobId]) -> bytes:
    """Return the block that stands for a blob above 1 MiB."""
    return codec.encode({"size": size, "chunks": [Link(chunk) for chunk in chunks]})


def decode_chunk_list(block: bytes) -> tuple[int, list[BlobId]]:
    """Return size and chunks of a list.

    Raises:
        DecodeError: the block is none, or its size and its chunks do not fit.
    """
    value = codec.decode(block)
    size = value.get("size") if isinstance(value, dict) and set(value) == {"size", "chunks"} else None
    chunks = value["chunks"] if isinstance(value, dict) and size is not None else None
    if type(size) is not int or type(chunks) is not list or not limits.CHUNK_BYTES < size <= limits.BLOB_BYTES_MAX:
        raise DecodeError("shape", "not the list of a blob's chunks")
    found = [BlobId(chunk) for chunk in chunks if isinstance(chunk, Link) and codec.is_raw_blob_id(chunk)]
    if len(found) != len(chunks) or len(found) != -(-size // limits.CHUNK_BYTES):
        raise DecodeError("shape", "the list of chunks does not fit its size")
    return size, found


class _Sink:
    """A file that is being written, and what its bytes hash to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._chunk = sha256()
        self._filled = 0
        self._chunks: list[BlobId] = []
        self.size = 0

    def write(self, data: bytes) -> list[BlobId]:
        """Write bytes; returns the ids of the chunks that they complete."""
        self._file.write(data)
        self.size += len(data)
        before, place = len(self._chunks), 0
        while place < len(data):
            part = data[place : place + limits.CHUNK_BYTES - self._filled]
            self._chunk.update(part)
            self._filled += len(part)
            place += len(part)
            if self._filled == limits.CHUNK_BYTES:
                self._end_chunk()
        return self._chunks[before:]

    def _end_chunk(self) -> None:
        self._chunks.append(BlobId(codec.RAW_CID_PREFIX + self._chunk.digest()))
        self._chunk, self._filled = sha256(), 0

    def finish(self) -> tuple[BlobId, bytes | None]:
        """Make the file durable; returns the blob's id, and the list of its chunks if it needs one."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._filled or not self._chunks:
            self._end_chunk()
        if len(self._chunks) == 1:
            return self._chunks[0], None
        block = encode_chunk_list(self.size, self._chunks)
        return BlobId(codec.compute_op_id(block)), block


class BlobPeer(Protocol):
    """A connection over which pieces of blobs are asked for."""

    name: str
    address: str

    async def ask_piece(self, blob: BlobId, offset: int, hops: int, is_list: bool) -> BlobCame:
        """Ask for a piece; raises NoPeerError when none comes."""
        ...

    def drop(self, reason: str) -> None:
        """End the connection."""
        ...


class Blobs:
    """The blobs of one node."""

    def __init__(self, folder: Path, index: BlobIndex, quota_bytes: int) -> None:
        self._folder = folder
        self._index = index
        self._quota_bytes = quota_bytes
        self._sizes: dict[BlobId, int] = {}
        self._commitments: dict[Author, dict[bytes, tuple[BlobId, int]]] = {}
        self._fetching: dict[BlobId, asyncio.Task[None]] = {}
        self.find_sources: Callable[[], Sequence[URL]] = list
        """Returns the addresses of connected peers' peer ports."""
        self.find_links: Callable[[], Sequence[BlobPeer]] = list
        """Returns the connections over which blobs can be asked for."""
        self._askers: dict[BlobId, set[str]] = {}
        """For whom a blob is being fetched: they are not asked for it."""
        self._asked: dict[BlobId, str] = {}
        """Who is being asked for a blob now."""
        self._failed: dict[BlobId, float] = {}
        """When a blob was last looked for in vain for others' sake."""

    async def open(self) -> None:
        """Make the folder, remove what was left half written, and read the index.

        Raises:
            StoreError: the folder can't be used.
        """
        try:
            await asyncio.to_thread(self._clean)
        except OSError as error:
            raise StoreError(f"the folder {self._folder} can't be used: {error.strerror}") from error
        self._sizes = {row.cid: row.size for row in await self._index.list() if row.state == "whole"}

    def _clean(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @property
    def total_bytes(self) -> int:
        """Bytes of all blobs here."""
        return sum(self._sizes.values())

    def path(self, blob: BlobId) -> Path:
        """Return where a blob's file is, or would be."""
        return self._folder / codec.format_cid(blob)

    def find_size(self, blob: BlobId) -> int | None:
        """Return the size of a blob in bytes, or None when it is not here."""
        return self._sizes.get(blob)

    def commitments(self, author: Author) -> dict[bytes, tuple[BlobId, int]]:
        """Return what an author's bid would commit to, for each blob here: commitment to blob and size."""
        known = self._commitments.setdefault(author, {})
        if len(known) != len(self._sizes):
            for blob, size in self._sizes.items():
                known[compute_commitment(author, blob)] = blob, size
        return known

    # -- in --

    async def put(self, parts: AsyncIterable[bytes], size_max: int = limits.BLOB_BYTES_MAX) -> tuple[BlobId, int]:
        """Store a blob that comes in parts; returns its id and size.

        Raises:
            UsageError: it is larger than allowed.
            StoreFullError: the quota or the disk is used up.
            StoreError: it can't be written.
        """
        return await self._receive(parts, size_max)

    async def put_bytes(self, data: bytes) -> BlobId:
        """Store a blob; see `put`."""
        blob, _ = await self.put(_iterate(data))
        return blob

    async def _receive(
        self, parts: AsyncIterable[bytes], size_max: int, wanted: BlobId | None = None, chunks: Sequence[BlobId] = ()
    ) -> tuple[BlobId, int]:
        """Write a blob; only the wanted one, if there is such, whose chunks are checked as they come."""
        room = self._quota_bytes - self.total_bytes
        fresh = self._folder / f".{secrets.token_hex(8)}.tmp"
        try:
            descriptor = await asyncio.to_thread(os.open, fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:  # noqa: ASYNC230 - it is open already
                sink, chunk_count = _Sink(file), 0
                async for part in parts:
                    if sink.size + len(part) > size_max:
                        raise UsageError(f"the blob has more than {size_max} bytes")
                    if sink.size + len(part) > room:
                        raise StoreFullError(f"the blob quota of {self._quota_bytes} bytes is used up")
                    done = await asyncio.to_thread(sink.write, part)
                    if chunks and list(chunks[chunk_count : chunk_count + len(done)]) != done:
                        raise PeerError("the peer sent a chunk that is not the one of the blob")
                    chunk_count += len(done)
                blob, block = await asyncio.to_thread(sink.finish)
            if wanted is not None and blob != wanted:
                raise PeerError("the peer sent other bytes than the blob's")
            await self._keep(fresh, blob, block, sink.size)
        except OSError as error:
            cause = StoreFullError if error.errno in _FULL_ERRORS else StoreError
            raise cause(f"a blob can't be written: {error.strerror}") from error
        finally:
            await asyncio.to_thread(fresh.unlink, missing_ok=True)
        return blob, sink.size

    async def _keep(self, fresh: Path, blob: BlobId, block: bytes | None, size: int) -> None:
        await asyncio.to_thread(_move, fresh, self.path(blob), block)
        await self._index.put(blob, size, time.time_ns() // 1_000_000)
        self._sizes[blob] = size

    # -- out --

    async def read(self, blob: BlobId) -> bytes:
        """Return the content of a blob that is here.

        Raises:
            StoreError: it is not, or can't be read.
        """
        try:
            return await asyncio.to_thread(self.path(blob).read_bytes)
        except OSError as error:
            raise StoreError(f"the blob {codec.format_cid(blob)} can't be read: {error.strerror}") from error

    async def read_list(self, blob: BlobId) -> bytes | None:
        """Return the list of a blob's chunks, or None for one without."""
        path = self.path(blob)
        try:
            return await asyncio.to_thread(path.with_name(path.name + _LIST_SUFFIX).read_bytes)
        except FileNotFoundError:
            return None

    async def read_piece(self, blob: BlobId, offset: int, is_list: bool) -> tuple[int, bytes] | bool:
        """Return the size of a blob, or of its list, and a piece; False when it is not here, or ends before."""
        path = self.path(blob)
        if is_list:
            path = path.with_name(path.name + _LIST_SUFFIX)
        try:
            size, data = await asyncio.to_thread(_read_piece, path, offset)
        except OSError:
            return False
        return (size, data) if offset <= size else False

    # -- from peers --

    def is_fetching(self, blob: BlobId, asker: str) -> bool:
        """Whether a blob is being fetched, and not from the asker."""
        return blob in self._fetching and self._asked.get(blob) != asker

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
                await self.ensure(blob, hops=hops)
        except TimeoutError:
            return False
        except (PeerError, StoreError):
            self._failed[blob] = time.monotonic()
            return False
        return True

    async def ensure(
        self, blob: BlobId, size_max: int = limits.BLOB_BYTES_MAX, hops: int = limits.BLOB_HOPS_MAX
    ) -> int:
        """Fetch a blob from whichever peer has it, unless it is here; returns its size.

        Raises:
            NoPeerError: no connected peer has it.
            StoreFullError: the quota or the disk is used up.
        """
        if blob not in self._sizes:
            task = self._fetching.get(blob)
            if task is None:
                task = self._fetching[blob] = asyncio.create_task(self._fetch(blob, size_max, hops))
                task.add_done_callback(lambda done: self._end_fetch(blob, done))
            await asyncio.shield(task)
        return self._sizes[blob]

    def _end_fetch(self, blob: BlobId, done: asyncio.Task[None]) -> None:
        for kept in (self._fetching, self._askers, self._asked):
            kept.pop(blob, None)
        if not done.cancelled():
            # Whoever asked may be gone.
            done.exception()

    async def _fetch(self, blob: BlobId, size_max: int, hops: int) -> None:
        part, whole = QUOTA_PART
        if self.total_bytes * whole > self._quota_bytes * part:
            raise StoreFullError("the blobs' quota is nearly used up, so none are fetched; raise blob_quota_mib")
        text, reasons = codec.format_cid(blob), list[str]()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=FETCH_STALL_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as http:
            for source in self.find_sources():
                try:
                    await self._fetch_from(http, source, blob, size_max)
                    return
                except (aiohttp.ClientError, OSError, TimeoutError, PeerError, UsageError) as error:
                    reasons.append(f"{source}: {error}")
        # Who has it comes first; only then do peers look for it at theirs.
        for budget in dict.fromkeys((0, hops)):
            for link in self.find_links():
                if link.name in self._askers.get(blob, ()):
                    continue
                self._asked[blob] = link.name
                try:
                    await self._fetch_over(link, blob, size_max, budget)
                    return
                except NoPeerError as error:
                    reasons.append(f"{link.address}: {error}")
                except (PeerError, UsageError) as error:
                    reasons.append(f"{link.address}: {error}")
                    link.drop(str(error))
        detail = f" ({'; '.join(reasons)})" if reasons else ""
        raise NoPeerError(f"no connected peer has the blob {text}{detail}; it is fetched when one does")

    async def _fetch_over(self, link: BlobPeer, blob: BlobId, size_max: int, hops: int) -> None:
        """Fetch a blob over a connection."""
        chunks, size = list[BlobId](), min(limits.CHUNK_BYTES, size_max)
        if not codec.is_raw_blob_id(blob):
            block = b"".join([part async for part in _ask_parts(link, blob, _MANIFEST_BYTES_MAX, hops, True)])
            size, chunks = _check_list(blob, block, size_max)
        await self._receive(_ask_parts(link, blob, size, hops, False), size, blob, chunks)

    async def _fetch_from(self, http: aiohttp.ClientSession, source: URL, blob: BlobId, size_max: int) -> None:
        url = source / "blobs" / codec.format_cid(blob)
        chunks, size = list[BlobId](), min(limits.CHUNK_BYTES, size_max)
        if not codec.is_raw_blob_id(blob):
            async with _open(http, url / "list") as response:
                block = await _read_at_most(response, _MANIFEST_BYTES_MAX)
            size, chunks = _check_list(blob, block, size_max)
        async with _open(http, url) as response:
            parts = response.content.iter_chunked(256 * 1024)
            await self._receive(parts, size, blob, chunks)


_FULL_ERRORS: Final = frozenset({28, 122})
"""ENOSPC and EDQUOT."""


def _move(fresh: Path, path: Path, block: bytes | None) -> None:
    """Give a complete file its name, with the list of its chunks beside it."""
    if block is not None:
        path.with_name(path.name + _LIST_SUFFIX).write_bytes(block)
    fresh.replace(path)


def _read_piece(path: Path, offset: int) -> tuple[int, bytes]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        return size, file.read(limits.BLOB_PIECE_BYTES)


def _check_list(blob: BlobId, block: bytes, size_max: int) -> tuple[int, list[BlobId]]:
    """Return size and chunks of a list that a peer sent."""
    if bytes(codec.compute_op_id(block)) != blob:
        raise PeerError("the peer sent another list of chunks")
    try:
        size, chunks = decode_chunk_list(block)
    except DecodeError as error:
        raise PeerError(str(error)) from None
    if size > size_max:
        raise PeerError(f"the blob has {size} bytes, more than the {size_max} that were asked for")
    return size, chunks


async def _ask_parts(link: BlobPeer, blob: BlobId, size_max: int, hops: int, is_list: bool) -> AsyncIterator[bytes]:
    """Yield the pieces of a blob, or of its list, as a peer sends them."""
    offset, total, until_s = 0, 1, time.monotonic() + RELAY_MAX_S * hops
    while offset < total:
        came = await link.ask_piece(blob, offset, hops, is_list)
        if isinstance(came.head, Blob):
            if came.head.total > size_max or (offset and came.head.total != total):
                raise PeerError("the peer sent a blob of another size")
            total = came.head.total
            offset += len(came.data)
            yield came.data
        elif came.head.later and time.monotonic() < until_s:
            await asyncio.sleep(0.25)
        else:
            raise NoPeerError("it does not have it")


async def _iterate(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), limits.CHUNK_BYTES):
        yield data[start : start + limits.CHUNK_BYTES]


@contextlib.asynccontextmanager
async def _open(http: aiohttp.ClientSession, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
    async with http.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise PeerError("it does not have it" if response.status == 404 else f"status {response.status}")
        yield response


async def _read_at_most(response: aiohttp.ClientResponse, size_max: int) -> bytes:
    data = b""
    async for part in response.content.iter_chunked(size_max):
        data += part
        if len(data) > size_max:
            raise PeerError("the peer sent more than it may")
    return data
