"""Audits of what lies on a disk: a data folder, or a CAR file.

Of a data folder the blocks are read and nothing else; ids, indexes, tips and snapshots in it follow from them and are
not looked at. It is opened for reading alone, so a node may be running on it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from crdtchain import codec
from crdtchain.adapters.car import CarError, CarReader, open_car
from crdtchain.adapters.keys import sodium_verifier
from crdtchain.adapters.store import STORE_FILE
from crdtchain.audit import Audit, AuditReport
from crdtchain.errors import UsageError
from crdtchain.signing import Verifier

_SQLITE_START = b"SQLite format 3\x00"


async def audit_source(path: Path, verifier: Verifier = sodium_verifier) -> AuditReport:
    """Audit a data folder, its database, or a CAR file, on a thread of its own.

    Whatever is wrong inside is a fault in the report.

    Raises:
        UsageError: there is no such file or folder, or it can't be read.
    """
    return await asyncio.to_thread(_audit, path, verifier)


def _audit(path: Path, verifier: Verifier) -> AuditReport:
    file = path / STORE_FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"there is no ledger at {path}: name a data folder with a {STORE_FILE}, or a CAR file")
    with open_car(file) as opened:
        is_database = opened.read(len(_SQLITE_START)) == _SQLITE_START
    audit = Audit(verifier)
    if is_database or file.name == STORE_FILE:
        _feed_database(file, audit)
    else:
        _feed_car(file, audit)
    return audit.finish()


def _feed_car(path: Path, audit: Audit) -> None:
    with open_car(path) as file:
        try:
            for position, cid, block in CarReader(file):
                audit.add(position, cid, block)
        except CarError as error:
            audit.note("source", str(error))


def _feed_database(path: Path, audit: Audit) -> None:
    try:
        for position, block in _read_blocks(path):
            if isinstance(block, bytes):
                audit.add(position, codec.compute_op_id(block), block)
            else:
                audit.note("source", f"what the database has at position {position} is no block")
    except sqlite3.Error as error:
        audit.note("source", f"the database {path.name} can't be read to its end: {error}")


def _read_blocks(path: Path) -> Iterator[tuple[int, object]]:
    # Without a write-ahead log there is nothing that a writer could change under us, and nothing may be created.
    has_log = path.with_name(path.name + "-wal").exists()
    address = f"file:{quote(str(path.absolute()))}?mode=ro" + ("" if has_log else "&immutable=1")
    with closing(sqlite3.connect(address, uri=True, timeout=5.0)) as connection:
        # One statement sees one state of the ledger, also while a node writes.
        yield from connection.execute("SELECT position, block FROM ops ORDER BY position")
