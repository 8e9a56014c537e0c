"""Frames: the one byte layout in which a WebAssembly program gets its inputs and gives its outputs.

A frame is a header of 16 bytes (`CCWF`, version 1, count of entries, 0), a table of 24 bytes an entry, and the names
and data it points at; all numbers are little-endian u32, and data begins at multiples of 16, so that a program can
use numbers in it where they lie. docs/reference/wasm-abi.md has the layout with vectors.

Pure; imports nothing of the node, so that the sandbox's child process starts fast.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"CCWF"
VERSION = 1
HEADER = struct.Struct("<4sIII")
ENTRY = struct.Struct("<IIIIII")
ENTRY_COUNT_MAX = 1024
NAME_BYTES_MAX = 256
FRAME_BYTES_MAX = 2**31 - 1
ALIGNMENT = 16


class Kind(IntEnum):
    """What an entry's data is: the bytes of a file, UTF-8 text, an i64, or an i64 that is 0 or 1."""

    FILE = 1
    TEXT = 2
    INT = 3
    BOOL = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One named value in a frame; `name` is a path below /job/in or /job/out, `params/NAME`, `mode` or `seed`."""

    kind: Kind
    name: str
    data: bytes | bytearray


class FrameError(ValueError):
    """Bytes that are no frame; the text says why."""


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def encode_int(value: int) -> bytes:
    """The data of an INT or BOOL entry.

    Raises:
        FrameError: the value doesn't fit in 64 bits.
    """
    try:
        return struct.pack("<q", value)
    except struct.error as error:
        raise FrameError(f"{value} doesn't fit in 64 bits") from error


def compute_frame_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The length of a frame whose entries have these (name bytes, data bytes)."""
    end = _align(HEADER.size + ENTRY.size * len(sizes) + sum(name for name, _ in sizes))
    for _, data in sizes:
        end = _align(end + data)
    return end


def encode_frame(entries: Sequence[Entry]) -> bytearray:
    """Lay entries out in the order given (the host sorts them by the bytes of their names).

    Raises:
        FrameError: too many entries, a name too long, or more than 2 GiB.
    """
    names = [entry.name.encode() for entry in entries]
    if len(entries) > ENTRY_COUNT_MAX or any(len(name) > NAME_BYTES_MAX for name in names):
        raise FrameError(f"a frame has at most {ENTRY_COUNT_MAX} entries with names of {NAME_BYTES_MAX} bytes")
    size = compute_frame_size([(len(n), len(e.data)) for n, e in zip(names, entries, strict=True)])
    if size > FRAME_BYTES_MAX:
        raise FrameError(f"a frame has at most {FRAME_BYTES_MAX} bytes, not {size}")
    frame = bytearray(size)
    HEADER.pack_into(frame, 0, MAGIC, VERSION, len(entries), 0)
    name_at = HEADER.size + ENTRY.size * len(entries)
    data_at = _align(name_at + sum(map(len, names)))
    for index, (name, entry) in enumerate(zip(names, entries, strict=True)):
        ENTRY.pack_into(
            frame, HEADER.size + ENTRY.size * index, entry.kind, name_at, len(name), data_at, len(entry.data), 0
        )
        frame[name_at : name_at + len(name)] = name
        frame[data_at : data_at + len(entry.data)] = entry.data
        name_at += len(name)
        data_at = _align(data_at + len(entry.data))
    return frame


def decode_frame(frame: bytes | bytearray | memoryview, data_bytes_max: int) -> list[Entry]:
    """Read a stranger's frame; copies at most `data_bytes_max` bytes of data, however often entries overlap.

    Raises:
        FrameError: not a frame, offsets beyond its end, a repeated name, or too much data.
    """
    view = memoryview(frame)
    if len(view) < HEADER.size:
        raise FrameError("shorter than a header")
    magic, version, count, _ = HEADER.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise FrameError("not a frame of version 1")
    if count > ENTRY_COUNT_MAX or HEADER.size + ENTRY.size * count > len(view):
        raise FrameError(f"a table of {count} entries doesn't fit")
    table = [ENTRY.unpack_from(view, HEADER.size + ENTRY.size * i) for i in range(count)]
    if sum(row[4] for row in table) > data_bytes_max:
        raise FrameError(f"more than {data_bytes_max} bytes of data")
    entries: dict[str, Entry] = {}
    for kind, name_at, name_len, data_at, data_len, _ in table:
        if name_len > NAME_BYTES_MAX or name_at + name_len > len(view) or data_at + data_len > len(view):
            raise FrameError("an entry points beyond the end")
        try:
            name = bytes(view[name_at : name_at + name_len]).decode()
            entry = Entry(Kind(kind), name, bytes(view[data_at : data_at + data_len]))
        except ValueError as error:
            raise FrameError(f"an entry is malformed: {error}") from error
        if name in entries:
            raise FrameError(f"{name!r} is there twice")
        entries[name] = entry
    return list(entries.values())
