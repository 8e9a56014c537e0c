"""The right to use a data folder: one process at a time.

The lock is the kernel's (`flock`) on a file in the folder, so it ends with the process, however that ends; the file
itself stays and means nothing.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from crdtchain.errors import StoreBusyError, StoreError

LOCK_FILE = "lock"


class DataFolderLock:
    """An exclusive lock on a data folder; also a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock, making the folder (0700) if it is not there.

        Raises:
            StoreBusyError: another process, or another lock object of this one, holds it.
            StoreError: the folder can't be made or written.
        """
        if self._file is not None:
            return
        path = self.folder / LOCK_FILE
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"the data folder {self.folder} can't be used: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            text = f"another crdtchain process uses the data folder {self.folder}; stop it or choose another folder"
            raise StoreBusyError(text) from error
        self._file = file

    def release(self) -> None:
        """Give the lock back; releasing twice is no fault."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> DataFolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
