"""What a funded author or one liar can make a replica compute: the work may grow no faster than what they say.

Work is counted in executed lines of the package, so the tests are deterministic. Twice the input may cost a little over
twice the work; the bound of three stands between linear and quadratic.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from crdtchain.codec import Link
from crdtchain.errors import RuleError
from crdtchain.ops import Beat, Bid, Claim, Profile, SignedOp, Stake, Vote
from crdtchain.scalars import OpId
from tests.builders import World

RATIO_MAX = 3.0


def count_work(action: Callable[[], object]) -> int:
    """Count the lines of the package that an action executes."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if "/crdtchain/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)
    return lines


def ratio(measure: Callable[[int], int], size: int) -> float:
    """Return how much more work twice the size costs."""
    return measure(2 * size) / measure(size)


def make_branches(world: World, name: str, count: int, parents: list[OpId]) -> list[SignedOp]:
    """Let a witness beat `count` times behind one and the same op."""
    base = world.tip(name)
    return [world.add(world.sign(name, Beat(), world.now + n, sorted(parents), base)) for n in range(count)]


def cover_all(world: World, name: str, ops: list[OpId]) -> None:
    for start in range(0, len(ops), 64):
        world.say(name, Beat(), parents=sorted(ops[start : start + 64]))


def measure_beat(branches: int) -> int:
    world = World(witnesses=4)
    world.certify()
    evil = make_branches(world, "w3", branches, [])
    cover_all(world, "w0", [one.op.id for one in evil])
    world.say("w1", Beat(), parents=[world.tip("w0").op.id])  # type: ignore[union-attr]
    world.say("w0", Beat(), parents=[world.tip("w1").op.id])  # type: ignore[union-attr]
    beat = world.sign("w2", Beat(), parents=sorted(world.tip(name).op.id for name in ("w0", "w1")))  # type: ignore[union-attr]
    return count_work(lambda: world.ledger.add(beat.op))


def test_a_beat_costs_no_square_of_a_liars_branches() -> None:
    assert ratio(measure_beat, 60) < RATIO_MAX


def measure_everything(branches: int) -> int:
    world = World(witnesses=4)
    world.certify()
    make_branches(world, "w3", branches, [])
    return count_work(world.ledger.everything)


def test_the_cut_of_everything_costs_no_square_of_a_liars_branches() -> None:
    assert ratio(measure_everything, 60) < RATIO_MAX


def measure_holders(branches: int) -> int:
    world = World(witnesses=4)
    job = world.post("alice")
    world.stake("bob", job)
    world.certify()
    terms = world.job_terms(job)
    bid = world.bid("bob", job, 5)
    world.advance_to(terms.bid_until + 1)
    make_branches(world, "w3", branches, [bid])
    number = world.ledger.dag.find(bid)
    assert number is not None
    return count_work(lambda: world.ledger.deadlines.find_holders(number, terms.bid_until))


def test_holders_cost_no_square_of_a_liars_branches() -> None:
    assert ratio(measure_holders, 60) < RATIO_MAX


def measure_outcome(branches: int) -> int:
    world = World(witnesses=4)
    job = world.post("alice")
    world.stake("bob", job)
    world.certify()
    terms, base, tips = world.job_terms(job), world.tip("bob"), sorted(world.witness_tips("bob"))
    bids = []
    for loss in range(branches):
        body = Bid(job=Link(job), loss=loss, commit=bytes(32))
        bids.append(world.add(world.sign("bob", body, parents=tips, prev=base)).op.id)
    for name in world.witnesses:
        cover_all(world, name, bids)
    for deadline in (terms.bid_until, terms.reveal_until, terms.verdict_until):
        world.advance_to(deadline)
        world.close(deadline)
    world.certify()
    number = world.ledger.dag.find(job)
    assert number is not None
    return count_work(lambda: world.ledger.settlement.outcome(number, world.ledger.everything()))


def test_an_outcome_costs_no_square_of_a_bidders_branches() -> None:
    assert ratio(measure_outcome, 30) < RATIO_MAX


def measure_nested_bid(depth: int) -> int:
    world = World(witnesses=4)
    job = world.post("alice", stake=0, on_cheat="next")
    base = world.say("bob", Profile(name="", about=""), parents=sorted(world.witness_tips("bob")))
    bid = base
    for step in range(depth):
        # The bid comes first, so that each step of the stem opens a branch upon a branch.
        bid = world.sign("bob", Bid(job=Link(job), loss=9, commit=bytes(32)), parents=(), prev=base)
        stem = world.sign("bob", Profile(name=str(step), about=""), parents=(), prev=base)
        if step < depth - 1:
            world.add(bid)
            base = world.add(stem)
    return count_work(lambda: world.ledger.add(bid.op))


def test_a_bid_costs_no_square_of_branches_upon_branches() -> None:
    assert ratio(measure_nested_bid, 60) < RATIO_MAX


def measure_forks(count: int) -> int:
    world = World(witnesses=4)
    world.certify()
    base = world.say("bob", Profile(name="", about=""))
    sides = []
    for step in range(count):
        side = world.sign("bob", Profile(name=f"side {step}", about=""), parents=(), prev=base)
        base = world.add(world.sign("bob", Profile(name=f"stem {step}", about=""), parents=(), prev=base))
        sides.append(world.add(side).op.id)
    for start in range(0, count, 16):
        world.say("carol", Profile(name="", about=""), parents=sorted(sides[start : start + 16]))
    beat = world.sign("w0", Beat(), parents=[world.tip("carol").op.id])  # type: ignore[union-attr]
    return count_work(lambda: world.ledger.add(beat.op))


def test_covering_an_equivocator_costs_no_square_of_its_forks() -> None:
    assert ratio(measure_forks, 60) < RATIO_MAX


def measure_vote(count: int) -> int:
    world = World(witnesses=4)
    job = world.post("alice", stake=0, on_cheat="next")
    terms, bid = world.job_terms(job), world.bid("carol", job, 3)
    world.certify()
    base = world.say("bob", Profile(name="", about=""), parents=sorted(world.witness_tips("bob")))
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    reveal = world.reveal("carol", bid)
    for loss in range(count):
        world.add(world.sign("bob", Bid(job=Link(job), loss=loss, commit=bytes(32)), parents=(), prev=base))
    stem = world.add(world.sign("bob", Profile(name="stem", about=""), parents=[reveal], prev=base))
    for step in range(count):
        stem = world.add(world.sign("bob", Profile(name=str(step), about=""), parents=(), prev=stem))
    body = Vote(reveal=Link(reveal), verdict="valid", loss=None)
    vote = world.sign("bob", body, parents=(), prev=stem)
    return count_work(lambda: world.ledger.add(vote.op))


def test_a_vote_costs_no_square_of_bids_on_other_branches() -> None:
    assert ratio(measure_vote, 40) < RATIO_MAX


def measure_certified(branches: int) -> int:
    world = World(witnesses=4)
    world.certify()
    job = world.say("alice", world.terms()).op.id
    base = world.tip("w3")
    # Half of the liar's branches acknowledge the job, the other half are what the stake's past has of it.
    for n in range(branches):
        world.add(world.sign("w3", Beat(), world.now + n, [job], base))
    others = [world.add(world.sign("w3", Beat(), world.now + n, (), base)).op.id for n in range(branches)]
    cover_all(world, "w0", [job, *others])
    world.say("w1", Beat(), parents=[world.tip("w0").op.id])  # type: ignore[union-attr]
    stake = world.sign("bob", Stake(job=Link(job)), parents=[world.tip("w1").op.id])  # type: ignore[union-attr]

    def refuse() -> None:
        with pytest.raises(RuleError, match="not certified"):
            world.ledger.add(stake.op)

    return count_work(refuse)


def test_asking_for_a_certificate_costs_no_square_of_a_liars_branches() -> None:
    assert ratio(measure_certified, 40) < RATIO_MAX


def test_a_refused_op_leaves_no_author_behind() -> None:
    world = World(witnesses=4)
    transfer = world.transfer("alice", "stranger", 1)
    before = len(world.ledger.dag.author_keys)
    claim = world.sign("stranger", Claim(of=Link(transfer)), parents=[transfer])
    with pytest.raises(RuleError, match="not certified"):
        world.ledger.add(claim.op)
    assert len(world.ledger.dag.author_keys) == before
