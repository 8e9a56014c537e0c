"""Random adversarial histories: the core against the oracle, in any order, merged, replayed, and never going back."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest

from crdtchain.crdts.first_seen import FirstSeen
from crdtchain.deadlines import Timeliness
from crdtchain.errors import InvalidOpError
from crdtchain.ledger.state import Ledger
from tests.bridge import core_record, to_core
from tests.compare import assert_agree, assert_attests, number
from tests.oracle.histories import History, build_history
from tests.oracle.model import OracleOp

SIZES = (1, 2, 3, 4, 7)
LENGTHS = {1: 90, 2: 110, 3: 120, 4: 130, 7: 170}
SEEDS = int(os.environ.get("CRDTCHAIN_HISTORIES", "40"))


def make_history(seed: int) -> History:
    n = SIZES[seed % len(SIZES)]
    return build_history(random.Random(f"history {seed}"), n, LENGTHS[n])


def add_all(ledger: Ledger, ops: Sequence[OracleOp]) -> dict[bytes, str]:
    """Add ops in order; return those refused with the code."""
    refused = {}
    for op in ops:
        try:
            ledger.add(to_core(op))
        except InvalidOpError as error:
            refused[op.id] = error.code
    return refused


def shuffle(rng: random.Random, ops: Sequence[OracleOp], known: set[bytes]) -> list[OracleOp]:
    """Return ops in a random causal order."""
    left, order, have = list(ops), [], set(known)
    while left:
        ready = [op for op in left if set(op.links()) <= have]
        op = rng.choice(ready)
        left.remove(op)
        order.append(op)
        have.add(op.id)
    return order


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_core_agrees_with_the_oracle(seed: int) -> None:
    history = make_history(seed)
    rng = random.Random(seed)
    ledger = Ledger(to_core(history.drafts[0]))
    refused = add_all(ledger, history.drafts[1:])
    assert set(refused) == set(history.invalid), {
        op.kind: (refused.get(op.id), history.invalid.get(op.id))
        for op in history.drafts
        if (op.id in refused) != (op.id in history.invalid)
    }
    ids = list(history.oracle.ops)
    cuts = [None, *(frozenset({op}) for op in rng.sample(ids, 6)), frozenset(rng.sample(ids, 3))]
    assert_agree(history.oracle, ledger, cuts)
    assert_attests(history.oracle, ledger)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_causal_order_with_repeats_gives_one_state(seed: int) -> None:
    history = make_history(seed)
    rng = random.Random(seed)
    genesis = history.drafts[0]
    first = Ledger(to_core(genesis))
    add_all(first, history.drafts[1:])
    second = Ledger(to_core(genesis))
    order = shuffle(rng, [op for op in history.drafts[1:] if op.id not in history.invalid], {genesis.id})
    for op in order:
        assert second.add(to_core(op))
        again = rng.choice(order)
        if number_or_none(second, again) is not None:
            assert not second.add(to_core(again))
    assert second.heads_digest() == first.heads_digest()
    assert second.to_state() == first.to_state()
    assert second.state_digest() == first.state_digest()
    for op in history.drafts:
        if op.id in history.invalid:
            with pytest.raises(InvalidOpError):
                second.judge(to_core(op))
    assert second.state_digest() == first.state_digest(), "judging left a trace"


def number_or_none(ledger: Ledger, op: OracleOp) -> int | None:
    return ledger.dag.find(to_core(op).id)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_merging_two_replicas_equals_the_replica_of_the_union(seed: int) -> None:
    history = make_history(seed)
    rng = random.Random(seed)
    oracle = history.oracle
    genesis, *rest = (op for op in history.drafts if op.id not in history.invalid)
    tops = rng.sample([op.id for op in rest], 4)
    sides = []
    for cut in (tops[:2], tops[2:]):
        past = oracle.past(frozenset(cut))
        ledger = Ledger(to_core(genesis))
        add_all(ledger, shuffle(rng, [op for op in rest if op.id in past], {genesis.id}))
        sides.append(ledger)
    union = Ledger(to_core(genesis))
    past = oracle.past(frozenset(tops))
    add_all(union, [op for op in rest if op.id in past])
    left, right = sides
    left.merge(right)
    _assert_same(left, union)
    right.merge(union)
    _assert_same(right, union)
    before = _tables(left)
    left.merge(left)
    assert _tables(left) == before
    # A merged replica goes on like any other.
    tail = [op for op in rest if op.id not in past]
    assert not add_all(left, tail)
    full = Ledger(to_core(genesis))
    add_all(full, rest)
    _assert_same(left, full)


def _assert_same(one: Ledger, two: Ledger) -> None:
    assert one.heads_digest() == two.heads_digest()
    assert one.state_digest() == two.state_digest()
    assert _tables(one) == _tables(two)


def _tables(ledger: Ledger) -> dict[str, object]:
    """Return every derived table with ids and keys in place of numbers, which are local."""
    ids, keys = ledger.dag.ids, ledger.dag.author_keys

    def named(marks: FirstSeen) -> dict[bytes, set[bytes]]:
        return {ids[op]: {ids[event] for event in events} for op, events in marks.to_sets().items()}

    witnesses, jobs = ledger.witnesses, ledger.jobs
    return {
        "ops": set(ids),
        "heads": {ids[head] for head in ledger.dag.heads},
        "clocks": {ids[op]: {ids[tip] for tip in ledger.dag.clocks[op]} for op in range(len(ids))},
        "depths": {ids[op]: ledger.dag.depths[op] for op in range(len(ids))},
        "marks": [named(marks) for marks in witnesses.marks],
        "acks": {ids[op]: {ids[o] for o in os} for op, os in witnesses.acknowledgements.items()},
        "attests": {(ids[job], digest): {ids[o] for o in os} for (job, digest), os in witnesses.attests.items()},
        "accused": {keys[a]: {(ids[job], d) for job, d in found} for a, found in witnesses.accused.items()},
        "known": {(keys[a], seq): {ids[o] for o in os} for (a, seq), os in witnesses.known_equivocations.items()},
        "equivocated": {keys[a]: set(seqs) for a, seqs in witnesses.equivocated_seqs.items()},
        "balances": {ids[op]: credits for op, credits in ledger.accounts.balances.items()},
        "bids": {ids[job]: {ids[bid] for bid in bids} for job, bids in jobs.bids.items()},
        "votes": {ids[reveal]: {ids[vote] for vote in votes} for reveal, votes in jobs.votes.items()},
        "claims": {(keys[a], ids[of]): {ids[c] for c in found} for (a, of), found in jobs.claims.items()},
        "parts": {(keys[a], kind, ids[job]): {ids[op] for op in ops} for (a, kind, job), ops in jobs.parts.items()},
        "bodies": {ids[op]: body for op, body in jobs.bodies.items()},
    }


def is_within_f(history: History) -> bool:
    """Whether no more witnesses misbehave than the network bears, as far as its chains and attests show."""
    oracle = history.oracle
    forked = {op.author for op in oracle.ops.values() if op.author in oracle.witnesses}
    forked = {author for author in forked if oracle.doubled_seqs(author, oracle.past(None))}
    liars = {op.author for op in oracle.ops.values() if op.kind == "attest" and not oracle.right_attest(op)}
    return len(forked | liars) <= oracle.f


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_decided_ever_changes(seed: int) -> None:
    """Statuses, certified sets and outcomes at every prefix: they only grow, with at most f Byzantine witnesses."""
    history = make_history(seed)
    ledger = Ledger(to_core(history.drafts[0]))
    within = is_within_f(history)
    settled: dict[tuple[str, bytes], object] = {}
    for step, op in enumerate(op for op in history.drafts[1:] if op.id not in history.invalid):
        ledger.add(to_core(op))
        if step % 7 == 0:
            _check_settled(ledger, settled, within)
    _check_settled(ledger, settled, within)
    assert settled


def _check_settled(ledger: Ledger, settled: dict[tuple[str, bytes], object], within: bool) -> None:
    found: dict[tuple[str, bytes], object] = {}
    cut, ids = ledger.everything(), ledger.dag.ids
    for op in ledger.witnesses.acknowledgements:
        if ledger.witnesses.is_certified(op, cut):
            found["certified", ids[op]] = True
    for op in ledger.jobs.job_of:
        if ledger.dag.kind(op).value in ("bid", "reveal", "vote"):
            status = ledger.deadlines.timeliness(op, ledger.jobs.deadline(op), cut)
            if status is Timeliness.ON_TIME or (status is Timeliness.LATE and within):
                found["status", ids[op]] = status
    for job in ledger.jobs.jobs:
        outcome = core_record(ledger.settlement.outcome(job, cut))
        if outcome is not None and within:
            found["outcome", ids[job]] = outcome
        for digest in ledger.witnesses.certificates(job, cut):
            found["certificate", ids[job] + digest] = True
    for key, value in settled.items():
        assert found.get(key) == value, key[0]
    settled.update(found)


@pytest.mark.parametrize("seed", range(0, SEEDS, 2))
def test_credits_are_conserved_at_every_prefix(seed: int) -> None:
    from crdtchain.ledger.bank import check_conservation

    history = make_history(seed)
    ledger = Ledger(to_core(history.drafts[0]))
    within = is_within_f(history)
    for step, op in enumerate(op for op in history.drafts[1:] if op.id not in history.invalid):
        ledger.add(to_core(op))
        if step % 5 == 0 and within:
            assert check_conservation(ledger, ledger.everything()) == []
    for op in history.oracle.ops:
        index = number(ledger, op)
        assert ledger.accounts.balance(ledger.dag.author_key(index), index) >= 0
