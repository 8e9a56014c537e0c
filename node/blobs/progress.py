"""How far a fetch is: bytes, sources and rate, told to whoever listens a few times a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from crdtchain.scalars import BlobId
from node.events import BlobProgress

TELL_S: Final = 0.25
WINDOW_S: Final = 3.0
"""The rate is that of so long."""


class Meter:
    """Counts what comes of one blob."""

    def __init__(self, blob: BlobId, tell: Callable[[BlobProgress], None]) -> None:
        self._blob = blob
        self._tell = tell
        self._told_s = 0.0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self.done = 0
        self.total = 0
        """Bytes of the whole; 0: not known yet."""
        self.sources: set[str] = set()
        """Peers from which something has come."""
        self.came = 0
        """Bytes that came in this fetch, without those that were here."""

    def begin(self, total: int, done: int) -> None:
        """Note how much there is, and how much is here."""
        self.total, self.done = total, done
        self.tell("fetching")

    def add(self, size: int, source: str) -> None:
        """Note bytes that came from a source and were checked."""
        self.sources.add(source)
        self.done += size
        self.came += size
        now_s = time.monotonic()
        self._samples.append((now_s, self.came))
        while len(self._samples) > 2 and self._samples[0][0] < now_s - WINDOW_S:
            self._samples.popleft()
        if now_s - self._told_s >= TELL_S:
            self.tell("fetching")

    def rate(self) -> int:
        """Return the bytes of a second, lately."""
        first_s, first = self._samples[0]
        return round((self.came - first) / max(time.monotonic() - first_s, 0.001))

    def show(self, state: str) -> BlobProgress:
        """Return how far it is."""
        return BlobProgress(self._blob, state, self.done, self.total, len(self.sources), self.rate())

    def tell(self, state: str) -> None:
        """Tell how far it is; `state`: fetching, done, failed."""
        self._told_s = time.monotonic()
        self._tell(self.show(state))
