"""The bank checker: credits are neither made nor lost.

Invariant: over the value ops certified as of a cut, spendable + held in open escrows + not yet claimed = granted.
What is held is added up from what each account may still take, not as the difference, so that a claim of too much, or
by the wrong account, shows.

Source: protocol section 6.
"""

from __future__ import annotations

from collections.abc import Sequence

from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, Record
from crdtchain.scalars import OpId
from crdtchain.witness import Cut


def check_conservation(ledger: Ledger, cut: Cut) -> list[str]:
    """Return what is wrong with the credits as of a cut, one sentence each; nothing when all is well."""
    faults: list[str] = []
    certified = ledger.certified_ops(cut)
    held = sum(_left_of_transfer(ledger, op, certified, faults) for op in certified if _is(ledger, op, Kind.TRANSFER))
    held += sum(_left_of_job(ledger, op, certified, cut, faults) for op in certified if _is(ledger, op, Kind.JOB))
    keys = set(ledger.params.grants) | {ledger.dag.author_key(op) for op in certified}
    spendable = sum(ledger.accounts.certified_balance(key, cut) for key in keys)
    granted = sum(ledger.params.grants.values())
    if spendable + held != granted:
        faults.append(f"{spendable} spendable and {held} held are not the {granted} granted")
    faults.extend(
        f"the balance after {op} is {balance}" for op, balance in ledger.accounts.balances.items() if balance < 0
    )
    return faults


def _is(ledger: Ledger, op: int, kind: Kind) -> bool:
    return ledger.dag.kind(op) is kind


def _claims(ledger: Ledger, of: int, certified: Sequence[int]) -> list[int]:
    claims = {claim for (_, target), found in ledger.jobs.claims.items() if target == of for claim in found}
    return [op for op in certified if op in claims]


def _left_of_transfer(ledger: Ledger, transfer: int, certified: Sequence[int], faults: list[str]) -> int:
    amount = ledger.jobs.transfer(transfer).amount
    taken = sum(ledger.accounts.changes.get(claim) for claim in _claims(ledger, transfer, certified))
    if taken not in (0, amount):
        faults.append(f"{taken} were claimed of a transfer of {amount}")
    return amount - taken


def _left_of_job(ledger: Ledger, job: int, certified: Sequence[int], cut: Cut, faults: list[str]) -> int:
    terms = ledger.jobs.terms(job)
    stakes = [op for op in certified if op in set(ledger.jobs.stakes.get(job))]
    claims = _claims(ledger, job, certified)
    taken = sum(ledger.accounts.changes.get(claim) for claim in claims)
    record = ledger.certificate(job, cut)
    if record is None:
        if taken and not ledger.witnesses.certificates(job, cut):
            faults.append(f"{taken} were claimed of a job without an outcome")
        return terms.bounty + terms.pool + terms.stake * len(stakes) - taken
    left = _entitled(ledger, job, record, stakes)
    for claim in claims:
        author = ledger.dag.authors[claim]
        left[author] = left.get(author, 0) - ledger.accounts.changes.get(claim)
    faults.extend(f"an account claimed {-amount} too much of a job" for amount in left.values() if amount < 0)
    return sum(left.values())


def _entitled(ledger: Ledger, job: int, record: Record, stakes: Sequence[int]) -> dict[int, int]:
    """Return what each author may take of a decided job, all in all."""
    dag, terms, poster = ledger.dag, ledger.jobs.terms(job), ledger.dag.authors[job]
    left: dict[int, int] = {poster: 0}

    def give(author: int, amount: int) -> None:
        left[author] = left.get(author, 0) + amount

    give(poster if record.winner is None else _author(ledger, record.winner), terms.bounty)
    for stake in stakes:
        if dag.author_key(stake) not in record.forfeits:
            give(dag.authors[stake], terms.stake)
    purse = terms.pool + terms.stake * len(record.forfeits)
    share = purse // len(record.votes) if record.votes else 0
    for vote in record.votes:
        give(_author(ledger, vote), share)
    give(poster, purse - share * len(record.votes))
    return left


def _author(ledger: Ledger, op: bytes) -> int:
    number = ledger.dag.find(OpId(op))
    # What a record names and nobody here has can be claimed by nobody: it stays held.
    return -1 if number is None else ledger.dag.authors[number]
