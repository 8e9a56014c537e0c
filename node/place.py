"""Whether a data folder is where it was: a copied or restored one must not sign before a peer knows its chain.

Two copies of one key that both sign end in an equivocation, which freezes the account for ever; so does a backup that
was restored and has forgotten what it signed. The store and the file `place` vouch for each other:

- the store notes machine and inode of the database, and of `place` its content, inode and time of change. No copying
  program can give a file the time of change that it had before, so a copy of both does not fit, not even one that was
  written over the original. A folder that was moved on one disk does fit;
- `place` is written anew at each start, so a database that was restored alone does not fit;
- `signed` holds how many ops this key has signed here, so a database from the middle of a run that was restored alone
  does not fit either.

What can't be seen: the image of a whole disk, or of a virtual machine, that is set back.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from crdtchain.adapters.store import STORE_FILE
from crdtchain.errors import StoreError

PLACE_FILE: Final = "place"
SIGNED_FILE: Final = "signed"
NOTE: Final = "place"
WARNING: Final = (
    "The data folder looks copied or restored ({reason}), and this node signs without a peer's word, as "
    "--force-offline asks: if another copy of this key has signed anything that is not here, the two are an "
    "equivocation, and the account is frozen for ever"
)
_MACHINE_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))

log = logging.getLogger(__name__)


class Notes(Protocol):
    """Where the note is kept: a `Store`."""

    def get_meta(self, key: str) -> Awaitable[bytes | None]:
        """Return a note, or None."""

    def set_meta(self, key: str, value: bytes) -> Awaitable[None]:
        """Write a note, durably."""


class _Note(Struct, frozen=True):
    """What the store remembers of its place."""

    machine: str
    database: int
    """Inode."""
    token: str
    """Content of `place`."""
    file: tuple[int, int] = (0, 0)
    """Inode and time of change of `place`, ns; zeros while it is about to be written."""
    before: str = ""
    """While `place` is about to be written: what stood there."""


class Place:
    """The place of one data folder."""

    def __init__(
        self, folder: Path, notes: Notes, write: Callable[[Path, bytes], None], machine: str | None = None
    ) -> None:
        """`write` replaces a file in one step; `machine` is this machine's id, found when it is not given."""
        self._folder = folder
        self._notes = notes
        self._write = write
        self._machine = find_machine() if machine is None else machine
        self._signed = -1

    async def check(self, own_count: int) -> str:
        """Return why the folder looks copied or restored; empty: it does not. `own_count` are the own ops stored."""
        note = await self._load()
        if note is None:
            return ""
        if note.machine and self._machine and note.machine != self._machine:
            return "it is on another machine"
        if _stat(self._folder / STORE_FILE)[0] != note.database:
            return "the database is another file than before"
        token, file = _read(self._folder / PLACE_FILE), _stat(self._folder / PLACE_FILE)
        if note.file == (0, 0):
            # The program ended while it wrote the file: both contents are its own.
            if token not in (note.token, note.before):
                return "the database is older or newer than the folder"
        elif token != note.token:
            return "the database is older or newer than the folder"
        elif file != note.file:
            return "its files were written anew"
        signed = _read(self._folder / SIGNED_FILE)
        if signed.isascii() and signed.isdigit() and int(signed[:16]) > own_count:
            return f"this key has signed {signed} ops here, and the database holds {own_count} of them"
        return ""

    async def settle(self) -> None:
        """Note that the folder is right where it is; call it once signing is safe.

        Raises:
            StoreError: the note can't be written.
        """
        fresh, database = secrets.token_hex(8), _stat(self._folder / STORE_FILE)[0]
        path = self._folder / PLACE_FILE
        # First both contents are good, then the file is replaced, then the new one alone: a crash in between is none
        # of a copy's signs.
        await self._save(_Note(self._machine, database, fresh, before=_read(path)))
        self._write(path, fresh.encode())
        await self._save(_Note(self._machine, database, fresh, _stat(path)))

    def note_signed(self, own_count: int) -> None:
        """Note how many ops this key has signed; a hint for the next start, so a failure is no fault."""
        if own_count <= self._signed:
            return
        try:
            # Written in place: losing it to a power cut loses a hint, and the store is durable on its own.
            descriptor = os.open(self._folder / SIGNED_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(descriptor, str(own_count).encode(), 0)
            finally:
                os.close(descriptor)
            self._signed = own_count
        except OSError as error:
            log.debug("The number of signed ops was not noted: %s", error)

    def reset_signed(self, own_count: int) -> None:
        """Set the number of signed ops to what the store holds, after a peer has confirmed it."""
        try:
            (self._folder / SIGNED_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"can't write {self._folder / SIGNED_FILE}: {error.strerror}") from error
        self._signed = -1
        self.note_signed(own_count)

    async def _load(self) -> _Note | None:
        data = await self._notes.get_meta(NOTE)
        try:
            return None if data is None else msgspec.json.decode(data, type=_Note)
        except msgspec.MsgspecError:
            return None

    async def _save(self, note: _Note) -> None:
        await self._notes.set_meta(NOTE, msgspec.json.encode(note))


def find_machine() -> str:
    """Return this machine's id, or an empty text when it has none."""
    for path in _MACHINE_FILES:
        try:
            return path.read_text("ascii").strip()[:64]
        except (OSError, UnicodeDecodeError):
            continue
    return ""


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
        return found.st_ino, found.st_ctime_ns
    except OSError:
        return 0, 0


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")[:64]
    except (OSError, UnicodeDecodeError):
        return ""
