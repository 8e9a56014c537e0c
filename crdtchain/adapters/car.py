"""CAR files, version 1: the ledger, or part of it, as one file that other tools of the IPLD world read too.

A file is a sequence of *sections*, each a length (unsigned LEB128) and so many bytes. The first one is the header, the
DAG-CBOR map {"roots": [links], "version": 1}; each other one is a CID and the block that it names. Here the CIDs are
those of the protocol, 36 bytes: ops, lists of chunks, and raw blobs. A file of ours has the ops in causal order,
genesis first, then blobs.

Invariants:

1. Reading takes the memory of one section, at most 1 MiB and a bit, whatever lengths the file claims.
2. Every fault is a `CarError` that says where in the file it is.
3. A file is complete or not there: it is written under another name and renamed when it is on the disk.

Sources: the CARv1 specification of IPLD; the multiformats' unsigned varint.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from crdtchain import codec
from crdtchain.adapters.store import Store
from crdtchain.codec import CID_BYTES, Link
from crdtchain.errors import DecodeError, StoreError, StoreFullError, UsageError
from crdtchain.limits import BLOCK_BYTES_MAX, CHUNK_BYTES

ROOTS_MAX: Final = 1_000
"""So many roots are written; a reader takes what fits into a block."""
_VARINT_BYTES_MAX: Final = 9
_PAGE: Final = 500


class CarError(UsageError):
    """A file that is no CAR, or is damaged.

    Attributes:
        position: of the section with the fault, bytes from the start of the file.
    """

    def __init__(self, position: int, text: str) -> None:
        super().__init__(f"at byte {position} of the CAR file: {text}")
        self.position = position


class CarReader:
    """A CAR that is being read: `roots`, and the sections by iteration, as (position, CID, block).

    It checks the framing; whether a block is the one that its CID names is checked by `read_car`, and by audits in
    their own way.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the header.

        Raises:
            CarError: there is none.
        """
        self._file = file
        self._position = 0
        self.roots = self._read_header()

    def __iter__(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield position, CID and block of each section.

        Raises:
            CarError: the framing is broken; nothing that follows can be read.
        """
        while True:
            start = self._position
            length = self._read_length(CID_BYTES + CHUNK_BYTES)
            if length is None:
                return
            if length < CID_BYTES:
                raise CarError(start, f"a section of {length} bytes has no room for an id")
            cid = self._read(start, CID_BYTES)
            if not (codec.is_op_id(cid) or codec.is_raw_blob_id(cid)):
                raise CarError(start, "the id is not a CIDv1 of a DAG-CBOR or raw block with SHA-256")
            if codec.is_op_id(cid) and length - CID_BYTES > BLOCK_BYTES_MAX:
                raise CarError(start, f"a block has at most {BLOCK_BYTES_MAX} bytes, this one {length - CID_BYTES}")
            yield start, cid, self._read(start, length - CID_BYTES)

    def _read_header(self) -> tuple[bytes, ...]:
        length = self._read_length(BLOCK_BYTES_MAX)
        if length is None:
            raise CarError(0, "the file is empty")
        try:
            header = codec.decode(self._read(0, length))
        except DecodeError as error:
            raise CarError(0, f"the header can't be read: {error}") from None
        if not isinstance(header, dict) or set(header) != {"roots", "version"} or _is_not_one(header["version"]):
            raise CarError(0, "the header is not that of a CAR of version 1")
        roots = header["roots"]
        if not isinstance(roots, list) or not all(isinstance(root, Link) for root in roots):
            raise CarError(0, "the roots are not a list of links")
        return tuple(bytes(root) for root in roots if isinstance(root, Link))

    def _read_length(self, length_max: int) -> int | None:
        """Return the length of the next section, or None at the end of the file."""
        start, value = self._position, 0
        for place in range(_VARINT_BYTES_MAX):
            data = self._file.read(1)
            if not data:
                if place:
                    raise CarError(start, "the file ends within a length")
                return None
            self._position += 1
            value |= (data[0] & 0x7F) << 7 * place
            if data[0] < 0x80:
                if place and not data[0]:
                    raise CarError(start, "a length has a shorter form")
                if value > length_max:
                    raise CarError(start, f"a section of {value} bytes; at most {length_max} are allowed here")
                return value
        raise CarError(start, "a length has more than nine bytes")

    def _read(self, start: int, size: int) -> bytes:
        data = self._file.read(size)
        self._position += len(data)
        if len(data) < size:
            raise CarError(start, "the file ends within a section")
        return data


def read_car(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield CID and block of each section, each block checked against its CID.

    Raises:
        CarError: the file is no CAR, or damaged.
        UsageError: it can't be opened.
    """
    with open_car(path) as file:
        for position, cid, block in CarReader(file):
            if sha256(block).digest() != cid[-32:]:
                raise CarError(position, f"the block is not the one that {codec.format_cid(cid)} names")
            yield cid, block


def read_roots(path: Path) -> tuple[bytes, ...]:
    """Return the roots of a CAR.

    Raises:
        CarError, UsageError: as `read_car`.
    """
    with open_car(path) as file:
        return CarReader(file).roots


def open_car(path: Path) -> BinaryIO:
    """Open a file for a reader.

    Raises:
        UsageError: it can't be opened.
    """
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"the file {path} can't be read: {error.strerror}") from error


class CarWriter:
    """A CAR that is being written; a context manager: leaving it without an exception puts the file in its place."""

    def __init__(self, path: Path, roots: Sequence[bytes]) -> None:
        """`roots`: usually the heads; of more than ROOTS_MAX the first are written."""
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._roots = roots[:ROOTS_MAX]
        self._file: BinaryIO | None = None

    def __enter__(self) -> CarWriter:
        with _StoreErrors(self._path):
            self._file = self._partial.open("wb")
            header = codec.encode({"roots": [Link(root) for root in self._roots], "version": 1}, bounded=True)
            self._file.write(_make_varint(len(header)) + header)
        return self

    def write(self, cid: bytes, block: bytes) -> None:
        """Append a block.

        Raises:
            StoreFullError, StoreError: it can't be written.
        """
        assert self._file is not None
        with _StoreErrors(self._path):
            self._file.write(_make_varint(len(cid) + len(block)) + cid + block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        assert file is not None
        try:
            with _StoreErrors(self._path):
                with file:
                    if kind is None:
                        file.flush()
                        os.fsync(file.fileno())
                if kind is None:
                    self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)


class _StoreErrors:
    """Turns the operating system's errors into the store's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            text = f"{self._path} can't be written: {error.strerror}"
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (StoreFullError if is_full else StoreError)(text) from error


def write_car(path: Path, roots: Sequence[bytes], blocks: Iterable[tuple[bytes, bytes]]) -> int:
    """Write blocks, given as (CID, block), into a file; returns their number.

    Raises:
        StoreFullError, StoreError: it can't be written; then there is no new file.
    """
    count = 0
    with CarWriter(path, roots) as writer:
        for cid, block in blocks:
            writer.write(cid, block)
            count += 1
    return count


async def export_car(
    store: Store, path: Path, roots: Sequence[bytes], blobs: AsyncIterator[tuple[bytes, bytes]] | None = None
) -> int:
    """Write all ops of a store, in the order of their positions, and then blobs, as (CID, block); returns the number
    of ops.

    Raises:
        StoreFullError, StoreError: a block can't be read, or the file not be written; then there is no new file.
    """
    after = -1
    with CarWriter(path, roots) as writer:
        while rows := await store.read(after, _PAGE):
            for _, block in rows:
                writer.write(codec.compute_op_id(block), block)
            after = rows[-1][0]
        if blobs is not None:
            async for cid, block in blobs:
                writer.write(cid, block)
    return after + 1


def _is_not_one(version: codec.Value) -> bool:
    return type(version) is not int or version != 1


def _make_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
