"""Attacks on real nodes: whatever a stranger's connection does, it is bounded, and honest nodes go on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from crdtchain import limits
from crdtchain.codec import format_did
from node.datadir import load_token
from node.serve import CONNECTIONS_MAX
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_until

pytestmark = pytest.mark.integration

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def time_transfer(source: NodeProcess, target: NodeProcess) -> float:
    """Return the seconds after which an op of one node is at another."""
    started_s = time.monotonic()
    sent = await source.submit("transfer", {"to": format_did(target.key.author), "amount": 1})

    async def is_there() -> bool:
        async with target.client() as client:
            return any(op["id"] == sent["id"] for op in (await client.ops())["ops"])

    await wait_until(is_there, "the op is at the other node", 10)
    return time.monotonic() - started_s


async def connect(url: URL) -> Connection:
    assert url.host is not None
    async with asyncio.timeout(5):
        return await asyncio.open_connection(url.host, url.port)


async def is_closed(connection: Connection, seconds: float) -> bool:
    """Return whether the other side closes a connection in time."""
    with contextlib.suppress(ConnectionError):
        try:
            async with asyncio.timeout(seconds):
                return await connection[0].read() is not None
        except TimeoutError:
            return False
    return True


@pytest.mark.asyncio
async def test_connections_that_ask_for_nothing_are_bounded_and_end(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        await time_transfer(made[0], made[1])
        url = URL(made[0].peer)
        idle = [await connect(url) for _ in range(CONNECTIONS_MAX)]
        try:
            for _, writer in idle[::2]:
                writer.write(b"GET /sync HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            refused = [await connect(url) for _ in range(20)]
            idle.extend(refused)
            assert all(await asyncio.gather(*(is_closed(connection, 5) for connection in refused)))
            assert await time_transfer(made[0], made[1]) < 5
            rest = limits.HANDSHAKE_S + 5
            assert all(await asyncio.gather(*(is_closed(connection, rest) for connection in idle)))
            assert await time_transfer(made[1], made[0]) < 5
        finally:
            for _, writer in idle:
                writer.close()
        fresh = await connect(url)
        fresh[1].write(b"GET /genesis HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await fresh[0].readline()).startswith(b"HTTP/1.1 200 ")
        fresh[1].close()


@pytest.mark.asyncio
async def test_malformed_requests_leave_no_trace_in_the_log(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start(witness=True)
        before = made[0].log.stat().st_size
        for address in (made[0].peer, made[0].local):
            for head in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nX: " + b"y" * 9_000, b"NONSENSE\r\n"):
                connection = await connect(URL(address))
                connection[1].write(head + b"\r\n\r\n")
                answer = await connection[0].read(12)
                assert answer in {b"HTTP/1.0 400", b"HTTP/1.1 400"}
                connection[1].close()
        assert (await made[0].status())["ops"] >= 1
        assert made[0].log.stat().st_size == before


@pytest.mark.asyncio
async def test_a_compressed_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start(witness=True)
        head = {"Authorization": f"Bearer {load_token(made[0].folder)}", "Content-Type": "application/json"}
        bomb = gzip.compress(b" " * 50_000_000)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            url = f"{made[0].local}/api/v1/profiles"
            for encoding in ("gzip", "deflate", "br", "zstd", "nonsense"):
                headers = {**head, "Content-Encoding": encoding}
                async with http.post(url, data=b'{"name":"a"}', headers=headers) as response:
                    # Where the server's library knows how to unpack, it may refuse what can't be unpacked first.
                    assert response.status in {400, 415}
                    assert response.status == 415 or encoding != "nonsense"
            # The connection may end before all of this is sent.
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(url, data=bomb, headers={**head, "Content-Encoding": "gzip"}) as response:
                    assert response.status in (400, 413, 415)
        assert "Traceback" not in made[0].log.read_text()
        assert (await made[0].status())["ops"] >= 1
