"""Which op belongs to which job, bid and reveal: the indexes that rules and outcomes read.

Grow-only maps over op numbers, nothing more: no status is stored, for a status is a question to a cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from crdtchain.crdts.multimap import GrowOnlyMultiMap
from crdtchain.crdts.register import WriteOnceMap
from crdtchain.dag import Dag
from crdtchain.ops import Attest, Beat, Bid, Body, Claim, Job, Kind, Op, Profile, Reveal, Stake, Transfer, Vote
from crdtchain.scalars import Author, OpId

JobPart: TypeAlias = tuple[int, str, int]
"""(author number, kind, job number)."""


class Jobs:
    """Indexes over the ops of all jobs; ops, jobs and authors are numbers."""

    def __init__(self, dag: Dag) -> None:
        self._dag = dag
        self.bodies: dict[int, Body] = {}
        """Bodies of all ops but beats and attests, whose records are stored once for each job."""
        self.jobs: list[int] = []
        self.job_of: WriteOnceMap[int, int] = WriteOnceMap()
        """Stake, bid, reveal, vote, attest to its job."""
        self.bids: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Job to its bids."""
        self.reveals: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Bid to its reveals."""
        self.votes: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Reveal to its votes."""
        self.stakes: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Job to the stakes on it."""
        self.parts: GrowOnlyMultiMap[JobPart, int] = GrowOnlyMultiMap()
        """Author, kind and job to ops, on whichever branch."""
        self.claims: GrowOnlyMultiMap[tuple[int, int], int] = GrowOnlyMultiMap()
        """Author and the job or transfer claimed to claims."""
        self.transfers: GrowOnlyMultiMap[Author, int] = GrowOnlyMultiMap()
        """Receiver to transfers."""
        self.profiles: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Author to profiles."""

    def number(self, op: OpId) -> int:
        """Return the number of an op that is here."""
        number = self._dag.find(op)
        if number is None:
            raise KeyError(op)
        return number

    def terms(self, job: int) -> Job:
        """Return the terms of a job."""
        body = self.bodies[job]
        assert isinstance(body, Job)
        return body

    def bid(self, number: int) -> Bid:
        """Return the body of a bid."""
        body = self.bodies[number]
        assert isinstance(body, Bid)
        return body

    def vote(self, number: int) -> Vote:
        """Return the body of a vote."""
        body = self.bodies[number]
        assert isinstance(body, Vote)
        return body

    def transfer(self, number: int) -> Transfer:
        """Return the body of a transfer."""
        body = self.bodies[number]
        assert isinstance(body, Transfer)
        return body

    def reveal_bid(self, number: int) -> int:
        """Return the bid that a reveal reveals."""
        body = self.bodies[number]
        assert isinstance(body, Reveal)
        return self.number(OpId(body.bid))

    def on_chain(self, ops: Sequence[int], tip: int) -> list[int]:
        """Return those of some ops that are on the chain of `tip`; none when it is -1."""
        if tip < 0 or not ops:
            return []
        chains = self._dag.chains
        if len(ops) == 1:
            return [op for op in ops if chains.is_on_chain(op, tip)]
        reach = chains.compute_reach((tip,))
        return [op for op in ops if chains.is_in_reach(op, reach)]

    def part_on_chain(self, author: int, kind: Kind, job: int, tip: int) -> list[int]:
        """Return an author's ops of a kind for a job on the chain of `tip`."""
        return self.on_chain(self.parts.get((author, kind.value, job)), tip)

    def deadline(self, op: int) -> int:
        """Return the deadline that a bid, reveal or vote has to meet, ms."""
        terms = self.terms(self.job_of.get(op))
        kind = self._dag.kind(op)
        if kind is Kind.BID:
            return terms.bid_until
        return terms.reveal_until if kind is Kind.REVEAL else terms.verdict_until

    def add(self, number: int, op: Op) -> None:
        """Index a just added op."""
        body = op.body
        if isinstance(body, Beat):
            return
        if not isinstance(body, Attest):
            self.bodies[number] = body
        match body:
            case Job():
                self.jobs.append(number)
            case Stake() | Bid():
                self._add_part(number, self.number(OpId(body.job)))
            case Reveal():
                bid = self.number(OpId(body.bid))
                self.reveals.append_new(bid, number)
                self._add_part(number, self.job_of.get(bid))
            case Vote():
                reveal = self.number(OpId(body.reveal))
                self.votes.append_new(reveal, number)
                self._add_part(number, self.job_of.get(reveal))
            case Attest():
                self._add_part(number, self.number(OpId(body.job)))
            case Transfer():
                self.transfers.append_new(Author(bytes(body.to)), number)
            case Claim():
                self.claims.append_new((self._dag.authors[number], self.number(OpId(body.of))), number)
            case Profile():
                self.profiles.append_new(self._dag.authors[number], number)
            case _:
                pass

    def _add_part(self, number: int, job: int) -> None:
        kind = self._dag.kind(number)
        self.job_of.write(number, job)
        self.parts.append_new((self._dag.authors[number], kind.value, job), number)
        if kind is Kind.BID:
            self.bids.append_new(job, number)
        elif kind is Kind.STAKE:
            self.stakes.append_new(job, number)

    def merge(self, other: Jobs, rename: Sequence[int], rename_author: Sequence[int]) -> None:
        """Join the other's indexes into these, ops and authors renamed."""
        number = rename.__getitem__
        known = set(self.jobs)
        self.jobs.extend(job for job in map(number, other.jobs) if job not in known)
        self.bodies.update((rename[op], body) for op, body in other.bodies.items())
        self.job_of.merge(other.job_of, number, number)
        for mine, theirs in (
            (self.bids, other.bids),
            (self.reveals, other.reveals),
            (self.votes, other.votes),
            (self.stakes, other.stakes),
        ):
            mine.merge(theirs, number, number)
        self.parts.merge(other.parts, lambda part: (rename_author[part[0]], part[1], rename[part[2]]), number)
        self.claims.merge(other.claims, lambda key: (rename_author[key[0]], rename[key[1]]), number)
        self.transfers.merge(other.transfers, None, number)
        self.profiles.merge(other.profiles, rename_author.__getitem__, number)
