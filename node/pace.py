"""Token buckets: how fast a peer may send what nobody asked it for. They delay, and never refuse for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

SWEEP_S: Final = 1.0
"""Allowances that are whole again are looked for at most so often."""


class Bucket:
    """So many units a second, and a burst."""

    def __init__(self, rate: float, burst: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._now_s = now_s
        self._level = burst
        self._at_s = now_s()

    def _fill(self) -> None:
        # A clock that stands still or goes back fills nothing.
        now_s = self._now_s()
        self._level = min(self._burst, self._level + max(0.0, now_s - self._at_s) * self._rate)
        self._at_s = now_s

    def take(self, count: float) -> float:
        """Take units, of which there may be too few; returns for how long to wait before going on, s."""
        self._fill()
        self._level -= count
        return 0.0 if self._level >= 0 else -self._level / self._rate

    def take_if(self, count: float) -> bool:
        """Take units if there are enough; returns whether there were."""
        self._fill()
        # What many small additions lost in rounding is nobody's over-use.
        if self._level + 1e-6 < count:
            return False
        self._level -= count
        return True


class Allowances:
    """One bucket for each of many keys, in bounded memory: a key whose bucket is full again costs nothing.

    What is kept for a key is the time at which its bucket will be full.
    """

    def __init__(self, rate: float, burst: float, keys_max: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._keys_max = keys_max
        self._now_s = now_s
        self._full_s: dict[bytes, float] = {}
        self._swept_s = now_s()

    def __len__(self) -> int:
        return len(self._full_s)

    def take_if(self, key: bytes) -> bool | None:
        """Take one unit of a key's if there is one; returns whether there was, None when there are too many keys."""
        now_s = self._now_s()
        full_s = max(now_s, self._full_s.get(key, now_s)) + 1 / self._rate
        if full_s > now_s + self._burst / self._rate + 1e-6:
            return False
        if key not in self._full_s and len(self._full_s) >= self._keys_max:
            self._sweep(now_s)
            if len(self._full_s) >= self._keys_max:
                return None
        self._full_s[key] = full_s
        return True

    def _sweep(self, now_s: float) -> None:
        """Forget the keys whose buckets are full; not at every call, for it looks at all of them."""
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            self._full_s = {key: full_s for key, full_s in self._full_s.items() if full_s > now_s}
