"""Validity: sections 2, 3 and 7, judged from an op's own past."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

from tests.oracle.model import OracleOp
from tests.oracle.settling import MOST_EXAMINED, MOST_LISTED, Settling

MOST_AMOUNT = 2**53 - 1
MOST_TIME = 2**52
METRICS = ("log_loss", "error_rate", "mse", "mae")
FIELDS = {
    "transfer": {"to", "amount", "memo"},
    "job": {
        *("title", "tags", "metric", "tolerance", "max_loss", "bounty", "stake", "pool", "on_cheat", "bid_until"),
        *("reveal_until", "verdict_until", "editors", "task", "data", "model"),
    },
    "stake": {"job"},
    "bid": {"job", "loss", "commit"},
    "reveal": {"bid", "model", "size"},
    "vote": {"reveal", "verdict", "loss"},
    "beat": set(),
    "attest": {"job", "record"},
    "claim": {"of"},
    "profile": {"name", "about"},
}
NAMED = {
    "stake": ("job", {"job"}),
    "bid": ("job", {"job"}),
    "reveal": ("bid", {"bid"}),
    "vote": ("reveal", {"reveal"}),
    "attest": ("job", {"job"}),
    "claim": ("of", {"job", "transfer"}),
}


def is_amount(value: object) -> bool:
    """Whether a value is an integer from 0 to 2^53 - 1."""
    return type(value) is int and 0 <= value <= MOST_AMOUNT


def is_strictly_sorted(values: list[Any]) -> bool:
    """Whether a list is sorted and without repeats."""
    return all(a < b for a, b in itertools.pairwise(values))


class Oracle(Settling):
    """All of the rules: judge an op, add it, ask about any cut."""

    def add(self, op: OracleOp) -> None:
        """Judge an op and keep it. Raises ValueError with the rule's code when it is invalid."""
        if op.id in self.ops:
            return
        code = self._judge_links(op)
        if code is None:
            code = self._judge_inserted(op)
        if code is not None:
            raise ValueError(code)

    def judge(self, op: OracleOp) -> str | None:
        """None when the op is valid, else the code of a rule that it breaks. All its links must have been added."""
        if op.id in self.ops:
            return None
        code = self._judge_links(op)
        if code is not None:
            return code
        worked_out = len(self.memo)
        code = self._judge_inserted(op)
        if code is None:
            self.drop(op, worked_out)
        return code

    def _judge_inserted(self, op: OracleOp) -> str | None:
        """Insert the op, judge it as of itself, and take it out again when it is invalid."""
        worked_out = len(self.memo)
        self.insert(op)
        code = self._judge_as_of(op)
        if code is not None:
            self.drop(op, worked_out)
        return code

    def drop(self, op: OracleOp, worked_out: int) -> None:
        """Take an inserted op out again, and all that was worked out since the memo had this size."""
        self.forget(op.id)
        while len(self.memo) > worked_out:
            self.memo.popitem()

    # -- the graph --

    def _judge_links(self, op: OracleOp) -> str | None:
        if op.kind == "genesis":
            return "genesis"
        if op.kind not in FIELDS or set(op.body) != FIELDS[op.kind]:
            return "kind"
        if not op.links() or any(link not in self.ops for link in op.links()):
            return "links"
        if len(op.parents) > (64 if op.author in self.witnesses else 16) or not is_strictly_sorted(list(op.parents)):
            return "parents"
        if any(self.ops[parent].author == op.author for parent in op.parents):
            return "parents"
        if not 0 <= op.time <= MOST_TIME:
            return "time"
        if op.prev is None:
            return None if op.seq == 0 else "seq"
        prev = self.ops[op.prev]
        if prev.author != op.author:
            return "prev"
        if op.seq != prev.seq + 1:
            return "seq"
        return "time" if op.time < prev.time else None

    def _judge_as_of(self, op: OracleOp) -> str | None:
        if op.kind in NAMED:
            field, kinds = NAMED[op.kind]
            named = op.body[field]
            if named not in self.pasts[op.id] or self.ops[named].kind not in kinds:
                return "named"
        rules: dict[str, Callable[[OracleOp], str | None]] = {
            "transfer": self._judge_transfer,
            "job": self._judge_job,
            "stake": self._judge_stake,
            "bid": self._judge_bid,
            "reveal": self._judge_reveal,
            "vote": self._judge_vote,
            "beat": self._judge_beat,
            "attest": self._judge_attest,
            "claim": self._judge_claim,
            "profile": self._judge_profile,
        }
        return self._judge_first(op) or rules[op.kind](op)

    def _judge_first(self, op: OracleOp) -> str | None:
        named = {self.genesis.author, *self.witnesses, *self.grants}
        if op.prev is not None or op.author in named:
            return None
        if op.kind != "claim" or self.ops[op.body["of"]].kind != "transfer":
            return "first_op"
        return None

    def _mine(self, op: OracleOp, kind: str) -> list[OracleOp]:
        """The earlier ops of a kind on the op's own chain."""
        return [self.ops[one] for one in self.before(op.id) if self.ops[one].kind == kind]

    # -- money --

    def _judge_transfer(self, op: OracleOp) -> str | None:
        memo = op.body["memo"]
        if op.body["to"] == op.author or not is_amount(op.body["amount"]) or op.body["amount"] < 1:
            return "transfer"
        if memo is not None and len(memo.encode()) > 200:
            return "transfer"
        return self._judge_balance(op)

    def _judge_balance(self, op: OracleOp) -> str | None:
        return "balance" if self.balance(op.id) < 0 else None

    def _judge_job(self, op: OracleOp) -> str | None:
        terms, rules = op.body, self.genesis.body
        amounts = [terms[name] for name in ("tolerance", "bounty", "stake", "pool")]
        if not all(is_amount(amount) for amount in amounts) or not is_amount(terms["bounty"] + terms["pool"]):
            return "terms"
        if terms["max_loss"] is not None and not is_amount(terms["max_loss"]):
            return "terms"
        if terms["bounty"] < rules["bounty_min"] or terms["on_cheat"] not in ("refund", "next"):
            return "terms"
        if terms["on_cheat"] == "refund" and terms["stake"] < 1:
            return "terms"
        if len(terms["title"].encode()) > 200 or len(terms["tags"]) > 8 or terms["metric"] not in METRICS:
            return "terms"
        return self._judge_deadlines(op) or self._judge_balance(op)

    def _judge_deadlines(self, op: OracleOp) -> str | None:
        terms = op.body
        bid_until, reveal_until, verdict_until = (terms[f"{name}_until"] for name in ("bid", "reveal", "verdict"))
        if any(deadline % self.tick for deadline in (bid_until, reveal_until, verdict_until)):
            return "terms"
        spread = (self.f + 4) * self.delta
        checking = 2 * terms["task"]["resources"]["seconds"] * 1000
        if (
            op.time >= bid_until
            or reveal_until < bid_until + spread
            or verdict_until < reveal_until + spread + checking
        ):
            return "terms"
        return None

    def _judge_stake(self, op: OracleOp) -> str | None:
        job, z = self.job_of(op.id), self.pasts[op.id]
        if not self.certified_z(job.id, z):
            return "job_not_certified"
        if self.certificates_z(job.id, z):
            return "outcome_certified"
        if job.author == op.author:
            return "own_job"
        if any(stake.body["job"] == job.id for stake in self._mine(op, "stake")):
            return "stake_twice"
        return self._judge_balance(op)

    def _judge_claim(self, op: OracleOp) -> str | None:
        if any(claim.body["of"] == op.body["of"] for claim in self._mine(op, "claim")):
            return "claim_twice"
        return None if self.claimed(op.id) > 0 else "nothing_due"

    # -- the work --

    def _judge_bid(self, op: OracleOp) -> str | None:
        job, z = self.job_of(op.id), self.pasts[op.id]
        if job.author == op.author:
            return "own_job"
        if not is_amount(op.body["loss"]) or len(op.body["commit"]) != 32:
            return "bid"
        if job.body["stake"] > 0:
            mine = [stake.id for stake in self._mine(op, "stake") if stake.body["job"] == job.id]
            if not mine or not self.certified_z(mine[0], z):
                return "stake_missing"
        earlier = [bid for bid in self._mine(op, "bid") if bid.body["job"] == job.id]
        if any(op.body["loss"] >= bid.body["loss"] for bid in earlier):
            return "loss_not_lower"
        return "too_many_bids" if len(earlier) + 1 > MOST_EXAMINED else None

    def _judge_reveal(self, op: OracleOp) -> str | None:
        bid, job = self.ops[op.body["bid"]], self.job_of(op.id)
        if bid.id not in self.before(op.id):
            return "not_own_bid"
        if not is_amount(op.body["size"]) or len(op.body["model"]) != 36:
            return "reveal"
        if bid.body["commit"] != hashlib.sha256(b"crdtchain/bid:" + op.author + op.body["model"]).digest():
            return "commit"
        if any(reveal.body["bid"] == bid.id for reveal in self._mine(op, "reveal")):
            return "reveal_twice"
        if not self.past_time_z(job.body["bid_until"] + (self.f + 1) * self.delta, self.pasts[op.id]):
            return "reveal_early"
        return None

    def _judge_vote(self, op: OracleOp) -> str | None:
        job = self.job_of(op.id)
        loss = op.body["loss"]
        if op.body["verdict"] not in ("valid", "cheat", "missing") or not (loss is None or is_amount(loss)):
            return "vote"
        if job.author == op.author and self.n != 1:
            return "own_job"
        if not self.elector(op.author, job.id):
            return "not_elector"
        bids = self.ops_in(self.pasts[op.id], "bid")
        if any(bid.author == op.author and bid.body["job"] == job.id for bid in bids):
            return "bid_by_elector"
        if any(vote.body["reveal"] == op.body["reveal"] for vote in self._mine(op, "vote")):
            return "vote_twice"
        return None

    # -- witnesses --

    def _judge_beat(self, op: OracleOp) -> str | None:
        return None if op.author in self.witnesses else "not_witness"

    def _judge_attest(self, op: OracleOp) -> str | None:
        if op.author not in self.witnesses:
            return "not_witness"
        if any(attest.body["job"] == op.body["job"] for attest in self._mine(op, "attest")):
            return "attest_twice"
        return self._judge_record(op.body["record"])

    def _judge_record(self, record: dict[str, Any]) -> str | None:
        if set(record) != {"winner", "cheats", "forfeits", "votes", "expired"}:
            return "record"
        cheats, forfeits, votes = record["cheats"], record["forfeits"], record["votes"]
        if not all(is_strictly_sorted(list(values)) for values in (cheats, forfeits, votes)):
            return "record"
        if len(forfeits) > MOST_LISTED or len(votes) > MOST_LISTED or len(cheats) > MOST_EXAMINED:
            return "record"
        if not set(cheats) <= set(forfeits):
            return "record"
        if record["expired"] and (record["winner"] is not None or cheats or forfeits or votes):
            return "record"
        return None

    def _judge_profile(self, op: OracleOp) -> str | None:
        name, about = op.body["name"], op.body["about"]
        return "profile" if len(name.encode()) > 100 or len(about.encode()) > 1000 else None
