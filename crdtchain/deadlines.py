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

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from enum import Enum

from crdtchain.crdts.frontier import Clock
from crdtchain.dag import Dag
from crdtchain.witness import Cut, Witnesses

_CACHE_MAX = 20_000


class Timeliness(Enum):
    """What the witnesses say of an op and a deadline, as of a cut."""

    ON_TIME = "on time"
    LATE = "late"
    OPEN = "open"


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
        holders, late = self._direct_holders(op, deadline)
        for tip in sorted(late):
            self._climb(tip, deadline, holders)
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[op, deadline] = (version, holders)
        return holders

    def _direct_holders(self, op: int, deadline: int) -> tuple[list[int], list[int]]:
        """Return the marks dated by the deadline, and the ops that may have `op` by a step of the staircase."""
        times = self._dag.times
        last_step = deadline + self._params.closing_ms
        holders: list[int] = []
        late: list[int] = []
        for witness, marks in enumerate(self._witnesses.marks):
            for mark in marks.get(op):
                if times[mark] <= deadline:
                    holders.append(mark)
                elif times[mark] <= last_step:
                    late.extend(self._from(witness, mark, last_step))
        return holders, late

    def _from(self, witness: int, mark: int, last_step: int) -> Iterable[int]:
        """Yield the ops of a witness from a mark on, dated no later than `last_step`."""
        dag = self._dag
        for lane in dag.chains.lanes_of(witness):
            # On a chain numbers and times never fall, so the window is a slice.
            end = bisect_right(lane, last_step, key=dag.times.__getitem__)
            for op in lane[bisect_left(lane, mark) : end]:
                if dag.chains.is_on_chain(mark, op):
                    yield op

    def _climb(self, tip: int, deadline: int, holders: list[int]) -> None:
        """Add `tip` to the holders if its chain does not have the op yet and enough others had it before."""
        dag = self._dag
        witness = dag.authors[tip]
        if any(dag.authors[holder] == witness and dag.chains.is_on_chain(holder, tip) for holder in holders):
            return
        step = -(-(dag.times[tip] - deadline) // self._params.delta_ms)
        others = {dag.authors[holder] for holder in holders if self._sees(dag.clocks[tip], holder)} - {witness}
        if len(others) >= step:
            holders.append(tip)

    def _sees(self, clock: Clock, op: int) -> bool:
        dag = self._dag
        witness = dag.authors[op]
        return any(dag.authors[tip] == witness and dag.chains.is_on_chain(op, tip) for tip in clock)

    def count(self, op: int, deadline: int, cut: Cut) -> tuple[int, int]:
        """Return how many witnesses have an op for a deadline, and how many closed it without, as of a cut."""
        dag = self._dag
        holders = self.find_holders(op, deadline)
        closing = deadline + self._params.closing_ms
        closed = 0
        for witness in range(len(self._params.witnesses)):
            for tip in cut.tips(witness):
                if dag.times[tip] > closing and not any(
                    dag.authors[holder] == witness and dag.chains.is_on_chain(holder, tip) for holder in holders
                ):
                    closed += 1
                    break
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
