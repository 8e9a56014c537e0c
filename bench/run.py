"""Run the benchmarks, write bench/results/*.json, and from them alone bench/RESULTS.md; `make bench` runs it.

    python -m bench.run                  all of them
    python -m bench.run verify storing   some
    python -m bench.run --jobs 10        on a shorter history (80 jobs, about 20,000 ops, by default)
    python -m bench.run --report         only write RESULTS.md anew

Each benchmark runs in a process of its own, so that none sees another's memory. Results say what the machine can do
(cores, memory, versions) and not which one it is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

from bench import core, network, reconcile, storing, syncing
from bench.figures import BENCHMARKS, write_history

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "bench" / "results"
REPORT: Final = ROOT / "bench" / "RESULTS.md"
MODULES: Final = (core, storing, syncing, reconcile, network)
"""Importing them is what registers their benchmarks."""
PACKAGES: Final = ("pynacl", "cbor2", "msgspec", "aiohttp", "aiosqlite", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return what decides how fast this machine is, without its name."""
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: metadata.version(name) for name in PACKAGES},
    }


def run_one(name: str, history: Path) -> None:
    """Run one benchmark in a process of its own and write its results."""
    command = [sys.executable, "-m", "bench.run", "--one", name, "--history", str(history)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: the benchmark {name} failed:\n{done.stderr[-3000:]}")
    result = {
        "benchmark": name,
        "about": " ".join((BENCHMARKS[name].__doc__ or "").split()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe_machine(),
        "figures": json.loads(done.stdout.splitlines()[-1]),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def format_number(value: float) -> str:
    """Write a number with three digits that mean something."""
    if value >= 1000:
        return f"{round(value):,}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def format_row(figure: dict[str, Any]) -> str:
    """Write a figure as a row of a table."""
    value, limit, unit = figure["value"], figure["limit"], figure["unit"]
    if limit is None:
        return f"| {figure['name']} | {format_number(value)} {unit} | | | |"
    cells = (format_number(value), format_number(limit), f"{value / limit:.2f}")
    return f"| {figure['name']} | {cells[0]} {unit} | {cells[1]} {unit} | {cells[2]} | {figure['limit_name']} |"


def write_report() -> str:
    """Return RESULTS.md, made from the files of results alone."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    order = {name: place for place, name in enumerate(BENCHMARKS)}
    results.sort(key=lambda result: order.get(result["benchmark"], len(order)))
    parts = [
        "# Results",
        "",
        "Written by `make bench` from `bench/results`. Each figure stands beside a limit that was measured in the same",
        "run on the same machine; the ratio is figure ÷ limit. On a busy machine all of them move.",
    ]
    for result in results:
        machine = result["machine"]
        versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "sqlite", *PACKAGES))
        cores, memory = f"{machine['cores']} cores ({machine['machine']})", f"{machine['memory_gib']} GiB"
        parts += [
            "",
            f"## {result['benchmark'].replace('_', ' ').capitalize()}",
            "",
            result["about"],
            "",
            "| | figure | limit | ratio | the limit is |",
            "| --- | ---: | ---: | ---: | --- |",
            *map(format_row, result["figures"]),
            "",
            f"{result['date']}, {cores}, {memory}, load {machine['load']}; {versions}.",
        ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Run what the arguments select."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure, each figure beside its limit.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--jobs", type=int, default=80, help="jobs in the history, about 270 ops each (80)")
    parser.add_argument("--report", action="store_true", help="only write RESULTS.md anew")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--history", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps([asdict(figure) for figure in BENCHMARKS[arguments.one](arguments.history)]))
        return 0
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    if not arguments.report:
        with tempfile.TemporaryDirectory() as work:
            history = Path(work, "history")
            print("Making the history …", flush=True)
            print(f"{write_history(history, arguments.jobs):,} ops.", flush=True)
            for name in arguments.names or BENCHMARKS:
                print(f"{name} …", flush=True)
                run_one(name, history)
    REPORT.write_text(write_report(), encoding="utf-8")
    print(f"Written: {REPORT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
