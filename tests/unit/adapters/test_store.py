"""One acceptance suite for both stores, and what only the one on disk can show."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from crdtchain.adapters.data_folder import DataFolderLock
from crdtchain.adapters.memory_store import MemoryStore
from crdtchain.adapters.sqlite_schema import MIGRATIONS
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE, Store
from crdtchain.codec import compute_blob_id
from crdtchain.errors import StoreBusyError, StoreError, StoreVersionError
from crdtchain.ops import Beat, SignedOp
from crdtchain.scalars import BlobId, OpId
from tests.builders import World, make_blob_link

UNKNOWN = OpId(bytes.fromhex("01711220") + bytes(32))


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.play_job("alice", {"bob": [90, 80], "carol": [85]})
    return world


@pytest_asyncio.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store: Store = SqliteStore(tmp_path / "data") if request.param == "sqlite" else MemoryStore()
    await store.open()
    yield store
    await store.close()


async def all_blocks(store: Store) -> list[bytes]:
    return [block for _, block in await store.read(-1, 1_000_000)]


@pytest.mark.asyncio
async def test_a_new_store_is_empty(store: Store) -> None:
    assert await store.count() == 0
    assert await store.read(-1, 10) == []
    assert await store.ids(10) == []
    assert await store.load_snapshot() is None
    assert await store.get_blocks([UNKNOWN]) == [None]
    assert await store.find_position(UNKNOWN) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_ops_come_back_in_the_order_in_which_they_were_appended(store: Store, world: World, size: int) -> None:
    for start in range(0, len(world.log), size):
        await store.append(world.log[start : start + size], durable=start % 2 == 0)
    assert await store.count() == len(world.log)
    assert await all_blocks(store) == [signed.block for signed in world.log]
    assert await store.ids(10_000) == [signed.op.id for signed in world.log]
    assert await store.ids(5) == [signed.op.id for signed in world.log[:5]]


@pytest.mark.asyncio
async def test_pages_of_a_read_join_without_gap_or_overlap(store: Store, world: World) -> None:
    await store.append(world.log, durable=False)
    pages: list[tuple[int, bytes]] = []
    while page := await store.read(pages[-1][0] if pages else -1, 7):
        assert len(page) <= 7
        pages.extend(page)
    assert pages == list(enumerate(signed.block for signed in world.log))


@pytest.mark.asyncio
async def test_blocks_are_found_by_id_and_unknown_ids_are_none(store: Store, world: World) -> None:
    await store.append(world.log, durable=False)
    last, first = world.log[-1], world.log[0]
    assert await store.get_blocks([last.op.id, UNKNOWN, first.op.id]) == [last.block, None, first.block]
    assert await store.find_position(last.op.id) == len(world.log) - 1


@pytest.mark.asyncio
@pytest.mark.parametrize("durable", [False, True])
async def test_appending_again_changes_nothing(store: Store, world: World, durable: bool) -> None:
    half = len(world.log) // 2
    await store.append(world.log[:half], durable=False)
    await store.append([*world.log[: half + 5], *world.log[half : half + 5]], durable=durable)
    await store.append(world.log[half:], durable=durable)
    await store.append(world.log, durable=durable)
    assert await all_blocks(store) == [signed.block for signed in world.log]
    tip = await store.own_tip(world.key("alice"))
    assert tip is not None and tip.branches == 1


@pytest.mark.asyncio
async def test_links_are_the_positions_of_prev_and_parents(store: Store, world: World) -> None:
    await store.append(world.log[:10], durable=False)
    await store.append(world.log[10:], durable=False)
    for position in range(len(world.log)):
        assert await store.links(position) == sorted(world.ledger.dag.links(position))
    assert await store.links(len(world.log)) == []


@pytest.mark.asyncio
async def test_an_op_whose_link_is_missing_is_refused_with_its_whole_batch(store: Store, world: World) -> None:
    await store.append(world.log[:3], durable=False)
    with pytest.raises(StoreError, match="lacks one of its links"):
        await store.append([world.log[3], world.log[-1]], durable=True)
    assert await store.count() == 3
    await store.append(world.log[3:], durable=True)
    assert await store.count() == len(world.log)


@pytest.mark.asyncio
async def test_the_tip_of_a_chain_is_its_last_op_also_within_a_batch(store: Store, world: World) -> None:
    await store.append(world.log[:-3], durable=False)
    await store.append(world.log[-3:], durable=False)
    for name in ("alice", "bob", "w0", "w3"):
        expected, tip = world.tip(name), await store.own_tip(world.key(name))
        assert expected is not None and tip is not None
        assert (tip.op, tip.seq, tip.branches) == (expected.op.id, expected.op.seq, 1)
    assert await store.own_tip(world.key("nobody")) is None


@pytest.mark.asyncio
async def test_the_tip_of_a_forked_chain_is_that_of_its_longest_branch(store: Store) -> None:
    world = World()
    base = world.say("w1", Beat())
    longer = world.say("w1", Beat(), time=world.now + 1, prev=base)
    last = world.say("w1", Beat(), prev=longer)
    world.say("w1", Beat(), time=world.now + 2, prev=base)
    await store.append(world.log, durable=False)
    tip = await store.own_tip(world.key("w1"))
    assert tip is not None and (tip.op, tip.seq, tip.branches) == (last.op.id, 2, 2)


@pytest.mark.asyncio
async def test_a_snapshot_replaces_the_one_before(store: Store) -> None:
    await store.save_snapshot(3, b"old")
    await store.save_snapshot(7, bytes(range(256)) * 1_000)
    assert await store.load_snapshot() == (7, bytes(range(256)) * 1_000)
    await store.drop_snapshot()
    assert await store.load_snapshot() is None


@pytest.mark.asyncio
async def test_notes_are_kept_by_key(store: Store) -> None:
    assert await store.get_meta("network") is None
    await store.set_meta("network", b"one")
    await store.set_meta("network", b"two")
    await store.set_meta("clock", b"")
    assert await store.get_meta("network") == b"two"
    assert await store.get_meta("clock") == b""


@pytest.mark.asyncio
async def test_the_blob_index_counts_what_it_lists(store: Store) -> None:
    one, two = BlobId(bytes(make_blob_link("one"))), compute_blob_id(b"two")
    await store.blobs.put(two, 30, 2, "partial")
    await store.blobs.put(one, 12, 1)
    assert await store.blobs.has(one) and not await store.blobs.has(two)
    await store.blobs.put(two, 40, 9)
    assert await store.blobs.has(two)
    assert [(row.cid, row.size, row.added_ms) for row in await store.blobs.list()] == [(one, 12, 1), (two, 40, 2)]
    assert await store.blobs.total_bytes() == 52
    await store.blobs.remove(one)
    await store.blobs.remove(one)
    assert await store.blobs.find(one) is None
    assert await store.blobs.total_bytes() == 40


@pytest.mark.asyncio
async def test_a_closed_store_refuses_everything_and_opens_again_as_it_was(store: Store, world: World) -> None:
    await store.append(world.log[:5], durable=False)
    await store.set_meta("note", b"kept")
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="not open"):
        await store.append(world.log[5:6], durable=False)
    with pytest.raises(StoreError, match="not open"):
        await store.blobs.total_bytes()
    await store.open()
    await store.open()
    assert await all_blocks(store) == [signed.block for signed in world.log[:5]]
    assert await store.get_meta("note") == b"kept"
    await store.append(world.log[5:], durable=False)
    assert await store.count() == len(world.log)


@pytest.mark.asyncio
async def test_many_tasks_may_use_a_store_at_once(store: Store, world: World) -> None:
    async def write(part: list[SignedOp]) -> None:
        await store.append(part, durable=False)

    await write(world.log[:40])
    async with asyncio.TaskGroup() as group:
        for start in range(40, len(world.log), 3):
            group.create_task(write(world.log[start : start + 3]))
            group.create_task(store.get_blocks([world.log[start].op.id]))
    assert await all_blocks(store) == [signed.block for signed in world.log]


# -- only on disk --


@pytest.mark.asyncio
async def test_a_data_folder_serves_one_store_at_a_time(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path), SqliteStore(tmp_path)
    await first.open()
    with pytest.raises(StoreBusyError, match="another crdtchain process"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


@pytest.mark.asyncio
async def test_a_store_may_use_a_lock_that_its_caller_holds(tmp_path: Path) -> None:
    with DataFolderLock(tmp_path) as lock:
        store = SqliteStore(tmp_path, lock)
        await store.open()
        await store.close()
        assert lock.is_held
        with pytest.raises(StoreBusyError):
            await SqliteStore(tmp_path).open()
    assert not lock.is_held


@pytest.mark.asyncio
async def test_a_cancelled_append_leaves_no_open_transaction(tmp_path: Path, world: World) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    task = asyncio.create_task(store.append(world.log[:20], durable=True))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.append(world.log, durable=True)
    assert await all_blocks(store) == [signed.block for signed in world.log]
    await store.close()


@pytest.mark.asyncio
async def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.close()
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = (tmp_path / STORE_FILE).read_bytes()
    with pytest.raises(StoreVersionError, match="use a newer one"):
        await SqliteStore(tmp_path).open()
    assert (tmp_path / STORE_FILE).read_bytes() == before


@pytest.mark.asyncio
async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreError, match="another program"):
        await SqliteStore(tmp_path).open()


@pytest.mark.asyncio
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / STORE_FILE).write_bytes(b"not a database at all" * 1_000)
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="damaged"):
        await store.open()
    (tmp_path / STORE_FILE).unlink()
    await store.open()
    await store.close()


@pytest.mark.asyncio
async def test_a_database_that_cannot_be_opened_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / STORE_FILE).mkdir()
    store = SqliteStore(tmp_path)
    with pytest.raises(StoreError, match="can't be opened"):
        await store.open()
    (tmp_path / STORE_FILE).rmdir()
    await store.open()
    await store.close()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="can't be used"):
        await SqliteStore(tmp_path / "file").open()


@pytest.mark.asyncio
async def test_a_damaged_database_gives_store_errors_and_nothing_else(tmp_path: Path, world: World) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.append(world.log, durable=True)
    await store.close()
    path = tmp_path / STORE_FILE
    data = bytearray(path.read_bytes())
    ids = [signed.op.id for signed in world.log]
    refused = 0
    for start in range(4_096, len(data), 4_096):
        path.write_bytes(data[:start] + os.urandom(2_048) + data[start + 2_048 :])
        damaged = SqliteStore(tmp_path)
        try:
            await damaged.open()
            blocks = await damaged.get_blocks(ids)
            # Where no error is raised, each block is whole or not found.
            assert all(found in (None, signed.block) for found, signed in zip(blocks, world.log, strict=True))
        except StoreError:
            refused += 1
        finally:
            await damaged.close()
    assert refused > 3


@pytest.mark.asyncio
async def test_the_database_and_its_folder_are_the_owners_alone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data")
    await store.open()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / STORE_FILE).stat().st_mode & 0o777 == 0o600
    await store.close()


@pytest.mark.asyncio
async def test_an_op_costs_less_than_200_bytes_beyond_its_block(tmp_path: Path, world: World) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    empty = (tmp_path / STORE_FILE).stat().st_size
    history = World(seed="size")
    for number in range(1_500):
        history.say(f"w{number % 4}", Beat(), parents=history.witness_tips(f"w{number % 4}"))
    await store.append(history.log, durable=True)
    await store.close()
    used = (tmp_path / STORE_FILE).stat().st_size - empty
    blocks = sum(len(signed.block) for signed in history.log)
    assert used - blocks < 200 * len(history.log)
