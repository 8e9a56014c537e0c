"""What a history reached: how often each state that the rules tell apart occurs in it."""

from __future__ import annotations

from collections import Counter

from tests.oracle.model import DEADLINE_KINDS, VALUE_KINDS, OracleOp
from tests.oracle.rules import Oracle

EXPECTED = (
    *("certified job", "certified stake", "certified transfer", "certified claim", "acknowledged, not certified"),
    *(
        "blocked by equivocation",
        "two tongues acknowledge rivals",
        "rivals both certified",
        "forked author",
        "forked witness",
    ),
    *("bid ON_TIME", "bid LATE", "bid OPEN", "reveal ON_TIME", "reveal LATE", "reveal OPEN"),
    *("vote ON_TIME", "vote LATE", "vote OPEN"),
    *("needs the staircase", "had by step 1", "had by the last step, f > 0", "had and closed by one witness"),
    *("bid void", "bid undetermined", "reveal void", "vote void", "equal losses", "equal losses in one tick"),
    *(
        "equal losses, ticks overlap",
        "tick determined",
        "tick not determined",
        "verdict stands",
        "verdict missing",
        "verdict cheat",
    ),
    *("verdict undetermined", "outcome OPEN", "outcome winner", "outcome no winner", "outcome cheat, refund"),
    *("outcome cheat, next", "outcome missing", "outcome unrevealed", "certificate", "certificate expired"),
    *("two certificates", "attest right", "attest wrong", "claim of a job", "claim of a transfer", "share remainder"),
    *("banned", "value op of a banned author", "bid or vote of a banned author"),
)


def coverage(oracle: Oracle) -> Counter[str]:
    """How often each state of EXPECTED occurs in the ops added, as of everything."""
    found: Counter[str] = Counter()
    for op in list(oracle.ops.values()):
        if op.kind in VALUE_KINDS:
            _of_value_op(oracle, op, found)
        elif op.kind in DEADLINE_KINDS:
            _of_deadline_op(oracle, op, found)
        elif op.kind == "attest":
            found["attest right" if oracle.right_attest(op) else "attest wrong"] += 1
        if op.kind == "job":
            _of_job(oracle, op, found)
    z = oracle.past(None)
    for author in {op.author for op in oracle.ops.values()}:
        forked = bool(oracle.doubled_seqs(author, z))
        found["forked author"] += forked
        found["forked witness"] += forked and author in oracle.witnesses
        found["banned"] += oracle.banned(author, None)
    return +found


def _of_value_op(oracle: Oracle, op: OracleOp, found: Counter[str]) -> None:
    acknowledged = oracle.acknowledged(op.id, None)
    if oracle.certified(op.id, None):
        found[f"certified {op.kind}"] += 1
        if op.kind == "claim":
            found[f"claim of a {oracle.ops[op.body['of']].kind}"] += 1
    elif acknowledged:
        found["acknowledged, not certified"] += 1
    seen = {o.author for o in oracle.ops.values() if op.id in oracle.pasts[o.id] and o.author in oracle.witnesses}
    doubled = oracle.doubled_seqs(op.author, oracle.past(None))
    found["blocked by equivocation"] += bool(seen - acknowledged) and bool(doubled)
    rivals = [x for x in oracle.ops.values() if x.author == op.author and x.seq == op.seq and x.id > op.id]
    for rival in rivals:
        if rival.kind in VALUE_KINDS:
            found["two tongues acknowledge rivals"] += bool(acknowledged & oracle.acknowledged(rival.id, None))
            found["rivals both certified"] += oracle.certified(op.id, None) and oracle.certified(rival.id, None)
    found["value op of a banned author"] += oracle.banned(op.author, frozenset([op.id]))


def _of_deadline_op(oracle: Oracle, op: OracleOp, found: Counter[str]) -> None:
    deadline, z = oracle.deadline_of(op.id), oracle.past(None)
    status = oracle.status(op.id, deadline, None)
    found[f"{op.kind} {status}"] += 1
    found[f"{op.kind} {oracle.void_state(op.id, None)}"] += 1
    if op.kind != "reveal":
        found["bid or vote of a banned author"] += oracle.banned_z(op.author, oracle.pasts[oracle.job_of(op.id).id])
    having = [o for said in oracle.spoken(z).values() for o in said if oracle.has(o.id, op.id, deadline)]
    punctual = {o.author for o in having if o.time <= deadline}
    found["needs the staircase"] += status == "ON_TIME" and len(punctual) < oracle.q
    for witness in {o.author for o in having} - punctual:
        first = min(o.time for o in having if o.author == witness)
        step = -(-(first - deadline) // oracle.delta)
        found["had by step 1"] += step == 1
        found["had by the last step, f > 0"] += oracle.f > 0 and step == oracle.f + 1
    found["had and closed by one witness"] += bool({o.author for o in having} & oracle.closing(op.id, deadline, z))
    if op.kind == "reveal":
        found[f"verdict {oracle.verdict(op.id, None)}"] += 1


def _of_job(oracle: Oracle, job: OracleOp, found: Counter[str]) -> None:
    certificates = oracle.certificates(job.id, None)
    found["certificate"] += bool(certificates)
    found["two certificates"] += len(certificates) > 1
    for record in certificates:
        found["certificate expired"] += record["expired"]
        pot = job.body["pool"] + job.body["stake"] * len(record["forfeits"])
        found["share remainder"] += bool(record["votes"]) and pot % max(1, len(record["votes"])) > 0
    if not oracle.due_for_outcome(job.id, None):
        return
    _of_ties(oracle, job, found)
    outcome = oracle.outcome(job.id, None)
    if outcome is None:
        found["outcome OPEN"] += 1
        return
    found["outcome winner" if outcome["winner"] is not None else "outcome no winner"] += 1
    found[f"outcome cheat, {job.body['on_cheat']}"] += bool(outcome["cheats"])
    z = oracle.past(None)
    reveals = [op for op in oracle.ops_in(z, "reveal") if oracle.job_of(op.id).id == job.id]
    counting = {
        op.author
        for op in reveals
        if oracle.status_z(op.id, job.body["reveal_until"], z) == "ON_TIME" and oracle.void_z(op.id, z) == "clear"
    }
    for author in set(outcome["forfeits"]) - set(outcome["cheats"]):
        found["outcome missing" if author in counting else "outcome unrevealed"] += 1


def _of_ties(oracle: Oracle, job: OracleOp, found: Counter[str]) -> None:
    lowest, _ = oracle.lowest_and_pending(job.id, oracle.past(None))
    for bid in lowest:
        low, high = oracle.arrival_ticks(bid.id, None)
        found["tick determined" if low == high else "tick not determined"] += 1
        for other in lowest:
            if other.id > bid.id and other.body["loss"] == bid.body["loss"]:
                found["equal losses"] += 1
                other_low, other_high = oracle.arrival_ticks(other.id, None)
                assert high is not None
                assert other_high is not None
                known = low == high and other_low == other_high
                found["equal losses in one tick"] += known and low == other_low
                found["equal losses, ticks overlap"] += not known and low <= other_high and other_low <= high
