"""The core beside the oracle: one history, every question, as of many cuts."""

from __future__ import annotations

from collections.abc import Iterable

from crdtchain.deadlines import Timeliness
from crdtchain.ledger.state import Ledger
from crdtchain.ledger.votes import Standing
from crdtchain.ops import DEADLINE_KINDS, VALUE_KINDS, Kind
from crdtchain.scalars import Author, OpId
from crdtchain.witness import Cut
from tests.bridge import core_record, to_core
from tests.oracle.model import OracleOp
from tests.oracle.rules import Oracle

STATUS = {Timeliness.ON_TIME: "ON_TIME", Timeliness.LATE: "LATE", Timeliness.OPEN: "OPEN"}


def build(oracle: Oracle) -> Ledger:
    """Add an oracle's ops to a fresh ledger, in the oracle's order."""
    ops = iter(oracle.ops.values())
    ledger = Ledger(to_core(next(ops)))
    for op in ops:
        assert ledger.add(to_core(op))
    return ledger


def assert_agree(oracle: Oracle, ledger: Ledger, cuts: Iterable[frozenset[bytes] | None]) -> None:
    """Ask both everything, as of each cut, and compare."""
    for cut in cuts:
        asked = ledger.everything() if cut is None else ledger.witnesses.cut([number(ledger, op) for op in sorted(cut)])
        past = oracle.past(cut)
        assert {op for op in oracle.ops if asked.contains(number(ledger, op))} == past
        _assert_witnessing(oracle, ledger, asked, cut)
        _assert_jobs(oracle, ledger, asked, cut)
        _assert_accounts(oracle, ledger, asked, cut)


def number(ledger: Ledger, op: bytes) -> int:
    """Return the number of an op that is here."""
    found = ledger.dag.find(OpId(op))
    assert found is not None
    return found


def _assert_witnessing(oracle: Oracle, ledger: Ledger, asked: Cut, cut: frozenset[bytes] | None) -> None:
    past = oracle.past(cut)
    clock = {op for ops in oracle.clock(cut).values() for op in ops}
    assert {ledger.dag.ids[tip] for tip in asked.clock} == clock
    for op in past:
        index, kind = number(ledger, op), Kind(oracle.ops[op].kind)
        if kind in VALUE_KINDS:
            acknowledged = {
                ledger.dag.author_key(o) for o in ledger.witnesses.acknowledgements.get(index) if asked.sees(o)
            }
            assert acknowledged == oracle.acknowledged(op, cut), op
            assert ledger.witnesses.is_certified(index, asked) == oracle.certified(op, cut)
            assert ledger.accounts.balances.get(index) == oracle.balance(op)
        if kind in DEADLINE_KINDS:
            _assert_deadline(oracle, ledger, asked, cut, op)


def _assert_deadline(oracle: Oracle, ledger: Ledger, asked: Cut, cut: frozenset[bytes] | None, op: bytes) -> None:
    index, deadline = number(ledger, op), oracle.deadline_of(op)
    assert ledger.jobs.deadline(index) == deadline
    delta = ledger.params.delta_ms
    for at in (deadline, deadline - delta, deadline - 3 * delta, deadline + delta):
        assert STATUS[ledger.deadlines.timeliness(index, at, asked)] == oracle.status(op, at, cut), (op, at)
        had, closed = ledger.deadlines.count(index, at, asked)
        assert had == oracle.has_count(op, at, cut)
        assert closed == len(oracle.closing(op, at, oracle.past(cut)))
    state = oracle.void_state(op, cut)
    assert ledger.votes.is_void(index, asked) == (state == "void")
    counts = state == "clear" and oracle.status(op, deadline, cut) == "ON_TIME"
    assert (ledger.votes.standing(index, asked) is Standing.COUNTS) == counts
    if counts and oracle.ops[op].kind == "bid":
        last = deadline // ledger.params.tick_ms
        assert ledger.deadlines.find_ticks(index, last, asked) == oracle.arrival_ticks(op, cut)
    if oracle.ops[op].kind == "reveal":
        assert ledger.votes.verdict(index, asked)[0].value == oracle.verdict(op, cut)


def _assert_jobs(oracle: Oracle, ledger: Ledger, asked: Cut, cut: frozenset[bytes] | None) -> None:
    for op in oracle.past(cut):
        if oracle.ops[op].kind != "job":
            continue
        job = number(ledger, op)
        digests = ledger.witnesses.certificates(job, asked)
        records = [core_record(ledger.records[digest]) for digest in digests]
        expected = oracle.certificates(op, cut)
        assert sorted(map(repr, records)) == sorted(map(repr, expected))
        assert core_record(ledger.settlement.outcome(job, asked)) == oracle.outcome(op, cut)
        if len(records) == 1:
            _assert_dues(oracle, ledger, asked, cut, job)
        for author in {*(one.author for one in oracle.ops.values()), *oracle.grants}:
            assert ledger.votes.is_elector(Author(author), job) == oracle.elector(author, op)


def _assert_dues(oracle: Oracle, ledger: Ledger, asked: Cut, cut: frozenset[bytes] | None, job: int) -> None:
    """Compare what a claim behind each tip in the cut would get."""
    (digest,) = ledger.witnesses.certificates(job, asked)
    (record,) = oracle.certificates(ledger.dag.ids[job], cut)
    past = oracle.past(cut)
    for op in past:
        author = oracle.ops[op].author
        index = ledger.dag.find_author(Author(author))
        assert index is not None
        due = ledger.settlement.due(job, ledger.records[digest], index, number(ledger, op), asked)
        assert due == oracle.due(author, ledger.dag.ids[job], record, past, oracle.chain(op))


def _assert_accounts(oracle: Oracle, ledger: Ledger, asked: Cut, cut: frozenset[bytes] | None) -> None:
    for author, credits in oracle.accounts(cut).items():
        assert ledger.accounts.certified_balance(Author(author), asked) == credits
        index = ledger.dag.find_author(Author(author))
        assert (index is not None and ledger.witnesses.is_banned(index, asked)) == oracle.banned(author, cut)


def assert_attests(oracle: Oracle, ledger: Ledger) -> None:
    """Compare the judgement of each attest as of its own past."""
    for op in oracle.ops.values():
        if op.kind == "attest":
            right = core_record(ledger.right_record(number(ledger, op.id)))
            assert (right == op.body["record"]) == oracle.right_attest(op)


def plain(op: OracleOp) -> str:
    """Return an op in one line, for failures."""
    return f"{op.kind} {op.author.hex()[:6]}#{op.seq} t={op.time} {op.id.hex()[8:16]}"
