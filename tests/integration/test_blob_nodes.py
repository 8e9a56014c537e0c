"""Blobs between real nodes: from several at once, after kill -9, within a quota, over HTTP, and on the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from crdtchain import limits
from crdtchain.errors import StoreFullError, UsageError
from node.client import NodeClient
from node.config import Settings
from node.datadir import create_data, found_network, load_token
from node.node import Node
from node.serve import open_ports
from tests.integration.node_process import ROOT, NodeProcess, join_all, nodes, wait_equal, wait_until
from tests.integration.test_blob_relay import name_blob

pytestmark = pytest.mark.integration
MIB = 2**20


def run_cli(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.cli.main", *map(str, words), "--data", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRDTCHAIN_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


async def start_all(made: list[NodeProcess]) -> None:
    """Start a node, and others that dial it; the last one dials all."""
    await made[0].start(witness=True)
    await join_all(made)
    for node in made[1:-1]:
        await node.start(made[0].peer)
    await made[-1].start(*(node.peer for node in made[:-1]))
    await wait_equal(made)


@asynccontextmanager
async def watch(client: NodeClient) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield a list that grows by what the node says of blobs."""
    found: list[dict[str, Any]] = []

    async def listen() -> None:
        async for event in client.events():
            if event["type"] == "blob_progress":
                found.append(event)  # noqa: PERF401 - it grows while it is looked at

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.2)
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_three_nodes_send_one_blob_and_the_fourth_tells_how_far_it_is(tmp_path: Path) -> None:
    data = os.urandom(24 * MIB + 5)
    async with nodes(tmp_path, 4) as made:
        await start_all(made)
        for node in made[:3]:
            async with node.client() as client:
                cid = await client.put_blob(data)
        async with made[3].client() as client, watch(client) as events:

            async def is_from_all() -> bool:
                # A node that gets no time from the machine may be overtaken by the others.
                assert await client.get_blob(cid, tmp_path / "got") == len(data)
                await client.remove_blob(cid)
                return events[-1]["sources"] == 3

            await wait_until(is_from_all, "all three send a part")
            assert {event["blob"] for event in events} == {cid}
            assert (events[-1]["state"], events[-1]["done"], events[-1]["total"]) == ("done", len(data), len(data))
        assert (tmp_path / "got").read_bytes() == data


def signal_node(node: NodeProcess, number: signal.Signals) -> None:
    assert node.process is not None
    node.process.send_signal(number)


async def stop_within(client: NodeClient, cid: str, part: Path, source: NodeProcess, target: Path) -> asyncio.Task[int]:
    """Begin to get a blob, and stop its only source when some of it has come."""
    while True:
        getting = asyncio.create_task(client.get_blob(cid, target))
        while not getting.done() and not (part.exists() and part.stat().st_blocks * 512 > 4 * MIB):
            await asyncio.sleep(0.002)
        signal_node(source, signal.SIGSTOP)
        await asyncio.sleep(0.2)
        if part.exists():
            return getting
        # All of it was here already: the machine gave this test no time meanwhile.
        signal_node(source, signal.SIGCONT)
        await getting
        await client.remove_blob(cid)


@pytest.mark.asyncio
async def test_a_killed_node_goes_on_where_it_was(tmp_path: Path) -> None:
    data = os.urandom(160 * MIB)
    async with nodes(tmp_path, 2) as made:
        await start_all(made)
        async with made[0].client() as client:
            cid = await client.put_blob(data)
        part = made[1].folder / "blobs" / f"{cid}.part"
        async with made[1].client() as client:
            getting = await stop_within(client, cid, part, made[0], tmp_path / "got")
            made[1].kill()
            await asyncio.gather(getting, return_exceptions=True)
        assert part.exists()
        had = part.stat().st_blocks * 512
        signal_node(made[0], signal.SIGCONT)
        await made[1].start(made[0].peer)
        async with made[1].client() as client:
            (row,) = (await client.blobs())["blobs"]
            assert not row["whole"] and row["kept"] is None and row["size"] == had
            await wait_equal(made)
            async with watch(client) as events:
                assert await client.get_blob(cid, tmp_path / "got") == len(data)
                assert events[0]["done"] >= 3 * MIB
            (row,) = (await client.blobs())["blobs"]
            assert row["whole"] and row["size"] == len(data)
        assert (tmp_path / "got").read_bytes() == data and not part.exists()


@pytest.mark.asyncio
async def test_within_its_quota_a_node_keeps_what_an_open_job_needs(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        (made[1].folder / "config.toml").write_text("blob_quota_mib = 8\n")
        await start_all(made)
        async with made[0].client() as first, made[1].client() as second:
            needed, spare, third, last = [await first.put_blob(os.urandom(3 * MIB + 1)) for _ in range(4)]
            await name_blob(made[0], needed)
            await wait_equal(made)
            for cid in (needed, spare, third):
                assert len(await second.read_blob(cid)) == 3 * MIB + 1
            found = await second.blobs()
            assert {row["cid"] for row in found["blobs"]} == {needed, third}
            assert found["quota"] == 8 * MIB and found["bytes"] == 6 * MIB + 2
            kept = {row["cid"]: row["kept"] for row in found["blobs"]}
            assert kept[needed].startswith("labels of job bafyrei") and kept[third] is None
            with pytest.raises(UsageError, match="labels of job"):
                await second.remove_blob(needed)
            await second.pin_blob(third)
            with pytest.raises(StoreFullError, match="blob_quota_mib"):
                await second.read_blob(last)
            await second.pin_blob(third, False)
            assert (await second.pin_blob(last))["size"] == 3 * MIB + 1
            assert {row["cid"] for row in (await second.blobs())["blobs"]} == {needed, last}
            await second.remove_blob(needed, force=True)
            assert [row["kept"] for row in (await second.blobs())["blobs"]] == ["pinned"]


@pytest.mark.asyncio
async def test_parts_are_answered_as_http_says_on_both_ports(tmp_path: Path) -> None:
    data = os.urandom(2 * MIB + 100)
    async with nodes(tmp_path, 1) as made:
        node = await made[0].start(witness=True)
        async with node.client() as client:
            cid, empty = await client.put_blob(data), await client.put_blob(b"")
        right = {"Authorization": f"Bearer {load_token(node.folder)}"}
        addresses = (f"{node.local}/api/v1/blobs/", right), (f"{node.peer}/blobs/", {})
        for address, headers in addresses:
            async with aiohttp.ClientSession(headers=headers) as http:
                await check_parts(http, address + cid, data, f'"{cid}"')
                async with http.get(address + empty, headers={"Range": "bytes=0-"}) as answer:
                    assert answer.status == 416 and answer.headers["Content-Range"] == "bytes */0"
                async with http.get(address + empty) as answer:
                    assert (answer.status, await answer.read()) == (200, b"")


async def check_parts(http: aiohttp.ClientSession, url: str, data: bytes, tag: str) -> None:
    size = len(data)
    whole = [{}, {"Range": "bytes=0-1,5-6"}, {"Range": "x"}, {"Range": "bytes=0-9", "If-Range": '"another"'}]
    for headers in whole:
        async with http.get(url, headers=headers) as answer:
            assert answer.status == 200 and await answer.read() == data
            assert (answer.headers["ETag"], answer.headers["Accept-Ranges"]) == (tag, "bytes")
    for text, begin, end in (
        ("bytes=0-0", 0, 1),
        (f"bytes={MIB - 5}-{2 * MIB + 3}", MIB - 5, 2 * MIB + 4),
        ("bytes=-7", size - 7, size),
        (f"bytes={size - 3}-{size * 2}", size - 3, size),
    ):
        for more in ({}, {"If-Range": tag}):
            async with http.get(url, headers={"Range": text, **more}) as answer:
                assert answer.status == 206 and await answer.read() == data[begin:end]
                assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{size}"
    async with http.get(url, headers={"Range": f"bytes={size}-"}) as answer:
        assert answer.status == 416 and answer.headers["Content-Range"] == f"bytes */{size}"
        assert answer.content_type == "application/problem+json"
    async with http.head(url) as answer:
        assert answer.status == 200 and answer.content_length == size and await answer.read() == b""
    async with http.get(url, headers={"If-None-Match": tag}) as answer:
        assert answer.status == 304 and await answer.read() == b""
    for missing in (url[:-6] + "aaaaaa", url + "/nothing"):
        async with http.head(missing) as answer:
            assert answer.status in (400, 404)


@pytest.mark.asyncio
async def test_a_reader_that_reads_nothing_is_ended_and_a_slow_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.server.blobs.WRITE_S", 1.0)
    data = os.urandom(24 * MIB)
    create_data(tmp_path / "node")
    await found_network(tmp_path / "node", "a test")
    settings = Settings(local="127.0.0.1:0", listen="127.0.0.1:0")
    async with Node.open(tmp_path / "node", settings) as node, open_ports(node, settings) as addresses:
        async with NodeClient(addresses["local"], load_token(tmp_path / "node")) as client:
            cid = await client.put_blob(data)
        port = URL(addresses["peer"]).port
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        stuck.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.closing(stuck):
            await loop.sock_connect(stuck, ("127.0.0.1", port))
            await loop.sock_sendall(stuck, f"GET /blobs/{cid} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            # One that reads slowly, but reads, meanwhile gets all of it.
            address, got = f"{addresses['peer']}/blobs/{cid}", bytearray()
            async with aiohttp.ClientSession(read_bufsize=4_096) as http, http.get(address) as answer:
                async for part in answer.content.iter_chunked(256 * 1024):
                    got += part
                    if len(got) < 8 * MIB:
                        await asyncio.sleep(0.05)
            assert bytes(got) == data
            # What is in the buffers is still readable; behind it the connection is gone.
            left = 0
            async with asyncio.timeout(60):
                while True:
                    try:
                        part = await loop.sock_recv(stuck, 2**16)
                    except ConnectionError:
                        break
                    if not part:
                        break
                    left += len(part)
            assert left < len(data)


@pytest.mark.asyncio
async def test_the_command_line_shows_a_bar_and_one_document(tmp_path: Path) -> None:
    data = os.urandom(5 * MIB)
    (tmp_path / "file").write_bytes(data)
    async with nodes(tmp_path, 2) as made:
        await start_all(made)
        done = await asyncio.to_thread(run_cli, made[0].folder, "blob", "put", tmp_path / "file", "--json")
        assert done.returncode == 0, done.stderr
        cid = json.loads(done.stdout)["cid"]
        assert "to the node" in done.stderr
        done = await asyncio.to_thread(run_cli, made[1].folder, "blob", "get", cid, "-o", tmp_path / "got", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"cid": cid, "file": str(tmp_path / "got"), "size": len(data)}
        assert "from 1 peer" in done.stderr and (tmp_path / "got").read_bytes() == data
        done = await asyncio.to_thread(run_cli, made[1].folder, "blob", "list")
        assert cid[:18] in done.stdout and "until room is needed" in done.stdout and not done.stderr
        for words, kept in ((("pin", cid[:14]), "pinned"), (("unpin", cid[:14]), None)):
            assert (await asyncio.to_thread(run_cli, made[1].folder, "blob", *words)).returncode == 0
            done = await asyncio.to_thread(run_cli, made[1].folder, "blob", "list", "--json")
            assert [row["kept"] for row in json.loads(done.stdout)["blobs"]] == [kept]
        done = await asyncio.to_thread(run_cli, made[1].folder, "blob", "rm", cid, "--json")
        assert json.loads(done.stdout) == {"cid": cid, "size": len(data)}
        done = await asyncio.to_thread(run_cli, made[1].folder, "blob", "rm", cid)
        assert done.returncode == 2 and "is not here" in done.stderr


def test_the_bound_of_a_write_is_between_twenty_and_thirty_seconds() -> None:
    from node.server.blobs import WRITE_BYTES, WRITE_S

    assert 20 <= WRITE_S <= 30 and WRITE_BYTES <= limits.BLOB_PIECE_BYTES
