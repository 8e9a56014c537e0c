"""Was it as it has to be? What came of a demonstration, against the scenario's own expectations and an audit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from node.demo.board import Board
from node.demo.plan import ACCURACY_MIN, Plan, compute_balances

if TYPE_CHECKING:
    from node.demo.director import Result


@dataclass(slots=True)
class Verdict:
    """What is not as it has to be, one sentence each."""

    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is."""
        return not self.faults


def judge(plan: Plan, board: Board, result: Result) -> Verdict:
    """Compare what came of a demonstration with what has to."""
    faults = list[str]()
    outcome = result.job["outcome"]
    if outcome is None:
        return Verdict(["the job has no certified outcome"])
    winner = None if outcome["winner_author"] is None else board.name_of(outcome["winner_author"])
    if plan.winner not in ("", winner):
        faults.append(f"{winner or 'nobody'} won; it has to be {plan.winner or 'nobody'}")
    if plan.winner == "" and winner is None:
        faults.append("nobody won")
    forfeits = tuple(sorted(board.name_of(did) for did in outcome["forfeits"]))
    if forfeits != tuple(sorted(plan.forfeits)):
        faults.append(f"stakes were forfeited by {', '.join(forfeits) or 'nobody'}")
    expected = compute_balances(plan, winner, count_votes(board, result.job))
    faults += [
        f"{name} has {result.accounts[name]} credits instead of {amount}"
        for name, amount in expected.items()
        if result.accounts[name] != amount
    ]
    if len(set(result.digests.values())) != 1:
        faults.append("the nodes' states differ")
    if result.model is not None and (result.model.accuracy or 0) < ACCURACY_MIN:
        faults.append(f"the winning model has an accuracy of {result.model.accuracy}")
    return Verdict(faults + _compare_audit(board, result))


def count_votes(board: Board, job: dict[str, Any]) -> dict[str, int]:
    """Return how many listed votes each voter has."""
    listed, counts = set(job["outcome"]["votes"]), dict[str, int]()
    for bid in job["leaderboard"]:
        for reveal in bid["reveals"]:
            for vote in reveal["votes"]:
                if vote["id"] in listed:
                    name = board.name_of(vote["author"])
                    counts[name] = counts.get(name, 0) + 1
    return counts


def _compare_audit(board: Board, result: Result) -> list[str]:
    found = result.audit
    if found is None:
        return ["no audit was made"]
    faults = [f"the audit found a fault: {fault.rule}: {fault.text}" for fault in found.faults]
    if found.state_digest not in result.digests.values():
        faults.append("the audit comes to another state than the nodes")
    if found.heads_digest != result.heads_digest:
        faults.append("the audit has other heads than the nodes")
    named = {board.name_of(did): credits for did, credits in found.accounts.items()}
    if named != result.accounts:
        faults.append("the audit comes to other balances than the nodes")
    return faults
