"""Broken rules: who broke how many lately, and until when it is not let in for that. They outlive reconnects.

The score of a node or an address is the square of the number of rules it broke, each counting half after an hour. From
a bound on, new connections are refused for a time that grows with the score, at most an hour. Waiting, early or
repeated ops are no broken rules.

Invariants:

1. At most `PENALTIES_MAX` rows; when there are more, the lowest are forgotten.
2. Time alone only lowers a score and shortens a wait; a clock that is set back does neither, and time counts anew.
3. Addresses of this machine have no score: many nodes share them, in a demonstration or behind a proxy.

A key is noted only when its owner has proved it; else anybody could have another node refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from crdtchain import limits
from crdtchain.adapters.penalties import PenaltyRow
from crdtchain.scalars import Author
from node.addresses import Reach, find_ip, find_reach, machine_of
from node.counters import PENALTIES, Counters

SCALE: Final = 1_000
"""Rows hold counts in thousandths."""
FORGET: Final = 0.05
"""A count below it is forgotten."""


def node_key(node: Author) -> str:
    """Return the key under which a node's broken rules are noted."""
    return f"node:{node.hex()}"


def address_key(address: str) -> str | None:
    """Return the key of an IP address, None for one that has none: this machine's, or no address at all.

    An IPv6 network of 64 bits is one address: whoever has one of them has them all.
    """
    host = address.partition("%")[0]
    found = find_ip(host)
    if found is None or find_reach(found) is Reach.LOOPBACK:
        return None
    return f"addr:{machine_of(host)}"


class _Penalty(Struct):
    count: float
    """Broken rules as of `at_ms`."""
    at_ms: int
    refused_until_ms: int

    def decayed(self, now_ms: int) -> float:
        if now_ms < self.at_ms:
            # The clock was set back: else nothing would decay until it is where it was.
            self.refused_until_ms -= self.at_ms - now_ms
            self.at_ms = now_ms
        return self.count * math.exp2((self.at_ms - now_ms) / limits.PENALTY_HALF_LIFE_MS)


class Scores:
    """The broken rules of all nodes and addresses that one node remembers."""

    def __init__(self, counters: Counters, rows: Sequence[PenaltyRow] = ()) -> None:
        self._counters = counters
        self._penalties: dict[str, _Penalty] = {}
        self.load(rows)
        self.is_changed = False
        """Whether something was noted since the last `dump`."""

    def load(self, rows: Sequence[PenaltyRow]) -> None:
        """Remember what `dump` returned in an earlier run."""
        for row in rows:
            self._penalties[row.key] = _Penalty(row.thousandths / SCALE, row.at_ms, row.refused_until_ms)

    def __len__(self) -> int:
        return len(self._penalties)

    def note(self, keys: Iterable[str | None], now_ms: int) -> None:
        """Note one broken rule against some keys; those that are None have none."""
        for key in keys:
            if key is None:
                continue
            self.is_changed = True
            self._counters.add(PENALTIES, "node" if key.startswith("node:") else "address")
            before = self._penalties.get(key)
            count = 1.0 if before is None else before.decayed(now_ms) + 1
            until_ms = 0
            if count * count >= limits.PENALTY_SCORE_MAX - FORGET:
                until_ms = now_ms + round(min(limits.PENALTY_MAX_MS, limits.PENALTY_STEP_MS * count * count))
            self._penalties[key] = _Penalty(count, now_ms, until_ms)
            self._evict(now_ms)

    def _evict(self, now_ms: int) -> None:
        # A tenth at once, so that many strangers do not cost a look at all rows each.
        if len(self._penalties) > limits.PENALTIES_MAX:
            order = sorted(self._penalties, key=lambda key: self._penalties[key].decayed(now_ms))
            for key in order[: len(order) - limits.PENALTIES_MAX * 9 // 10]:
                del self._penalties[key]

    def score(self, key: str, now_ms: int) -> float:
        """Return the square of the number of broken rules, decayed."""
        penalty = self._penalties.get(key)
        return 0.0 if penalty is None else penalty.decayed(now_ms) ** 2

    def wait_ms(self, keys: Iterable[str | None], now_ms: int) -> int:
        """Return for how long connections of any of some keys are still refused, ms; 0: they may come."""
        waits = [0]
        for key in keys:
            penalty = None if key is None else self._penalties.get(key)
            if penalty is not None and penalty.decayed(now_ms):
                waits.append(penalty.refused_until_ms - now_ms)
        return max(waits)

    def dump(self, now_ms: int) -> list[PenaltyRow]:
        """Return what a later run needs, the forgotten left out, in order of the keys."""
        self.is_changed = False
        self._penalties = {key: row for key, row in self._penalties.items() if row.decayed(now_ms) >= FORGET}
        return [
            PenaltyRow(key, round(row.count * SCALE), row.at_ms, row.refused_until_ms)
            for key, row in sorted(self._penalties.items())
        ]
