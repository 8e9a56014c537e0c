"""One node of the demonstration, a process of its own: the node that `crdtchain serve` runs, with a worker inside.

It differs from `crdtchain serve --work` in three things: the worker's seeds follow from the demonstration's, its tactic
may be a lie, and what it does is told as JSON lines on stdout. The process ends with its standard input, so it outlives
nobody who started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from crdtchain.codec import format_cid
from crdtchain.errors import CrdtchainError, UsageError
from node.config import load_settings
from node.demo.sandboxes import make_sandbox
from node.demo.tactics import TACTICS, Growing, make_draw
from node.logs import set_up_logs
from node.node import Node
from node.serve import serve
from node.worker.loop import Worker, WorkerEvent
from node.worker.policy import Policy
from node.worker.runtime_market import BlobFiles, RuntimeMarket


def tell(kind: str, **values: Any) -> None:
    """Write one JSON line."""
    row = {"kind": kind, "time_ms": time.time_ns() // 1_000_000, **values}
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def tell_event(event: WorkerEvent) -> None:
    """Tell what a worker does."""
    data = {name: format_cid(value) if isinstance(value, bytes) else value for name, value in event.data.items()}
    tell("worker", event=event.kind, text=event.text, data=data)


async def work(node: Node, options: argparse.Namespace) -> None:
    """Work inside a node until cancelled."""
    market = RuntimeMarket(node.runtime, BlobFiles(node.blobs), node.author)
    policy = Policy(min_bounty=1, min_time_left_s=5, max_jobs=1, verify="only" if options.verify else "no")
    async with AsyncExitStack() as stack:
        inner = make_sandbox(options.runtime, node.folder)
        stack.push_async_callback(inner.close)
        sandbox = Growing(inner, options.epochs, options.epochs_max, options.rest_s)
        worker = Worker(
            market,
            {options.runtime: sandbox},
            policy,
            node.folder / "work",
            TACTICS[options.tactic](),
            tell_event,
            make_draw(options.seed, options.name),
        )
        await worker.run()


async def run(options: argparse.Namespace) -> None:
    """Run the node until a signal ends it."""
    flags = {"local": "127.0.0.1:0", "listen": options.listen, "peers": options.peer, "witness": options.witness}
    settings = load_settings(options.data, {**flags, "tip_wait_s": 2, "discover": False}, {})
    works: list[asyncio.Task[None]] = []

    def start(node: Node, addresses: dict[str, str]) -> None:
        tell("ready", **addresses)
        if options.runtime:
            task = asyncio.ensure_future(work(node, options))
            task.add_done_callback(_tell_end)
            works.append(task)

    try:
        await serve(options.data, settings, None, start)
    finally:
        for task in works:
            task.cancel()
        await asyncio.gather(*works, return_exceptions=True)


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        tell("broken", text=f"{type(error).__name__}: {error}")


def _watch_parent() -> None:
    """End this process in good order when whoever started it is gone."""
    # Without the buffer of sys.stdin, whose lock would be held while the interpreter ends.
    while os.read(0, 1_024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m node.demo.member")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--witness", action="store_true")
    parser.add_argument("--runtime", default="", help="of the worker's sandbox; empty: no worker")
    parser.add_argument("--verify", action="store_true", help="judge only")
    parser.add_argument("--tactic", choices=sorted(TACTICS), default="honest")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--epochs-max", type=int, default=1)
    parser.add_argument("--rest-s", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_up_logs("info")
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        asyncio.run(run(options))
    except CrdtchainError as error:
        tell("broken", text=str(error))
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
