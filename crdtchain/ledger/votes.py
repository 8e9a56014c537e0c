"""Who may vote, what voids what, and the verdict on a reveal.

Source: protocol sections 5 ("void") and 7 ("Electors", "Verdict").
"""

from __future__ import annotations

from enum import Enum

from crdtchain.dag import Dag
from crdtchain.deadlines import Deadlines, Timeliness
from crdtchain.ledger.accounts import Accounts
from crdtchain.ledger.jobs import Jobs
from crdtchain.ops import Kind
from crdtchain.scalars import Author
from crdtchain.witness import Cut, Witnesses


class Standing(Enum):
    """Whether a deadline op counts, as of a cut."""

    COUNTS = "counts"
    """ON_TIME and not void."""
    OUT = "out"
    """LATE or void, for ever."""
    UNDETERMINED = "undetermined"
    """It may still become either."""


class Verdict(Enum):
    """What the votes make of a reveal."""

    STANDS = "stands"
    MISSING = "missing"
    CHEAT = "cheat"
    UNDETERMINED = "undetermined"


AGREEING = {Verdict.STANDS: {"valid"}, Verdict.CHEAT: {"cheat"}, Verdict.MISSING: {"cheat", "missing"}}
"""Which votes agree with a verdict, and share the pool."""


class Votes:
    """Questions about bids, reveals and votes; it holds nothing but a cache of electors."""

    def __init__(self, dag: Dag, witnesses: Witnesses, deadlines: Deadlines, jobs: Jobs, accounts: Accounts) -> None:
        self._dag = dag
        self._witnesses = witnesses
        self._deadlines = deadlines
        self._jobs = jobs
        self._accounts = accounts
        self._electors: dict[tuple[Author, int], bool] = {}
        self._banned: dict[tuple[int, int], bool] = {}

    def is_elector(self, author: Author, job: int) -> bool:
        """Whether an author may vote on a job's reveals: decided by past(job) alone, hence for ever."""
        if author in self._witnesses.params.witnesses:
            return True
        known = self._electors.get((author, job))
        if known is None:
            cut = self._witnesses.cut((job,))
            rich = self._accounts.certified_balance(author, cut) >= self._witnesses.params.elector_min
            number = self._dag.find_author(author)
            banned = number is not None and self._witnesses.is_banned(number, cut)
            known = self._electors[author, job] = rich and not banned
        return known

    def is_banned_for(self, author: int, job: int) -> bool:
        """Whether an author was banned as of a job: decided by past(job) alone, hence for ever."""
        if author not in self._witnesses.accused:
            return False
        known = self._banned.get((author, job))
        if known is None:
            known = self._witnesses.is_banned(author, self._witnesses.cut((job,)))
            self._banned[author, job] = known
        return known

    def standing(self, op: int, cut: Cut) -> Standing:
        """Return whether a bid, reveal or vote counts, as of a cut that contains it."""
        kind, job, author = self._dag.kind(op), self._jobs.job_of.get(op), self._dag.authors[op]
        if kind is not Kind.REVEAL and self.is_banned_for(author, job):
            return Standing.OUT
        own = self._timeliness(op, cut)
        if own is not Timeliness.ON_TIME:
            return Standing.OUT if own is Timeliness.LATE else Standing.UNDETERMINED
        if author not in self._dag.chains.forked:
            return Standing.COUNTS
        on_time, still_open = self._split(author, kind, job, cut)
        if self._has_rival(op, on_time):
            return Standing.OUT
        return Standing.UNDETERMINED if self._has_rival(op, still_open) else Standing.COUNTS

    def is_void(self, op: int, cut: Cut) -> bool:
        """Whether a bid, reveal or vote is void, as of a cut that contains it: banned, or in conflict with another."""
        kind, job, author = self._dag.kind(op), self._jobs.job_of.get(op), self._dag.authors[op]
        if kind is not Kind.REVEAL and self.is_banned_for(author, job):
            return True
        if author not in self._dag.chains.forked or self._timeliness(op, cut) is not Timeliness.ON_TIME:
            return False
        return self._has_rival(op, self._split(author, kind, job, cut)[0])

    def _timeliness(self, op: int, cut: Cut) -> Timeliness:
        return self._deadlines.timeliness(op, self._jobs.deadline(op), cut)

    def _split(self, author: int, kind: Kind, job: int, cut: Cut) -> tuple[list[int], list[int]]:
        """Return an author's ops of a kind for a job that are ON_TIME, and those that are OPEN, as of a cut."""
        key = (author, kind.value, job)
        if key not in cut.answers:
            on_time: list[int] = []
            still_open: list[int] = []
            for op in self._jobs.parts.get(key):
                if cut.contains(op):
                    timeliness = self._timeliness(op, cut)
                    if timeliness is Timeliness.ON_TIME:
                        on_time.append(op)
                    elif timeliness is Timeliness.OPEN:
                        still_open.append(op)
            cut.answers[key] = (on_time, still_open)
        return cut.answers[key]

    def _has_rival(self, op: int, others: list[int]) -> bool:
        """Whether one of the others is on neither side's chain."""
        is_on_chain = self._dag.chains.is_on_chain
        return any(not is_on_chain(other, op) and not is_on_chain(op, other) for other in others)

    def counting(self, reveal: int, cut: Cut) -> list[int] | None:
        """Return the votes on a reveal that count, or None while one is undetermined."""
        votes = []
        for vote in self._jobs.votes.get(reveal):
            if not cut.contains(vote):
                continue
            standing = self.standing(vote, cut)
            if standing is Standing.UNDETERMINED:
                return None
            if standing is Standing.COUNTS:
                votes.append(vote)
        return votes

    def verdict(self, reveal: int, cut: Cut) -> tuple[Verdict, list[int]]:
        """Return the verdict on a reveal as of a cut, and the votes that agreed with it."""
        votes = self.counting(reveal, cut)
        if votes is None:
            return Verdict.UNDETERMINED, []
        cheat = [vote for vote in votes if self._jobs.vote(vote).verdict == "cheat"]
        against = [vote for vote in votes if self._jobs.vote(vote).verdict != "valid"]
        verdict = Verdict.STANDS
        if self._carries(cheat, len(votes)):
            verdict = Verdict.CHEAT
        elif self._carries(against, len(votes)):
            verdict = Verdict.MISSING
        agreeing = AGREEING[verdict]
        return verdict, [vote for vote in votes if self._jobs.vote(vote).verdict in agreeing]

    def _carries(self, votes: list[int], total: int) -> bool:
        """Whether votes suffice against a reveal: enough, two thirds, and f + 1 witnesses among them."""
        params = self._witnesses.params
        witnesses = {self._dag.authors[vote] for vote in votes if self._dag.is_witness_op(vote)}
        enough = len(votes) >= params.verdict_min and 3 * len(votes) >= 2 * total
        return enough and len(witnesses) >= params.faulty_max + 1
