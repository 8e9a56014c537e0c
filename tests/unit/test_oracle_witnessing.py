"""The oracle's reading of what witnesses say, on small cases worked out by hand.

With n = 4: f = 1, q = 3, Δ = 1,000 ms.
"""

from __future__ import annotations

import pytest

from tests.oracle.drafting import Scene

RICH = {"poster": 1000, "a": 50, "b": 50}
FREE = {"stake": 0, "on_cheat": "next"}
D = 10_000


def bid_scene(n: int = 4) -> tuple[Scene, bytes, bytes]:
    """A free job that closes its bids at 10,000, and one bid on it that no witness has seen."""
    scene = Scene(n, RICH)
    job = scene.job("poster", 100, D, **FREE)
    return scene, job, scene.bid("a", job, 5, 200, job)


def cut(*ids: bytes) -> frozenset[bytes]:
    return frozenset(ids)


@pytest.mark.parametrize(
    ("n", "f", "q"),
    [(1, 0, 1), (2, 0, 2), (3, 0, 2), (4, 1, 3), (5, 1, 4), (6, 1, 4), (7, 2, 5), (10, 3, 7), (32, 10, 22)],
)
def test_quorums(n: int, f: int, q: int) -> None:
    oracle = Scene(n).oracle
    assert (oracle.f, oracle.q) == (f, q)


def test_clock_holds_one_op_of_an_honest_witness_and_both_tongues_of_a_forked_one() -> None:
    scene = Scene(4, RICH)
    first = scene.beat(0, 1)
    second = scene.beat(0, 2)
    root = scene.beat(1, 1)
    left = scene.beat(1, 2)
    right = scene.beat(1, 3, after=root)
    w = scene.w
    assert scene.oracle.clock(None) == {w[0]: {second}, w[1]: {left, right}, w[2]: set(), w[3]: set()}
    assert scene.oracle.clock(cut(first, right)) == {w[0]: {first}, w[1]: {right}, w[2]: set(), w[3]: set()}


# -- the staircase --


def test_seen_by_the_deadline_is_had() -> None:
    scene, _, bid = bid_scene()
    scene.beats(D, bid, only=[0, 1])
    assert scene.oracle.status(bid, D, None) == "OPEN"
    assert scene.oracle.has_count(bid, D, None) == 2
    scene.beat(2, D, bid)
    assert scene.oracle.status(bid, D, None) == "ON_TIME"


def test_one_ms_after_the_deadline_alone_is_not_had() -> None:
    scene, _, bid = bid_scene()
    scene.beats(D + 1, bid)
    assert scene.oracle.has_count(bid, D, None) == 0
    assert scene.oracle.status(bid, D, None) == "OPEN"


def test_first_step_needs_one_other() -> None:
    scene, _, bid = bid_scene()
    on_time = scene.beat(0, D, bid)
    scene.beat(1, D + 1000, on_time)
    scene.beat(2, D + 1001, on_time)
    assert scene.oracle.having(bid, D, scene.oracle.past(None)) == {scene.w[0], scene.w[1]}


def test_last_step_needs_f_plus_1_others() -> None:
    scene, _, bid = bid_scene()
    one = scene.beat(0, D, bid)
    two = scene.beat(1, D + 1000, one)
    three = scene.beat(2, D + 2000, two)
    assert scene.oracle.status(bid, D, cut(two)) == "OPEN"
    assert scene.oracle.status(bid, D, cut(three)) == "ON_TIME"


def test_last_step_with_one_other_only_is_not_had_and_then_closed() -> None:
    scene, _, bid = bid_scene()
    one = scene.beat(0, D, bid)
    scene.beat(2, D + 2000, one)
    everything = scene.oracle.past(None)
    assert scene.oracle.having(bid, D, everything) == {scene.w[0]}
    assert scene.oracle.closing(bid, D, everything) == set()
    scene.beat(2, D + 2001)
    assert scene.oracle.closing(bid, D, scene.oracle.past(None)) == {scene.w[2]}


def test_one_ms_after_the_last_step_is_too_late_whoever_has_it() -> None:
    scene, _, bid = bid_scene()
    one = scene.beat(0, D, bid)
    two = scene.beat(1, D + 1000, one)
    scene.beat(2, D + 2001, two)
    assert scene.oracle.has_count(bid, D, None) == 2
    assert scene.oracle.closing(bid, D, scene.oracle.past(None)) == {scene.w[2]}
    assert scene.oracle.status(bid, D, None) == "OPEN"


def test_a_second_look_on_the_same_chain_can_have_what_the_first_had_not() -> None:
    scene, _, bid = bid_scene()
    one = scene.beat(0, D, bid)
    two = scene.beat(1, D + 1000, one)
    scene.beat(2, D + 1500, one)
    assert scene.oracle.has_count(bid, D, None) == 2
    scene.beat(2, D + 1600, two)
    assert scene.oracle.has_count(bid, D, None) == 3


def test_another_tongue_of_oneself_is_no_other_witness() -> None:
    scene, _, bid = bid_scene()
    root = scene.beat(0, 5000)
    left = scene.beat(0, D, bid)
    other = scene.beat(1, 9000, left)
    right = scene.beat(0, D + 1000, other, after=root)
    assert scene.oracle.has(left, bid, D)
    assert scene.oracle.has(other, bid, D)
    # right sees w1 (one other, and that is enough for the first step), but not its own left tongue twice:
    assert scene.oracle.has(right, bid, D)
    assert not scene.oracle.has(scene.beat(0, D + 2000, other, after=root), bid, D)


def test_last_step_with_f_2() -> None:
    scene, _, bid = bid_scene(7)
    steps = [scene.beat(0, D, bid)]
    for i in (1, 2, 3):
        steps.append(scene.beat(i, D + i * 1000, steps[-1]))
    assert scene.oracle.has_count(bid, D, None) == 4
    assert scene.oracle.status(bid, D, None) == "OPEN"
    scene.beat(4, D + 3000, steps[2])
    assert scene.oracle.status(bid, D, None) == "ON_TIME"
    scene.beat(5, D + 3000, steps[1])
    assert scene.oracle.has_count(bid, D, None) == 5


def test_late_when_q_closed_even_for_an_op_they_never_saw() -> None:
    scene, _, bid = bid_scene()
    beats = scene.beats(D + 2001, only=[0, 1, 2])
    assert bid not in scene.oracle.past(cut(*beats))
    assert scene.oracle.status(bid, D, cut(*beats[:2])) == "OPEN"
    assert scene.oracle.status(bid, D, cut(*beats)) == "LATE"


def test_exactly_at_the_end_of_the_window_closes_nothing() -> None:
    scene, _, bid = bid_scene()
    scene.beats(D + 2000)
    assert scene.oracle.status(bid, D, None) == "OPEN"


def test_a_split_stays_open() -> None:
    scene, _, bid = bid_scene()
    scene.beats(D, bid, only=[0, 1])
    closing = scene.beats(D + 2001, only=[2, 3])
    scene.beats(D + 9000, bid, *closing, only=[0, 1])
    scene.beats(D + 9000, bid, only=[2, 3])
    assert scene.oracle.has_count(bid, D, None) == 2
    assert len(scene.oracle.closing(bid, D, scene.oracle.past(None))) == 2
    assert scene.oracle.status(bid, D, None) == "OPEN"


def test_a_lying_witness_with_two_tongues_counts_on_both_sides() -> None:
    scene, _, bid = bid_scene()
    root = scene.beat(3, 5000)
    scene.beats(D, bid, only=[0, 1])
    closed = scene.beat(3, D + 2001)
    assert scene.oracle.status(bid, D, None) == "OPEN"
    scene.beat(3, D, bid, after=root)
    assert scene.oracle.status(bid, D, None) == "ON_TIME"
    assert scene.oracle.closed(closed, bid, D)


def test_on_time_wins_where_too_many_lied() -> None:
    scene, _, bid = bid_scene(1)
    root = scene.beat(0, 5000)
    late = scene.beat(0, D + 1001)
    on_time = scene.beat(0, D, bid, after=root)
    assert scene.oracle.status(bid, D, cut(late)) == "LATE"
    assert scene.oracle.status(bid, D, cut(late, on_time)) == "ON_TIME"


def test_a_witness_op_covers_itself() -> None:
    scene = Scene(1, RICH)
    job = scene.job("poster", 100, D, **FREE)
    bid = scene.bid("w0", job, 5, D, job)
    assert scene.oracle.status(bid, D, cut(bid)) == "ON_TIME"


# -- certified --


def test_certified_by_q_as_of_a_cut() -> None:
    scene = Scene(4, RICH)
    paid = scene.transfer("a", "b", 10, 1)
    beats = scene.beats(2, paid, only=[0, 1, 2])
    assert scene.oracle.acknowledged(paid, cut(*beats[:2])) == {scene.w[0], scene.w[1]}
    assert not scene.oracle.certified(paid, cut(*beats[:2]))
    assert scene.oracle.certified(paid, cut(*beats))
    assert scene.oracle.certified_set(None) == {paid}


def test_first_seen_is_acknowledged_and_its_rival_is_not() -> None:
    scene = Scene(4, RICH)
    one = scene.transfer("a", "b", 10, 1)
    two = scene.transfer("a", "c", 10, 1, scene.genesis, after=None)
    scene.beat(0, 2, one)
    scene.beat(0, 3, two)
    scene.beat(1, 2, one, two)
    assert scene.oracle.acknowledged(one, None) == {scene.w[0]}
    assert scene.oracle.acknowledged(two, None) == set()


def test_two_tongues_acknowledge_two_rivals_but_only_one_is_certified() -> None:
    scene = Scene(4, RICH)
    one = scene.transfer("a", "b", 10, 1)
    two = scene.transfer("a", "c", 10, 1, scene.genesis, after=None)
    root = scene.beat(3, 1)
    scene.beats(2, one, only=[0, 1])
    scene.beat(2, 2, two)
    scene.beat(3, 2, one)
    scene.beat(3, 2, two, after=root)
    assert scene.oracle.acknowledged(one, None) == {scene.w[0], scene.w[1], scene.w[3]}
    assert scene.oracle.acknowledged(two, None) == {scene.w[2], scene.w[3]}
    assert scene.oracle.certified_set(None) == {one}


def test_an_equivocation_after_what_is_judged_does_not_matter() -> None:
    scene = Scene(4, RICH)
    one = scene.transfer("a", "b", 10, 1)
    left = scene.transfer("a", "b", 1, 2)
    right = scene.transfer("a", "c", 1, 2, after=one)
    scene.beat(0, 3, left, right)
    assert scene.oracle.acknowledged(one, None) == {scene.w[0]}
    assert scene.oracle.acknowledged(left, None) == scene.oracle.acknowledged(right, None) == set()


def test_an_equivocation_below_the_last_certified_value_op_does_not_matter() -> None:
    scene = Scene(4, RICH)
    one = scene.transfer("a", "b", 10, 1)
    beats = scene.beats(2, one, only=[0, 1, 2])
    two = scene.transfer("a", "b", 1, 3)
    rival = scene.transfer("a", "c", 10, 1, scene.genesis, after=None)
    scene.beat(0, 4, rival)
    scene.beat(0, 5, two)
    scene.beat(1, 5, *beats, two, rival)
    # w0 does not know that `one` is certified: only w1, which saw q witnesses acknowledge it, goes on.
    assert scene.oracle.acknowledged(two, None) == {scene.w[1]}


def test_what_follows_an_op_that_was_not_acknowledged_is_not_acknowledged() -> None:
    scene = Scene(4, RICH)
    one = scene.transfer("a", "b", 10, 1)
    rival = scene.transfer("a", "c", 10, 1, scene.genesis, after=None)
    follows = scene.transfer("a", "b", 1, 2, after=one)
    scene.beat(0, 3, rival)
    scene.beat(0, 4, follows)
    assert scene.oracle.acknowledged(rival, None) == {scene.w[0]}
    assert scene.oracle.acknowledged(follows, None) == set()


def test_who_did_not_acknowledge_an_op_acknowledges_none_after_it_even_when_others_certified_it() -> None:
    scene = Scene(4, RICH)
    one = scene.transfer("a", "b", 10, 1)
    rival = scene.transfer("a", "c", 10, 1, scene.genesis, after=None)
    scene.beat(0, 2, rival)
    certified = scene.beats(2, one, only=[1, 2, 3])
    follows = scene.transfer("a", "b", 1, 3, after=one)
    scene.beat(0, 4, follows, *certified)
    scene.beat(1, 4, follows, *certified, rival)
    # `one` is certified for both, so the equivocation below it no longer counts: only w0's own silence stops w0.
    assert scene.oracle.acknowledged(one, None) == {scene.w[1], scene.w[2], scene.w[3]}
    assert scene.oracle.acknowledged(follows, None) == {scene.w[1]}


def test_a_chain_seen_at_once_is_acknowledged_at_once() -> None:
    scene = Scene(1, RICH)
    one = scene.transfer("a", "b", 10, 1)
    two = scene.transfer("a", "b", 10, 2)
    seen = scene.beat(0, 3, two)
    assert scene.oracle.certified_set(cut(seen)) == {one, two}


def test_equivocation_of_other_kinds_blocks_as_well() -> None:
    scene = Scene(1, RICH)
    left = scene.add("a", "profile", {"name": "a", "about": ""}, 1)
    scene.add("a", "profile", {"name": "b", "about": ""}, 1, scene.genesis, after=None)
    paid = scene.transfer("a", "b", 10, 2, after=left)
    rival = next(one for one, op in scene.oracle.ops.items() if op.body.get("name") == "b")
    scene.beat(0, 3, paid, rival)
    assert scene.oracle.acknowledged(paid, None) == set()


# -- void --


def forked_bids() -> tuple[Scene, bytes, bytes]:
    scene, job, left = bid_scene()
    return scene, left, scene.bid("a", job, 6, 200, job, after=None)


def test_both_on_time_void_each_other() -> None:
    scene, left, right = forked_bids()
    scene.beats(D, left, right, only=[0, 1, 2])
    assert [scene.oracle.void_state(x, None) for x in (left, right)] == ["void", "void"]
    assert scene.oracle.void_state(left, cut(left)) == "clear"


def test_a_late_rival_voids_nothing() -> None:
    scene, left, right = forked_bids()
    scene.beats(D, left, only=[0, 1, 2])
    scene.beats(D + 2001, right, only=[0, 1, 2])
    assert [scene.oracle.status(x, D, None) for x in (left, right)] == ["ON_TIME", "LATE"]
    assert [scene.oracle.void_state(x, None) for x in (left, right)] == ["clear", "clear"]


def test_an_open_rival_leaves_both_undetermined() -> None:
    scene, left, right = forked_bids()
    scene.beats(D, left, only=[0, 1, 2])
    scene.beat(3, D, right)
    assert [scene.oracle.status(x, D, None) for x in (left, right)] == ["ON_TIME", "OPEN"]
    assert [scene.oracle.void_state(x, None) for x in (left, right)] == ["undetermined", "undetermined"]


def test_two_open_rivals_are_undetermined_and_a_late_one_is_clear() -> None:
    scene, left, right = forked_bids()
    scene.beat(0, D, left, right)
    assert [scene.oracle.void_state(x, None) for x in (left, right)] == ["undetermined", "undetermined"]


def test_a_late_op_is_clear_whatever_its_rival_is() -> None:
    scene, late, other = forked_bids()
    scene.beats(D, other, only=[0, 1])
    scene.beats(D + 2001, late, only=[2, 3])
    scene.beat(0, D + 2001, late)
    assert [scene.oracle.status(x, D, None) for x in (late, other)] == ["LATE", "OPEN"]
    assert [scene.oracle.void_state(x, None) for x in (late, other)] == ["clear", "clear"]


def test_bids_of_one_chain_and_bids_on_other_jobs_do_not_conflict() -> None:
    scene, job, first = bid_scene()
    lower = scene.bid("a", job, 4, 300)
    other_job = scene.job("b", 100, D, bounty=10, **FREE)
    elsewhere = scene.bid("a", other_job, 5, 300, other_job, after=first)
    scene.beats(D, lower, elsewhere)
    assert [scene.oracle.void_state(x, None) for x in (first, lower, elsewhere)] == ["clear"] * 3


# -- ticks --


def test_ticks_narrow_down() -> None:
    scene, _, bid = bid_scene(1)
    assert scene.oracle.arrival_ticks(bid, None) == (1, None)
    scene.beat(0, 2000)
    seen = scene.beat(0, 3000, bid)
    later = scene.beat(0, 3001)
    assert scene.oracle.arrival_ticks(bid, cut(seen)) == (2, 3)
    assert scene.oracle.arrival_ticks(bid, cut(later)) == (3, 3)


def test_ticks_of_an_op_that_nobody_covers() -> None:
    scene, _, bid = bid_scene(1)
    scene.beat(0, 5001)
    assert scene.oracle.arrival_ticks(bid, None) == (5, None)
    scene.beat(0, 5002)
    assert scene.oracle.arrival_ticks(bid, None) == (5, None)


def test_ticks_with_four_witnesses_and_the_staircase() -> None:
    scene, _, bid = bid_scene()
    one = scene.beat(0, 4000, bid)
    two = scene.beat(1, 5000, one)
    scene.beat(2, 6000, two)
    # Closed for 1,000 (times above 3,000) by all three, for 2,000 (above 4,000) by w1 and w2 only.
    assert scene.oracle.arrival_ticks(bid, None) == (2, 4)
    scene.beats(6001, bid)
    # Three of the four have it for 4,000. For 3,000 w1 and w2 had not, w3 saw it at 6,001 only, w0 covered it at 4,000.
    assert scene.oracle.arrival_ticks(bid, None) == (4, 4)
