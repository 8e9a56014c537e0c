"""Whole jobs between simulated replicas: safe always, decided whenever messages take less than Δ.

`CRDTCHAIN_SEEDS` sets how many seeds each test plays; a failure names its seed: `pytest -k "… and [SEED]"` replays it.
"""

from __future__ import annotations

import os
import random

import pytest

from crdtchain.deadlines import Timeliness
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, Record
from crdtchain.scalars import OpId
from tests.simulation.network import (
    DELTA,
    START,
    Network,
    Node,
    Voter,
    Worker,
    assert_attests_right,
    assert_equal_ledgers,
    claim_all,
    make_key,
)

SEEDS = range(int(os.environ.get("CRDTCHAIN_SEEDS", "6")))
BID_UNTIL = START + 12 * DELTA


def make_network(seed: int, n: int, twins: int = 0, sleepers: int = 0) -> tuple[Network, list[Node]]:
    """Found a network of n witnesses, the last ones with two tongues or asleep; returns the honest ones."""
    names = [f"w{number}" for number in range(n)]
    people = {"poster": 1_000, "alice": 100, "bob": 100, "carol": 100, "dave": 100, "rich": 800}
    network = Network(seed, names, {**people, **dict.fromkeys(names, 10)})
    honest = []
    for place, name in enumerate(names):
        if place >= n - twins:
            network.add(f"{name}a", key=name, side=1)
            network.add(f"{name}b", key=name, side=2)
        else:
            node = network.add(name)
            node.up = place < n - twins - sleepers
            honest.append(node)
    for name in people:
        network.add(name)
    return network, honest


def node(network: Network, name: str) -> Node:
    return next(found for found in network.nodes if found.name == name)


def play(network: Network, honest: list[Node], **changes: object) -> tuple[OpId, Record | None]:
    """Play one job with random bids, some at the very deadline; returns it and its certified outcome at the poster."""
    rng = network.rng
    network.run(START + 500)
    job = node(network, "poster").say(network.terms(BID_UNTIL, **changes))
    assert job is not None
    for name in ("alice", "bob", "carol", "dave"):
        times = [rng.randrange(START + 3 * DELTA, BID_UNTIL) for _ in range(2)] + [BID_UNTIL + rng.randrange(-400, 300)]
        losses = sorted(rng.sample(range(1, 9), 3), reverse=True)
        bids = list(zip(sorted(times), losses, strict=True))
        network.at(START + 2 * DELTA, lambda name=name, bids=bids: start_worker(network, name, job, bids, rng))  # type: ignore[misc]
    liar_below = rng.choice([0, 0, 3])
    for voter in [*honest, node(network, "rich")]:
        if voter.up:
            network.at(START + 2 * DELTA, lambda voter=voter: Voter(voter, job, verdict_below(liar_below)) and None)  # type: ignore[misc]
    terms = network.terms(BID_UNTIL)
    network.run(terms.verdict_until + 8 * DELTA)
    return job, certificate(node(network, "poster").replica.ledger, job)


def start_worker(network: Network, name: str, job: OpId, bids: list[tuple[int, int]], rng: random.Random) -> None:
    Worker(node(network, name), job, bids, reveals=rng.random() < 0.8)


def verdict_below(limit: int):  # type: ignore[no-untyped-def]
    return lambda loss: "cheat" if loss < limit else "valid"


def certificate(ledger: Ledger, job: OpId) -> Record | None:
    number = ledger.dag.find(job)
    assert number is not None
    return ledger.certificate(number, ledger.everything())


def settle(network: Network) -> None:
    """Let everybody claim, wake the sleepers, and let all messages arrive."""
    for found in network.nodes:
        if found.up:
            claim_all(found)
    network.run(network.now + 5 * DELTA)


def assert_conserved(ledger: Ledger) -> None:
    from crdtchain.ledger.bank import check_conservation

    assert check_conservation(ledger, ledger.everything()) == []


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_honest_witnesses_always_decide_and_agree(seed: int, n: int) -> None:
    network, honest = make_network(seed, n)
    _, record = play(network, honest, on_cheat=network.rng.choice(["refund", "next"]))
    assert record is not None and not record.expired, f"undecided, seed {seed}"
    settle(network)
    assert_equal_ledgers(network)
    ledger = network.nodes[0].replica.ledger
    assert_attests_right(ledger)
    assert_nothing_open(ledger)
    assert_conserved(ledger)
    claims = [op for op in range(len(ledger.dag)) if ledger.dag.kind(op) is Kind.CLAIM]
    assert claims, "somebody claims"


def assert_nothing_open(ledger: Ledger) -> None:
    cut = ledger.everything()
    for op in ledger.jobs.job_of:
        if ledger.dag.kind(op) in (Kind.BID, Kind.REVEAL, Kind.VOTE):
            assert ledger.deadlines.timeliness(op, ledger.jobs.deadline(op), cut) is not Timeliness.OPEN


@pytest.mark.parametrize(("n", "twins"), [(4, 1), (7, 2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_witnesses_with_two_tongues_neither_stop_nor_sway_the_others(seed: int, n: int, twins: int) -> None:
    network, honest = make_network(seed, n, twins=twins)
    job, record = play(network, honest)
    assert record is not None and not record.expired, f"undecided, seed {seed}"
    liars = [make_key(f"w{number}") for number in range(n - twins, n)]
    for found in network.nodes:
        assert certificate(found.replica.ledger, job) in (None, record), f"two outcomes, seed {seed}"
    assert_attests_right(node(network, "poster").replica.ledger, but=liars)
    settle(network)
    assert_conserved(node(network, "poster").replica.ledger)


@pytest.mark.parametrize(("n", "sleepers"), [(4, 1), (7, 2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_f_sleeping_witnesses_are_not_missed(seed: int, n: int, sleepers: int) -> None:
    network, honest = make_network(seed, n, sleepers=sleepers)
    _, record = play(network, honest)
    assert record is not None and not record.expired, f"undecided, seed {seed}"
    assert_conserved(node(network, "poster").replica.ledger)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_partition_around_the_deadline_never_gives_two_outcomes(seed: int) -> None:
    network, honest = make_network(seed, 4)
    sides = {found.name: network.rng.randrange(2) for found in network.nodes}
    start, end = BID_UNTIL - network.rng.randrange(3 * DELTA), BID_UNTIL + network.rng.randrange(4 * DELTA)
    network.blocked = lambda a, b: start <= network.now < end and sides[a.name] != sides[b.name]
    job, record = play(network, honest)
    found = {repr(certificate(one.replica.ledger, job)) for one in network.nodes}
    assert len(found - {"None"}) <= 1, seed
    network.run(network.now + 70 * DELTA)
    settle(network)
    assert_equal_ledgers(network)
    final = certificate(network.nodes[0].replica.ledger, job)
    assert final == record or record is None
    assert_attests_right(network.nodes[0].replica.ledger)
    assert_conserved(network.nodes[0].replica.ledger)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_with_two_branches_gains_nothing(seed: int) -> None:
    network, honest = make_network(seed, 4)
    twin = network.add("dave2", key="dave", side=1)
    node(network, "dave").side = 2
    network.run(START + 500)
    job = node(network, "poster").say(network.terms(BID_UNTIL))
    assert job is not None
    for name, losses in (("alice", [5]), ("dave", [3]), ("dave2", [1])):
        found = node(network, name)
        network.at(
            START + 2 * DELTA,
            lambda found=found, losses=losses: (
                Worker(  # type: ignore[misc]
                    found, job, [(START + 5 * DELTA, loss) for loss in losses]
                )
                and None
            ),
        )
    for voter in honest:
        network.at(START + 2 * DELTA, lambda voter=voter: Voter(voter, job, verdict_below(0)) and None)  # type: ignore[misc]
    network.run(network.terms(BID_UNTIL).verdict_until + 8 * DELTA)
    ledger = node(network, "poster").replica.ledger
    record = certificate(ledger, job)
    assert record is not None
    stakes = [op for op in ledger.witnesses.acknowledgements if ledger.dag.kind(op) is Kind.STAKE]
    certified = [op for op in stakes if ledger.witnesses.is_certified(op, ledger.everything())]
    of_dave = [op for op in certified if ledger.dag.author_key(op) == make_key("dave")]
    assert len(of_dave) <= 1, "at most one branch's stake is certified"
    assert twin.replica.author == make_key("dave")
    settle(network)
    assert_conserved(ledger)
