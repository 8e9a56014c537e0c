"""The index of blobs, in SQLite and in memory; see `crdtchain.adapters.store.BlobIndex`."""

from __future__ import annotations

import builtins
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

from crdtchain.adapters.store import BlobRow
from crdtchain.scalars import BlobId

T = TypeVar("T")

WHOLE: Final = "whole"
"""State of a blob that was put here: it stays."""
PINNED: Final = "pinned"
"""State of a blob that somebody wants to stay."""
FETCHED: Final = "fetched"
"""State of a blob that came from a peer, or that somebody let go: it may be removed when there is no room."""
COMPLETE: Final = frozenset({WHOLE, PINNED, FETCHED})
"""States of blobs whose files are complete and were checked."""

_COLUMNS = "SELECT cid, size, state, added_ms FROM blobs"


class Call(Protocol):
    """Runs a function on the database's thread."""

    def __call__(self, function: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]:
        """Return what the function returns for the connection."""


class SqliteBlobIndex:
    """The index in a `SqliteStore`'s database."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def put(self, cid: BlobId, size: int, added_ms: int, state: str = WHOLE) -> None:
        """Add a blob, or change its size and state."""
        query = """
            INSERT INTO blobs (cid, size, state, added_ms) VALUES (?, ?, ?, ?)
            ON CONFLICT (cid) DO UPDATE SET size = excluded.size, state = excluded.state
        """
        await self._write(query, bytes(cid), size, state, added_ms)

    async def has(self, cid: BlobId) -> bool:
        """Whether a blob is here as a whole."""
        row = await self.find(cid)
        return row is not None and row.state in COMPLETE

    async def find(self, cid: BlobId) -> BlobRow | None:
        """Return the row of a blob, or None."""
        query = f"{_COLUMNS} WHERE cid = ?"
        row = await self._call(lambda connection: connection.execute(query, (bytes(cid),)).fetchone())
        return None if row is None else _make_row(row)

    async def list(self) -> builtins.list[BlobRow]:
        """Return all rows, the oldest first."""
        query = f"{_COLUMNS} ORDER BY added_ms, cid"
        rows = await self._call(lambda connection: connection.execute(query).fetchall())
        return [_make_row(row) for row in rows]

    async def total_bytes(self) -> int:
        """Return the sum of all sizes."""
        query = "SELECT coalesce(sum(size), 0) FROM blobs"
        row = await self._call(lambda connection: connection.execute(query).fetchone())
        return int(row[0])

    async def remove(self, cid: BlobId) -> None:
        """Forget a blob."""
        await self._write("DELETE FROM blobs WHERE cid = ?", bytes(cid))

    async def _write(self, query: str, *values: str | int | bytes) -> None:
        await self._call(lambda connection: connection.execute(query, values))


def _make_row(row: tuple[Any, ...]) -> BlobRow:
    cid, size, state, added_ms = row
    return BlobRow(BlobId(cid), size, state, added_ms)


class MemoryBlobIndex:
    """The index in a `MemoryStore`."""

    def __init__(self, validate_open: Callable[[], None]) -> None:
        self._validate_open = validate_open
        self._rows: dict[BlobId, BlobRow] = {}

    async def put(self, cid: BlobId, size: int, added_ms: int, state: str = WHOLE) -> None:
        """Add a blob, or change its size and state."""
        self._validate_open()
        before = self._rows.get(cid)
        self._rows[cid] = BlobRow(cid, size, state, added_ms if before is None else before.added_ms)

    async def has(self, cid: BlobId) -> bool:
        """Whether a blob is here as a whole."""
        row = await self.find(cid)
        return row is not None and row.state in COMPLETE

    async def find(self, cid: BlobId) -> BlobRow | None:
        """Return the row of a blob, or None."""
        self._validate_open()
        return self._rows.get(cid)

    async def list(self) -> builtins.list[BlobRow]:
        """Return all rows, the oldest first."""
        self._validate_open()
        return sorted(self._rows.values(), key=lambda row: (row.added_ms, row.cid))

    async def total_bytes(self) -> int:
        """Return the sum of all sizes."""
        self._validate_open()
        return sum(row.size for row in self._rows.values())

    async def remove(self, cid: BlobId) -> None:
        """Forget a blob."""
        self._validate_open()
        self._rows.pop(cid, None)
