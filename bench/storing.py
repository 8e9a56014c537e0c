"""Benchmarks of the store: durable appends, disk, opening again."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.core import measure_raw_verify_s
from bench.figures import Figure, benchmark, percentile, read_ops
from crdtchain.adapters.opening import open_ledger, save_ledger
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE
from crdtchain.ops import SignedOp

APPENDS = 300
BATCH = 500


def time_bare_inserts(folder: Path, ops: Sequence[SignedOp]) -> list[float]:
    """Return the durations of inserts of the same blocks into a bare table, each its own durable transaction, s."""
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE bare (id BLOB PRIMARY KEY, block BLOB NOT NULL) STRICT")
    times = []
    for signed in ops:
        started = time.perf_counter()
        connection.execute("INSERT INTO bare VALUES (?, ?)", (signed.op.id, signed.block))
        times.append(time.perf_counter() - started)
    connection.close()
    return times


async def time_appends(folder: Path, ops: Sequence[SignedOp]) -> list[float]:
    """Return the durations of durable appends of single ops to a store, s."""
    store = SqliteStore(folder)
    await store.open()
    times = []
    for signed in ops:
        started = time.perf_counter()
        await store.append([signed], durable=True)
        times.append(time.perf_counter() - started)
    await store.close()
    return times


def time_fsyncs(folder: Path) -> list[float]:
    """Return the durations of writing and syncing 512 bytes, s: what a disk costs in any case."""
    times = []
    with (folder / "plain").open("wb") as file:
        for _ in range(APPENDS):
            started = time.perf_counter()
            file.write(bytes(512))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return times


@benchmark
def appending(history: Path) -> list[Figure]:
    """One own op made durable, before its first byte may leave."""
    ops = read_ops(history)[:APPENDS]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        sync_us = percentile(time_fsyncs(folder), 50) * 1e6
        bare = time_bare_inserts(folder, ops)
        appends = asyncio.run(time_appends(folder / "data", ops))
    name = "a bare SQLite insert, synchronous=FULL"
    return [
        Figure(
            "durable append of one op, median", percentile(appends, 50) * 1e6, "µs", percentile(bare, 50) * 1e6, name
        ),
        Figure("durable append of one op, 99 %", percentile(appends, 99) * 1e6, "µs", percentile(bare, 99) * 1e6, name),
        Figure(
            "a bare SQLite insert, median", percentile(bare, 50) * 1e6, "µs", sync_us, "write and fsync of 512 bytes"
        ),
    ]


async def fill(folder: Path, ops: Sequence[SignedOp]) -> float:
    """Append all ops in batches as a sync does; returns the seconds it took."""
    store = SqliteStore(folder)
    await store.open()
    started = time.perf_counter()
    for start in range(0, len(ops), BATCH):
        await store.append(ops[start : start + BATCH], durable=False)
    seconds = time.perf_counter() - started
    await store.close()
    return seconds


async def time_opening(folder: Path, count: int, snapshot: bool) -> float:
    """Return the seconds from a closed store to its ledger; optionally with a snapshot that is saved before."""
    store = SqliteStore(folder)
    await store.open()
    try:
        if snapshot:
            await save_ledger(store, await open_ledger(store))
        started = time.perf_counter()
        ledger = await open_ledger(store)
        seconds = time.perf_counter() - started
    finally:
        await store.close()
    assert len(ledger) == count
    return seconds


@benchmark
def storing(history: Path) -> list[Figure]:
    """Bulk appends, disk, and opening again."""
    ops = read_ops(history)
    limit = 1 / measure_raw_verify_s(ops)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        fill_s = asyncio.run(fill(folder, ops))
        disk = sum(path.stat().st_size for path in folder.glob(STORE_FILE + "*"))
        plain_s = asyncio.run(time_opening(folder, len(ops), snapshot=False))
        snapshot_s = asyncio.run(time_opening(folder, len(ops), snapshot=True))
    mean_bytes = sum(len(signed.block) for signed in ops) / len(ops)
    return [
        Figure(f"append of {len(ops):,} ops in batches of {BATCH}", len(ops) / fill_s, "ops/s", limit, "1 / V"),
        Figure("disk for one op", disk / len(ops), "bytes", mean_bytes, "mean size of a block"),
        Figure("reopen without a snapshot", len(ops) / plain_s, "ops/s", limit, "1 / V"),
        Figure("reopen with a snapshot", len(ops) / snapshot_s, "ops/s", len(ops) / plain_s, "without a snapshot"),
    ]
