"""`work`: the worker alone, against a node; and the worker inside `serve`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from crdtchain.codec import format_cid
from crdtchain.errors import SandboxError
from node.cli.remote import connect
from node.cli.shell import Shell, command, end_on_signals, shorten
from node.node import Node
from node.worker.loop import Worker, WorkerEvent
from node.worker.policy import Policy, load_policy
from node.worker.runtime_market import BlobFiles, RuntimeMarket
from node.worker.sandbox.base import Sandbox

WORK_FOLDER = "work"
"""Below the data folder: models that were bid, and files of jobs."""

QUIET = frozenset({"progress", "training"})
"""Events that come too often for a line each."""

log = logging.getLogger("crdtchain.worker")


def cache_folder() -> Path:
    """Return where compiled modules are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crdtchain" / "wasm"


def make_sandboxes() -> dict[str, Sandbox]:
    """Make every backend whose package is installed; whether it can run is for `check` to say."""
    from node.worker.sandbox.wasm import WasmSandbox

    found: dict[str, Sandbox] = {"wasm": WasmSandbox(cache_folder())}
    try:
        from node.worker.sandbox.docker import DockerSandbox
    except ImportError:
        return found
    found["docker"] = DockerSandbox()
    return found


@asynccontextmanager
async def open_sandboxes(policy: Policy) -> AsyncIterator[dict[str, Sandbox]]:
    """Open the sandboxes that the policy allows and this machine can run, for the length of a block.

    Raises:
        SandboxError: there is none.
    """
    all_found = make_sandboxes()
    usable: dict[str, Sandbox] = {}
    hints = []
    try:
        for name, sandbox in all_found.items():
            if name not in policy.runtimes:
                continue
            info = await sandbox.check()
            if info.usable:
                usable[name] = sandbox
            else:
                hints.append(f"{name}: {info.hint}")
        if not usable:
            raise SandboxError(f"no sandbox can run here ({'; '.join(hints) or 'the policy allows none'})")
        for sandbox in usable.values():
            await sandbox.sweep()
        yield usable
    finally:
        for sandbox in all_found.values():
            await sandbox.close()


def make_printer(shell: Shell) -> Callable[[WorkerEvent], None]:
    """Return what shows a worker's events: lines for people, or one JSON object a line on stderr."""

    def show(event: WorkerEvent) -> None:
        if shell.as_json:
            data = {name: value.hex() if isinstance(value, bytes) else value for name, value in event.data.items()}
            row = {"job": format_cid(event.job), "kind": event.kind, "text": event.text, **data}
            sys.stderr.write(json.dumps(row) + "\n")
        elif event.kind not in QUIET:
            shell.note(f"{shorten(format_cid(event.job))}  {event.text}")

    return show


async def run_inside(shell: Shell, node: Node, policy: Policy) -> None:
    """Work inside a node until cancelled."""
    market = RuntimeMarket(node.runtime, BlobFiles(node.blobs), node.author)

    def show(event: WorkerEvent) -> None:
        level = logging.DEBUG if event.kind in (*QUIET, "measured") else logging.INFO
        log.log(level, "%s %s", shorten(format_cid(event.job)), event.text)

    async with open_sandboxes(policy) as sandboxes:
        await Worker(market, sandboxes, policy, shell.data / WORK_FOLDER, on_event=show).run()


async def run_beside(shell: Shell, policy: Policy) -> None:
    """Work against a running node until cancelled."""
    from node.worker.client_market import open_market

    try:
        # With SIGTERM too, runs are ended and their folders removed.
        async with (
            end_on_signals(signal.SIGINT, signal.SIGTERM),
            connect(shell) as client,
            open_market(client) as market,
            open_sandboxes(policy) as sandboxes,
        ):
            shell.note(f"Working with {' and '.join(sorted(sandboxes))}; stop with Ctrl-C.")
            await Worker(market, sandboxes, policy, shell.data / WORK_FOLDER, on_event=make_printer(shell)).run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "work", "work policy.toml")
    def work(
        shell: Shell,
        policy: Annotated[Path, typer.Argument(metavar="POLICY.toml", help="Which jobs it takes.")],
    ) -> None:
        """Train, bid, reveal and judge with the key of the running node, until Ctrl-C."""
        shell.run(run_beside(shell, load_policy(policy)))
