"""A node within this process: full disks, jumping clocks, slow listeners, half-finished requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.memory_store import MemoryStore
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.errors import RuleError, StoreBusyError, StoreFullError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Genesis, Kind, Profile, SignedOp, Transfer
from crdtchain.scalars import Author
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.signing import GENESIS_NETWORK, signing_bytes
from node.clock import Clock
from node.config import Settings
from node.datadir import PEERS_FILE, PEERS_HEADER, create_data, found_network
from node.events import Broadcaster, Missed, OpAdded
from node.node import Node
from node.runtime import Runtime
from tests.integration.node_process import wait_until

pytestmark = pytest.mark.integration


@asynccontextmanager
async def open_node(folder: Path, witness: bool = False) -> AsyncIterator[Node]:
    async with Node.open(folder, Settings(witness=witness)) as node:
        yield node


async def make_folder(folder: Path) -> Path:
    key = create_data(folder)
    await found_network(folder, "a test", grants={Author(key.author): 1_000}, delta_ms=100, tick_ms=100)
    return folder


async def limit_pages(node: Node, more: int | None) -> None:
    """Let the database grow by so many pages at most; None: as it likes."""
    assert isinstance(node.store, SqliteStore)

    def limit(connection: object) -> None:
        (count,) = connection.execute("PRAGMA page_count").fetchone()  # type: ignore[attr-defined]
        connection.execute(f"PRAGMA max_page_count = {2**30 if more is None else count + more}")  # type: ignore[attr-defined]

    await node.store._call(limit)


@pytest.mark.asyncio
async def test_a_full_disk_refuses_own_ops_uses_no_seq_and_recovers(tmp_path: Path) -> None:
    folder = await make_folder(tmp_path / "data")
    async with open_node(folder) as node:
        await node.runtime.submit(Profile(name="before", about=""))
        await limit_pages(node, 1)
        written: list[SignedOp] = []
        with pytest.raises(StoreFullError):
            await fill(node, written)
        held = len(node.runtime.ledger)
        assert held == 2 + len(written)
        writer = node.runtime.writer
        assert writer.is_full
        with pytest.raises(StoreFullError):
            await node.runtime.submit(Profile(name="more", about="x" * 1_000))
        assert len(node.runtime.ledger) == held == await node.store.count()
        assert len(await node.read_blocks([signed.op.id for signed in written])) == len(written)
        await limit_pages(node, None)
        after = await node.runtime.submit(Profile(name="after", about=""))
        assert after.op.seq == held and writer.stored_count == held
    async with open_node(folder) as node:
        assert len(node.runtime.ledger) == held + 1
        assert node.runtime.ledger.dag.chains.find_equivocation(0) is None


async def fill(node: Node, written: list[SignedOp]) -> None:
    """Write until something is refused."""
    for number in range(200):
        signed = await node.runtime.submit(Profile(name="filling", about="x" * 900 + str(number)))
        written.append(signed)


@pytest.mark.asyncio
async def test_foreign_ops_wait_for_room_and_are_stored_before_what_links_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key, other = create_data(folder), SigningKey.generate()
    grants = {Author(key.author): 1_000, Author(other.author): 1_000}
    genesis = await found_network(folder, "a test", grants=grants, delta_ms=100, tick_ms=100)
    async with open_node(folder) as node:
        await limit_pages(node, 0)
        prev, foreign = None, list[SignedOp]()
        for number in range(40):
            body = Profile(name="foreign", about="x" * 900)
            parents = [] if prev else [genesis.op.id]
            payload = encode_payload(other.author, number, prev, parents, number, body)
            signed = decode_op(join_block(payload, other.sign(signing_bytes(genesis.op.id, payload))))
            foreign.append(signed)
            prev = signed.op.id
        rejected, stored = await node.runtime.take(foreign, "a peer")
        assert rejected == []
        await wait_until(_is(lambda: node.runtime.writer.is_full), "the disk is full")
        with pytest.raises(StoreFullError):
            await node.runtime.submit(Profile(name="own", about=""))
        assert not stored.done()
        await limit_pages(node, None)
        own = await node.runtime.submit(Profile(name="own", about=""))
        assert stored.done() and foreign[-1].op.id in own.op.parents
        assert await node.store.count() == 42


def _is(holds: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return bool(holds())

    return check


@pytest.mark.asyncio
async def test_a_folder_is_used_by_one_node_at_a_time(tmp_path: Path) -> None:
    folder = await make_folder(tmp_path / "data")
    async with open_node(folder):
        with pytest.raises(StoreBusyError):
            async with open_node(folder):
                pass
    empty = tmp_path / "empty"
    create_data(empty)
    with pytest.raises(UsageError, match="no network"):
        async with open_node(empty):
            pass


@pytest.mark.asyncio
async def test_a_request_that_goes_away_leaves_no_op_half_signed(tmp_path: Path) -> None:
    folder = await make_folder(tmp_path / "data")
    async with open_node(folder) as node:
        for number in range(20):
            task = asyncio.ensure_future(node.runtime.submit(Profile(name="gone", about=str(number))))
            await asyncio.sleep(0.0002 * number)
            task.cancel()
        last = await node.runtime.submit(Profile(name="stays", about=""))
        assert last.op.seq == len(node.runtime.ledger) - 1 == await node.store.count() - 1
        assert node.runtime.ledger.dag.chains.find_equivocation(0) is None


@pytest.mark.asyncio
async def test_own_ops_at_once_are_one_chain(tmp_path: Path) -> None:
    folder = await make_folder(tmp_path / "data")
    async with open_node(folder, witness=True) as node:
        receiver = bytes(SigningKey.generate().author)
        bodies = [Transfer(to=receiver, amount=400, memo=None) for _ in range(5)]
        found = await asyncio.gather(*(node.runtime.submit(body) for body in bodies), return_exceptions=True)
        assert sum(isinstance(one, SignedOp) for one in found) == 2
        assert sum(isinstance(one, RuleError) and one.code == "balance" for one in found) == 3


class Times:
    """A wall clock and a monotonic one, set by the test."""

    def __init__(self) -> None:
        self.start_ms = time.time_ns() // 1_000_000
        self.wall_moved_ms = 0

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.wall_moved_ms

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000


@pytest.mark.asyncio
async def test_a_witness_whose_clock_jumps_stops_its_duty_and_says_so() -> None:
    key, other, times = SigningKey.generate(), SigningKey.generate(), Times()
    genesis = make_genesis(key, other)
    store = MemoryStore()
    await store.open()
    await store.append([genesis], durable=True)
    clock = Clock(times.wall_ms, times.monotonic_ms)
    runtime = Runtime(Ledger(genesis.op), store, key, is_witness=True, clock=clock, debounce_ms=10)
    running = asyncio.ensure_future(runtime.run())
    prev = await say(runtime, genesis, other, None, 0)

    async def has_beaten() -> bool:
        return Kind.BEAT in [runtime.ledger.dag.kind(number) for number in range(len(runtime.ledger))]

    await wait_until(has_beaten, "the witness beats")
    times.wall_moved_ms = -70_000
    prev = await say(runtime, genesis, other, prev, 1)
    await wait_until(_is(lambda: "jumped by -70 s" in runtime.duty_stopped), "the witness stops")
    held = len(runtime.ledger)
    prev = await say(runtime, genesis, other, prev, 2)
    await asyncio.sleep(0.2)
    assert len(runtime.ledger) == held + 1
    await runtime.stop()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await store.close()


def make_genesis(key: SigningKey, other: SigningKey) -> SignedOp:
    grants = tuple(sorted((bytes(one.author), 100) for one in (key, other)))
    body = Genesis("a test", (bytes(key.author),), grants, 1, 1, 1, 100, 100, 60_000)
    payload = encode_payload(key.author, 0, None, (), time.time_ns() // 1_000_000, body)
    return decode_op(join_block(payload, key.sign(signing_bytes(GENESIS_NETWORK, payload))))


async def say(runtime: Runtime, genesis: SignedOp, key: SigningKey, prev: SignedOp | None, seq: int) -> SignedOp:
    """Let another author say something that the runtime receives."""
    payload = encode_payload(
        key.author,
        seq,
        None if prev is None else prev.op.id,
        [] if prev else [genesis.op.id],
        time.time_ns() // 1_000_000,
        Profile(name="other", about=str(seq)),
    )
    signed = decode_op(join_block(payload, key.sign(signing_bytes(genesis.op.id, payload))))
    rejected, stored = await runtime.take([signed], "a peer")
    assert rejected == []
    await stored
    return signed


@pytest.mark.asyncio
async def test_nothing_is_signed_while_the_own_tip_is_asked_for(tmp_path: Path) -> None:
    folder = await make_folder(tmp_path / "data")
    async with Node.open(folder, Settings(peers=("http://127.0.0.1:9",), tip_wait_s=1)) as node:
        assert node.runtime.waits_for_tip
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.runtime.submit(Profile(name="too early", about="")), 0.3)
        with pytest.raises(UsageError, match="nothing was signed: signing waits for"):
            await node.runtime.wait_to_sign(0.1)
        assert len(node.runtime.ledger) == 1
        signed = await asyncio.wait_for(node.runtime.submit(Profile(name="now", about="")), 10)
        assert signed.op.seq == 1 and not node.runtime.waits_for_tip


@pytest.mark.asyncio
async def test_a_list_of_peers_that_is_empty_again_names_nobody_to_wait_for(tmp_path: Path) -> None:
    folder = await make_folder(tmp_path / "data")
    (folder / PEERS_FILE).write_text(f"# {PEERS_HEADER}\n")
    async with Node.open(folder, Settings(tip_wait_s=60)) as node:
        assert not node.runtime.waits_for_tip


@pytest.mark.asyncio
async def test_a_slow_listener_loses_the_oldest_events_and_learns_how_many() -> None:
    events = Broadcaster()
    listener = events.subscribe(capacity=3)
    added = [OpAdded(b"op%d" % number, b"author", Kind.BEAT.value, False) for number in range(5)]  # type: ignore[arg-type]
    events.publish(added)
    events.close()
    found = [event async for event in listener]
    assert found == [Missed(2), *added[2:]]
    assert len(events) == 0


def make_chain(genesis: SignedOp, key: SigningKey, count: int) -> list[SignedOp]:
    """Return profiles of one author, each after the one before."""
    made: list[SignedOp] = []
    for seq in range(count):
        payload = encode_payload(
            author=key.author,
            seq=seq,
            prev=made[-1].op.id if made else None,
            parents=() if made else [genesis.op.id],
            time=time.time_ns() // 1_000_000,
            body=Profile(name=f"name {seq}", about=""),
        )
        made.append(decode_op(join_block(payload, key.sign(signing_bytes(genesis.op.id, payload)))))
    return made


@pytest.mark.asyncio
async def test_a_connection_that_ends_while_a_witness_signs_leaves_one_op_for_each_seq(tmp_path: Path) -> None:
    folder = tmp_path / "witness"
    key, other = create_data(folder), SigningKey.generate()
    grants = {key.author: 100, other.author: 100}
    genesis = await found_network(folder, "test", grants=grants, delta_ms=100, tick_ms=100)
    made = make_chain(genesis, other, 120)
    async with Node.open(folder, Settings(witness=True, debounce_ms=5, mdns="off")) as node:
        for first, second in zip(made[::2], made[1::2], strict=True):
            await node.runtime.take([first], "peer")
            # The loop is busy for a moment: a beat is due when the next op comes, before the witness's own task has
            # had its turn, so that it is signed in the task of the connection.
            time.sleep(0.007)
            task = asyncio.create_task(node.runtime.take([second], "peer"))
            for _ in range(2 + second.op.seq % 5):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.01)
        await node.runtime.writer.drain()
        ops = [decode_op(block).op for _, block in await node.store.read(-1, 10_000)]
    own = [op.seq for op in ops if op.author == key.author]
    assert len(own) > 10
    assert sorted(set(own)) == sorted(own)
    assert len([op for op in ops if op.author == other.author]) == len(made)
