"""Benchmarks of blobs between real nodes on this machine: fetched and verified from one peer and from three."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp

from bench.figures import Figure, benchmark
from bench.syncing import open_api, run_node
from node.datadir import create_data, found_network, join_network

SIZE = 200_000_000
CONNECT_S = 60


async def wait_for_peers(http: aiohttp.ClientSession, count: int) -> None:
    """Return when a node is connected to so many others."""
    until = time.monotonic() + CONNECT_S
    while True:
        async with http.get("peers") as response:
            if len((await response.json())["connected"]) >= count:
                return
        if time.monotonic() > until:
            raise RuntimeError(f"not connected to {count} nodes within {CONNECT_S} s")
        await asyncio.sleep(0.05)


async def put_file(http: aiohttp.ClientSession, data: bytes) -> str:
    """Store a blob at a node; returns its CID."""
    headers = {"Content-Type": "application/octet-stream"}
    async with http.put("blobs", data=data, headers=headers) as response:
        response.raise_for_status()
        return str((await response.json())["cid"])


async def time_stream(url: str, target: Path) -> float:
    """Return the seconds in which a plain client writes an answer to a file, unverified."""
    started = time.perf_counter()
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        response.raise_for_status()
        with target.open("wb") as file:
            async for part in response.content.iter_chunked(256 * 1024):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - started


async def time_fetch(http: aiohttp.ClientSession, cid: str) -> float:
    """Return the seconds in which a node fetches, verifies and stores a blob, and forget it again."""
    started = time.perf_counter()
    async with http.post(f"blobs/{cid}/pin", json={}) as response:
        response.raise_for_status()
    seconds = time.perf_counter() - started
    async with http.delete(f"blobs/{cid}", json={}) as response:
        response.raise_for_status()
    return seconds


async def time_blobs() -> dict[str, float]:
    """Return how long a blob takes: streamed plainly, from one node, from three, over one sync connection alone."""
    data, found = os.urandom(SIZE), dict[str, float]()
    forever = aiohttp.ClientTimeout(total=None)
    with tempfile.TemporaryDirectory() as work:
        folders = [Path(work, f"node{number}") for number in range(7)]
        keys = [create_data(folder) for folder in folders]
        await found_network(folders[0], "bench", grants={keys[0].author: 1_000})
        async with AsyncExitStack() as stack:

            async def run(folder: Path, *flags: str) -> tuple[dict[str, str], aiohttp.ClientSession]:
                addresses = await stack.enter_async_context(run_node(folder, *flags))
                http = await stack.enter_async_context(open_api(folder, addresses["local"]))
                http._timeout = forever
                return addresses, http

            holders = [(await run(folders[0], "--listen", "127.0.0.1:0", "--witness"))]
            for folder in folders[1:3]:
                await join_network(folder, holders[0][0]["peer"])
                holders.append(await run(folder, "--listen", "127.0.0.1:0"))
            (cid,) = {await put_file(http, data) for _, http in holders}
            ports = [addresses["peer"] for addresses, _ in holders]
            for folder in folders[3:]:
                await join_network(folder, ports[0])
            _, one = await run(folders[3], "--peer", ports[0])
            _, three = await run(folders[4], *(word for port in ports for word in ("--peer", port)))
            # The last holder does not listen: what it has comes over its connection alone.
            wired_at, wired = await run(folders[5], "--listen", "127.0.0.1:0")
            _, silent = await run(folders[6], "--peer", wired_at["peer"])
            await put_file(silent, data)
            for http, count in ((one, 1), (three, 3), (wired, 1)):
                await wait_for_peers(http, count)
            best(found, "stream", [await time_stream(f"{ports[0]}/blobs/{cid}", Path(work, "copy")) for _ in range(3)])
            best(found, "one", [await time_fetch(one, cid) for _ in range(3)])
            best(found, "three", [await time_fetch(three, cid) for _ in range(3)])
            best(found, "wire", [await time_fetch(wired, cid) for _ in range(2)])
    return found


def best(found: dict[str, float], name: str, seconds: list[float]) -> None:
    """Note the shortest of some runs: what is above it is noise of the machine."""
    found[name] = min(seconds)


def to_rate(seconds: float) -> float:
    """Return MB/s."""
    return SIZE / seconds / 1e6


@benchmark
def blobs(_history: Path) -> list[Figure]:
    """A blob of 200 MB between processes over loopback, verified and durable, beside a plain stream of the file."""
    found = asyncio.run(time_blobs())
    limit, name = to_rate(found["stream"]), "one plain HTTP stream of the file, unverified"
    names = {
        "one": "a blob of 200 MB from one node",
        "three": "a blob of 200 MB from three nodes",
        "wire": "a blob of 200 MB over one sync connection",
    }
    return [Figure(text, to_rate(found[key]), "MB/s", limit, name) for key, text in names.items()]
