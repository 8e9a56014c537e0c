"""Whether there is room on the disk for what others write: a quota for ops, and a part of the disk that stays free.

At 90 % of the quota foreign ops are refused, own ops are still written: nobody else can keep this node from speaking.
The room is what the quota allows or, when the disk has less, what there is. SQLite's files do not shrink by
themselves; there is room again when the quota is raised, or something else leaves the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from crdtchain import limits
from node.counters import QUOTA_REFUSED, Counters

LOOK_S: Final = 1.0
"""The files are looked at once in so long at most."""
_SUFFIXES: Final = ("", "-wal", "-shm")


def is_scarce(used_bytes: int, free_bytes: int, quota_bytes: int) -> bool:
    """Whether what is used is above its part of the quota, or of what the disk could hold."""
    return used_bytes * 100 >= min(quota_bytes, used_bytes + free_bytes) * limits.QUOTA_PERCENT


class Room:
    """Measures one node's database against its quota."""

    def __init__(
        self, database: Path, quota_bytes: int, counters: Counters, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._quota_bytes = quota_bytes
        self._counters = counters
        self._now_s = now_s
        self._looked_s = -LOOK_S
        self._is_scarce = False
        self.used_bytes = 0
        """As of the last look."""

    def is_scarce(self) -> bool:
        """Whether foreign ops and blobs have to be refused for now."""
        now_s = self._now_s()
        if self._looked_s < 0 or now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._look()
        return self._is_scarce

    def refuses(self, what: str) -> bool:
        """Whether foreign `ops` or `blobs` are refused, and count it if so."""
        if self.is_scarce():
            self._counters.add(QUOTA_REFUSED, what)
            return True
        return False

    def _look(self) -> None:
        try:
            self.used_bytes = sum(map(self._size, _SUFFIXES))
            disk = os.statvfs(self._database.parent)
        except OSError:
            # Whether it can be written shows when it is: what can't be measured is no reason to part from others.
            self._is_scarce = False
            return
        self._is_scarce = is_scarce(self.used_bytes, disk.f_bavail * disk.f_frsize, self._quota_bytes)

    def _size(self, suffix: str) -> int:
        try:
            return self._database.with_name(self._database.name + suffix).stat().st_size
        except FileNotFoundError:
            return 0
