"""The files of blobs: whole ones, lists of chunks, and parts of what is still being fetched.

<cid>            a whole blob
<cid>.list       the list of its chunks, when it has more than one
<cid>.part       a blob of several chunks that is not whole yet; which chunks it has is found by hashing them again
.<random>.tmp    what is being written from one end to the other; removed at the next start

Everything here blocks; callers use threads.

Invariant: a file under its CID's name is whole, was checked, and is on the disk itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

from crdtchain import codec, limits
from crdtchain.errors import PeerError, StoreError, StoreFullError, UsageError
from crdtchain.scalars import BlobId
from node.blobs.lists import LIST_BYTES_MAX, Layout, encode_chunk_list, is_list_of, read_layout

PART_AGE_S: Final = 7 * 24 * 3600
"""A part that nobody has gone on with for so long is removed at the next start."""
_LIST_SUFFIX: Final = ".list"
_PART_SUFFIX: Final = ".part"
_FULL_ERRORS: Final = frozenset({27, 28, 122})
"""EFBIG, ENOSPC and EDQUOT."""


def convert_error(error: OSError) -> StoreError:
    """Return what an error of the file system means for a blob."""
    cause = StoreFullError if error.errno in _FULL_ERRORS else StoreError
    return cause(f"a blob can't be written: {error.strerror}")


def compute_chunk_id(data: bytes | bytearray | memoryview) -> BlobId:
    """Return the id of a chunk."""
    return BlobId(codec.RAW_CID_PREFIX + sha256(data).digest())


class FoundFile(Struct):
    """A file of a blob at the start."""

    size: int
    """Bytes that it takes."""
    used_ms: int
    """When it was used last, ms since the Unix epoch."""


class Folder:
    """The folder with the files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self, blob: BlobId) -> Path:
        """Return where a whole blob is, or would be."""
        return self.path / codec.format_cid(blob)

    def list_of(self, blob: BlobId) -> Path:
        """Return where the list of its chunks is, or would be."""
        return self.path / (codec.format_cid(blob) + _LIST_SUFFIX)

    def part(self, blob: BlobId) -> Path:
        """Return where an unfinished blob is, or would be."""
        return self.path / (codec.format_cid(blob) + _PART_SUFFIX)

    def open(self) -> tuple[dict[BlobId, FoundFile], dict[BlobId, FoundFile]]:
        """Make the folder and remove leftovers; returns whole blobs and unfinished ones."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        wholes, parts, lists = dict[BlobId, FoundFile](), dict[BlobId, FoundFile](), list[BlobId]()
        for entry in os.scandir(self.path):
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                Path(entry.path).unlink(missing_ok=True)
                continue
            blob, suffix = _parse_name(entry.name)
            if blob is None or not entry.is_file(follow_symlinks=False):
                continue
            status = entry.stat()
            if suffix == _LIST_SUFFIX:
                lists.append(blob)
            elif suffix == _PART_SUFFIX:
                parts[blob] = FoundFile(status.st_blocks * 512, status.st_mtime_ns // 1_000_000)
            else:
                wholes[blob] = FoundFile(status.st_size, status.st_mtime_ns // 1_000_000)
        oldest_ms = (time.time_ns() // 1_000_000) - PART_AGE_S * 1_000
        for blob in [blob for blob, part in parts.items() if blob in wholes or part.used_ms < oldest_ms]:
            self.part(blob).unlink(missing_ok=True)
            del parts[blob]
        for blob in lists:
            if blob not in wholes and blob not in parts:
                self.list_of(blob).unlink(missing_ok=True)
        return wholes, parts

    def is_sound(self, blob: BlobId, size: int) -> bool:
        """Whether a file of a size may be the whole blob, by its list; one chunk is hashed."""
        try:
            if codec.is_raw_blob_id(blob):
                return size <= limits.CHUNK_BYTES and compute_chunk_id(self.whole(blob).read_bytes()) == blob
            layout = self.read_layout(blob)
        except OSError:
            return False
        return layout is not None and layout.size == size

    def read_layout(self, blob: BlobId) -> Layout | None:
        """Return what the list that is here says; None without one, or when it is damaged."""
        try:
            with self.list_of(blob).open("rb") as file:
                block = file.read(LIST_BYTES_MAX + 1)
            return read_layout(blob, block) if is_list_of(blob, block) else None
        except (OSError, PeerError):
            return None

    def write(self, path: Path, data: bytes) -> None:
        """Write a small file so that it is there as a whole or not at all."""
        fresh = self._make_fresh()
        try:
            with open(fresh, "xb", opener=_open_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)

    def open_sink(self) -> Sink:
        """Begin with a blob whose id is not known yet."""
        fresh = self._make_fresh()
        return Sink(fresh, open(fresh, "xb", opener=_open_private))

    def _make_fresh(self) -> Path:
        return self.path / f".{secrets.token_hex(8)}.tmp"

    def keep(self, fresh: Path, blob: BlobId, block: bytes | None) -> None:
        """Give a complete file its name, with the list of its chunks beside it."""
        if block is not None:
            self.write(self.list_of(blob), block)
        fresh.replace(self.whole(blob))
        self.sync()

    def sync(self) -> None:
        """Make the names of files durable."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, blob: BlobId) -> None:
        """Remove all files of a blob; who reads one of them goes on."""
        for path in (self.whole(blob), self.part(blob), self.list_of(blob)):
            path.unlink(missing_ok=True)

    def touch(self, blob: BlobId) -> None:
        """Remember that a blob was used now."""
        with contextlib.suppress(OSError):
            os.utime(self.whole(blob))

    def read_piece(self, path: Path, offset: int) -> tuple[int, bytes]:
        """Return the size of a file and a piece of it."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(offset)
            return size, file.read(limits.BLOB_PIECE_BYTES)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _parse_name(name: str) -> tuple[BlobId | None, str]:
    stem, dot, suffix = name.partition(".")
    try:
        return BlobId(codec.parse_cid(stem)), dot + suffix
    except UsageError:
        return None, ""


class Sink:
    """A file that is being written from one end to the other, and what its bytes hash to."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._chunk = sha256()
        self._filled = 0
        self._chunks: list[BlobId] = []
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write bytes."""
        self._file.write(data)
        self.size += len(data)
        place = 0
        while place < len(data):
            part = data[place : place + limits.CHUNK_BYTES - self._filled]
            self._chunk.update(part)
            self._filled += len(part)
            place += len(part)
            if self._filled == limits.CHUNK_BYTES:
                self._end_chunk()

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

    def close(self) -> None:
        """Close the file, and remove it unless it has got another name."""
        with contextlib.suppress(OSError):
            # What was buffered when the disk was full can't be written now either.
            self._file.close()
        self.path.unlink(missing_ok=True)


class Part:
    """An unfinished blob: chunks come in any order, and each is checked before it is written."""

    def __init__(self, folder: Folder, layout: Layout) -> None:
        """Open the file of a part, or begin it."""
        self.layout = layout
        self._folder = folder
        self._path = folder.part(layout.blob)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.missing: set[int] = set(range(len(layout.chunks)))
        self._lock = threading.Lock()
        """Held while the descriptor is used: a thread that nobody waits for must not write into another file."""
        self._is_closed = False

    def check(self) -> None:
        """Find out which chunks are here already: those whose bytes hash to their ids."""
        here = os.fstat(self._descriptor).st_size
        for index, chunk in enumerate(self.layout.chunks):
            start, size = self.layout.span(index)
            if start + size > here:
                break
            if compute_chunk_id(os.pread(self._descriptor, size, start)) == chunk:
                self.missing.discard(index)
        if here > self.layout.size:
            os.ftruncate(self._descriptor, self.layout.size)

    @property
    def done_bytes(self) -> int:
        """Bytes of the chunks that are here."""
        return self.layout.size - sum(self.layout.span(index)[1] for index in self.missing)

    def take(self, index: int, data: bytes | bytearray) -> bool:
        """Write a chunk; False when it is not the one of the blob."""
        start, size = self.layout.span(index)
        if len(data) != size or compute_chunk_id(data) != self.layout.chunks[index]:
            return False
        view, at = memoryview(data), 0
        with self._lock:
            while at < size and not self._is_closed:
                at += os.pwrite(self._descriptor, view[at:], start + at)
        return True

    def finish(self) -> None:
        """Give the whole file its name."""
        os.fsync(self._descriptor)
        self._path.replace(self._folder.whole(self.layout.blob))
        self._folder.sync()

    def taken_bytes(self) -> int:
        """Return what the file takes on the disk."""
        return os.fstat(self._descriptor).st_blocks * 512

    def close(self) -> None:
        """Close the file; what it has stays."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._descriptor)
