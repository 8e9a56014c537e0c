"""The own clock against the peers': a median of distinct nodes, the chosen ones before the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.scalars import Author
from node.skew import Skew, find_bound_ms

NOW_MS = 1_800_000_000_000
MINUTES_5 = 300_000


def make_node(number: int) -> Author:
    return Author(number.to_bytes(32, "big"))


def make_skew(*offsets: int, chosen: int = 0) -> Skew:
    skew = Skew()
    for number, offset in enumerate(offsets):
        skew.note(f"peer-{number}", make_node(number), NOW_MS + offset, NOW_MS, number < chosen)
    return skew


def test_fewer_than_three_nodes_say_nothing_and_one_node_has_one_voice() -> None:
    skew = make_skew(900_000, 900_000)
    assert skew.median_ms() is None and skew.find_fault(MINUTES_5) == ""
    skew.note("peer-2", make_node(1), NOW_MS + 900_000, NOW_MS, False)
    assert skew.median_ms() is None
    skew.note("peer-3", make_node(2), NOW_MS + 900_000, NOW_MS, False)
    assert skew.median_ms() == 900_000
    skew.forget("peer-3")
    skew.forget("peer-3")
    assert skew.median_ms() is None


def test_a_witness_stops_when_its_clock_is_off_and_is_told_by_how_much() -> None:
    assert make_skew(0, MINUTES_5, MINUTES_5).find_fault(2 * MINUTES_5) == ""
    fault = make_skew(0, MINUTES_5 + 1, 400_000).find_fault(2 * MINUTES_5)
    assert fault == "the clock is 300 s behind those of 3 peers; set it right"
    assert "ahead of" in make_skew(0, -400_000, -400_000).find_fault(MINUTES_5)


def test_the_bound_is_delta_but_never_below_a_minute() -> None:
    assert [find_bound_ms(delta) for delta in (200, 60_000, 120_000, 10**9)] == [60_000, 60_000, 120_000, 300_000]


def test_broken_clocks_are_left_out() -> None:
    year = 365 * 24 * 3_600_000
    assert make_skew(10, 20, 30, year, -year, year, year, year).median_ms() == 20
    assert make_skew(10, 20, year).median_ms() is None


def test_strangers_do_not_outvote_the_peers_that_were_chosen() -> None:
    assert make_skew(1, 2, 3, *([900_000] * 60), chosen=3).median_ms() == 2
    assert make_skew(1, 2, *([900_000] * 60), chosen=2).median_ms() == 900_000


@given(st.lists(st.integers(-1_000, 1_000), min_size=3, max_size=20), st.data())
def test_the_median_lies_among_the_honest_ones_while_they_are_most(honest: list[int], data: st.DataObject) -> None:
    liars = data.draw(st.lists(st.integers(-(10**12), 10**12), max_size=len(honest) - 1))
    skew = make_skew(*data.draw(st.permutations(honest + liars)))
    median = skew.median_ms()
    assert median is not None and min(honest) <= median <= max(honest)
    assert skew.find_fault(limits.SKEW_MAX_MS) == ""
