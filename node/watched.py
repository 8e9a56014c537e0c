"""Files of lines that people write and a running node follows: `peers.list`, `peers.allow`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from crdtchain.errors import StoreError, UsageError

BYTES_MAX: Final = 2**20


class WatchedFile:
    """Tells when a file has changed since it was last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = ()

    def has_changed(self) -> bool:
        """Whether the file came, went or was written since the last call; the first call says yes."""
        try:
            found = os.stat(self.path)
            now: tuple[int, ...] | None = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)
        except OSError:
            now = None
        before, self._seen = self._seen, now
        return before != now


def read_lines(path: Path) -> list[str] | None:
    """Return a file's lines without comments (`#`) and empty ones; None when there is no such file.

    Raises:
        UsageError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise UsageError(f"{path} is larger than {BYTES_MAX} bytes")
        lines = data.decode("utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"{path} can't be read: {reason}") from None
    return [line for line in (_strip(line) for line in lines) if line]


def _strip(line: str) -> str:
    return line.partition("#")[0].strip()


def add_line(path: Path, line: str, header: str, write: Callable[[Path, bytes], None]) -> bool:
    """Add a line to a file, which is begun with a comment; returns whether it was not there before.

    Raises:
        UsageError: the file can't be read.
        StoreError: it can't be written.
    """
    lines = read_lines(path)
    if lines is not None and line in lines:
        return False
    text = f"# {header}\n" if lines is None else path.read_text("utf-8")
    write(path, f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n".encode())
    return True


def remove_lines(path: Path, is_meant: Callable[[str], bool], write: Callable[[Path, bytes], None]) -> bool:
    """Remove the lines that are meant, keeping comments; returns whether there was one.

    Raises:
        UsageError: the file can't be read.
        StoreError: it can't be written.
    """
    if not read_lines(path):
        return False
    try:
        before = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}") from error
    after = [line for line in before if not _strip(line) or not is_meant(_strip(line))]
    if len(after) == len(before):
        return False
    write(path, _join(after))
    return True


def _join(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
