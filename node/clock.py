"""The node's clock, and whether it may be believed.

A witness dates what it says, so a clock that jumps makes it lie. The wall clock is compared with the monotonic one,
which nobody sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from crdtchain.scalars import Millis

JUMP_MS: Final = 60_000
"""A difference above it is a jump."""


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Clock:
    """Tells the time, and remembers by how much it jumped."""

    def __init__(self, wall_ms: Callable[[], int] = _wall_ms, monotonic_ms: Callable[[], int] = _monotonic_ms) -> None:
        self._wall_ms = wall_ms
        self._monotonic_ms = monotonic_ms
        self._offset_ms = wall_ms() - monotonic_ms()

    def now_ms(self) -> Millis:
        """Return the wall clock's time, ms since the Unix epoch."""
        return Millis(self._wall_ms())

    def jump_ms(self) -> int:
        """Return by how much the wall clock has moved against the monotonic one since the start, ms; 0 within 60 s."""
        moved = self._wall_ms() - self._monotonic_ms() - self._offset_ms
        return moved if abs(moved) > JUMP_MS else 0
