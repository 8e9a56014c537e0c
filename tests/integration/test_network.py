"""Five nodes, links that are cut, kills, attacks: all nodes come to hold the same, with all that was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from yarl import URL

from crdtchain import limits
from crdtchain.codec import compute_op_id, format_did
from crdtchain.errors import CrdtchainError, PeerError
from crdtchain.scalars import OpId
from crdtchain.sync.messages import Announce, Get, Ops, Probe, Tree
from crdtchain.sync.regions import LeafView, Whole, encode_items
from node.datadir import create_data, found_network, join_network
from tests.integration.netns import PREFIX, Net, Proxies, can_make_namespaces, open_net, run_ip, sweep
from tests.integration.node_process import NodeProcess, wait_equal, wait_until
from tests.integration.raw_peer import RawClosedError, connect_raw

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]

COUNT = 5
WITNESSES = (0, 1, 2, 3)
ATTACKED = 2
OBSERVER = 4
"""Never signs, so that it may lose its database without signing two ops in one place afterwards."""
PEERS = {0: (1, 2), 1: (2, 3), 2: (3, 4), 3: (4, 0), 4: (0, 1)}
"""Whom each dials: everybody is linked with everybody."""
SKEWS_S = {1: 1.5, 3: -8.0}
RSS_MAX = 400 * 2**20
FRAMES_BYTES = 4 * limits.FRAME_BYTES_MAX
RUN_S = 60.0
"""For what takes seconds on a machine that has nothing else to do."""


class Network:
    """The nodes, and what they have acknowledged."""

    def __init__(self, net: Net, made: list[NodeProcess]) -> None:
        self.net = net
        self.made = made
        self.acknowledged: set[str] = set()

    async def start(self, number: int) -> None:
        flags = ("--witness",) if number in WITNESSES else ()
        await self.net.start(self.made[number], number, PEERS[number], flags, SKEWS_S.get(number, 0))

    async def write(self, number: int, text: str) -> None:
        """Have a node sign an op; what it refuses or does not answer is not acknowledged."""
        with contextlib.suppress(CrdtchainError, OSError, aiohttp.ClientError):
            op = await self.made[number].submit("profile", {"name": f"{text} by {number}"})
            self.acknowledged.add(op["id"])

    async def pay(self, source: int, target: int) -> None:
        """Have a node transfer a credit, which another one claims by itself."""
        with contextlib.suppress(CrdtchainError, OSError, aiohttp.ClientError):
            body = {"to": format_did(self.made[target].key.author), "amount": 1}
            self.acknowledged.add((await self.made[source].submit("transfer", body))["id"])

    async def write_on_all(self, rounds: int, text: str) -> None:
        """Have all witnesses write at once."""
        for turn in range(rounds):
            await asyncio.gather(*(self.write(number, f"{text} {turn}") for number in WITNESSES))
            await self.pay(WITNESSES[turn % 4], WITNESSES[(turn + 1) % 4])

    async def holds(self, number: int) -> set[str]:
        """Return the ids of all ops of a node."""
        found, after = set[str](), -1
        async with self.made[number].client() as client:
            while True:
                page = await client.ops(after)
                found.update(op["id"] for op in page["ops"])
                if page["next"] is None:
                    return found
                after = page["next"]

    def measure_rss(self) -> list[int]:
        """Return the memory of each node and its children."""
        sizes = list[int]()
        for node in self.made:
            assert node.process is not None
            process = psutil.Process(node.process.pid)
            size = process.memory_info().rss
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    size += child.memory_info().rss
            sizes.append(size)
        return sizes


@asynccontextmanager
async def open_network(folder: Path, net: Net) -> AsyncIterator[Network]:
    """Found a network with four witnesses and start its nodes."""
    made = [NodeProcess(folder / f"node{number}", create_data(folder / f"node{number}")) for number in range(net.count)]
    await found_network(
        made[0].folder,
        "a test",
        witnesses=[made[number].key.author for number in WITNESSES],
        grants={node.key.author: 1_000 for node in made},
        delta_ms=300,
        tick_ms=500,
        expiry_ms=600_000,
    )
    network = Network(net, made)
    try:
        await network.start(0)
        for node in made[1:]:
            await join_network(node.folder, made[0].peer)
        await asyncio.gather(*(network.start(number) for number in range(1, net.count)))
        yield network
    finally:
        for node in made:
            if node.process is not None:
                node.kill()


# -- hostile peers: each attack is one connection's life, repeated until the network has healed --

Attack = Callable[[URL, random.Random], Awaitable[None]]
"""Gets the URL of a peer port. Whatever a stranger can do belongs into ATTACKS."""


async def throw_garbage(url: URL, rng: random.Random) -> None:
    """Send frames of random bytes, and of bytes that begin as a message would."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url / "sync", heartbeat=None) as socket:
        for _ in range(50):
            start = rng.choice((b"", b"\x00", b"\xa1\x64", b"\x83\x01", b"\x9f", b"\xd8\x2a\x58"))
            await socket.send_bytes(start + rng.randbytes(rng.randrange(2_000)))
            if rng.random() < 0.1:
                await socket.send_str("hello")
        await socket.receive(10)


async def throw_large_frames(url: URL, rng: random.Random) -> None:
    """Send frames larger than any may be."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url / "sync", heartbeat=None) as socket:
        for size in (limits.FRAME_BYTES_MAX, limits.FRAME_BYTES_MAX + 2, FRAMES_BYTES):
            await socket.send_bytes(rng.randbytes(size))
        await socket.receive(10)


@asynccontextmanager
async def connect(url: URL, upgrade: bool) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection by hand, with `upgrade` a WebSocket, so that what follows need not be one."""
    assert url.host is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        if upgrade:
            writer.write(
                f"GET /sync HTTP/1.1\r\nHost: {url.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.transport.abort()


async def cut_frames_short(url: URL, rng: random.Random) -> None:
    """Announce a frame of exabytes, or of a few bytes, and send a part of it."""
    for head in (struct.pack(">BBQ", 0x82, 0xFF, 2**62), struct.pack(">BBH", 0x82, 0xFE, 1_000), b"\x82\x85"):
        async with connect(url, upgrade=True) as (reader, writer):
            writer.write(head + rng.randbytes(4) + rng.randbytes(3))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.choice((0.1, 2))):
                    await reader.read(2**16)


async def read_nothing(url: URL, rng: random.Random) -> None:
    """Take the places of peers and read nothing of what is sent."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(connect(url, upgrade=True))
        await asyncio.sleep(5)


async def ask_for_nothing(url: URL, rng: random.Random) -> None:
    """Open connections that stay silent, or speak another language."""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(20):
            _, writer = await stack.enter_async_context(connect(url, upgrade=False))
            if number % 2:
                writer.write(rng.randbytes(100) + b"\r\n")
        await asyncio.sleep(2)


async def fetch_network(url: URL) -> OpId:
    """Return the id of a node's network, as any stranger may."""
    async with aiohttp.ClientSession() as http, http.get(url / "genesis") as response:
        return compute_op_id(await response.read())


async def talk_on(url: URL, rng: random.Random) -> None:
    """Prove a key, and then say what a peer may say, about nothing, until the node has had enough."""
    async with connect_raw(str(url).rstrip("/"), await fetch_network(url)) as peer:
        await peer.shake_hands()
        for turn in range(500):
            kind = rng.randrange(5)
            if kind == 0:
                await peer.send(Probe(rng.randbytes(32), rng.randrange(10**6)))
            elif kind == 1:
                await peer.send(Announce(rng.randbytes(8 * rng.randrange(1, 200))))
            elif kind == 2:
                await peer.send(Tree(b"", rng.randbytes(16), encode_items([LeafView("", (rng.randbytes(4),))])))
            elif kind == 3:
                await peer.send(Get(turn + 1, b"", rng.randbytes(16), encode_items([Whole("", 2**16 - 1)])))
            else:
                await peer.send(Ops(0, False, (40,)), [rng.randbytes(40)])
        await peer.wait_closed(10)


ATTACKS: tuple[Attack, ...] = (
    throw_garbage,
    throw_large_frames,
    cut_frames_short,
    read_nothing,
    ask_for_nothing,
    talk_on,
)


REFUSED = (PeerError, RawClosedError, AssertionError)
"""How `RawPeer` says that the node did not go along."""


async def repeat(attack: Attack, url: URL, seed: int) -> None:
    """Attack again and again until cancelled."""
    rng = random.Random(seed)
    while True:
        # What the node does with the connection is its own affair.
        with contextlib.suppress(aiohttp.ClientError, OSError, EOFError, TypeError, TimeoutError, *REFUSED):
            async with asyncio.timeout(15):
                await attack(url, rng)
        await asyncio.sleep(0.05)


# -- the links themselves --

ECHO = """
import contextlib, socket
server = socket.create_server(({host!r}, {port}))
print(server.getsockname()[1], flush=True)
while True:
    end, _ = server.accept()
    end.settimeout(30)
    with contextlib.suppress(OSError):
        while data := end.recv(100):
            end.sendall(data)
"""
CALL = """
import socket, sys
end = socket.create_connection(({host!r}, {port}), timeout=30)
print("open", flush=True)
for line in sys.stdin:
    end.sendall(line.encode())
    print(end.recv(100).decode().strip(), flush=True)
"""


async def run_python(net: Net, number: int, text: str, **values: Any) -> asyncio.subprocess.Process:
    command = (*net.command(number), sys.executable, "-c", text.format(**values))
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


async def say(process: asyncio.subprocess.Process, word: str, seconds: float) -> bool:
    """Return whether an echo comes back in time."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{word}\n".encode())
    try:
        async with asyncio.timeout(seconds):
            return (await process.stdout.readline()).decode().strip() == word
    except TimeoutError:
        return False


@pytest.mark.asyncio
@pytest.mark.parametrize("proxies", [False, True])
async def test_links_are_cut_without_a_word_and_heal(proxies: bool) -> None:
    if not proxies and not can_make_namespaces():
        pytest.skip("no right to make network namespaces: proxies stand in for them")
    async with open_net(3, proxies) as net:
        listen = URL(f"http://{net.flags(1)[3]}")
        server = await run_python(net, 1, ECHO, host=listen.host, port=listen.port)
        assert server.stdout is not None
        net.note(1, f"http://{listen.host}:{int(await server.stdout.readline())}")
        url = URL(net.address(1, seen_by=0))
        caller = await run_python(net, 0, CALL, host=url.host, port=url.port)
        try:
            assert caller.stdout is not None and await caller.stdout.readline() == b"open\n"
            assert await say(caller, "one", 10)
            await net.partition({0, 2}, {1})
            assert not await say(caller, "two", 0.5)
            await net.heal()
            assert (await asyncio.wait_for(caller.stdout.readline(), 20)) == b"two\n"
            await net.cut(1, 0, one_way=True)
            assert not await say(caller, "three", 0.5)
            await net.mend(0, 1)
            assert (await asyncio.wait_for(caller.stdout.readline(), 20)) == b"three\n"
            await net.cut(0, 2)
            assert await say(caller, "four", 10)
            if isinstance(net, Proxies):
                net.delay(0, 1, 0.2)
                assert not await say(caller, "five", 0.1)
                assert await asyncio.wait_for(caller.stdout.readline(), 10) == b"five\n"
                net.reset(0, 1)
                assert not await say(caller, "six", 10)
        finally:
            for process in (caller, server):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def test_namespaces_of_a_run_that_was_killed_are_removed() -> None:
    if not can_make_namespaces():
        pytest.skip("no right to make network namespaces")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f"{PREFIX}-{pid}-left" for pid in (ended.pid, os.getpid())]
    for name in names:
        run_ip("netns", "add", name)
    try:
        sweep()
        left = run_ip("netns", "list").split()
        assert names[0] not in left and names[1] in left
    finally:
        for name in names:
            run_ip("netns", "del", name, check=False)


# -- the network --


async def part_and_trouble(network: Network) -> None:
    """Write on both sides of two partitions, kill two nodes meanwhile, and wipe one."""
    net, made = network.net, network.made
    await network.write_on_all(3, "together")
    await net.partition({0, 1, OBSERVER}, {2, 3})
    together = set(network.acknowledged)
    await network.write_on_all(4, "apart")
    apart = network.acknowledged - together
    for number in (0, OBSERVER, 3):
        assert not apart <= await network.holds(number), "what is written on one side does not come to the other"
    writing = asyncio.create_task(network.write_on_all(6, "while others die"))
    await asyncio.sleep(0.3)
    made[1].kill()
    made[3].kill()
    await writing
    await asyncio.gather(network.start(1), network.start(3))
    made[OBSERVER].kill()
    for path in made[OBSERVER].folder.glob("ledger.sqlite*"):
        path.unlink()
    # It comes back among others than it left, and hears only one of them at first.
    await net.partition({0, 1, 2}, {3, OBSERVER})
    await net.cut(3, OBSERVER, one_way=True)
    await join_network(made[OBSERVER].folder, made[0].peer)
    await network.start(OBSERVER)
    await network.write_on_all(4, "parted anew")


@pytest.mark.asyncio
async def test_five_nodes_with_partitions_kills_and_a_hostile_peer_come_to_one_root(tmp_path: Path) -> None:
    # TEST_NET=proxies: as where no namespaces can be made.
    async with (
        open_net(COUNT, proxies=os.environ.get("TEST_NET") == "proxies") as net,
        open_network(tmp_path, net) as network,
    ):
        url = URL(network.made[ATTACKED].peer)
        attacks = [asyncio.create_task(repeat(attack, url, seed)) for seed, attack in enumerate(ATTACKS)]
        try:
            await part_and_trouble(network)
            await net.heal()
            await network.write_on_all(2, "healed")

            async def is_whole() -> bool:
                held = [await network.holds(number) for number in range(COUNT)]
                return all(network.acknowledged <= ids for ids in held)

            await wait_until(is_whole, "all that was acknowledged is everywhere", RUN_S)
            assert not [task for task in attacks if task.done()]
            status = await wait_equal(network.made)
            sizes = network.measure_rss()
        finally:
            for task in attacks:
                task.cancel()
            await asyncio.gather(*attacks, return_exceptions=True)
        assert len(network.acknowledged) > 40
        assert status["equivocations"] == 0 and status["waiting"] == 0
        assert max(sizes) < RSS_MAX, sizes
        print(f"memory of the nodes, MiB: {[size >> 20 for size in sizes]}")
        for node in network.made:
            assert "Traceback" not in node.log.read_text(), node.log.read_text()[-3000:]
        assert [node.stop() for node in network.made] == [0] * COUNT
