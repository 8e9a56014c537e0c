"""Scenes that random histories rarely reach: what one tongue of a forked witness said does not bind the other."""

from __future__ import annotations

from tests.bridge import to_core
from tests.compare import assert_agree, build
from tests.oracle.drafting import Scene


def agree(scene: Scene) -> None:
    ids = list(scene.oracle.ops)
    assert_agree(scene.oracle, build(scene.oracle), [None, *(frozenset({op}) for op in ids)])


def test_an_acknowledgement_on_the_other_branch_is_none_on_this_one() -> None:
    scene = Scene(4, {"alice": 100})
    first = scene.transfer("alice", "bob", 1, 10)
    rival = scene.add("alice", "profile", {"name": "a", "about": ""}, 10, scene.genesis, after=None)
    scene.beat(0, 20, first)
    right = scene.beat(0, 21, first, rival, after=None)
    others = [scene.beat(i, 22, first) for i in (1, 2, 3)]
    second = scene.transfer("alice", "bob", 1, 30, *others, after=first)
    last = scene.beat(0, 40, second, after=right)
    cut = frozenset({last})
    assert scene.oracle.certified(first, cut)
    assert scene.w[0] not in scene.oracle.acknowledged(second, None)
    agree(scene)


def test_the_own_other_branch_is_no_other_witness_on_the_staircase() -> None:
    scene = Scene(4, {"poster": 1000, "alice": 100})
    deadline = 10_000
    job = scene.job("poster", 100, deadline, stake=0, on_cheat="next")
    scene.beats(200, job)
    bid = scene.bid("alice", job, 5, 300, job)
    root = scene.tips[scene.w[0]]
    left = scene.beat(0, deadline, bid)
    seen = scene.beat(1, deadline + 1_500, left)
    right = scene.beat(0, deadline + 900, seen, after=root)
    closed = scene.beat(0, deadline + 2_001, after=right)
    cut = frozenset({closed})
    assert scene.oracle.has_count(bid, deadline, cut) == 1
    assert scene.oracle.closing(bid, deadline, scene.oracle.past(cut)) == {scene.w[0]}
    agree(scene)


def test_too_few_votes_condemn_nobody() -> None:
    scene = Scene(1, {"poster": 1000, "alice": 100, "rich": 500}, verdict_min=3)
    job = scene.job("poster", 100, 10_000, stake=0, on_cheat="next")
    first = scene.beat(0, 200, job)
    bid = scene.bid("alice", job, 5, 300, first)
    scene.beat(0, 1_000, bid)
    closed = scene.beat(0, 11_001)
    reveal = scene.reveal("alice", bid, 11_100, closed)
    votes = [scene.vote(name, reveal, "cheat", 11_200) for name in ("w0", "rich")]
    scene.beat(0, 12_000, *votes, reveal)
    scene.beat(0, 60_000)
    assert scene.oracle.verdict(reveal, None) == "stands"
    agree(scene)


def test_what_a_witness_says_by_an_op_counts_for_the_op_itself() -> None:
    scene = Scene(1, {"poster": 1000, "w0": 100})
    job = scene.job("poster", 100, 10_000)
    # The only witness stakes: its stake covers the job, acknowledges it, and thereby certifies it.
    stake = scene.next("w0", "stake", {"job": job}, 200, job)
    ledger = build(scene.oracle)
    assert scene.oracle.judge(stake) is None
    ledger.judge(to_core(stake))
    assert ledger.to_state() == build(scene.oracle).to_state(), "judging left a trace"
    scene.oracle.add(stake)
    agree(scene)
