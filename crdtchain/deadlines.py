"""Time is what the witnesses saw: ON_TIME, LATE and OPEN, arrival ticks.

A witness *has x for D* by an op that covers x and is dated no later than D, or, up to f + 1 steps of Δ later, when
enough other witnesses had it before (the staircase). It *closed D without x* when it is dated past the last step and
does not have it. q witnesses that have x make it ON_TIME; q that closed without it, LATE; else it is OPEN.

Invariants:

1. Whether an op of a witness has x for D follows from that op's past, so `find_holders` is the same at every replica
   that holds the op.
2. ON_TIME and LATE are monotone in the cut; with at most f Byzantine witnesses they exclude each other.
3. For a later deadline an op is never less on time.

Source: protocol section 5, "On time" and "Arrival tick".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from enum import Enum

from crdtchain.chains import Chains
from crdtchain.dag import Dag
from crdtchain.witness import Cut, Witnesses

_CACHE_MAX = 20_000


class Timeliness(Enum):
    """What the witnesses say of an op and a deadline, as of a cut."""

    ON_TIME = "on time"
    LATE = "late"
    OPEN = "open"


class _Holders:
    """The ops by which witnesses first had something, to be asked by chain."""

    __slots__ = ("_chains", "_least", "ops")

    def __init__(self, chains: Chains, count: int) -> None:
        self.ops: list[int] = []
        self._chains = chains
        self._least: list[dict[int, int]] = [{} for _ in range(count)]
        """For each witness, lane to the least seq of a holder."""

    def add(self, witness: int, op: int) -> None:
        """Add a holder."""
        self.ops.append(op)
        lane, seq = self._chains.lane(op), self._chains.seq(op)
        least = self._least[witness]
        least[lane] = min(seq, least.get(lane, seq))

    def is_held(self, witness: int, tip: int) -> bool:
        """Whether a holder is on the chain of `tip`, an op of the witness."""
        least = self._least[witness]
        return bool(least) and any(least.get(lane, seq + 1) <= seq for lane, seq in self._chains.path(tip))


class Deadlines:
    """Questions about deadline ops, answered from the marks; it holds nothing but a cache."""

    def __init__(self, dag: Dag, witnesses: Witnesses) -> None:
        self._dag = dag
        self._witnesses = witnesses
        self._params = witnesses.params
        self._cache: dict[tuple[int, int], tuple[int, list[int]]] = {}

    def forget(self) -> None:
        """Empty the cache, after an op was taken back."""
        self._cache.clear()

    def find_holders(self, op: int, deadline: int) -> list[int]:
        """Return the witness ops by which an op was first had for a deadline: one a witness, or one a branch."""
        version = sum(len(lane) for w in range(len(self._params.witnesses)) for lane in self._dag.chains.lanes_of(w))
        cached = self._cache.get((op, deadline))
        if cached is not None and cached[0] == version:
            return cached[1]
        holders = self._find_holders(op, deadline)
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[op, deadline] = (version, holders)
        return holders

    def _find_holders(self, op: int, deadline: int) -> list[int]:
        dag, times = self._dag, self._dag.times
        last_step = deadline + self._params.closing_ms
        found = _Holders(dag.chains, len(self._params.witnesses))
        late: list[int] = []
        for witness, marks in enumerate(self._witnesses.marks):
            starts: dict[int, int] = {}
            for mark in marks.get(op):
                if times[mark] <= deadline:
                    found.add(witness, mark)
                elif times[mark] <= last_step:
                    lane, seq = dag.chains.lane(mark), dag.chains.seq(mark)
                    starts[lane] = min(seq, starts.get(lane, seq))
            for ops in dag.chains.find_descendants(witness, starts) if starts else ():
                # Along a lane times never fall, so the window is a slice.
                late.extend(ops[: bisect_right(ops, last_step, key=times.__getitem__)])
        for tip in sorted(late):
            self._climb(tip, deadline, found)
        return found.ops

    def _climb(self, tip: int, deadline: int, found: _Holders) -> None:
        """Add `tip` to the holders if its chain does not have the op yet and enough others had it before."""
        dag = self._dag
        witness = dag.authors[tip]
        if found.is_held(witness, tip):
            return
        step = -(-(dag.times[tip] - deadline) // self._params.delta_ms)
        others: set[int] = set()
        for seen in dag.clocks[tip]:
            other = dag.authors[seen]
            if other != witness and other not in others and found.is_held(other, seen):
                others.add(other)
                if len(others) >= step:
                    break
        if len(others) >= step:
            found.add(witness, tip)

    def count(self, op: int, deadline: int, cut: Cut) -> tuple[int, int]:
        """Return how many witnesses have an op for a deadline, and how many closed it without, as of a cut."""
        dag = self._dag
        holders = self.find_holders(op, deadline)
        found = _Holders(dag.chains, len(self._params.witnesses))
        for holder in holders:
            found.add(dag.authors[holder], holder)
        closing = deadline + self._params.closing_ms
        closed = sum(
            any(dag.times[tip] > closing and not found.is_held(witness, tip) for tip in cut.tips(witness))
            for witness in range(len(self._params.witnesses))
        )
        return cut.count_witnesses(holders), closed

    def timeliness(self, op: int, deadline: int, cut: Cut) -> Timeliness:
        """Return whether an op is on time for a deadline, as of a cut."""
        had, closed = self.count(op, deadline, cut)
        if had >= self._params.quorum:
            return Timeliness.ON_TIME
        return Timeliness.LATE if closed >= self._params.quorum else Timeliness.OPEN

    def find_ticks(self, op: int, last: int, cut: Cut) -> tuple[int, int]:
        """Return the least and the greatest possible arrival tick of an op that is ON_TIME for tick `last`."""
        tick_ms = self._params.tick_ms

        def is_on_time(tick: int) -> bool:
            return self.timeliness(op, tick * tick_ms, cut) is Timeliness.ON_TIME

        def is_not_late(tick: int) -> bool:
            return self.timeliness(op, tick * tick_ms, cut) is not Timeliness.LATE

        highest = _least(is_on_time, last)
        return _least(is_not_late, highest), highest


def _least(holds: Callable[[int], bool], last: int) -> int:
    """Return the least number from 1 to `last` for which a monotone predicate holds; it holds for `last`."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
