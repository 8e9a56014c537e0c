"""Benchmarks of many nodes on real sockets: how ops spread, what rest costs, and what a hostile peer costs others.

Where it is measured how ops spread each node is a process of its own that holds the parts of the program (`Node`, peer
port) and notes when an op is stored; the peers of the idle node share one process; the two honest nodes beside a
hostile peer, and the idle one, are the program itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
from aiohttp import web

from bench.figures import Figure, benchmark, percentile
from bench.syncing import open_api, run_node, wait_for
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_cid
from crdtchain.errors import CrdtchainError
from crdtchain.ops import Profile, SignedOp
from node.config import Settings
from node.datadir import create_data, found_network, join_network
from node.node import Node
from node.serve import GARBAGE_OBJECTS
from node.server.app import make_peer_app

ROOT: Final = Path(__file__).parent.parent
NODES: Final = 20
OPS_S: Final = 50
WRITE_S: Final = 20
SETTLE_S: Final = 10
REST_S: Final = 60
HOSTILE_OPS: Final = 200
HOSTILE_PAUSE_S: Final = 0.05
START_S: Final = 90


def choose_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def make_graph(count: int, seed: int) -> list[list[int]]:
    """Return whom each node dials so that each has four neighbours, all are linked, and the graph is random."""
    rng = random.Random(seed)
    while True:
        dials: list[list[int]] = [[] for _ in range(count)]
        for _ in range(2):
            ring = rng.sample(range(count), count)
            for one, other in zip(ring, ring[1:] + ring[:1], strict=True):
                dials[one].append(other)
        pairs = {frozenset((one, other)) for one, others in enumerate(dials) for other in others}
        if len(pairs) == 2 * count:
            return dials


async def make_folders(work: Path, count: int) -> list[Path]:
    """Make the data folders of nodes of one network, all with credits."""
    folders = [work / f"node{number}" for number in range(count)]
    keys = [create_data(folder) for folder in folders]
    genesis = await found_network(folders[0], "bench", grants={key.author: 1_000 for key in keys})
    for folder in folders[1:]:
        store = SqliteStore(folder)
        await store.open()
        await store.append([genesis], durable=True)
        await store.close()
    return folders


# -- a process with several nodes --


class Crowd:
    """Some of the nodes; started by `start_crowd`, told what to do on standard input."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self.nodes: list[Node] = []
        self.asked: dict[str, float] = {}
        """When each op was asked for, by the clock that all processes share."""
        self.stored: dict[str, list[float]] = {}
        self.refused = 0
        self.lags: list[float] = []
        """By how much this process was too late for what it had to do, s: what the machine adds to all times."""

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Open nodes and ports; dialling goes on until everybody is there."""
        for number in self._plan["here"]:
            peers = tuple(f"http://127.0.0.1:{self._plan['ports'][peer]}" for peer in self._plan["dials"][number])
            settings = Settings(peers=peers, tip_wait_s=1, mdns="off")
            node = await stack.enter_async_context(Node.open(Path(self._plan["folders"][number]), settings))
            # No port is told to others, so that the graph stays as it was drawn.
            runner = web.AppRunner(make_peer_app(node), access_log=None, handle_signals=False)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", self._plan["ports"][number]).start()
            # A verifying process for each of twenty nodes would measure how many processes this machine bears.
            node.intake.warm_up = lambda: None  # type: ignore[method-assign]
            self._watch(node)
            self.nodes.append(node)

    def _watch(self, node: Node) -> None:
        push = node.runtime.on_stored

        def note(ops: Sequence[SignedOp], source: str) -> None:
            now_s = time.monotonic()
            for signed in ops:
                self.stored.setdefault(format_cid(signed.op.id), []).append(now_s)
            push(ops, source)

        node.runtime.on_stored = note

    async def write(self, ops_s: float, seconds: float) -> None:
        """Have random nodes sign ops, evenly in time, whatever becomes of the ones before."""
        rng, tasks = random.Random(self._plan["here"][0]), list[asyncio.Task[None]]()
        started_s = time.monotonic()
        for turn in range(int(ops_s * seconds)):
            await asyncio.sleep(max(0.0, started_s + turn / ops_s - time.monotonic()))
            tasks.append(asyncio.create_task(self._write_one(rng.choice(self.nodes), turn)))
        await asyncio.gather(*tasks)

    async def _write_one(self, node: Node, turn: int) -> None:
        asked_s = time.monotonic()
        try:
            signed = await node.runtime.submit(Profile(name=f"name {turn}", about=""))
        except CrdtchainError:
            self.refused += 1
            return
        self.asked[format_cid(signed.op.id)] = asked_s

    async def watch_lag(self) -> None:
        """Measure again and again how late this process is."""
        while True:
            due_s = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            self.lags.append(time.monotonic() - due_s)

    def count_received(self) -> tuple[int, int]:
        """Return how many ops came over all connections, those that were here already among them; and of them, live."""
        traffics = [link.session.traffic for node in self.nodes for link in node.peers.links.values()]
        return sum(traffic.received_ops for traffic in traffics), sum(traffic.live_copies for traffic in traffics)

    def is_linked(self) -> bool:
        """Return whether each node has all its connections."""
        return all(len(node.peers.ready()) >= self._plan["links"] for node in self.nodes)


async def run_crowd(plan: dict[str, Any]) -> None:
    """Run some nodes; a line is said when they are linked, and a line is waited for before each next step."""
    gc.set_threshold(GARBAGE_OBJECTS, 20, 50)
    crowd = Crowd(plan)
    async with contextlib.AsyncExitStack() as stack:
        await crowd.open(stack)
        while not crowd.is_linked():
            await asyncio.sleep(0.1)
        print("linked", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        (received, live), started_s = crowd.count_received(), time.process_time()
        if plan["ops_s"]:
            lag = asyncio.create_task(crowd.watch_lag())
            await crowd.write(plan["ops_s"], plan["seconds"])
            lag.cancel()
            await asyncio.sleep(SETTLE_S)
        report = {
            "asked": crowd.asked,
            "stored": crowd.stored,
            "received": crowd.count_received()[0] - received,
            "live": crowd.count_received()[1] - live,
            "refused": crowd.refused,
            "lags": crowd.lags,
            "cpu_s": time.process_time() - started_s,
        }
        print(json.dumps(report), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


@asynccontextmanager
async def start_crowd(plan: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process with some of the nodes for the length of a block."""
    command = (sys.executable, "-m", "bench.network", "--crowd", json.dumps(plan))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=2**26)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def read_line(process: asyncio.subprocess.Process, seconds: float) -> str:
    """Return what a process says next."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), seconds)).decode().strip()
    if not line:
        raise RuntimeError("a process of the benchmark has ended")
    return line


def tell(process: asyncio.subprocess.Process) -> None:
    """Let a process go on."""
    assert process.stdin is not None
    process.stdin.write(b"\n")


# -- (a) how ops spread --


async def spread(count: int, processes: int, ops_s: float, seconds: float) -> dict[str, Any]:
    """Return what became of ops that random nodes of a random graph wrote."""
    with tempfile.TemporaryDirectory() as work:
        folders = await make_folders(Path(work), count)
        plan = {"folders": list(map(str, folders)), "ports": choose_ports(count), "dials": make_graph(count, 1)}
        plan |= {"links": 4, "ops_s": ops_s / processes, "seconds": seconds}
        async with contextlib.AsyncExitStack() as stack:
            crowds = [
                await stack.enter_async_context(start_crowd({**plan, "here": list(range(first, count, processes))}))
                for first in range(processes)
            ]
            await asyncio.gather(*(read_line(crowd, START_S) for crowd in crowds))
            await asyncio.sleep(2)
            for crowd in crowds:
                tell(crowd)
            reports = [json.loads(await read_line(crowd, seconds + SETTLE_S + START_S)) for crowd in crowds]
    asked = {op: asked_s for report in reports for op, asked_s in report["asked"].items()}
    stored = {op: [at for report in reports for at in report["stored"].get(op, ())] for op in asked}
    whole = {op: max(times) - asked[op] for op, times in stored.items() if len(times) >= count}
    return {
        "asked": len(asked),
        "refused": sum(report["refused"] for report in reports),
        "missing": len(asked) - len(whole),
        "times": sorted(whole.values()),
        "copies": sum(report["received"] for report in reports) / max(1, len(asked)) / (count - 1),
        "live_copies": sum(report["live"] for report in reports) / max(1, len(asked)) / (count - 1),
        "cpu_s": sum(report["cpu_s"] for report in reports),
        "lags": sorted(lag for report in reports for lag in report["lags"]),
    }


@benchmark
def spreading(_history: Path) -> list[Figure]:
    """Twenty nodes, each linked with four others at random, 50 ops a second for 20 s, all on this machine."""
    found = asyncio.run(spread(NODES, NODES, OPS_S, WRITE_S))
    share = found["cpu_s"] / (WRITE_S + SETTLE_S) / (psutil.cpu_count() or 1)
    lags = {percent: percentile(found["lags"], percent) * 1e3 for percent in (50, 99)}
    return [
        *(
            Figure(
                f"until an op is at all nodes, {percent} %",
                percentile(found["times"], percent) * 1e3,
                "ms",
                lags[percent],
                "how late the loop of a node is",
            )
            for percent in (50, 99)
        ),
        Figure(
            "ops that were not everywhere after 10 s", found["missing"] + found["refused"], "", found["asked"], "ops"
        ),
        Figure("copies of an op that a node received", found["copies"], "", 1, "one copy"),
        Figure("of them, not asked for by a pull", found["live_copies"], ""),
        Figure("CPU of all nodes", share * 100, "%", 100, "all cores"),
    ]


# -- (b) what rest costs --

_BYTES: Final = re.compile(r"bytes_(?:sent|received):(\d+)")


def count_socket_bytes(port: int) -> int:
    """Return how many bytes the open connections to a port have carried, as the kernel counts them."""
    command = ("ss", "-tnHi", "state", "established", f"( sport = :{port} )")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sum(map(int, _BYTES.findall(done.stdout)))


async def rest(links: int, seconds: float) -> tuple[float, float]:
    """Return the share of a core that a node takes that has connections and nothing to do, and bytes a second."""
    with tempfile.TemporaryDirectory() as work:
        folders = await make_folders(Path(work), links + 1)
        async with run_node(folders[0], "--listen", "127.0.0.1:0") as addresses:
            port = int(addresses["peer"].rpartition(":")[2])
            plan: dict[str, Any] = {
                "folders": list(map(str, folders)),
                "ports": [port, *choose_ports(links)],
                "dials": [[], *([0] for _ in range(links))],
                "here": list(range(1, links + 1)),
                "links": 1,
                "ops_s": 0,
            }
            async with start_crowd(plan) as crowd:
                await read_line(crowd, START_S)
                await asyncio.sleep(5)
                pid = json.loads((folders[0] / "node.json").read_text())["pid"]
                process = psutil.Process(pid)
                before, at_start = process.cpu_times(), count_socket_bytes(port)
                await asyncio.sleep(seconds)
                after, at_end = process.cpu_times(), count_socket_bytes(port)
    cpu_s = after.user + after.system - before.user - before.system
    return cpu_s / seconds, (at_end - at_start) / seconds / links


@benchmark
def resting(_history: Path) -> list[Figure]:
    """One node with 20 connections and nothing to do, for a minute; bytes are those of the TCP streams, both ways."""
    share, bytes_s = asyncio.run(rest(20, REST_S))
    return [
        Figure("CPU of an idle node with 20 connections", share * 100, "%", 100, "one core"),
        Figure("what an idle connection carries", bytes_s, "B/s"),
    ]


# -- (c) beside a hostile peer --


async def be_hostile(url: str, network: str) -> None:
    """Send a node as much as goes through, on four connections at once, for ever."""
    from crdtchain.codec import parse_cid
    from crdtchain.errors import PeerError
    from crdtchain.sync.messages import Announce, Probe, encode_frame
    from tests.integration.raw_peer import RawClosedError, connect_raw

    rng = random.Random(1)
    floods = [
        [rng.randbytes(60_000)],
        [encode_frame(Announce(rng.randbytes(8 * 500))) for _ in range(20)],
        [encode_frame(Probe(rng.randbytes(32), number + 2)) for number in range(50)],
        [b"\x00\x01\x07" + rng.randbytes(200)],
    ]

    async def flood(number: int) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError, PeerError, RawClosedError):
                async with connect_raw(url, parse_cid(network)) as peer:
                    if number:
                        await peer.shake_hands()
                    while not peer.socket.closed:
                        for frame in floods[number]:
                            await peer.send_bytes(frame)
                        # What is read tells of a close; nothing else is of interest.
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(peer.socket.receive(), 0.001)
            await asyncio.sleep(0.005)

    await asyncio.gather(*map(flood, range(len(floods))))


async def count_ended(http: aiohttp.ClientSession) -> int:
    """Return how many connections to peers a node has seen the end of, and how many it refused."""
    async with http.get("/metrics") as response:
        response.raise_for_status()
        text = await response.text()
    names = "crdtchain_(?:drops|connections_refused)_total"
    return sum(map(int, re.findall(rf"^{names}(?:{{[^}}]*}})? (\d+)$", text, re.MULTILINE)))


async def write_beside(hostile: bool) -> tuple[list[float], float, int]:
    """Write at one node and look at another, which is flooded or not.

    Returns: until when each op was seen there, s; the most memory it used, bytes; connections that ended.
    """
    with tempfile.TemporaryDirectory() as work:
        alice, bob = Path(work, "alice"), Path(work, "bob")
        key = create_data(alice)
        create_data(bob)
        genesis = await found_network(alice, "bench", grants={key.author: 1_000})
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(run_node(alice, "--listen", "127.0.0.1:0", "--witness"))
            await join_network(bob, first["peer"])
            second = await stack.enter_async_context(run_node(bob, "--listen", "127.0.0.1:0", "--peer", first["peer"]))
            at_alice = await stack.enter_async_context(open_api(alice, first["local"]))
            at_bob = await stack.enter_async_context(open_api(bob, second["local"]))
            events = await stack.enter_async_context(at_bob.get("events", timeout=aiohttp.ClientTimeout(total=None)))
            process = psutil.Process(json.loads((bob / "node.json").read_text())["pid"])
            if hostile:
                target = (second["peer"], format_cid(genesis.op.id))
                attacker = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "bench.network", "--hostile", *target, cwd=ROOT
                )
                stack.push_async_callback(attacker.wait)
                stack.callback(attacker.kill)
            await asyncio.sleep(2)
            times, size = list[float](), 0
            for number in range(HOSTILE_OPS):
                started_s = time.perf_counter()
                async with at_alice.post("profiles", json={"name": f"alice {number}", "about": ""}) as response:
                    response.raise_for_status()
                    op = (await response.json())["id"]
                await asyncio.wait_for(wait_for(events, op.encode()), 60)
                times.append(time.perf_counter() - started_s)
                size = max(size, process.memory_info().rss)
                await asyncio.sleep(HOSTILE_PAUSE_S)
            return times, size, await count_ended(at_bob)


@benchmark
def beside_hostile(_history: Path) -> list[Figure]:
    """Two honest nodes while a third floods one of them on four connections; seen: verified, stored and shown there."""
    calm, calm_size, _ = asyncio.run(write_beside(hostile=False))
    times, size, ended = asyncio.run(write_beside(hostile=True))
    name = "without the flood"
    figures = [
        Figure(
            f"until an op is seen, {percent} %",
            percentile(times, percent) * 1e3,
            "ms",
            percentile(calm, percent) * 1e3,
            name,
        )
        for percent in (50, 99)
    ]
    return [
        *figures,
        Figure("memory of the flooded node", size / 2**20, "MiB", calm_size / 2**20, name),
        Figure("hostile connections that it ended or refused meanwhile", ended, ""),
    ]


def main() -> None:
    """Run one part: what the benchmarks start, or a benchmark by hand."""
    parser = argparse.ArgumentParser(prog="python -m bench.network", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="?", choices=("spreading", "resting", "beside_hostile"))
    parser.add_argument("--crowd", help=argparse.SUPPRESS)
    parser.add_argument("--hostile", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.crowd:
        asyncio.run(run_crowd(json.loads(arguments.crowd)))
    elif arguments.hostile:
        asyncio.run(be_hostile(*arguments.hostile))
    else:
        chosen = {"spreading": spreading, "resting": resting, "beside_hostile": beside_hostile}
        for name in [arguments.name] if arguments.name else chosen:
            for figure in chosen[name](Path()):
                beside = f"  ({figure.limit_name}: {figure.limit:.4g})" if figure.limit is not None else ""
                print(f"{figure.name}: {figure.value:.4g} {figure.unit}{beside}", flush=True)


if __name__ == "__main__":
    main()
