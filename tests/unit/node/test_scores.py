"""Broken rules: they grow with the square, decay, outlive a run, and stay within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.adapters.penalties import PenaltyRow, SqlitePenalties
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.scalars import Author
from node.counters import PENALTIES, Counters
from node.scores import Scores, address_key, node_key

NOW_MS = 1_800_000_000_000
KEY = node_key(Author(bytes(32)))


def test_one_broken_rule_keeps_nobody_out_and_more_keep_out_for_a_growing_while() -> None:
    counters = Counters()
    scores = Scores(counters)
    waits = []
    for _ in range(20):
        scores.note([KEY, None], NOW_MS)
        waits.append(scores.wait_ms([KEY], NOW_MS))
    assert waits[:4] == [0, 60_000, 135_000, 240_000]
    assert waits == sorted(waits) and waits[-1] == limits.PENALTY_MAX_MS
    assert scores.score(KEY, NOW_MS) == 400
    assert scores.wait_ms([KEY], NOW_MS + limits.PENALTY_MAX_MS) == 0
    assert counters.get(PENALTIES, "node") == 20 and counters.get(PENALTIES, "address") == 0


def test_broken_rules_count_half_after_an_hour() -> None:
    scores = Scores(Counters())
    for _ in range(4):
        scores.note([KEY], NOW_MS)
    assert scores.score(KEY, NOW_MS + limits.PENALTY_HALF_LIFE_MS) == pytest.approx(4)
    assert scores.score(KEY, NOW_MS + 10 * limits.PENALTY_HALF_LIFE_MS) < 0.001
    # One slip a day is never too much.
    scores = Scores(Counters())
    for day in range(30):
        scores.note([KEY], NOW_MS + day * 24 * 3_600_000)
        assert scores.wait_ms([KEY], NOW_MS + day * 24 * 3_600_000) == 0


def test_a_clock_that_was_wrong_keeps_nobody_out_for_years() -> None:
    scores, year_ms = Scores(Counters()), 365 * 24 * 3_600_000
    for _ in range(3):
        scores.note([KEY], NOW_MS + year_ms)
    assert scores.wait_ms([KEY], NOW_MS) == 135_000
    assert scores.wait_ms([KEY], NOW_MS + 135_000) == 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("127.0.0.1", None),
        ("127.8.8.8", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("", None),
        ("a.name", None),
        ("203.0.113.7", "addr:203.0.113.7"),
        ("::ffff:203.0.113.7", "addr:203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "addr:2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "addr:2001:db8:1:2::/64"),
        ("fe80::1%eth0", "addr:fe80::/64"),
    ],
)
def test_addresses_have_keys_by_who_owns_them(address: str, key: str | None) -> None:
    assert address_key(address) == key


def test_rows_are_bounded_and_the_least_burdened_are_forgotten() -> None:
    scores = Scores(Counters())
    for _ in range(3):
        scores.note([KEY], NOW_MS)
    for number in range(3 * limits.PENALTIES_MAX):
        scores.note([f"addr:{number}"], NOW_MS)
        assert len(scores) <= limits.PENALTIES_MAX
    assert scores.score(KEY, NOW_MS) == 9


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(-10_000_000, 10_000_000)),
        max_size=60,
    )
)
def test_whatever_comes_in_whatever_time_waits_are_bounded_and_survive_a_dump(rows: list[tuple[int, int]]) -> None:
    scores, now_ms = Scores(Counters()), NOW_MS
    for number, step_ms in rows:
        now_ms += step_ms
        before = scores.score(f"addr:{number}", now_ms)
        scores.note([f"addr:{number}"], now_ms)
        assert scores.score(f"addr:{number}", now_ms) > before
        assert 0 <= scores.wait_ms([f"addr:{number}"], now_ms) <= limits.PENALTY_MAX_MS
    dumped = scores.dump(now_ms)
    again = Scores(Counters(), dumped)
    assert not scores.is_changed and [row.key for row in dumped] == sorted(row.key for row in dumped)
    for number in range(6):
        key = f"addr:{number}"
        assert again.wait_ms([key], now_ms) == scores.wait_ms([key], now_ms)
        assert again.score(key, now_ms) == pytest.approx(scores.score(key, now_ms), rel=0.1, abs=0.02)


@pytest.mark.asyncio
async def test_rows_are_kept_in_the_database_of_the_ledger(tmp_path: Path) -> None:
    scores = Scores(Counters())
    for _ in range(3):
        scores.note([KEY, "addr:203.0.113.7"], NOW_MS)
    store = SqliteStore(tmp_path)
    await store.open()
    try:
        await SqlitePenalties.of(store).save([PenaltyRow("addr:203.0.113.9", 1_000, NOW_MS, 0)])
        await SqlitePenalties.of(store).save(scores.dump(NOW_MS))
    finally:
        await store.close()
    store = SqliteStore(tmp_path)
    await store.open()
    try:
        again = Scores(Counters(), await SqlitePenalties.of(store).load())
    finally:
        await store.close()
    assert len(again) == 2
    assert again.wait_ms([KEY], NOW_MS) == again.wait_ms(["addr:203.0.113.7"], NOW_MS) == 135_000
