"""A start from a snapshot and a tail, or from the blocks alone, gives the ledger that was."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from crdtchain.adapters.memory_store import MemoryStore
from crdtchain.adapters.opening import open_ledger, save_ledger
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE, Store
from crdtchain.errors import StoreError
from crdtchain.ledger.replay import replay
from crdtchain.ledger.snapshot import dump_ledger
from crdtchain.ledger.state import Ledger
from tests.builders import World


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.play_job("alice", {"bob": [90, 80], "carol": [85]}, {"carol": "cheat"})
    return world


@pytest_asyncio.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store: Store = SqliteStore(tmp_path) if request.param == "sqlite" else MemoryStore()
    await store.open()
    yield store
    await store.close()


def prefix(world: World, size: int) -> Ledger:
    return replay(world.genesis.op, [signed.op for signed in world.log[:size]])


@pytest.mark.asyncio
async def test_an_empty_store_holds_no_network(store: Store) -> None:
    with pytest.raises(StoreError, match="no network"):
        await open_ledger(store)


@pytest.mark.asyncio
@pytest.mark.parametrize("part", [1, 30, 1_000])
async def test_snapshot_and_tail_equal_a_rebuild(store: Store, world: World, part: int) -> None:
    await store.append(world.log[:part], durable=False)
    await save_ledger(store, prefix(world, part))
    await store.append(world.log[part:], durable=False)
    ledger = await open_ledger(store, world.network)
    assert dump_ledger(ledger) == dump_ledger(world.ledger)
    assert await store.load_snapshot() is not None
    await store.drop_snapshot()
    assert dump_ledger(await open_ledger(store)) == dump_ledger(world.ledger)


@pytest.mark.asyncio
async def test_a_snapshot_is_not_saved_before_its_ops(store: Store, world: World) -> None:
    await store.append(world.log[:10], durable=False)
    with pytest.raises(StoreError, match="after all its ops"):
        await save_ledger(store, prefix(world, 11))


@pytest.mark.asyncio
async def test_another_network_is_refused(store: Store, world: World) -> None:
    await store.append(world.log[:10], durable=False)
    with pytest.raises(StoreError, match="another network"):
        await open_ledger(store, World(seed="other").network)


@pytest.mark.asyncio
async def test_a_snapshot_that_does_not_fit_is_dropped_and_the_state_rebuilt(store: Store, world: World) -> None:
    await store.append(world.log, durable=False)
    other = World()
    other.say("alice", other.terms(title="Another job"))
    other.certify()
    size = len(other.log)
    whole = dump_ledger(prefix(world, 20))
    for position, data in (
        (size - 1, dump_ledger(other.ledger)),  # the same network, but ops that are not stored
        (30, whole),  # stands for fewer ops than it says
        (10, whole),
        (-1, whole),
        (10**6, whole),
        (19, whole[:-1]),
        (19, b"garbage"),
        (19, b""),
    ):
        await store.save_snapshot(position, data)
        assert dump_ledger(await open_ledger(store)) == dump_ledger(world.ledger)
        assert await store.load_snapshot() is None


@pytest.mark.asyncio
async def test_a_damaged_compressed_snapshot_is_dropped(tmp_path: Path, world: World) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.append(world.log, durable=True)
    await save_ledger(store, world.ledger)
    await store.close()
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        connection.execute("UPDATE snapshots SET data = substr(data, 1, 100)")
    await store.open()
    assert dump_ledger(await open_ledger(store)) == dump_ledger(world.ledger)
    assert await store.load_snapshot() is None
    await store.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("has_snapshot", [False, True])
async def test_a_block_that_changed_on_disk_is_noticed(tmp_path: Path, world: World, has_snapshot: bool) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.append(world.log, durable=True)
    if has_snapshot:
        await save_ledger(store, prefix(world, 20))
    await store.close()
    last = world.log[-1].block
    altered = last[:-1] + bytes([last[-1] ^ 1])
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        connection.execute("UPDATE ops SET block = ? WHERE position = ?", (altered, len(world.log) - 1))
    await store.open()
    with pytest.raises(StoreError, match="not what was stored"):
        await open_ledger(store)
    await store.close()
