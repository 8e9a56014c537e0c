"""The quota of the database: measured on real files, refused above its part, and recovered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE
from node.counters import QUOTA_REFUSED, Counters
from node.room import LOOK_S, Room, is_scarce


def test_files_are_added_up_and_looked_at_once_a_second(tmp_path: Path) -> None:
    now_s, counters = [0.0], Counters()
    room = Room(tmp_path / STORE_FILE, 1_000, counters, lambda: now_s[0])
    assert not room.refuses("ops") and room.used_bytes == 0
    (tmp_path / STORE_FILE).write_bytes(bytes(800))
    (tmp_path / f"{STORE_FILE}-wal").write_bytes(bytes(100))
    assert not room.is_scarce()
    now_s[0] += LOOK_S
    assert room.refuses("ops") and room.refuses("blobs") and room.used_bytes == 900
    assert counters.get(QUOTA_REFUSED, "ops") == counters.get(QUOTA_REFUSED, "blobs") == 1
    (tmp_path / f"{STORE_FILE}-wal").write_bytes(bytes(99))
    assert room.is_scarce()
    now_s[0] += LOOK_S
    assert not room.refuses("ops") and counters.get(QUOTA_REFUSED, "ops") == 1


def test_a_folder_that_is_gone_refuses_nothing(tmp_path: Path) -> None:
    assert not Room(tmp_path / "gone" / STORE_FILE, 1, Counters()).is_scarce()


@pytest.mark.asyncio
async def test_the_files_are_those_that_the_store_writes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    try:
        await store.set_meta("note", bytes(100_000))
        assert Room(store.path, 110_000, Counters()).is_scarce()
        assert not Room(store.path, 10**9, Counters()).is_scarce()
    finally:
        await store.close()


@given(st.integers(0, 2**50), st.integers(0, 2**50), st.integers(1, 2**50))
def test_room_is_scarce_from_nine_tenths_of_what_there_may_be(used: int, free: int, quota: int) -> None:
    assert is_scarce(used, free, quota) == (used >= 0.9 * quota or used >= 9 * free)
    if is_scarce(used, free, quota):
        assert is_scarce(used + 1, max(0, free - 1), quota)
