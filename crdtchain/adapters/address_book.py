"""Addresses of other nodes, in the ledger's database; what they are good for is decided elsewhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from crdtchain.adapters.blob_index import Call
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.scalars import Author

_COLUMNS = "url, source, node, told_by, reach, first_ms, seen_ms, success_ms, failures, next_ms"


class AddressRow(Struct):
    """What is known of one address. Times are ms since the Unix epoch, by this machine's clock."""

    url: str
    source: str
    node: Author | None = None
    """The key that the node there has proven to have."""
    told_by: Author | None = None
    """The key of the peer that told it."""
    reach: int = 0
    """From how far away it may be reached (a `node.addresses.Reach`): a name may lead to no nearer address."""
    first_ms: int = 0
    seen_ms: int = 0
    """When it was last named, or connected."""
    success_ms: int = 0
    """When a node of this network was last reached there; 0: never."""
    failures: int = 0
    """Since the last success."""
    next_ms: int = 0
    """Not to be dialled before."""


class AddressStore(Protocol):
    """Keeps the rows of a book between two runs."""

    async def load(self) -> list[AddressRow]:
        """Return all rows, in order of their URLs."""

    async def save(self, rows: Sequence[AddressRow], gone: Iterable[str]) -> None:
        """Write rows and forget others, in one transaction."""


class SqliteAddresses:
    """The rows in a `SqliteStore`'s database."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @classmethod
    def of(cls, store: SqliteStore) -> SqliteAddresses:
        """Return the addresses in a store's database."""
        return cls(store._call)

    async def load(self) -> list[AddressRow]:
        """Return all rows, in order of their URLs."""
        query = f"SELECT {_COLUMNS} FROM addresses ORDER BY url"  # noqa: S608 - the columns are ours
        rows = await self._call(lambda connection: connection.execute(query).fetchall())
        return [_make_row(row) for row in rows]

    async def save(self, rows: Sequence[AddressRow], gone: Iterable[str]) -> None:
        """Write rows and forget others, in one transaction."""
        written, forgotten = [_make_values(row) for row in rows], [(url,) for url in gone]
        await self._call(lambda connection: _save(connection, written, forgotten))


def _save(connection: sqlite3.Connection, rows: list[tuple[object, ...]], gone: list[tuple[str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany("DELETE FROM addresses WHERE url = ?", gone)
        query = f"INSERT OR REPLACE INTO addresses ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - as above
        connection.executemany(query, rows)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _make_values(row: AddressRow) -> tuple[object, ...]:
    node = None if row.node is None else bytes(row.node)
    told_by = None if row.told_by is None else bytes(row.told_by)
    times = (row.first_ms, row.seen_ms, row.success_ms)
    return (row.url, row.source, node, told_by, int(row.reach), *times, row.failures, row.next_ms)


def _make_row(values: tuple[Any, ...]) -> AddressRow:
    url, source, node, told_by, *numbers = values
    return AddressRow(
        url, source, None if node is None else Author(node), None if told_by is None else Author(told_by), *numbers
    )
