"""The store on SQLite: one file in a data folder, written by one thread.

Theory of operation:

1. Everything that SQLite is asked runs on aiosqlite's one thread, each method as one call, so a transaction is never
   open between two calls and a cancelled task can't leave one behind.
2. Write-ahead log. A durable append runs with `synchronous=FULL`, which syncs the log at the commit, and with it all
   that was appended before; others run with NORMAL, where a power cut may take the last ones, a crash of the process
   none.
3. What the thread remembers between calls (positions of recent ops, numbers of authors) is changed only after a commit.

4. Snapshots are compressed: columns of numbers shrink to a quarter.

See `sqlite_schema` for the tables.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from struct import Struct, pack
from typing import TypeVar

import aiosqlite

from crdtchain.adapters.blob_index import SqliteBlobIndex
from crdtchain.adapters.data_folder import DataFolderLock
from crdtchain.adapters.sqlite_errors import convert_error
from crdtchain.adapters.sqlite_schema import migrate
from crdtchain.adapters.store import LINK_MISSING, STORE_FILE, Tip
from crdtchain.codec import OP_CID_PREFIX, compute_op_id
from crdtchain.errors import StoreError
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, OpId

T = TypeVar("T")

_CACHE_MAX = 50_000
"""Positions remembered in each of two generations."""
_BUSY_S = 5.0
_PREFIX_LENGTH = len(OP_CID_PREFIX)
_TARGET = Struct("<I")
_READ_OPS = 100
"""Blocks read with one query."""
_READ_BLOCKS = f"SELECT position, block FROM ops WHERE position IN ({', '.join('?' * _READ_OPS)})"  # noqa: S608
_INSERT_OP = "INSERT INTO ops (position, author, seq, links, block) VALUES (?, ?, ?, ?, ?)"


class _Positions:
    """Positions of recently met ops: two generations, the older one dropped when the younger is full."""

    def __init__(self) -> None:
        self._young: dict[OpId, int] = {}
        self._old: dict[OpId, int] = {}

    def find(self, op: OpId) -> int | None:
        position = self._young.get(op)
        return self._old.get(op) if position is None else position

    def update(self, positions: dict[OpId, int]) -> None:
        if len(self._young) > _CACHE_MAX:
            self._old, self._young = self._young, {}
        self._young.update(positions)


class _Batch:
    """The rows of one append."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.positions: dict[OpId, int] = {}
        self.ops: list[tuple[int, int, int, bytes, bytes]] = []
        self.ids: list[tuple[bytes, int]] = []
        self.tips: dict[int, int] = {}
        """Position of a tip to its author's number."""
        self.old_tips: list[tuple[int, int]] = []
        self.new_authors: dict[Author, int] = {}


class SqliteStore:
    """A `Store` in a data folder."""

    def __init__(self, folder: Path, lock: DataFolderLock | None = None) -> None:
        """`lock`: the folder's lock, held by the caller; without one the store takes it from `open` to `close`."""
        self.path = folder / STORE_FILE
        self._lock = DataFolderLock(folder) if lock is None else lock
        self._owns_lock = lock is None
        self._database: aiosqlite.Connection | None = None
        self._connection: sqlite3.Connection | None = None
        self._positions = _Positions()
        self._authors: dict[Author, int] = {}
        self._count = 0
        self._is_durable = False
        self.blobs = SqliteBlobIndex(self._call)

    # -- life --

    async def open(self) -> None:
        """Open or create the database; see `Store.open`."""
        if self._database is not None:
            return
        if self._owns_lock:
            self._lock.acquire()
        try:
            # aiosqlite's thread gets a connection that works: if it has to open one and can't, it outlives the event
            # loop.
            connection = await asyncio.to_thread(self._connect)
            self._database = await aiosqlite.Connection(lambda: connection, iter_chunk_size=64)
        except sqlite3.Error as error:
            raise convert_error(error, self.path) from error
        except OSError as error:
            raise StoreError(f"{self.path} can't be opened: {error.strerror}; check the data folder") from error
        finally:
            if self._database is None and self._owns_lock:
                self._lock.release()

    def _connect(self) -> sqlite3.Connection:
        # Created here, so that others can't read it even for a moment; SQLite gives its log the same mode.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            migrate(connection, self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            connection.execute("PRAGMA cache_size = -16384")
            self._recall(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._is_durable = False
        return connection

    def _recall(self, connection: sqlite3.Connection) -> None:
        (last,) = connection.execute("SELECT max(position) FROM ops").fetchone()
        (rows,) = connection.execute("SELECT count(*) FROM ids").fetchone()
        self._count = 0 if last is None else last + 1
        if rows != self._count:
            raise StoreError(f"{self.path} is damaged: it names {rows} ops and holds {self._count}")
        self._authors = {key: number for number, key in connection.execute("SELECT number, key FROM authors")}
        self._positions = _Positions()

    async def close(self) -> None:
        """Close the database and give the folder back."""
        database, self._database, self._connection = self._database, None, None
        try:
            if database is not None:
                await database.close()
        except sqlite3.Error as error:
            raise convert_error(error, self.path) from error
        finally:
            if self._owns_lock:
                self._lock.release()

    async def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the database's thread, its errors turned into the store's."""
        database, connection = self._database, self._connection
        if database is None or connection is None:
            raise StoreError(f"the store {self.path} is not open")
        try:
            # aiosqlite has no public way to run several statements in one hop; a hop for each statement would double
            # the cost of an append and leave transactions open across tasks.
            result: T = await database._execute(function, connection)  # type: ignore[no-untyped-call]
        except sqlite3.Error as error:
            raise convert_error(error, self.path) from error
        return result

    # -- ops --

    async def append(self, ops: Sequence[SignedOp], *, durable: bool) -> None:
        """Store ops in one transaction; see `Store.append`."""
        batch = list(ops)
        if batch:
            await self._call(lambda connection: self._append(connection, batch, durable))

    def _append(self, connection: sqlite3.Connection, ops: list[SignedOp], durable: bool) -> None:
        self._set_durable(connection, durable)
        try:
            self._insert(connection, ops)
        except sqlite3.IntegrityError:
            # Some of them are here already, which is rare: find out which, rather than asking about each op each time.
            unknown = self._unknown(connection, ops)
            if unknown:
                self._insert(connection, unknown)
            elif durable:
                # They may have been stored lazily, and a commit that changes nothing syncs nothing.
                query = "INSERT OR REPLACE INTO meta (name, value) VALUES ('store.synced', ?)"
                connection.execute(query, (self._count.to_bytes(8, "big"),))

    def _set_durable(self, connection: sqlite3.Connection, durable: bool) -> None:
        if durable != self._is_durable:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable

    def _unknown(self, connection: sqlite3.Connection, ops: list[SignedOp]) -> list[SignedOp]:
        unique = {signed.op.id: signed for signed in ops}
        return [signed for op, signed in unique.items() if self._find(connection, op) is None]

    def _insert(self, connection: sqlite3.Connection, ops: list[SignedOp]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            batch = self._make_rows(connection, ops)
            new_authors = [(number, key) for key, number in batch.new_authors.items()]
            connection.executemany("INSERT INTO authors (number, key) VALUES (?, ?)", new_authors)
            connection.executemany("INSERT INTO ids (digest, position) VALUES (?, ?)", sorted(batch.ids))
            connection.executemany(_INSERT_OP, batch.ops)
            connection.executemany("DELETE FROM tips WHERE author = ? AND op = ?", batch.old_tips)
            tips = [(author, op) for op, author in batch.tips.items()]
            connection.executemany("INSERT INTO tips (author, op) VALUES (?, ?)", tips)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._count = batch.next
        self._positions.update(batch.positions)
        self._authors.update(batch.new_authors)

    def _make_rows(self, connection: sqlite3.Connection, ops: list[SignedOp]) -> _Batch:
        batch = _Batch(self._count)
        positions, tips = batch.positions, batch.tips
        for signed in ops:
            op, position = signed.op, batch.next
            author = self._authors.get(op.author) or batch.new_authors.get(op.author)
            if author is None:
                author = len(self._authors) + len(batch.new_authors) + 1
                batch.new_authors[op.author] = author
            targets = []
            for link in op.parents if op.prev is None else (op.prev, *op.parents):
                target = positions.get(link)
                targets.append(self._get(connection, link) if target is None else target)
            if op.prev is not None and tips.pop(targets[0], None) is None:
                batch.old_tips.append((author, targets[0]))
            targets.sort()
            tips[position] = author
            positions[op.id] = position
            batch.ids.append((op.id[_PREFIX_LENGTH:], position))
            batch.ops.append((position, author, op.seq, pack(f"<{len(targets)}I", *targets), signed.block))
            batch.next += 1
        return batch

    def _get(self, connection: sqlite3.Connection, op: OpId) -> int:
        position = self._find(connection, op)
        if position is None:
            raise StoreError(LINK_MISSING)
        return position

    def _find(self, connection: sqlite3.Connection, op: OpId) -> int | None:
        position = self._positions.find(op)
        if position is None and op.startswith(OP_CID_PREFIX):
            row = connection.execute("SELECT position FROM ids WHERE digest = ?", (op[_PREFIX_LENGTH:],)).fetchone()
            position = None if row is None else int(row[0])
        return position

    async def get_blocks(self, ids: Sequence[OpId], positions: Sequence[int] = ()) -> list[bytes | None]:
        """Return the block of each id, or None; see `Store.get_blocks`."""
        return await self._call(lambda connection: self._get_blocks(connection, ids, positions))

    def _get_blocks(
        self, connection: sqlite3.Connection, ids: Sequence[OpId], positions: Sequence[int]
    ) -> list[bytes | None]:
        known = positions
        if not positions:
            found = (self._find(connection, op) for op in ids)
            known = [-1 if position is None else position for position in found]
        wanted = list(zip(ids, known, strict=True))
        parts = [wanted[start : start + _READ_OPS] for start in range(0, len(wanted), _READ_OPS)]
        return [block for part in parts for block in self._blocks(connection, part)]

    def _blocks(self, connection: sqlite3.Connection, wanted: Sequence[tuple[OpId, int]]) -> list[bytes | None]:
        """Return the blocks of at most `_READ_OPS` ops by their positions, None for those that are not stored."""
        # One query for all, always of the same text: each costs a good deal more than the row that it finds.
        positions = [position for _, position in wanted]
        positions.extend([-1] * (_READ_OPS - len(positions)))
        found = dict(connection.execute(_READ_BLOCKS, positions).fetchall())
        blocks: list[bytes | None] = []
        for op, position in wanted:
            block = found.get(position)
            if 0 <= position < self._count and (block is None or sha256(block).digest() != op[_PREFIX_LENGTH:]):
                raise StoreError(f"{self.path} is damaged: the op at position {position} is not what was stored")
            blocks.append(block)
        return blocks

    async def count(self) -> int:
        """Return the number of ops."""
        return await self._call(lambda connection: self._count)

    async def read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return at most `limit` positions above `after`, each with its block."""
        query = "SELECT position, block FROM ops WHERE position > ? ORDER BY position LIMIT ?"
        return await self._call(lambda connection: connection.execute(query, (after, limit)).fetchall())

    async def ids(self, count: int) -> list[OpId]:
        """Return the ids of the first `count` ops, in order of position."""
        return await self._call(lambda connection: self._ids(connection, count))

    def _ids(self, connection: sqlite3.Connection, count: int) -> list[OpId]:
        # Positions are dense: putting each in its place is cheaper than sorting, or an index that nothing else needs.
        ids = [OpId(b"")] * min(count, self._count)
        for digest, position in connection.execute("SELECT digest, position FROM ids WHERE position < ?", (len(ids),)):
            ids[position] = OpId(OP_CID_PREFIX + digest)
        return ids

    async def find_position(self, op: OpId) -> int | None:
        """Return the position of an op, or None."""
        return await self._call(lambda connection: self._find(connection, op))

    async def links(self, position: int) -> list[int]:
        """Return the positions that an op links to, sorted."""
        query = "SELECT links FROM ops WHERE position = ?"
        row = await self._call(lambda connection: connection.execute(query, (position,)).fetchone())
        return [] if row is None else [target for (target,) in _TARGET.iter_unpack(row[0])]

    async def own_tip(self, author: Author) -> Tip | None:
        """Return the end of an author's chain, or None."""
        query = """
            SELECT block, seq FROM authors JOIN tips ON tips.author = authors.number JOIN ops ON ops.position = tips.op
            WHERE key = ?
        """
        rows = await self._call(lambda connection: connection.execute(query, (bytes(author),)).fetchall())
        tips = [Tip(compute_op_id(block), int(seq), len(rows)) for block, seq in rows]
        return min(tips, key=lambda tip: (-tip.seq, tip.op)) if tips else None

    # -- snapshot and notes --

    async def save_snapshot(self, position: int, data: bytes) -> None:
        """Replace the snapshot."""
        query = "INSERT OR REPLACE INTO snapshots (slot, position, data) VALUES (0, ?, ?)"
        await self._call(
            lambda connection: self._write(connection, query, (position, zlib.compress(data, 1)), durable=False)
        )

    async def load_snapshot(self) -> tuple[int, bytes] | None:
        """Return position and data of the snapshot, or None."""
        query = "SELECT position, data FROM snapshots"
        row = await self._call(lambda connection: connection.execute(query).fetchone())
        try:
            return None if row is None else (int(row[0]), zlib.decompress(row[1]))
        except zlib.error as error:
            raise StoreError(f"the snapshot in {self.path} is damaged; it is rebuilt from the ops") from error

    async def drop_snapshot(self) -> None:
        """Forget the snapshot."""
        query = "DELETE FROM snapshots"
        await self._call(lambda connection: self._write(connection, query, (), durable=False))

    async def get_meta(self, key: str) -> bytes | None:
        """Return a note, or None."""
        query = "SELECT value FROM meta WHERE name = ?"
        row = await self._call(lambda connection: connection.execute(query, (key,)).fetchone())
        return None if row is None else bytes(row[0])

    async def set_meta(self, key: str, value: bytes) -> None:
        """Write a note, durably."""
        query = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"
        await self._call(lambda connection: self._write(connection, query, (key, value), durable=True))

    def _write(
        self, connection: sqlite3.Connection, query: str, values: tuple[str | int | bytes, ...], durable: bool
    ) -> None:
        self._set_durable(connection, durable)
        connection.execute(query, values)
