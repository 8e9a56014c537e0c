"""What a benchmark is: a function that returns figures, each beside its limit; and the history that they all run on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from crdtchain.ops import SignedOp
from crdtchain.shapes import decode_op


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured, for people.
        value: the number.
        unit: its unit.
        limit: what can't be beaten here, measured in the same run, in the same unit; None when there is no such thing.
        limit_name: what the limit is.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    limit_name: str = ""


Benchmark: TypeAlias = Callable[[Path], list[Figure]]
"""Gets the file of the history, returns figures; runs in a process of its own."""

BENCHMARKS: Final[dict[str, Benchmark]] = {}


def benchmark(function: Benchmark) -> Benchmark:
    """Register a benchmark under the name of its function."""
    BENCHMARKS[function.__name__] = function
    return function


def write_history(path: Path, jobs: int) -> int:
    """Write a signed history of jobs to a file; returns the number of ops."""
    from tests.builders import bulk_history

    log = bulk_history(jobs=jobs)
    with path.open("wb") as file:
        for signed in log:
            file.write(len(signed.block).to_bytes(4, "big") + signed.block)
    return len(log)


def read_blocks(path: Path) -> list[bytes]:
    """Return the blocks of a history, parents first."""
    data, at, blocks = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        blocks.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return blocks


def read_ops(path: Path) -> list[SignedOp]:
    """Return the decoded ops of a history, parents first."""
    return [decode_op(block) for block in read_blocks(path)]


def best_of(runs: int, function: Callable[[], object]) -> float:
    """Return the shortest of some runs' durations, s: what is above it is noise of the machine."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile of at least two values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
