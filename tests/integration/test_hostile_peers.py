"""Real nodes and peers that mean harm: each attack alone, and the honest nodes around it go on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from yarl import URL

from crdtchain.codec import format_did
from crdtchain.scalars import Author, OpId
from crdtchain.scopes import SCOPES_MAX, encode_selector, make_selector
from crdtchain.shapes import decode_op
from crdtchain.sync.messages import Addresses, Get, Ops, Probe, Tree, TreeReply
from crdtchain.sync.regions import Except, encode_items
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_equal, wait_until
from tests.integration.raw_peer import RawPeer, connect_raw

pytestmark = pytest.mark.integration


def read_network(node: NodeProcess) -> OpId:
    """Return the network of a node."""
    return decode_op((node.folder / "genesis.cbor").read_bytes()).op.id


def make_scope(number: int) -> bytes:
    """Return a scope that nobody else has."""
    return encode_selector(make_selector(accounts=[Author(bytes([number + 1]) * 32)]))


@pytest.mark.asyncio
async def test_more_scopes_than_are_followed_harm_nobody(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made, AsyncExitStack() as stack:
        await made[0].start(witness=True)
        network = read_network(made[0])

        async def join(number: int) -> RawPeer:
            peer = await stack.enter_async_context(connect_raw(made[0].peer, network))
            peer.hello = peer.make_hello(network, scope=make_scope(number))
            return peer

        partial = [await join(number) for number in range(SCOPES_MAX + 1)]
        for peer in partial[:-1]:
            await peer.shake_hands()
        await partial[0].send(Probe(bytes(32), 10**6))
        await partial[0].send(Probe(bytes(32), 10**6))
        await partial[0].receive_a(Tree)
        await partial[0].send(TreeReply(1, b""))
        # It was asked in vain, so it is asked again after a while; meanwhile somebody comes with one scope too many.
        await partial[0].send(Probe(bytes(31) + b"x", 10**6))
        await asyncio.sleep(0.2)
        await partial[-1].say_hello()
        assert "too many scopes" in await partial[-1].wait_closed()
        await partial[0].receive_a(Tree)
        assert (await made[0].status())["ops"] >= 1
        assert "Traceback" not in made[0].log.read_text()


async def trickle(url: str, network: OpId, genesis: bytes, pause_s: float) -> None:
    """Claim a million ops, and answer with one that is known, again and again, each time before patience ends."""
    async with connect_raw(url, network) as peer:
        await peer.shake_hands()
        await peer.send(Probe(bytes(32), 10**6))
        await peer.send(Probe(bytes(32), 10**6))
        await peer.receive_a(Tree)
        await peer.send(TreeReply(1, encode_items([Except("", ())])))
        get, _ = await peer.receive_a(Get)
        while True:
            await peer.send(Ops(get.request, False, (len(genesis),)), [genesis])
            await asyncio.sleep(pause_s)


@pytest.mark.asyncio
async def test_a_trickle_keeps_nobody_from_asking_others(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        network, genesis = read_network(made[0]), (made[0].folder / "genesis.cbor").read_bytes()
        await made[1].start()
        for _ in range(5):
            await made[1].submit("transfer", {"to": format_did(made[0].key.author), "amount": 1})
        made[1].stop()
        attack = asyncio.create_task(trickle(made[0].peer, network, genesis, 3))
        await asyncio.sleep(1)
        await made[1].start(made[0].peer)
        await wait_equal(made)
        assert not attack.done()
        attack.cancel()


@asynccontextmanager
async def relay_to(url: str) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Carry connections on to a node unread; yields where, and what goes to it."""
    target, carried = URL(url), list[asyncio.StreamWriter]()
    work = set[asyncio.Task[None]]()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(target.host, target.port)
        carried.append(there[1])
        work.update((asyncio.create_task(carry(reader, there[1])), asyncio.create_task(carry(there[0], writer))))

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", carried
    finally:
        server.close()
        for task in work:
            task.cancel()
        for writer in carried:
            writer.close()


async def list_peers(node: NodeProcess) -> list[str]:
    """Return the addresses at which a node is connected to peers that it dialled."""
    async with node.client() as client:
        return [peer["address"] for peer in (await client.peers())["connected"] if peer["dialled"]]


@pytest.mark.asyncio
async def test_nobody_comes_between_two_nodes_that_are_connected(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made, AsyncExitStack() as stack:
        await made[0].start(witness=True)
        await join_all(made)
        network = read_network(made[0])
        await made[1].start(made[0].peer)
        await wait_equal(made)
        between, carried = await stack.enter_async_context(relay_to(made[0].peer))
        stranger = await stack.enter_async_context(connect_raw(made[1].peer, network))
        await stranger.shake_hands()
        await stranger.send(Addresses((between,)))

        async def is_dialled() -> bool:
            return bool(carried)

        await wait_until(is_dialled, "the told address is tried")
        await asyncio.sleep(1)
        assert await list_peers(made[1]) == [made[0].peer]
        async with made[0].client() as client:
            # The key was not proved to whoever is between.
            assert all(end["node"] is None for end in (await client.peers())["ended"])


@pytest.mark.asyncio
async def test_a_stranger_is_no_witness_of_the_own_tip(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        first, second = made
        await first.start(witness=True)
        await join_all(made)
        await second.start(first.peer)
        await wait_equal(made)
        second.stop()
        shutil.copytree(second.folder, tmp_path / "backup")
        await second.start(first.peer)
        await second.submit("profile", {"name": "one"})
        await wait_equal(made)
        second.stop()
        port = first.peer.rpartition(":")[2]
        first.stop()
        shutil.rmtree(second.folder)
        shutil.copytree(tmp_path / "backup", second.folder)
        await second.start(first.peer, flags=("--tip-wait-s", "600"))
        async with connect_raw(second.peer, read_network(second)) as stranger:
            theirs = await stranger.say_hello()
            await stranger.send(stranger.sign_auth())
            # It says that it holds just what is here.
            await stranger.send(Probe(theirs.root, theirs.count))
            await asyncio.sleep(2.5)
            assert (await second.status())["waits_for_tip"]
        await first.start(witness=True, flags=("--listen", f"127.0.0.1:{port}"))

        async def is_free() -> bool:
            return not (await second.status())["waits_for_tip"]

        await wait_until(is_free, "the configured peer's word ends the waiting")
        await second.submit("profile", {"name": "two"})
        assert (await wait_equal(made))["ops"] >= 3


@pytest.mark.asyncio
async def test_what_a_peer_says_at_its_end_forges_no_line_of_the_log(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start(witness=True)
        async with connect_raw(made[0].peer, read_network(made[0])) as peer:
            await peer.shake_hands()
            await peer.socket.close(code=4_000, message="so\nERROR all is lost \x1b[2J\u202e".encode())

        async def is_ended() -> bool:
            async with made[0].client() as client:
                return bool((await client.peers())["ended"])

        await wait_until(is_ended, "the end is noted")
        async with made[0].client() as client:
            assert (await client.peers())["ended"][0]["reason"] == "the peer closed: soERROR all is lost [2J"
        assert "\nERROR" not in made[0].log.read_text() and "\x1b" not in made[0].log.read_text()


@pytest.mark.asyncio
async def test_addresses_that_are_none_cost_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start(witness=True)
        async with connect_raw(made[0].peer, read_network(made[0])) as peer:
            await peer.shake_hands()
            # Some libraries fail at these in ways of their own.
            await peer.send(Addresses(("http://[::1]:5@", "http://[::1]@", "http://[", "http://]", "http://[::1%]:1")))
            await peer.send(Get(1, b"", bytes(16), encode_items([Except("", ())])))
            ops, _ = await peer.receive_a(Ops)
            assert ops.last
        assert "Traceback" not in made[0].log.read_text()
