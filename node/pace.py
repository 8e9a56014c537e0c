"""Token buckets: how fast a peer may send what nobody asked it for. They delay, and never refuse."""

from __future__ import annotations

import time
from collections.abc import Callable


class Bucket:
    """So many units a second, and a burst."""

    def __init__(self, rate: float, burst: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._now_s = now_s
        self._level = burst
        self._at_s = now_s()

    def take(self, count: float) -> float:
        """Take units, of which there may be too few; returns for how long to wait before going on, s."""
        now_s = self._now_s()
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        self._level -= count
        return 0.0 if self._level >= 0 else -self._level / self._rate
