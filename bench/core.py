"""Benchmarks of the core: decoding, signatures, replaying, memory."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import nacl.bindings as sodium
import psutil

from bench.figures import Figure, benchmark, best_of, read_blocks, read_ops
from crdtchain.adapters.keys import sodium_verifier
from crdtchain.codec import validate_profile
from crdtchain.ledger.snapshot import dump_ledger, load_ledger
from crdtchain.ledger.state import Ledger
from crdtchain.ops import SignedOp
from crdtchain.shapes import decode_op
from crdtchain.signing import signing_bytes
from crdtchain.verify import verify_op

SAMPLE = 2_000


def measure_raw_verify_s(ops: list[SignedOp]) -> float:
    """Return how long the library alone takes to verify one signature on one thread, s: the limit V of much here."""
    network = ops[0].op.id
    cases = [
        (signed.signature + signing_bytes(network, signed.payload), bytes(signed.op.author))
        for signed in ops[1 : SAMPLE + 1]
    ]

    def verify_all() -> None:
        for message, key in cases:
            sodium.crypto_sign_open(message, key)

    return best_of(3, verify_all) / len(cases)


def replay(ops: list[SignedOp]) -> Ledger:
    """Return the ledger of a history."""
    ledger = Ledger(ops[0].op)
    for signed in ops[1:]:
        ledger.add(signed.op)
    return ledger


@benchmark
def verify(history: Path) -> list[Figure]:
    """From a stranger's bytes to a verified op, on one thread."""
    blocks = read_blocks(history)[: SAMPLE + 1]
    ops = [decode_op(block) for block in blocks]
    raw_us = measure_raw_verify_s(ops) * 1e6
    network, count = ops[0].op.id, len(blocks)

    def verify_all() -> None:
        for signed in ops:
            verify_op(signed, network, sodium_verifier)

    def decode_all() -> None:
        for block in blocks:
            decode_op(block)

    def validate_all() -> None:
        for block in blocks:
            validate_profile(block)

    name = "the library's verification alone, one thread (V)"
    return [
        Figure("signature rule and verification of one op", best_of(3, verify_all) / count * 1e6, "µs", raw_us, name),
        Figure("decoding one op, all its form checked", best_of(3, decode_all) / count * 1e6, "µs", raw_us, name),
        Figure("the encoding profile of one op", best_of(3, validate_all) / count * 1e6, "µs", raw_us, name),
    ]


@benchmark
def replaying(history: Path) -> list[Figure]:
    """Replay without signatures: rules, marks, accounts, jobs."""
    ops = read_ops(history)
    limit = 1 / measure_raw_verify_s(ops)
    per_s = len(ops) / best_of(2, lambda: replay(ops))
    ledger = replay(ops)
    digest_ms = best_of(3, ledger.state_digest) * 1e3
    snapshot = dump_ledger(ledger)
    load_s = best_of(3, lambda: load_ledger(ops[0].op, snapshot))
    return [
        Figure(f"replay of {len(ops):,} ops without signatures", per_s, "ops/s", limit, "1 / V"),
        Figure("the state digest of all of it", digest_ms, "ms"),
        Figure("a ledger from its snapshot", len(ops) / load_s, "ops/s", per_s, "replay, which it replaces"),
        Figure("size of the snapshot", len(snapshot) / len(ops), "bytes/op"),
    ]


@benchmark
def memory(history: Path) -> list[Figure]:
    """Memory of a ledger, by what the process holds and by what Python allocates."""
    ops = read_ops(history)
    mean_bytes = sum(signed.op.size for signed in ops) / len(ops)
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    ledger = replay(ops)
    gc.collect()
    rss = (process.memory_info().rss - before) / len(ops)
    del ledger
    gc.collect()
    tracemalloc.start()
    ledger = replay(ops)
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ledger) == len(ops)
    name = "mean size of a block, if blocks were held instead"
    return [
        Figure("resident memory of a ledger", rss, "bytes/op", mean_bytes, name),
        Figure("allocated by a ledger, decoded ops not counted", current / len(ops), "bytes/op", mean_bytes, name),
        Figure("allocated at the peak of replaying", peak / len(ops), "bytes/op", mean_bytes, name),
    ]
