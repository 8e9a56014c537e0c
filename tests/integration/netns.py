"""A network between nodes of a test whose links can be cut, alike on every machine.

    async with open_net(5) as net:
        await net.start(node, 0)
        await net.partition({0, 1}, {2, 3, 4})
        await net.heal()

Theory of operation. `Namespaces`: each node has a network namespace with an address on a bridge that lies in one of its
own, and a second link to this process, for tests alone, which is never cut. A link is cut by giving its sender a
hardware address that nobody has: packets vanish without a word, as they do when a cable is pulled. `Proxies`, where
there is no right to make namespaces: all nodes are on loopback, and each dials each other through a proxy of its own,
which holds back what it reads while the link is cut. `open_net` takes the first that works here.

Nodes behind proxies have to be told of each other by `address` alone: one that found another's real port would go
around the proxy.

What a run that was killed left behind is removed by the next: names carry the number of the process that made them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

from tests.integration.node_process import NodeProcess

PREFIX: Final = "crdtchain-test"
PEER_PORT: Final = 8471
CHUNK_BYTES: Final = 65_536
_numbers = itertools.count()


class Net(ABC):
    """Links between nodes, which are numbered from 0."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._closed: set[tuple[int, int]] = set()
        """The directions, from and to, in which nothing passes."""

    @abstractmethod
    def command(self, number: int) -> tuple[str, ...]:
        """Return what the command of a node is put behind."""

    @abstractmethod
    def flags(self, number: int) -> tuple[str, ...]:
        """Return the flags that place a node in this network."""

    @abstractmethod
    def note(self, number: int, peer: str) -> None:
        """Take notice of where a node has come to listen."""

    @abstractmethod
    def address(self, target: int, seen_by: int) -> str:
        """Return the URL of a node's peer port, for another node."""

    @abstractmethod
    async def _set(self, source: int, target: int, is_open: bool) -> None:
        """Let packets pass in one direction, or none."""

    async def start(
        self,
        node: NodeProcess,
        number: int,
        peers: Collection[int] = (),
        flags: tuple[str, ...] = (),
        skew_s: float = 0,
    ) -> None:
        """Start a node at its place; it dials `peers`, and its clock is ahead by `skew_s`."""
        addresses = [self.address(peer, number) for peer in peers]
        await node.start(*addresses, flags=self.flags(number) + flags, within=self.command(number), skew_s=skew_s)
        self.note(number, node.peer)

    async def _change(self, source: int, target: int, is_open: bool) -> None:
        if is_open == ((source, target) in self._closed):
            await self._set(source, target, is_open)
            (self._closed.discard if is_open else self._closed.add)((source, target))

    async def cut(self, one: int, other: int, one_way: bool = False) -> None:
        """Let nothing pass between two nodes; with `one_way`, nothing from the first to the second."""
        await self._change(one, other, is_open=False)
        if not one_way:
            await self._change(other, one, is_open=False)

    async def mend(self, one: int, other: int) -> None:
        """Let everything pass between two nodes."""
        await self._change(one, other, is_open=True)
        await self._change(other, one, is_open=True)

    async def partition(self, *groups: Collection[int]) -> None:
        """Let packets pass within each group and nowhere else; who is in no group is cut off."""
        for source, target in itertools.permutations(range(self.count), 2):
            is_open = any(source in group and target in group for group in groups)
            await self._change(source, target, is_open)

    async def heal(self) -> None:
        """Let everything pass."""
        await self.partition(range(self.count))


# -- network namespaces --


def run_ip(*words: str, check: bool = True) -> str:
    """Run `ip`; returns what it prints."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(name: str) -> None:
    """Remove a namespace and what still runs in it."""
    for pid in run_ip("netns", "pids", name, check=False).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    run_ip("netns", "del", name, check=False)


def sweep() -> None:
    """Remove the namespaces of runs that are no more."""
    for line in run_ip("netns", "list", check=False).splitlines():
        name = line.split()[0]
        pid = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(f"{PREFIX}-") and pid.isdigit() and not _is_alive(int(pid)):
            _remove(name)


@functools.cache
def can_make_namespaces() -> bool:
    """Return whether this process may make network namespaces with links."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{PREFIX}-{os.getpid()}-probe"
    try:
        run_ip("netns", "add", name)
        run_ip("-n", name, "link", "add", "name", "one", "type", "veth", "peer", "name", "other")
        run_ip("-n", name, "link", "add", "name", "bridge", "type", "bridge")
        run_ip("netns", "exec", name, "true")
    except OSError:
        return False
    finally:
        _remove(name)
    return True


def _choose_subnet() -> int:
    """Return a number whose addresses nobody uses here: 198.18.N.0/24 and 198.19.N.0/24, which are for tests."""
    taken = run_ip("-4", "-o", "addr")
    return random.choice([number for number in range(256) if f" 198.18.{number}." not in taken])


class Namespaces(Net):
    """Each node in a network namespace of its own."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._subnet = _choose_subnet()

    def place(self, number: int) -> str:
        """Return the name of a node's namespace."""
        return f"{self._name}-{number}"

    def host(self, number: int) -> str:
        """Return the address at which other nodes find a node."""
        return f"198.19.{self._subnet}.{number + 1}"

    def _control(self, number: int, side: int) -> str:
        """Return the address of one side of a node's link to this process: 1 is this process, 2 the node."""
        return f"198.18.{self._subnet}.{4 * number + side}"

    def open(self) -> None:
        """Make everything."""
        sweep()
        hub = f"{self._name}-hub"
        run_ip("netns", "add", hub)
        run_ip("-n", hub, "link", "add", "name", "bridge", "type", "bridge")
        run_ip("-n", hub, "link", "set", "bridge", "up")
        for number in range(self.count):
            here = self.place(number)
            run_ip("netns", "add", here)
            run_ip("-n", here, "link", "set", "lo", "up")
            run_ip(
                "-n", here, "link", "add", "name", "net", "type", "veth", "peer", "name", f"to{number}", "netns", hub
            )
            run_ip("-n", hub, "link", "set", f"to{number}", "master", "bridge", "up")
            run_ip("-n", here, "addr", "add", f"{self.host(number)}/24", "dev", "net")
            # Names of links are at most 15 characters long.
            outside = f"ct{os.getpid() % 10**7}{self._name.rpartition('-')[2]}n{number}"
            run_ip("link", "add", "name", outside, "type", "veth", "peer", "name", "control", "netns", here)
            run_ip("addr", "add", f"{self._control(number, 1)}/30", "dev", outside)
            run_ip("-n", here, "addr", "add", f"{self._control(number, 2)}/30", "dev", "control")
            for words in (("-n", here, "link", "set", "net"), ("-n", here, "link", "set", "control")):
                run_ip(*words, "up")
            run_ip("link", "set", outside, "up")
            # What this process itself says to the peer port, as a stranger would, goes over its own link too.
            run_ip("route", "add", f"{self.host(number)}/32", "via", self._control(number, 2))

    def close(self) -> None:
        """Remove everything; links and routes go with the namespaces."""
        for name in ("hub", *range(self.count)):
            _remove(f"{self._name}-{name}")

    def command(self, number: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.place(number))

    def flags(self, number: int) -> tuple[str, ...]:
        return ("--local", f"{self._control(number, 2)}:0", "--listen", f"{self.host(number)}:{PEER_PORT}")

    def note(self, number: int, peer: str) -> None:
        assert peer == self.address(number, number)

    def address(self, target: int, seen_by: int) -> str:
        return f"http://{self.host(target)}:{PEER_PORT}"

    async def _set(self, source: int, target: int, is_open: bool) -> None:
        place = ("-n", self.place(source), "neigh")
        if is_open:
            run_ip(*place, "del", self.host(target), "dev", "net")
        else:
            nobody = ("lladdr", "02:00:00:00:00:fe", "nud", "permanent")
            run_ip(*place, "replace", self.host(target), *nobody, "dev", "net")


# -- proxies --


class _Road:
    """One direction between two nodes."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.delay_s = 0.0
        self.bytes_s: float | None = None

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what comes until its end, which is carried too."""
        while data := await reader.read(CHUNK_BYTES):
            await self.open.wait()
            pause_s = self.delay_s + (len(data) / self.bytes_s if self.bytes_s else 0)
            if pause_s:
                await asyncio.sleep(pause_s)
            writer.write(data)
            await writer.drain()
        await self.open.wait()
        if writer.can_write_eof():
            writer.write_eof()


class Proxies(Net):
    """All nodes on loopback, with a proxy from each to each; beyond `Net` it can delay, throttle and reset."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._targets: dict[int, tuple[str, int]] = {}
        self._ports: dict[tuple[int, int], int] = {}
        self._servers: list[asyncio.Server] = []
        self._roads = {pair: _Road() for pair in itertools.permutations(range(count), 2)}
        self._writers: dict[tuple[int, int], set[asyncio.StreamWriter]] = {pair: set() for pair in self._roads}
        """By who dialled whom."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open all proxies."""
        for source, target in self._roads:
            accept = functools.partial(self._accept, source, target)
            server = await asyncio.start_server(accept, "127.0.0.1", 0)
            self._servers.append(server)
            self._ports[source, target] = server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close all proxies and what goes through them."""
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def command(self, number: int) -> tuple[str, ...]:
        return ()

    def flags(self, number: int) -> tuple[str, ...]:
        # Who learned the real addresses would go around the proxies.
        return ("--local", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--no-discover")

    def note(self, number: int, peer: str) -> None:
        host, _, port = peer.removeprefix("http://").rpartition(":")
        self._targets[number] = host, int(port)

    def address(self, target: int, seen_by: int) -> str:
        return f"http://127.0.0.1:{self._ports[seen_by, target]}"

    def delay(self, one: int, other: int, seconds: float, bytes_s: float | None = None) -> None:
        """Let what passes between two nodes take so long each way, and at most so many bytes pass in a second."""
        for pair in ((one, other), (other, one)):
            self._roads[pair].delay_s, self._roads[pair].bytes_s = seconds, bytes_s

    def reset(self, one: int, other: int) -> None:
        """Break the connections between two nodes, as a router does that has lost its memory."""
        for pair in ((one, other), (other, one)):
            for writer in list(self._writers[pair]):
                writer.transport.abort()

    async def _set(self, source: int, target: int, is_open: bool) -> None:
        (self._roads[source, target].open.set if is_open else self._roads[source, target].open.clear)()

    async def _accept(
        self, source: int, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = self._roads[source, target], self._roads[target, source]
        ends = [writer]
        try:
            await there.open.wait()
            await back.open.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._targets[target])
            ends.append(far_writer)
            self._writers[source, target].update(ends)
            await asyncio.gather(there.pump(reader, far_writer), back.pump(far_reader, writer))
        except (OSError, KeyError, asyncio.CancelledError):
            # Nobody listens there, or one side has gone: the other is told at once.
            pass
        finally:
            self._writers[source, target].difference_update(ends)
            for end in ends:
                end.transport.abort()
            self._tasks.discard(task)


@asynccontextmanager
async def open_net(count: int, proxies: bool = False) -> AsyncIterator[Net]:
    """Make a network of namespaces for the length of a block, or of proxies: where that can't be, or when asked to."""
    if proxies or not can_make_namespaces():
        net = Proxies(count)
        await net.open()
        try:
            yield net
        finally:
            await net.close()
        return
    spaces = Namespaces(count)
    try:
        spaces.open()
        yield spaces
    finally:
        spaces.close()
