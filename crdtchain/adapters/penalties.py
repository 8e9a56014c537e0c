"""The table of broken rules, kept across runs; what they mean is the program's (`node.scores`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from msgspec import Struct

from crdtchain.adapters.blob_index import Call
from crdtchain.adapters.sqlite_store import SqliteStore


class PenaltyRow(Struct, frozen=True):
    """What is remembered of one node or address."""

    key: str
    """`node:` and a key in hexadecimal digits, or `addr:` and an address or network."""
    thousandths: int
    """Broken rules as of `at_ms`, in thousandths."""
    at_ms: int
    """ms since the Unix epoch."""
    refused_until_ms: int
    """Until then it is not let in; ms since the Unix epoch."""


class SqlitePenalties:
    """The table in a `SqliteStore`'s database."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @classmethod
    def of(cls, store: SqliteStore) -> SqlitePenalties:
        """Return the table in a store's database."""
        return cls(store._call)

    async def load(self) -> list[PenaltyRow]:
        """Return all rows, in order of their keys."""
        query = "SELECT key, thousandths, at_ms, refused_until_ms FROM penalties ORDER BY key"
        rows = await self._call(lambda connection: connection.execute(query).fetchall())
        return [PenaltyRow(*row) for row in rows]

    async def save(self, rows: Sequence[PenaltyRow]) -> None:
        """Replace all rows, in one transaction."""
        values = [(row.key, row.thousandths, row.at_ms, row.refused_until_ms) for row in rows]
        await self._call(lambda connection: _replace(connection, values))


def _replace(connection: sqlite3.Connection, values: list[tuple[str, int, int, int]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("DELETE FROM penalties")
        connection.executemany(
            "INSERT INTO penalties (key, thousandths, at_ms, refused_until_ms) VALUES (?, ?, ?, ?)", values
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
