"""Token buckets, one for all and one for each of many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.pace import SWEEP_S, Allowances, Bucket


def test_a_burst_passes_at_once_and_what_is_above_waits_for_its_share() -> None:
    now = [100.0]
    bucket = Bucket(rate=10, burst=50, now_s=lambda: now[0])
    assert bucket.take(50) == 0
    assert bucket.take(10) == 1
    now[0] += 1
    assert bucket.take(5) == 0.5
    now[0] += 100
    assert bucket.take(50) == 0
    assert bucket.take(1) == 0.1


def test_what_is_not_there_is_not_taken() -> None:
    now = [100.0]
    bucket = Bucket(rate=1, burst=3, now_s=lambda: now[0])
    assert [bucket.take_if(1) for _ in range(5)] == [True, True, True, False, False]
    now[0] += 1
    assert [bucket.take_if(1) for _ in range(2)] == [True, False]
    now[0] -= 50
    assert not bucket.take_if(1)


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 3)), max_size=300), st.booleans())
def test_no_key_ever_takes_more_than_its_burst_and_its_rate(turns: list[tuple[int, float]], is_full: bool) -> None:
    rate, burst, now = 4.0, 10.0, [1_000.0]
    allowances = Allowances(rate, burst, keys_max=3 if is_full else 100, now_s=lambda: now[0])
    taken: dict[int, list[float]] = {}
    latest = now[0]
    for key, pause_s in turns:
        now[0] += pause_s
        latest = max(latest, now[0])
        if allowances.take_if(bytes([key])):
            taken.setdefault(key, []).append(latest)
        assert len(allowances) <= (3 if is_full else 100)
    for times in taken.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                # A clock that goes back gives back nothing that was taken.
                assert last - first + 1 <= burst + (times[last] - times[first]) * rate + 1e-3


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.25, 3)), max_size=200))
def test_who_keeps_to_its_rate_is_never_refused(turns: list[tuple[int, float]]) -> None:
    now = [1_000.0]
    allowances = Allowances(4.0, 10.0, keys_max=100, now_s=lambda: now[0])
    for key, pause_s in turns:
        now[0] += pause_s
        assert allowances.take_if(bytes([key]))


def test_keys_whose_buckets_are_full_again_make_room_for_others() -> None:
    now = [0.0]
    allowances = Allowances(10.0, 20.0, keys_max=2, now_s=lambda: now[0])
    assert allowances.take_if(b"a") and allowances.take_if(b"b")
    assert allowances.take_if(b"c") is None
    now[0] += SWEEP_S
    assert allowances.take_if(b"c") and len(allowances) == 1
