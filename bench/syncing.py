"""Benchmarks between two real nodes on this machine: catching up on a long history, and until a new op is seen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.core import measure_raw_verify_s
from bench.figures import Figure, benchmark, percentile, read_ops, write_history
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.ops import SignedOp
from node.datadir import create_data, found_network, join_network, load_token, read_node_file

START_S = 60
SYNC_S = 600
POLL_S = 0.05
"""Asking costs the node that is measured a millisecond."""
LONG_JOBS = 370
"""About 100,000 ops."""
LIVE_OPS = 60


@asynccontextmanager
async def run_node(folder: Path, *flags: str) -> AsyncIterator[dict[str, Any]]:
    """Run a node of a data folder in a process of its own; yields its addresses when it answers."""
    command = [*(sys.executable, "-m", "node.serve", "--data", str(folder), "--local", "127.0.0.1:0"), *flags]
    environment = os.environ | {"CRDTCHAIN_LOG_LEVEL": "error"}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        deadline = time.monotonic() + START_S
        while not (folder / "node.json").exists():
            if process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the node ended with {process.returncode} before it answered")
            await asyncio.sleep(0.005)
        yield read_node_file(folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@asynccontextmanager
async def open_api(folder: Path, address: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session with a node's API."""
    headers = {"Authorization": f"Bearer {load_token(folder)}"}
    async with aiohttp.ClientSession(f"{address}/api/v1/", headers=headers) as http:
        yield http


async def count_stored(http: aiohttp.ClientSession) -> int:
    """Return how many ops a node has stored since its start; cheap to ask, unlike a status with its digests."""
    async with http.get("/metrics") as response:
        response.raise_for_status()
        name = "crdtchain_stored_ops_total "
        return next(
            int(line.removeprefix(name)) for line in (await response.text()).splitlines() if line.startswith(name)
        )


async def store_history(folder: Path, ops: list[SignedOp]) -> None:
    """Make a data folder that holds ops, with a new key."""
    create_data(folder)
    store = SqliteStore(folder)
    await store.open()
    await store.append(ops, durable=False)
    await store.close()


async def count_received(http: aiohttp.ClientSession) -> int:
    """Return how many bytes of messages a node has had from the peers that are connected."""
    async with http.get("peers") as response:
        response.raise_for_status()
        return sum(peer["traffic"]["received_bytes"] for peer in (await response.json())["connected"])


async def time_catching_up(ops: list[SignedOp]) -> tuple[float, int]:
    """Return the seconds in which a node that has only genesis gets a history from another, verified, added and stored.

    Returns also the bytes that it got for it.
    """
    with tempfile.TemporaryDirectory() as work:
        full, fresh = Path(work, "full"), Path(work, "fresh")
        await store_history(full, ops)
        await store_history(fresh, ops[:1])
        async with run_node(full, "--listen", "127.0.0.1:0") as first:
            started = time.perf_counter()
            async with run_node(fresh, "--peer", first["peer"]) as second, open_api(fresh, second["local"]) as http:
                # The first op, genesis, was here before.
                while await count_stored(http) < len(ops) - 1:
                    if time.perf_counter() - started > SYNC_S:
                        raise RuntimeError(f"only {await count_stored(http)} of {len(ops)} ops came")
                    await asyncio.sleep(POLL_S)
                return time.perf_counter() - started, await count_received(http)


def measure_catching_up(ops: list[SignedOp]) -> list[Figure]:
    """Return the figures of catching up on a history."""
    limit = 1 / measure_raw_verify_s(ops)
    start_s, _ = asyncio.run(time_catching_up(ops[:1]))
    seconds, received = asyncio.run(time_catching_up(ops))
    # The machine may have become slower or faster meanwhile; the better figure is the stricter limit.
    limit = max(limit, 1 / measure_raw_verify_s(ops))
    size = sum(len(signed.block) for signed in ops)
    return [
        Figure(
            f"{len(ops):,} ops between two processes, start of the second included",
            len(ops) / seconds,
            "ops/s",
            limit,
            "1 / V",
        ),
        Figure("the same without the start", len(ops) / max(seconds - start_s, 1e-3), "ops/s", limit, "1 / V"),
        Figure("the same in bytes", size / 1e6 / max(seconds - start_s, 1e-3), "MB/s"),
        Figure("bytes of all messages for it", received / 1e6, "MB", size / 1e6, "the blocks alone"),
        Figure("start of a node until it answers", start_s, "s"),
    ]


@benchmark
def catching_up(history: Path) -> list[Figure]:
    """Bulk sync over loopback, from the start of the second node's process until it has stored everything."""
    return measure_catching_up(read_ops(history))


@benchmark
def catching_up_for_long(history: Path) -> list[Figure]:
    """The same on a history of about 100,000 ops."""
    long_history = history.with_name("long-history")
    if not long_history.exists():
        write_history(long_history, LONG_JOBS)
    return measure_catching_up(read_ops(long_history))


async def wait_for(events: aiohttp.ClientResponse, text: bytes) -> None:
    """Read server-sent events until one holds a text."""
    async for line in events.content:
        if text in line:
            return
    raise RuntimeError("the events ended")


async def time_visibility() -> tuple[list[float], list[float]]:
    """Return how long ops take from being asked for at one node until another shows them, and bare round trips, s."""
    with tempfile.TemporaryDirectory() as work:
        alice, bob = Path(work, "alice"), Path(work, "bob")
        key = create_data(alice)
        create_data(bob)
        await found_network(alice, "bench", grants={key.author: 1_000})
        async with run_node(alice, "--listen", "127.0.0.1:0", "--witness") as first:
            await join_network(bob, first["peer"])
            async with (
                run_node(bob, "--peer", first["peer"]) as second,
                open_api(alice, first["local"]) as at_alice,
                open_api(bob, second["local"]) as at_bob,
                at_bob.get("events", timeout=aiohttp.ClientTimeout(total=None)) as events,
            ):
                await asyncio.sleep(1)
                times, trips = [], []
                for number in range(LIVE_OPS):
                    started = time.perf_counter()
                    async with at_bob.get("status") as response:
                        await response.read()
                    trips.append(time.perf_counter() - started)
                    started = time.perf_counter()
                    async with at_alice.post("profiles", json={"name": f"alice {number}", "about": ""}) as response:
                        response.raise_for_status()
                        op = (await response.json())["id"]
                    await asyncio.wait_for(wait_for(events, op.encode()), 10)
                    times.append(time.perf_counter() - started)
                    await asyncio.sleep(0.15)
                return times, trips


@benchmark
def visibility(_history: Path) -> list[Figure]:
    """From asking one node for an op until another has verified, stored and shown it; both durable first."""
    times, trips = asyncio.run(time_visibility())
    name = "one HTTP request to an idle node"
    return [
        Figure(
            "until a new op is seen at a peer, median",
            percentile(times, 50) * 1e3,
            "ms",
            percentile(trips, 50) * 1e3,
            name,
        ),
        Figure(
            "until a new op is seen at a peer, 95 %",
            percentile(times, 95) * 1e3,
            "ms",
            percentile(trips, 95) * 1e3,
            name,
        ),
    ]
