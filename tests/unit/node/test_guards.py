"""The limits of one node put together, over a real runtime and a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crdtchain import limits
from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.penalties import SqlitePenalties
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.ledger.state import Ledger
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author
from node.clock import Clock
from node.counters import DEFERRED, QUOTA_REFUSED
from node.guards import Guards
from node.room import LOOK_S
from node.runtime import Runtime
from tests.builders import START_MS, World

GIB = 2**30


@asynccontextmanager
async def open_guards(
    folder: Path, world: World, now_ms: list[int], quota_bytes: int = GIB, is_witness: bool = False
) -> AsyncIterator[tuple[Guards, Runtime, SqliteStore]]:
    store = SqliteStore(folder)
    await store.open()
    clock = Clock(wall_ms=lambda: now_ms[0], monotonic_ms=lambda: now_ms[0])
    key = SigningKey(world._keys["w0"][1][:32]) if is_witness else SigningKey.generate()
    runtime = Runtime(Ledger(world.genesis.op), store, key, is_witness, clock)
    await store.append([world.genesis], durable=True)
    rows = await SqlitePenalties.of(store).load()
    guards = Guards(runtime, lambda op: [], store.path, quota_bytes, rows)
    task = asyncio.create_task(runtime.run())
    try:
        yield guards, runtime, store
    finally:
        await runtime.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


async def wait_until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_done():
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_held_ops_are_taken_when_their_time_has_come_and_broken_rules_are_saved(tmp_path: Path) -> None:
    world, now_ms = World(), [START_MS]
    world.advance(limits.AHEAD_TAKE_MS + 60_000)
    transfer = world.transfer("alice", "bob", 1)
    async with open_guards(tmp_path, world, now_ms) as (guards, runtime, store):
        assert guards.admit([world.find(transfer)], "peer-1") == []
        taken: list[tuple[Sequence[SignedOp], str]] = []

        async def take(ops: Sequence[SignedOp], source: str) -> None:
            taken.append((ops, source))
            await (await runtime.take(ops, source))[1]

        for _ in range(3):
            guards.scores.note(["addr:203.0.113.7"], now_ms[0])
        guards._saved_s -= 60
        task = asyncio.create_task(guards.run(take, SqlitePenalties.of(store)))
        try:
            await wait_until(lambda: not guards.scores.is_changed)
            assert not taken and transfer not in runtime.ledger
            now_ms[0] += 60_000
            await wait_until(lambda: transfer in runtime.ledger)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert taken == [([world.find(transfer)], "peer-1")]
        assert "crdtchain_held_ops 0" in guards.counters.render().splitlines()
    async with open_guards(tmp_path, world, now_ms) as (guards, _, _):
        assert guards.gate._scores.wait_ms(["addr:203.0.113.7"], START_MS) > 0


@pytest.mark.asyncio
async def test_above_the_quota_others_ops_are_neither_taken_nor_asked_for(tmp_path: Path) -> None:
    world, now_ms = World(), [START_MS]
    transfer = world.find(world.transfer("alice", "bob", 1))
    async with open_guards(tmp_path, world, now_ms, quota_bytes=1) as (guards, _, _):
        assert guards.admit([transfer], "peer-1") == [] and not guards.may_pull("peer-1")
        assert guards.counters.get(QUOTA_REFUSED, "ops") == 1
        guards.room._quota_bytes = GIB
        guards.room._looked_s -= LOOK_S
        assert guards.admit([transfer], "peer-1") == [transfer] and guards.may_pull("peer-1")


@pytest.mark.asyncio
async def test_a_peer_that_offered_too_much_is_asked_later_unless_one_of_standing_needs_it(tmp_path: Path) -> None:
    world, now_ms = World(), [START_MS]
    for _ in range(limits.AUTHOR_OPS_BURST + 1):
        world.transfer("alice", "bob", 1)
    flood, beat = world.log[1:], world.beat_all(names=["w1"])[0]
    async with open_guards(tmp_path, world, now_ms) as (guards, runtime, _):
        guards._find_waiters = lambda op: [beat.op] if op in beat.op.parents else []
        taken = guards.admit(flood, "peer-1")
        await (await runtime.take(taken, "peer-1"))[1]
        # The beat waits for the last one, so that one is needed, and the one before it with it.
        assert len(taken) == limits.AUTHOR_OPS_BURST + 1 and guards.may_pull("peer-1")
        guards._find_waiters = lambda op: []
        more = [world.find(world.transfer("alice", "bob", 1)) for _ in range(5)]
        assert guards.admit(more, "peer-1") == []
        assert guards.counters.get(DEFERRED, "author") == 1 and guards.counters.get(DEFERRED, "chain") == 4
        assert not guards.may_want("peer-1", [flood[0].op.id]) and guards.may_want("peer-2", [flood[0].op.id])
        guards._find_waiters = lambda op: [beat.op]
        assert guards.may_want("peer-1", [flood[0].op.id])
        assert not guards.may_pull("peer-1") and guards.may_pull("peer-2") and guards.may_pull("peer-1", True)
        guards.forget("peer-1")
        assert guards.may_pull("peer-1")


@pytest.mark.asyncio
async def test_a_witness_stops_while_its_clock_is_off_and_then_goes_on(tmp_path: Path) -> None:
    world, now_ms = World(delta_ms=300_000, tick_ms=300_000, expiry_ms=3_600_000), [START_MS]
    async with open_guards(tmp_path, world, now_ms, is_witness=True) as (guards, runtime, _):
        for number in range(3):
            guards.note_ready(f"peer-{number}", Author(bytes([number]) * 32), START_MS + 400_000, True)
        guards._watch_clock()
        assert runtime.duty_stopped.startswith("the clock is 400 s behind those of 3 peers")
        guards.forget("peer-2")
        guards._watch_clock()
        assert runtime.duty_stopped == ""
        runtime.duty_stopped = "another reason"
        guards.note_ready("peer-2", Author(bytes([2]) * 32), START_MS + 400_000, True)
        guards._watch_clock()
        assert runtime.duty_stopped == "another reason"
