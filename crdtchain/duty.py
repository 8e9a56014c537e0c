"""A witness's duty: what it has to say next, from the ledger and the time.

Pure decisions: `next_statement` returns one statement or None; the caller signs it, adds it, and asks again until
there is none. What was said is read off the witness's own chain, so nothing is remembered elsewhere and a restart
changes nothing.

Theory of operation:

1. A deadline D of a certified job is *due* when the clock has passed it since the last look: then the statement is
   dated D and covers what is here. The caller looks before it adds anything, so that is what was held at D. A job
   that turns out certified only after D is not due.
2. The same for the next tick after a bid has come.
3. Within the staircase after D: at once when a statement would newly have something.
4. Past D + (f + 1)·Δ: one statement that closes D.
5. Otherwise: a beat, debounced, when some op other than beats and attests is not covered.
6. A decided job is attested, once.

Source: protocol section 5, "Duty".
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from crdtchain import limits
from crdtchain.codec import Link
from crdtchain.dag import NONE
from crdtchain.ledger.settlement import EXPIRED
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Attest, Beat, Body, Kind, Record
from crdtchain.scalars import Author
from crdtchain.witness import Cut

QUIET_KINDS = frozenset({Kind.BEAT, Kind.ATTEST})
"""Kinds that no beat answers, or witnesses would talk for ever."""


class Statement(Struct, frozen=True):
    """Something that a witness has to sign: a body, and the time to date it."""

    body: Body
    time_ms: int
    parents: tuple[int, ...]


class Duty:
    """The duty of one witness over one ledger."""

    def __init__(self, ledger: Ledger, author: Author, debounce_ms: int = 100) -> None:
        self._ledger = ledger
        self._witness = ledger.params.witnesses.index(author)
        self._debounce_ms = debounce_ms
        self._uncovered: dict[int, int] = {}
        """Ops that no own op covers yet, with the time at which they came."""
        self._recent_bids: dict[int, int] = {}
        """Bids with the time at which they came, while a witness may still come to have one for a tick."""
        self._certified_jobs: tuple[int, list[int]] = (0, [])
        """The count of ops at the last look, and the certified open jobs then."""
        self._undecided: dict[int, int] = {}
        """Jobs with the count of ops when their outcome was last found open."""
        self._open_jobs: list[int] = []
        self._seen_jobs = 0
        self._checked_ms: int | None = None
        """The clock at the last look: all that is here was here then, or came later."""

    def note_added(self, number: int, now_ms: int) -> None:
        """Take notice of an op that was just added."""
        dag = self._ledger.dag
        if dag.authors[number] == self._witness:
            tip = number
            for op in [op for op in self._uncovered if self._ledger.witnesses.is_covered_by(op, tip)]:
                del self._uncovered[op]
        elif dag.kind(number) not in QUIET_KINDS:
            self._uncovered[number] = now_ms
            if dag.kind(number) is Kind.BID:
                self._recent_bids[number] = now_ms

    def pass_time(self, now_ms: int) -> None:
        """Take notice that something is about to be added: what was not said for a time up to now is not said any
        more.
        """
        self._checked_ms = now_ms if self._checked_ms is None else max(self._checked_ms, now_ms)

    def restore(self, now_ms: int) -> None:
        """Rebuild what is not covered from the marks, after a start."""
        marks = self._ledger.witnesses.marks[self._witness]
        dag = self._ledger.dag
        self._uncovered = {
            op: now_ms for op in range(len(dag)) if marks.first(op) == NONE and dag.kind(op) not in QUIET_KINDS
        }

    def tip(self) -> int:
        """Return the own last op, or -1."""
        tips = self._ledger.dag.chains.tips(self._witness)
        return max(tips, key=self._ledger.dag.chains.seq) if tips else NONE

    def _tip_time(self) -> int:
        tip = self.tip()
        return NONE if tip == NONE else self._ledger.dag.times[tip]

    def next_statement(self, now_ms: int) -> Statement | None:
        """Return what has to be said now, or None."""
        now_ms = max(now_ms, self._tip_time())
        due = self._due_time(now_ms)
        if due is not None:
            return self._beat(due)
        self._checked_ms = now_ms
        if self._must_climb(now_ms) or self._must_close(now_ms) or self._is_overdue(now_ms):
            return self._beat(now_ms)
        return self._attest(now_ms)

    def next_wake_ms(self, now_ms: int) -> int | None:
        """Return when `next_statement` may have something without anything new coming, or None."""
        times = list(self._coming(now_ms))
        if self._uncovered:
            times.append(min(self._uncovered.values()) + self._debounce_ms)
            tick_ms = self._ledger.params.tick_ms
            if any(self._ledger.dag.kind(op) is Kind.BID for op in self._uncovered):
                times.append(-(-now_ms // tick_ms) * tick_ms)
        return min((max(at, now_ms) for at in times), default=None)

    def _coming(self, now_ms: int) -> Iterator[int]:
        params = self._ledger.params
        for job in self._jobs():
            terms = self._ledger.jobs.terms(job)
            for deadline in (terms.bid_until, terms.reveal_until, terms.verdict_until):
                for at in (deadline, deadline + params.closing_ms + 1):
                    if at > now_ms:
                        yield at
            expiry = terms.verdict_until + params.expiry_ms
            if expiry > now_ms:
                yield expiry

    def _jobs(self) -> list[int]:
        """Return the certified jobs that are not attested and closed; others are forgotten."""
        if self._certified_jobs[0] == len(self._ledger):
            return self._certified_jobs[1]
        jobs = self._ledger.jobs
        self._open_jobs.extend(jobs.jobs[self._seen_jobs :])
        self._seen_jobs = len(jobs.jobs)
        self._open_jobs = [job for job in self._open_jobs if not self._is_over(job)]
        cut = self._ledger.everything()
        certified = [job for job in self._open_jobs if self._ledger.witnesses.is_certified(job, cut)]
        self._certified_jobs = len(self._ledger), certified
        return certified

    def _is_over(self, job: int) -> bool:
        return bool(self._ledger.jobs.parts.get((self._witness, Kind.ATTEST.value, job)))

    def _deadlines(self) -> Iterator[tuple[int, int, Kind]]:
        for job in self._jobs():
            terms = self._ledger.jobs.terms(job)
            yield job, terms.bid_until, Kind.BID
            yield job, terms.reveal_until, Kind.REVEAL
            yield job, terms.verdict_until, Kind.VOTE

    def _due_time(self, now_ms: int) -> int | None:
        """Return the least deadline or tick that the clock has reached since the last look, and that still has to be
        said.
        """
        if self._checked_ms is None:
            # After a start nobody knows any more what was here at an earlier time: nothing is dated back.
            return None
        passed = [at for _, at, _ in self._deadlines()]
        tick_ms = self._ledger.params.tick_ms
        for op, since_ms in self._uncovered.items():
            if self._ledger.dag.kind(op) is Kind.BID:
                passed.append(-(-since_ms // tick_ms) * tick_ms)
        tip_time = self._tip_time()
        # More heads than one op may link to need several ops of the same date.
        floor = tip_time - 1 if self._uncovered else tip_time
        return min((at for at in passed if max(self._checked_ms, floor) < at <= now_ms), default=None)

    def _must_climb(self, now_ms: int) -> bool:
        """Whether a statement now would newly have something by a step of the staircase."""
        closing_ms = self._ledger.params.closing_ms
        pairs = [
            (op, deadline)
            for job, deadline, kind in self._deadlines()
            if deadline < now_ms <= deadline + closing_ms
            for op in self._deadline_ops(job, kind)
        ]
        self._recent_bids = {op: at for op, at in self._recent_bids.items() if now_ms <= at + closing_ms}
        tick_ms = self._ledger.params.tick_ms
        ticks = range(-(-(now_ms - closing_ms) // tick_ms) * tick_ms, now_ms, tick_ms)
        pairs.extend(
            (bid, tick) for bid in self._recent_bids for tick in ticks if tick < self._ledger.jobs.deadline(bid)
        )
        pairs = [(op, deadline) for op, deadline in pairs if self._is_had_by_others(op, deadline, now_ms)]
        if not pairs:
            return False
        tip = self.tip()
        said = self._ledger.witnesses.cut(
            [*self._heads()[: limits.WITNESS_PARENTS_MAX], *([] if tip == NONE else [tip])]
        )
        # What only another branch of the own chain covers can't be brought along.
        return any(self._is_had_by_others(op, at, now_ms, said) and said.contains(op) for op, at in pairs)

    def _is_had_by_others(self, op: int, deadline: int, now_ms: int, said: Cut | None = None) -> bool:
        """Whether enough others, seen by a cut if one is given, have an op for the step that is on, and the own key
        not.
        """
        holders = self._ledger.deadlines.find_holders(op, deadline)
        authors = self._ledger.dag.authors
        if self._witness in {authors[holder] for holder in holders}:
            return False
        step = -(-(now_ms - deadline) // self._ledger.params.delta_ms)
        return len({authors[holder] for holder in holders if said is None or said.sees(holder)}) >= step

    def _deadline_ops(self, job: int, kind: Kind) -> Iterator[int]:
        jobs = self._ledger.jobs
        for bid in jobs.bids.get(job):
            if kind is Kind.BID:
                yield bid
                continue
            for reveal in jobs.reveals.get(bid):
                if kind is Kind.REVEAL:
                    yield reveal
                else:
                    yield from jobs.votes.get(reveal)

    def _must_close(self, now_ms: int) -> bool:
        """Whether a window has closed and no own op is dated after it."""
        tip_time, closing_ms = self._tip_time(), self._ledger.params.closing_ms
        return any(tip_time <= at + closing_ms < now_ms for _, at, _ in self._deadlines())

    def _is_overdue(self, now_ms: int) -> bool:
        return any(since_ms + self._debounce_ms <= now_ms for since_ms in self._uncovered.values())

    def _heads(self) -> list[int]:
        """Return what a statement links to, ops that carry value and deadline ops first.

        That is the heads; for a head on another branch of the own chain, what others said below it.
        """
        dag, tip = self._ledger.dag, self.tip()
        found = dag.find_foreign_heads(self._witness, tip)
        return sorted(found, key=lambda head: (dag.kind(head) in QUIET_KINDS, dag.ids[head]))

    def _beat(self, time_ms: int) -> Statement:
        return Statement(Beat(), time_ms, tuple(self._heads()[: limits.WITNESS_PARENTS_MAX]))

    def _attest(self, now_ms: int) -> Statement | None:
        heads = self._heads()
        if len(heads) > limits.WITNESS_PARENTS_MAX:
            return self._beat(now_ms)
        for job in self._jobs():
            record = self._decided(job, now_ms)
            if record is not None:
                body = Attest(job=Link(self._ledger.dag.ids[job]), record=record)
                return Statement(body, now_ms, tuple(heads))
        return None

    def _decided(self, job: int, now_ms: int) -> Record | None:
        terms = self._ledger.jobs.terms(job)
        if now_ms >= terms.verdict_until + self._ledger.params.expiry_ms:
            return EXPIRED
        if now_ms <= terms.verdict_until:
            return None
        if self._undecided.get(job) == len(self._ledger):
            return None
        record = self._ledger.settlement.outcome(job, self._ledger.everything())
        if record is None:
            self._undecided[job] = len(self._ledger)
        return record
