"""Real nodes for tests: each is a process of its own, on free ports, in a temporary folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from crdtchain.adapters.keys import SigningKey
from crdtchain.errors import NoPeerError
from crdtchain.scalars import Author
from node.client import NodeClient
from node.datadir import create_data, found_network, join_network, read_node_file

ROOT = Path(__file__).parents[2]
START_S = 20.0
WAIT_S = 60.0
SKEWED = """
import sys, time
wall_s, wall_ns = time.time, time.time_ns
time.time, time.time_ns = lambda: wall_s() + {skew_s}, lambda: wall_ns() + int({skew_s} * 1e9)
from node.serve import main
sys.exit(main())
"""
"""A node whose clock is wrong, from its first moment on."""


async def wait_until(holds: Callable[[], Awaitable[object]], what: str, seconds: float = WAIT_S) -> None:
    """Return when `holds` does."""
    until = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.03)


class NodeProcess:
    """A node on a data folder, started and stopped at will."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self.folder = folder
        self.key = key
        self.process: subprocess.Popen[bytes] | None = None
        self.local = ""
        self.peer = ""
        self.log = folder.with_suffix(".log")

    async def start(
        self,
        *peers: str,
        witness: bool = False,
        flags: tuple[str, ...] = (),
        listen: bool = True,
        within: tuple[str, ...] = (),
        skew_s: float = 0,
    ) -> NodeProcess:
        """Start the process and wait until it serves.

        Args:
            peers: whom it dials.
            witness: whether it does a witness's duty.
            flags: further ones.
            listen: whether it has a peer port.
            within: what the command is put behind.
            skew_s: how far its clock is ahead.
        """
        program = ["-c", SKEWED.format(skew_s=skew_s)] if skew_s else ["-m", "node.serve"]
        command = [*within, sys.executable, *program, "--data", str(self.folder), "--local", "127.0.0.1:0"]
        command += ["--tip-wait-s", "5", "--debounce-ms", "20"]
        if listen:
            command += ["--listen", "127.0.0.1:0"]
        # The last one counts, so a test may choose another address.
        command += flags
        for peer in peers:
            command += ["--peer", peer]
        if witness:
            command.append("--witness")
        # A node that was killed leaves its file behind.
        (self.folder / "node.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, env=_environment())
        until = time.monotonic() + START_S
        while True:
            try:
                addresses = read_node_file(self.folder)
                break
            except NoPeerError:
                assert self.process.poll() is None, f"the node ended: {self.log.read_text()}"
                assert time.monotonic() < until, f"the node does not serve: {self.log.read_text()}"
                await asyncio.sleep(0.02)
        self.local, self.peer = addresses["local"], addresses["peer"]
        return self

    def stop(self) -> int:
        """Ask the process to end; returns its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        return process.wait(10)

    def kill(self) -> None:
        """End the process as a power cut would, as far as a process can tell."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[NodeClient]:
        """Yield a client of the running node."""
        async with NodeClient.from_data(self.folder) as client:
            yield client

    async def status(self) -> dict[str, Any]:
        """Return the node's status."""
        async with self.client() as client:
            return await client.status()

    async def submit(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have the node sign an op."""
        async with self.client() as client:
            return await client.submit(kind, body)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("CRDTCHAIN_")}


@asynccontextmanager
async def nodes(folder: Path, count: int, **settings: Any) -> AsyncIterator[list[NodeProcess]]:
    """Yield nodes of one network, not yet started: the first founded it, is its only witness, and all have credits."""
    made = [NodeProcess(folder / f"node{number}", create_data(folder / f"node{number}")) for number in range(count)]
    grants = {Author(node.key.author): 1_000 for node in made}
    values: dict[str, Any] = {"delta_ms": 100, "tick_ms": 200, "expiry_ms": 60_000, **settings}
    await found_network(made[0].folder, "a test", grants=grants, **values)
    try:
        yield made
    finally:
        for node in made:
            if node.process is not None:
                node.process.kill()
                node.process.wait()


async def join_all(made: list[NodeProcess]) -> None:
    """Let all nodes but the first join its network; the first has to run."""
    for node in made[1:]:
        await join_network(node.folder, made[0].peer)


async def wait_equal(made: list[NodeProcess]) -> dict[str, Any]:
    """Return the status when all nodes hold the same."""

    async def is_equal() -> bool:
        found = [await node.status() for node in made]
        return len({(status["heads_digest"], status["state_digest"]) for status in found}) == 1

    await wait_until(is_equal, "all nodes hold the same")
    return await made[0].status()
