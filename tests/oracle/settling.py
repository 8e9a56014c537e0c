"""Sections 6 and 7 after the table: electors, verdicts, outcomes, what is due, balances, and the invariant."""

from __future__ import annotations

import hashlib

from tests.oracle.model import VALUE_KINDS, Cut, OracleOp, Past, Record, remembered
from tests.oracle.witnessing import Witnessing, frozen, thawed

MOST_EXAMINED = 32
MOST_LISTED = 500
AGREED = {"stands": {"valid"}, "cheat": {"cheat"}, "missing": {"cheat", "missing"}}


def expired_record() -> Record:
    """The record of a job whose outcome was not certified before it expired."""
    return {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": True}


class Settling(Witnessing):
    """Outcomes and money."""

    # -- verdicts --

    @remembered
    def _elector(self, author: bytes, job: bytes) -> bool:
        if author in self.witnesses:
            return True
        z = self.pasts[job]
        elector_min: int = self.genesis.body["elector_min"]
        return not self.banned_z(author, z) and self.balance_certified_z(author, z) >= elector_min

    def elector(self, author: bytes, job: bytes) -> bool:
        """Whether the author is an elector of the job; whether it may vote is another question."""
        return self._elector(author, job)

    def counted_votes(self, reveal: bytes, z: Past) -> list[OracleOp] | None:
        """The votes on a reveal that are on time and not void, by id; None when one is undetermined."""
        counted = []
        for vote in self.ops_in(z, "vote"):
            if vote.body["reveal"] != reveal:
                continue
            state, status = self.void_z(vote.id, z), self.status_z(vote.id, self.deadline_of(vote.id), z)
            if state == "undetermined" or (state == "clear" and status == "OPEN"):
                return None
            if state == "clear" and status == "ON_TIME":
                counted.append(vote)
        return counted

    @remembered
    def verdict_z(self, reveal: bytes, z: Past) -> str:
        """stands, missing, cheat or undetermined in a past."""
        votes = self.counted_votes(reveal, z)
        if votes is None:
            return "undetermined"
        for verdict in ("cheat", "missing"):
            against = [vote for vote in votes if vote.body["verdict"] in AGREED[verdict]]
            witnesses = {vote.author for vote in against if vote.author in self.witnesses}
            enough = len(against) >= self.genesis.body["verdict_min"] and 3 * len(against) >= 2 * len(votes)
            if enough and len(witnesses) >= self.f + 1:
                return verdict
        return "stands"

    def verdict(self, reveal: bytes, cut: Cut) -> str:
        """The verdict on a reveal as of Z: stands, missing, cheat or undetermined."""
        return self.verdict_z(reveal, self.past(cut))

    # -- the outcome --

    def due_for_outcome(self, job: bytes, cut: Cut) -> bool:
        """Whether the job is certified and its last window closed, as of Z: then no record means OPEN."""
        z = self.past(cut)
        end = self.ops[job].body["verdict_until"] + (self.f + 1) * self.delta
        return self.certified_z(job, z) and self.past_time_z(end, z)

    def outcome(self, job: bytes, cut: Cut) -> Record | None:
        """The determined outcome as of Z, or None when it is not due or OPEN."""
        found = self._outcome_z(job, self.past(cut))
        return None if found is None else thawed(found)

    @remembered
    def _outcome_z(self, job: bytes, z: Past) -> tuple[object, ...] | None:
        end = self.ops[job].body["verdict_until"] + (self.f + 1) * self.delta
        if not self.certified_z(job, z) or not self.past_time_z(end, z):
            return None
        record = self._search(job, z)
        return None if record is None else frozen(record)

    def lowest_and_pending(self, job: bytes, z: Past) -> tuple[list[OracleOp], list[OracleOp]]:
        """The lowest determined bid of each author within max_loss, and the bids that are pending."""
        terms = self.ops[job].body
        lowest: dict[bytes, OracleOp] = {}
        unsure = []
        for bid in self.ops_in(z, "bid"):
            if bid.body["job"] != job or (terms["max_loss"] is not None and bid.body["loss"] > terms["max_loss"]):
                continue
            status, state = self.status_z(bid.id, terms["bid_until"], z), self.void_z(bid.id, z)
            if state == "void":
                continue
            if status == "OPEN" or state == "undetermined":
                unsure.append(bid)
            elif status == "ON_TIME":
                best = lowest.get(bid.author)
                if best is None or bid.body["loss"] < best.body["loss"]:
                    lowest[bid.author] = bid
        pending = [
            bid for bid in unsure if bid.author not in lowest or bid.body["loss"] < lowest[bid.author].body["loss"]
        ]
        return list(lowest.values()), pending

    def _precedes(self, a: OracleOp, b: OracleOp, job: bytes, z: Past) -> bool:
        (a_low, a_high), (b_low, b_high) = self.ticks_z(a.id, z), self.ticks_z(b.id, z)
        if a_high is not None and a_high < b_low:
            return True
        if a_low != a_high or b_low != b_high:
            return False
        a_hash, b_hash = (hashlib.sha256(job + bid.author).digest() for bid in (a, b))
        return (a_low, a_hash) < (b_low, b_hash)

    def _search(self, job: bytes, z: Past) -> Record | None:
        terms = self.ops[job].body
        lowest, pending = self.lowest_and_pending(job, z)
        cheats: set[bytes] = set()
        forfeits: set[bytes] = set()
        votes: list[bytes] = []
        winner: bytes | None = None
        revealed = 0
        going = True
        for loss in sorted({bid.body["loss"] for bid in lowest}):
            if not going:
                break
            if any(bid.body["loss"] <= loss for bid in pending):
                return None
            rest = [bid for bid in lowest if bid.body["loss"] == loss]
            while going and rest:
                first = [a for a in rest if all(a is b or self._precedes(a, b, job, z) for b in rest)]
                if not first:
                    return None
                bid = first[0]
                rest.remove(bid)
                reveal, known = self._reveal_of(bid.id, z)
                if not known:
                    return None
                if reveal is None:
                    forfeits.add(bid.author)
                    continue
                verdict = self.verdict_z(reveal, z)
                counted = self.counted_votes(reveal, z)
                if verdict == "undetermined" or counted is None:
                    return None
                revealed += 1
                votes += [vote.id for vote in counted if vote.body["verdict"] in AGREED[verdict]]
                if verdict == "stands":
                    winner = bid.id
                else:
                    forfeits.add(bid.author)
                if verdict == "cheat":
                    cheats.add(bid.author)
                ended = verdict == "stands" or (verdict == "cheat" and terms["on_cheat"] == "refund")
                going = not ended and revealed < MOST_EXAMINED
        if going and pending:
            return None
        others = sorted(forfeits - cheats)[: max(0, MOST_LISTED - len(cheats))]
        return {
            "winner": winner,
            "cheats": sorted(cheats),
            "forfeits": sorted(cheats | set(others)),
            "votes": sorted(votes)[:MOST_LISTED],
            "expired": False,
        }

    def _reveal_of(self, bid: bytes, z: Past) -> tuple[bytes | None, bool]:
        """The reveal of a bid that counts, if any, and whether that is determined."""
        counting = []
        for reveal in self.ops_in(z, "reveal"):
            if reveal.body["bid"] != bid:
                continue
            status, state = self.status_z(reveal.id, self.deadline_of(reveal.id), z), self.void_z(reveal.id, z)
            if status == "OPEN" or state == "undetermined":
                return None, False
            if status == "ON_TIME" and state == "clear":
                counting.append(reveal.id)
        assert len(counting) <= 1, "two reveals of one bid, neither void"
        return (counting[0] if counting else None), True

    def right_attest(self, op: OracleOp) -> bool:
        """Whether an attest that was added says what its witness had to say, as of itself."""
        job, z = self.ops[op.body["job"]], self.pasts[op.id]
        if not self.certified_z(job.id, z):
            return False
        if op.time >= job.body["verdict_until"] + self.genesis.body["expiry_ms"]:
            return frozen(op.body["record"]) == frozen(expired_record())
        return self._outcome_z(job.id, z) == frozen(op.body["record"])

    # -- what is due --

    def due(self, author: bytes, job: bytes, record: Record, z: Past, chain: tuple[bytes, ...]) -> int:
        """Credits that a claim of `author` with past z gets from the job; `chain` is the claim's own chain."""
        terms, poster = self.ops[job].body, self.ops[job].author
        holds_job = author == poster and job in chain
        total = 0
        if record["winner"] is None:
            total += terms["bounty"] if holds_job else 0
        elif self._is_bid_of(record["winner"], author, job, z):
            total += terms["bounty"]
        own = [one for one in chain if self.ops[one].kind == "stake" and self.ops[one].body["job"] == job]
        if own and author not in record["forfeits"]:
            total += terms["stake"]
        pot = terms["pool"] + terms["stake"] * len(record["forfeits"])
        share = pot // len(record["votes"]) if record["votes"] else 0
        total += share * sum(self._is_vote_of(vote, author, job, z) for vote in record["votes"])
        if holds_job:
            total += pot - share * len(record["votes"])
        return total

    def _is_bid_of(self, bid: bytes, author: bytes, job: bytes, z: Past) -> bool:
        op = self.ops[bid] if bid in z else None
        return op is not None and op.kind == "bid" and op.body["job"] == job and op.author == author

    def _is_vote_of(self, vote: bytes, author: bytes, job: bytes, z: Past) -> bool:
        op = self.ops[vote] if vote in z else None
        return op is not None and op.kind == "vote" and self.job_of(vote).id == job and op.author == author

    @remembered
    def claimed(self, claim: bytes) -> int:
        """Credits that a claim brings; 0 when nothing is due, or the outcome is not certified exactly once."""
        op, z = self.ops[claim], self.pasts[claim]
        of = self.ops[op.body["of"]]
        if of.kind == "transfer":
            amount: int = of.body["amount"]
            return amount if of.body["to"] == op.author and self.certified_z(of.id, z) else 0
        records = self.certificates_z(of.id, z)
        return self.due(op.author, of.id, records[0], z, self.chain(claim)) if len(records) == 1 else 0

    # -- balances --

    def change(self, op_id: bytes) -> int:
        """What one op adds to its own chain's sum."""
        op = self.ops[op_id]
        if op.kind == "claim":
            return self.claimed(op_id)
        if op.kind == "transfer":
            return -int(op.body["amount"])
        if op.kind == "stake":
            return -int(self.ops[op.body["job"]].body["stake"])
        return -int(op.body["bounty"] + op.body["pool"]) if op.kind == "job" else 0

    @remembered
    def balance(self, op_id: bytes) -> int:
        """The sum along the op's own chain, the op included."""
        return self.grants.get(self.ops[op_id].author, 0) + sum(self.change(one) for one in self.chain(op_id))

    @remembered
    def last_certified_z(self, author: bytes, z: Past) -> bytes | None:
        """The author's certified value op of the highest seq in a past, the lowest id among equals."""
        certified = [op for op in self.ops_in(z, *VALUE_KINDS) if op.author == author and self.certified_z(op.id, z)]
        return min(certified, key=lambda op: (-op.seq, op.id)).id if certified else None

    def balance_certified_z(self, author: bytes, z: Past) -> int:
        """The balance after the author's last certified value op, its grant when there is none, else 0."""
        last = self.last_certified_z(author, z)
        return self.grants.get(author, 0) if last is None else self.balance(last)

    def accounts(self, cut: Cut) -> dict[bytes, int]:
        """The certified balance of every account with a grant or an op, as of Z."""
        z = self.past(cut)
        authors = set(self.grants) | {self.ops[one].author for one in z}
        return {author: self.balance_certified_z(author, z) for author in sorted(authors)}

    def held(self, cut: Cut) -> int:
        """Credits in open escrows or not yet claimed, as of Z, over certified ops; -1 when somebody took too much."""
        z = self.past(cut)
        certified = [op for op in self.ops_in(z, *VALUE_KINDS) if self.certified_z(op.id, z)]
        claims = [op for op in certified if op.kind == "claim"]
        total = 0
        for transfer in (op for op in certified if op.kind == "transfer"):
            taken = sum(self.claimed(claim.id) for claim in claims if claim.body["of"] == transfer.id)
            if taken not in (0, transfer.body["amount"]):
                return -1
            total += transfer.body["amount"] - taken
        for job in (op for op in certified if op.kind == "job"):
            stakes = [op for op in certified if op.kind == "stake" and op.body["job"] == job.id]
            mine = [claim for claim in claims if claim.body["of"] == job.id]
            left = self._escrow_left(job, stakes, mine, z)
            if left is None:
                return -1
            total += left
        return total

    def _escrow_left(self, job: OracleOp, stakes: list[OracleOp], claims: list[OracleOp], z: Past) -> int | None:
        terms, records = job.body, self.certificates_z(job.id, z)
        if len(records) != 1:
            paid = sum(self.claimed(claim.id) for claim in claims)
            put = int(terms["bounty"] + terms["pool"] + terms["stake"] * len(stakes))
            return None if paid and not records else put - paid
        left = self._entitled(job, stakes, records[0], z)
        for claim in claims:
            left[claim.author] = left.get(claim.author, 0) - self.claimed(claim.id)
        return None if any(amount < 0 for amount in left.values()) else sum(left.values())

    def _entitled(self, job: OracleOp, stakes: list[OracleOp], record: Record, z: Past) -> dict[bytes, int]:
        terms = job.body
        left: dict[bytes, int] = {job.author: 0}

        def give(author: bytes, amount: int) -> None:
            left[author] = left.get(author, 0) + amount

        give(job.author if record["winner"] is None else self._author_in(record["winner"], z), terms["bounty"])
        for stake in stakes:
            give(stake.author, 0 if stake.author in record["forfeits"] else terms["stake"])
        pot = terms["pool"] + terms["stake"] * len(record["forfeits"])
        share = pot // len(record["votes"]) if record["votes"] else 0
        for vote in record["votes"]:
            give(self._author_in(vote, z), share)
        give(job.author, pot - share * len(record["votes"]))
        return left

    def _author_in(self, one: bytes, z: Past) -> bytes:
        return self.ops[one].author if one in z else b""

    def conservation(self, cut: Cut) -> bool:
        """Whether spendable + held in open escrows + not yet claimed = granted, over certified ops as of Z.

        What is held is summed from what each account may still take, not as granted less spendable.
        """
        held = self.held(cut)
        return held >= 0 and sum(self.accounts(cut).values()) + held == sum(self.grants.values())
