"""Limits of admission on real nodes: a flood is taken in bulk, broken rules keep somebody out, a wrong clock stops."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest

from crdtchain import limits
from crdtchain.adapters.keys import SigningKey
from crdtchain.codec import format_did
from crdtchain.shapes import decode_op
from node import peers
from node.config import Settings
from node.datadir import create_data, found_network
from node.node import Node
from node.serve import open_ports
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_equal, wait_until
from tests.integration.raw_peer import RawClosedError, connect_raw

pytestmark = pytest.mark.integration


async def read_metrics(node: NodeProcess) -> dict[str, int]:
    """Return what a node counts, by name and label."""
    async with aiohttp.ClientSession() as http, http.get(f"{node.local}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.mark.asyncio
async def test_a_flood_is_deferred_comes_in_bulk_and_holds_up_nobody(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as made:
        target, flooder, honest = made
        await target.start(witness=True)
        await join_all(made)
        await flooder.start(target.peer)
        await honest.start(target.peer)
        to = {"to": format_did(target.key.author), "amount": 1}
        async with flooder.client() as client:
            await asyncio.gather(*(client.submit("transfer", to) for _ in range(400)))
        await honest.submit("transfer", to)
        await wait_equal(made)
        counted = await read_metrics(target)
        assert counted['crdtchain_admission_deferred_total{limit="author"}'] > 0
        assert counted["crdtchain_admission_taken_total"] > 0
        assert counted['crdtchain_drops_total{reason="invalid_op"}'] == 0


@pytest.mark.asyncio
async def test_who_breaks_rules_is_kept_out_over_a_restart(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        (node,) = made
        await node.start()
        network = decode_op((node.folder / "genesis.cbor").read_bytes()).op.id
        key = SigningKey.generate()
        for _ in range(2):
            async with connect_raw(node.peer, network, key) as peer:
                await peer.shake_hands()
                await peer.send_bytes(b"\x00\x03abc")
                assert "malformed" in await peer.wait_closed()

        async def is_refused() -> bool:
            async with connect_raw(node.peer, network, key) as peer:
                try:
                    await peer.shake_hands()
                    return "takes no connections" in await peer.wait_closed(5)
                except RawClosedError as closed:
                    return "takes no connections" in str(closed)

        assert await is_refused()
        assert node.stop() == 0
        await node.start()
        assert await is_refused()
        counted = await read_metrics(node)
        assert counted['crdtchain_connections_refused_total{reason="penalty"}'] == 1
        async with connect_raw(node.peer, network) as peer:
            await peer.shake_hands()


@pytest.mark.asyncio
async def test_a_witness_whose_clock_differs_from_its_peers_stops_and_says_so(tmp_path: Path) -> None:
    async with nodes(tmp_path, 4) as made:
        await made[0].start(witness=True)
        await join_all(made)
        made[0].stop()
        await made[0].start(witness=True, skew_s=400)
        for node in made[1:]:
            await node.start(made[0].peer)

        async def has_stopped() -> bool:
            stopped = (await made[0].status())["duty_stopped"] or ""
            return "ahead of those of 3 peers" in stopped

        await wait_until(has_stopped, "the witness stops")
        assert (await read_metrics(made[0]))["crdtchain_clock_skew_ms"] < -390_000


@pytest.mark.asyncio
async def test_places_are_for_whoever_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_IN_MAX", 2)
    folder = tmp_path / "node"
    create_data(folder)
    genesis = await found_network(folder, "test")
    settings = Settings(local="127.0.0.1:0", listen="127.0.0.1:0", mdns="off")
    async with (
        Node.open(folder, settings) as node,
        open_ports(node, settings) as addresses,
        contextlib.AsyncExitStack() as stack,
    ):
        idle = [await stack.enter_async_context(connect_raw(addresses["peer"], genesis.op.id)) for _ in range(2)]
        for peer in idle:
            await peer.shake_hands()
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            async with connect_raw(addresses["peer"], genesis.op.id):
                pass
        # Both are young: nobody makes room.
        assert len(node.peers.ready()) == 2
        monkeypatch.setattr(peers, "USELESS_S", 0.0)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
            async with connect_raw(addresses["peer"], genesis.op.id):
                pass
        assert "makes room" in await idle[0].wait_closed()
        async with connect_raw(addresses["peer"], genesis.op.id) as late:
            await late.shake_hands()
