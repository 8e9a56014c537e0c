"""The outcome of a job: a deterministic function of a cut, three-valued.

From the lowest loss up, each author's lowest counting bid is examined until one stands. Nothing is drawn while
something open could still alter it, so an outcome, once drawn, is the same in every larger cut (with at most f
Byzantine witnesses).

Theory of operation:

1. `bids`: each author's lowest bid that counts, and the *pending* ones, that may come to count below it.
2. A group of equal losses is examined in the order of arrival ticks, then of sha256(job id ‖ author); a bid is next
   only when it certainly precedes all others of its group.
3. A bid without a reveal is skipped and forfeits; one whose reveal is open stops everything.

Source: protocol section 7, "Outcome", "Due"; docs/protocol/readings.md. Not here: certificates (`witness`).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from hashlib import sha256

from msgspec import Struct, field

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.dag import Dag
from crdtchain.deadlines import Deadlines
from crdtchain.ledger.jobs import Jobs
from crdtchain.ledger.votes import Standing, Verdict, Votes
from crdtchain.ops import Kind, Record
from crdtchain.params import Params
from crdtchain.scalars import OpId
from crdtchain.shapes import to_plain
from crdtchain.witness import Cut, Witnesses

EXPIRED = Record(winner=None, cheats=(), forfeits=(), votes=(), expired=True)


def compute_digest(record: Record) -> bytes:
    """Return the SHA-256 of a record's encoding: equal records, equal digests."""
    return sha256(codec.encode(to_plain(record))).digest()


class _Reveal(Enum):
    """What is known of the model behind a bid."""

    NONE = "none"
    OPEN = "open"
    SHOWN = "shown"


class _Found(Struct):
    """What a search has found so far."""

    winner: int | None = None
    cheats: list[int] = field(default_factory=list)
    forfeits: list[int] = field(default_factory=list)
    votes: list[int] = field(default_factory=list)
    revealed_count: int = 0


class Settlement:
    """Outcomes and dues; it holds no state."""

    def __init__(self, dag: Dag, witnesses: Witnesses, deadlines: Deadlines, jobs: Jobs, votes: Votes) -> None:
        self._dag = dag
        self._witnesses = witnesses
        self._deadlines = deadlines
        self._jobs = jobs
        self._votes = votes
        self._params: Params = witnesses.params

    def is_closed(self, job: int, cut: Cut) -> bool:
        """Whether q witnesses are past the job's last window, as of a cut."""
        end = self._jobs.terms(job).verdict_until + self._params.closing_ms
        return self._witnesses.count_past(end, cut) >= self._params.quorum

    def outcome(self, job: int, cut: Cut) -> Record | None:
        """Return the outcome of a job as of a cut, or None while it is OPEN, the job not certified, or the windows
        not closed.
        """
        if not self._witnesses.is_certified(job, cut) or not self.is_closed(job, cut):
            return None
        return self.search(job, cut)

    def search(self, job: int, cut: Cut) -> Record | None:
        """Examine the bids of a job as of a cut, whatever the time: None when something open could alter the result."""
        lowest, pending = self._candidates(job, cut)
        groups: dict[int, list[int]] = {}
        for bid in lowest:
            groups.setdefault(self._jobs.bid(bid).loss, []).append(bid)
        threat = min((self._jobs.bid(bid).loss for bid in pending), default=None)
        found = _Found()
        for loss in sorted(groups):
            if threat is not None and threat <= loss:
                return None
            over = self._examine_group(job, groups[loss], found, cut)
            if over is None:
                return None
            if over:
                return self._record(found)
        return None if pending else self._record(found)

    def _candidates(self, job: int, cut: Cut) -> tuple[list[int], list[int]]:
        """Return each author's lowest counting bid, and the bids that may come to count below it."""
        max_loss = self._jobs.terms(job).max_loss
        lowest: dict[int, int] = {}
        undetermined: list[int] = []
        for bid in self._jobs.bids.get(job):
            loss = self._jobs.bid(bid).loss
            if (max_loss is not None and loss > max_loss) or not cut.contains(bid):
                continue
            standing = self._votes.standing(bid, cut)
            author = self._dag.authors[bid]
            if standing is Standing.UNDETERMINED:
                undetermined.append(bid)
            elif standing is Standing.COUNTS:
                best = lowest.get(author)
                if best is None or loss < self._jobs.bid(best).loss:
                    lowest[author] = bid
        pending = [bid for bid in undetermined if self._is_below(bid, lowest.get(self._dag.authors[bid]))]
        return list(lowest.values()), pending

    def _is_below(self, bid: int, lowest: int | None) -> bool:
        return lowest is None or self._jobs.bid(bid).loss < self._jobs.bid(lowest).loss

    def _examine_group(self, job: int, bids: list[int], found: _Found, cut: Cut) -> bool | None:
        """Examine bids of one loss: True when the search is over, False to go on, None when it is OPEN."""
        waiting = list(bids)
        while waiting:
            bid = self._next(job, waiting, cut)
            if bid is None:
                return None
            waiting.remove(bid)
            over = self._examine(job, bid, found, cut)
            if over is not False:
                return over
        return False

    def _next(self, job: int, bids: list[int], cut: Cut) -> int | None:
        """Return the bid that certainly precedes the others of its group, or None."""
        if len(bids) == 1:
            return bids[0]
        last = self._jobs.terms(job).bid_until // self._params.tick_ms
        ranges = {bid: self._deadlines.find_ticks(bid, last, cut) for bid in bids}
        first = min(bids, key=lambda bid: (ranges[bid][1], self._draw(job, bid)))
        low, high = ranges[first]
        for bid in bids:
            other_low, other_high = ranges[bid]
            same_tick = low == high == other_low == other_high
            if bid != first and not same_tick and high >= other_low:
                return None
        return first

    def _draw(self, job: int, bid: int) -> bytes:
        return sha256(self._dag.ids[job] + self._dag.author_key(bid)).digest()

    def _examine(self, job: int, bid: int, found: _Found, cut: Cut) -> bool | None:
        state, reveal = self._reveal(bid, cut)
        if state is _Reveal.OPEN:
            return None
        author = self._dag.authors[bid]
        if state is _Reveal.NONE:
            found.forfeits.append(author)
            return False
        verdict, agreeing = self._votes.verdict(reveal, cut)
        if verdict is Verdict.UNDETERMINED:
            return None
        found.revealed_count += 1
        found.votes.extend(agreeing)
        if verdict is Verdict.STANDS:
            found.winner = bid
            return True
        found.forfeits.append(author)
        if verdict is Verdict.CHEAT:
            found.cheats.append(author)
            if self._jobs.terms(job).on_cheat == "refund":
                return True
        return found.revealed_count == limits.EXAMINED_MAX

    def _reveal(self, bid: int, cut: Cut) -> tuple[_Reveal, int]:
        state, shown = _Reveal.NONE, -1
        for reveal in self._jobs.reveals.get(bid):
            if not cut.contains(reveal):
                continue
            standing = self._votes.standing(reveal, cut)
            if standing is Standing.UNDETERMINED:
                return _Reveal.OPEN, -1
            if standing is Standing.COUNTS:
                state, shown = _Reveal.SHOWN, reveal
        return state, shown

    def _record(self, found: _Found) -> Record:
        keys = self._dag.author_keys
        cheats = sorted(keys[author] for author in found.cheats)
        others = sorted({keys[author] for author in found.forfeits} - set(cheats))
        forfeits = sorted([*cheats, *others[: limits.FORFEITS_MAX - len(cheats)]])
        votes = sorted(self._dag.ids[vote] for vote in found.votes)
        return Record(
            winner=None if found.winner is None else Link(self._dag.ids[found.winner]),
            cheats=tuple(bytes(key) for key in cheats),
            forfeits=tuple(bytes(key) for key in forfeits),
            votes=tuple(Link(vote) for vote in votes[: limits.VOTES_MAX]),
            expired=False,
        )

    def due(self, job: int, record: Record, author: int, tip: int, past: Cut) -> int:
        """Return what a certified record gives an author who claims behind `tip`, credits.

        `past` is the past of the claim: what it does not contain is not paid.
        """
        terms = self._jobs.terms(job)
        key = self._dag.author_keys[author]
        total = 0
        if record.winner is not None:
            bid = self._find_part(record.winner, self._jobs.bids.get(job), past)
            if bid is not None and self._dag.authors[bid] == author:
                total += terms.bounty
        if key not in record.forfeits and self._jobs.part_on_chain(author, Kind.STAKE, job, tip):
            total += terms.stake
        purse = terms.pool + terms.stake * len(record.forfeits)
        share = purse // len(record.votes) if record.votes else 0
        total += share * self._count_votes(job, record.votes, author, past)
        if tip >= 0 and self._dag.authors[job] == author and self._dag.chains.is_on_chain(job, tip):
            total += purse - share * len(record.votes)
            total += terms.bounty if record.winner is None else 0
        return total

    def _find_part(self, op: Link, among: Iterable[int], past: Cut) -> int | None:
        number = self._dag.find(OpId(op))
        if number is None or number not in among or not past.contains(number):
            return None
        return number

    def _count_votes(self, job: int, votes: Iterable[Link], author: int, past: Cut) -> int:
        own = self._jobs.parts.get((author, Kind.VOTE.value, job))
        return sum(self._find_part(vote, own, past) is not None for vote in votes) if own else 0
