"""The database's tables, as numbered migrations.

`PRAGMA user_version` counts the migrations that a file has seen. A migration is never edited after a release; a
change is a new one. What an op's block says is stored once, in the block: ids are the SHA-256 of blocks, links and
tips positions.

`ops.links` are the positions of prev and parents, sorted, as unsigned 32-bit integers in little-endian order: as rows
of a table of their own they took half the time of an append, and nothing asks for an op's followers. `ids` and `tips`
follow from `ops` and could be rebuilt from it.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from crdtchain.errors import StoreError, StoreVersionError

APPLICATION_ID: Final = 0x43524443
"""Marks the file as this program's ("CRDC")."""

MIGRATIONS: Final = (
    """
    CREATE TABLE authors (
        number INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE CHECK (length(key) = 32)
    ) STRICT;
    CREATE TABLE ops (
        position INTEGER PRIMARY KEY,
        author INTEGER NOT NULL REFERENCES authors (number),
        seq INTEGER NOT NULL CHECK (seq >= 0),
        links BLOB NOT NULL,
        block BLOB NOT NULL
    ) STRICT;
    CREATE TABLE ids (
        digest BLOB NOT NULL PRIMARY KEY CHECK (length(digest) = 32),
        position INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE tips (
        author INTEGER NOT NULL,
        op INTEGER NOT NULL,
        PRIMARY KEY (author, op)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE snapshots (
        slot INTEGER PRIMARY KEY CHECK (slot = 0),
        position INTEGER NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE TABLE meta (
        name TEXT NOT NULL PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE blobs (
        cid BLOB NOT NULL PRIMARY KEY CHECK (length(cid) = 36),
        size INTEGER NOT NULL CHECK (size >= 0),
        state TEXT NOT NULL,
        added_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE addresses (
        url TEXT NOT NULL PRIMARY KEY,
        source TEXT NOT NULL,
        node BLOB CHECK (node IS NULL OR length(node) = 32),
        told_by BLOB CHECK (told_by IS NULL OR length(told_by) = 32),
        reach INTEGER NOT NULL,
        first_ms INTEGER NOT NULL,
        seen_ms INTEGER NOT NULL,
        success_ms INTEGER NOT NULL,
        failures INTEGER NOT NULL CHECK (failures >= 0),
        next_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE penalties (
        key TEXT NOT NULL PRIMARY KEY,
        thousandths INTEGER NOT NULL CHECK (thousandths >= 0),
        at_ms INTEGER NOT NULL,
        refused_until_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
)


def validate_version(connection: sqlite3.Connection, path: object) -> int:
    """Return how many migrations a database has seen.

    Raises:
        StoreVersionError: more than this version knows.
        StoreError: it is another program's database.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program; choose another data folder")
    if version > len(MIGRATIONS):
        raise StoreVersionError(
            f"{path} has format {version}, this version of crdtchain knows {len(MIGRATIONS)}; use a newer one"
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: object) -> None:
    """Bring a database to the newest format, each migration in a transaction of its own.

    Raises:
        StoreVersionError, StoreError: as `validate_version`.
    """
    for number in range(validate_version(connection, path), len(MIGRATIONS)):
        steps = [step for step in MIGRATIONS[number].split(";") if step.strip()]
        connection.execute("BEGIN IMMEDIATE")
        try:
            for step in steps:
                connection.execute(step)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
