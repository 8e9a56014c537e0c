"""The random histories are well made, repeatable, and reach what they are there to reach."""

from __future__ import annotations

import random
from collections import Counter

from tests.oracle import Oracle
from tests.oracle.coverage import EXPECTED, coverage
from tests.oracle.histories import build_history, random_history

SIZES = (1, 2, 3, 4, 7)
LENGTHS = {1: 90, 2: 110, 3: 120, 4: 130, 7: 170}
SEEDS = 200
FEWEST = 3
CODES = {
    *("balance", "bid_by_elector", "claim_twice", "commit", "first_op", "genesis", "job_not_certified", "links"),
    *("loss_not_lower", "named", "not_elector", "not_own_bid", "not_witness", "nothing_due", "outcome_certified"),
    *("own_job", "parents", "prev", "record", "reveal_early", "reveal_twice", "seq", "stake_missing", "stake_twice"),
    *("terms", "time", "transfer", "vote_twice", "attest_twice"),
}


def test_same_seed_same_history() -> None:
    for n in SIZES:
        one, two = (random_history(random.Random(n), n, 80) for _ in range(2))
        assert one == two
        assert len(one) == 80
        assert len({op.id for op in one}) == 80
        assert one[0].kind == "genesis"


def test_links_come_first_and_never_lead_to_an_invalid_op() -> None:
    for n in SIZES:
        history = build_history(random.Random(100 + n), n, 100)
        known: set[bytes] = set()
        for op in history.drafts:
            assert set(op.links()) <= known
            if op.id not in history.invalid:
                known.add(op.id)


def test_another_order_gives_the_same_answers() -> None:
    for seed in range(10):
        n = SIZES[seed % len(SIZES)]
        history = build_history(random.Random(seed), n, 100)
        valid = [op for op in history.drafts[1:] if op.id not in history.invalid]
        other = Oracle(history.drafts[0])
        rng = random.Random(seed)
        while valid:
            ready = [op for op in valid if all(link in other.ops for link in op.links())]
            op = rng.choice(ready)
            other.add(op)
            valid.remove(op)
        assert coverage(other) == coverage(history.oracle)
        assert other.accounts(None) == history.oracle.accounts(None)
        for op in history.drafts:
            if op.id in history.invalid and op.kind != "genesis":
                assert other.judge(op) == history.invalid[op.id]


def test_reached_across_200_seeds() -> None:
    reached: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    for seed in range(SEEDS):
        n = SIZES[seed % len(SIZES)]
        history = build_history(random.Random(seed), n, LENGTHS[n])
        reached += coverage(history.oracle)
        codes += Counter(history.invalid.values())
    for name in EXPECTED:
        print(f"{reached[name]:6} {name}")
    print(dict(codes.most_common()))
    assert [name for name in EXPECTED if reached[name] < FEWEST] == []
    assert sorted(CODES - set(codes)) == []


def honest_enough(seed: int) -> Oracle | None:
    """The oracle of a history in which at most f witnesses forked or attested what is not so; else None."""
    n = SIZES[seed % len(SIZES)]
    oracle = build_history(random.Random(1000 + seed), n, LENGTHS[n]).oracle
    z = oracle.past(None)
    wrong = {op.author for op in oracle.ops_in(z, "attest") if not oracle.right_attest(op)}
    forked = {witness for witness in oracle.witnesses if oracle.doubled_seqs(witness, z)}
    return oracle if len(wrong | forked) <= oracle.f else None


def test_what_is_known_stays_known_while_at_most_f_witnesses_lie() -> None:
    compared = 0
    for seed in range(40):
        oracle = honest_enough(seed)
        if oracle is None:
            continue
        everything = oracle.past(None)
        for op in oracle.ops_in(everything, "bid", "reveal", "vote"):
            deadline = oracle.deadline_of(op.id)
            now = oracle.status(op.id, deadline, None)
            assert not (
                len(oracle.having(op.id, deadline, everything)) >= oracle.q
                and len(oracle.closing(op.id, deadline, everything)) >= oracle.q
            )
            for one in oracle.ops:
                assert oracle.status(op.id, deadline, frozenset([one])) in ("OPEN", now)
        for job in oracle.ops_in(everything, "job"):
            found = [oracle.outcome(job.id, frozenset([one])) for one in oracle.ops]
            determined = [record for record in found if record is not None]
            assert all(record == determined[0] for record in determined)
            assert len(oracle.certificates(job.id, None)) <= 1
            compared += len(determined)
    assert compared > 100


def test_nothing_is_lost_or_made_while_at_most_f_witnesses_lie() -> None:
    for seed in range(60):
        oracle = honest_enough(seed)
        if oracle is None:
            continue
        ids = list(oracle.ops)
        for some in (None, *(frozenset(random.Random(seed).sample(ids, 3)) for _ in range(3))):
            assert oracle.conservation(some)
