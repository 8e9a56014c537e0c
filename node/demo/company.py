"""The processes of a demonstration: started, listened to, and ended whatever happens.

Invariants:

1. Each child has a session of its own, so that Ctrl-C at the terminal reaches this process alone, which then ends them
   in good order.
2. A child ends with its standard input; even when this process is killed, none outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from crdtchain.codec import format_did
from crdtchain.errors import CrdtchainError
from node.datadir import create_data, found_network, join_network, load_key
from node.demo import plan as rules
from node.demo.plan import Member, Plan
from node.demo.sandboxes import make_sandbox

START_S: Final = 60
STOP_S: Final = 10
LINE_BYTES_MAX: Final = 2**20

Listen = Callable[[str, dict[str, Any]], None]
"""(name of a member, one line that its process told)."""


class DemoError(CrdtchainError):
    """The demonstration can't go on; its text says why."""


class Actor:
    """One member's process."""

    def __init__(self, member: Member, folder: Path, listen: Listen) -> None:
        self.member = member
        self.folder = folder
        self.did = ""
        self.local = ""
        self.port = _find_port()
        """Of the peer port."""
        self._listen = listen
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._is_stopping = False

    @property
    def peer_url(self) -> str:
        """Where other nodes find it."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, plan: Plan, peers: Sequence[str]) -> None:
        """Start the process; returns when its ports are open.

        Raises:
            DemoError: it did not start.
        """
        log = (self.folder / "node.log").open("ab")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._make_command(plan, peers),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_make_environment(),
                start_new_session=True,
                limit=LINE_BYTES_MAX,
            )
        finally:
            log.close()
        self._reader = asyncio.create_task(self._read())
        try:
            await asyncio.wait_for(self._ready.wait(), START_S)
        except TimeoutError:
            raise DemoError(f"the node of {self.member.name} did not start within {START_S} s") from None
        if not self.local:
            raise DemoError(f"the node of {self.member.name} did not start: {self.last_words()}")

    def _make_command(self, plan: Plan, peers: Sequence[str]) -> list[str]:
        member = self.member
        command = [sys.executable, "-m", "node.demo.member", "--data", str(self.folder), "--name", member.name]
        command += ["--listen", f"127.0.0.1:{self.port}", "--seed", str(plan.seed)]
        for peer in peers:
            command += ["--peer", peer]
        if member.is_witness:
            command.append("--witness")
        if member.role != "poster":
            command += ["--runtime", plan.runtime]
        if member.role == "verifier":
            command.append("--verify")
        if member.role == "worker":
            command += ["--tactic", member.tactic, "--epochs", str(member.epochs)]
            command += ["--epochs-max", str(member.epochs_max), "--rest-s", str(member.rest_s)]
        return command

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        while line := await self._process.stdout.readline():
            row = json.loads(line)
            if row["kind"] == "ready":
                self.local = row["local"]
                self._ready.set()
            self._listen(self.member.name, row)
        self._ready.set()
        if not self._is_stopping:
            self._listen(self.member.name, {"kind": "broken", "text": f"its node has ended: {self.last_words()}"})

    def last_words(self) -> str:
        """Return the last line of its log."""
        with contextlib.suppress(OSError):
            lines = (self.folder / "node.log").read_text("utf-8", "replace").strip().splitlines()
            if lines:
                return lines[-1][-300:]
        return "it said nothing"

    def ask_to_stop(self) -> None:
        """Ask the process to end in good order."""
        self._is_stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    async def wait_stopped(self) -> bool:
        """Wait for the end, and force it when it takes too long; False when it had to be forced."""
        if self._process is None:
            return True
        is_orderly = True
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            is_orderly = False
            # Its session is its own: programs that it started go with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._reader is not None:
            await self._reader
        return is_orderly


class Company:
    """All processes of a demonstration; a context manager that ends them."""

    def __init__(self, plan: Plan, folder: Path, listen: Listen) -> None:
        self.actors = {member.name: Actor(member, folder / member.name, listen) for member in plan.members}
        self._plan = plan
        self._folder = folder

    async def __aenter__(self) -> Company:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __getitem__(self, name: str) -> Actor:
        return self.actors[name]

    async def found(self) -> None:
        """Make everybody's key, and let the poster found the network.

        Raises:
            CrdtchainError: a folder can't be used.
        """
        for actor in self.actors.values():
            key = await asyncio.to_thread(create_data, actor.folder)
            actor.did = format_did(key.author)
        keys = {name: load_key(actor.folder).author for name, actor in self.actors.items()}
        await found_network(
            self.actors[self._plan.members[0].name].folder,
            "demo",
            [keys[member.name] for member in self._plan.members if member.is_witness],
            {keys[member.name]: member.grant for member in self._plan.members},
            delta_ms=rules.DELTA_MS,
            tick_ms=rules.TICK_MS,
            expiry_ms=rules.EXPIRY_MS,
            elector_min=rules.ELECTOR_MIN,
            verdict_min=rules.VERDICT_MIN,
        )

    async def start(self, find_peers: Callable[[Actor], Sequence[str]]) -> None:
        """Start the poster's node, let the others join its network, and start theirs.

        `find_peers` returns the peers that a node dials.

        Raises:
            CrdtchainError: one of them did not start.
        """
        first, *others = self.actors.values()
        await first.start(self._plan, find_peers(first))
        for actor in others:
            await join_network(actor.folder, first.peer_url)
        async with asyncio.TaskGroup() as group:
            for actor in others:
                group.create_task(actor.start(self._plan, find_peers(actor)))

    async def stop(self) -> None:
        """End all processes."""
        for actor in self.actors.values():
            actor.ask_to_stop()
        stopping = asyncio.ensure_future(self._wait_stopped())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            # Interrupted again: nothing may be left behind all the same.
            await stopping
            raise

    async def _wait_stopped(self) -> None:
        orderly = await asyncio.gather(*(actor.wait_stopped() for actor in self.actors.values()))
        if not all(orderly):
            # Who was ended by force has not removed what it ran in.
            sandbox = make_sandbox(self._plan.runtime, self._folder)
            with contextlib.suppress(CrdtchainError):
                await sandbox.sweep()
            await sandbox.close()


def _find_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _make_environment() -> dict[str, str]:
    """Return this process's environment without settings of another node, and with this program's modules."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRDTCHAIN_")}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    return environment
