"""From SQLite's exceptions to the store's: whose fault it is, and what to do."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from crdtchain.errors import StoreBusyError, StoreError, StoreFullError

_FREE_BYTES_MIN = 64 * 1024
"""Below this an I/O error is taken for a full disk: SQLite reports a shared-memory file that can't grow as one."""


def convert_error(error: sqlite3.Error, path: Path) -> StoreError:
    """Return the store's error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(path)):
        return StoreFullError(f"no space is left for {path}; free some, nothing of this write was kept")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusyError(f"another program holds {path} locked; close it and try again")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(f"{path} is damaged or no ledger ({error}); move it away and fetch the ledger again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreError(f"{path} can't be opened or written ({error}); check its permissions")
    return StoreError(f"the database {path} failed: {error}")


def _is_full(path: Path) -> bool:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < _FREE_BYTES_MIN
