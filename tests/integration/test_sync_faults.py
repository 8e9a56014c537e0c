"""Real nodes and peers that misbehave: connections that break anywhere, peers that lie, two copies of one key."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_did
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op
from crdtchain.sync.messages import Get, More, Ops, Probe, Tree, TreeReply
from crdtchain.sync.regions import BranchView, Except, LeafView, Whole, decode_items, encode_items
from crdtchain.sync.session import PAGES_IN_FLIGHT
from node.datadir import create_data, join_network
from tests.builders import bulk_history
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_equal, wait_until
from tests.integration.raw_peer import RawClosedError, RawPeer, connect_raw

pytestmark = pytest.mark.integration

ALL = encode_items([Except("", ())])
SALT = bytes(16)


def read_network(node: NodeProcess) -> OpId:
    """Return the network of a node."""
    return decode_op((node.folder / "genesis.cbor").read_bytes()).op.id


async def get_everything(peer: RawPeer, acknowledged: int) -> tuple[list[bytes], bool]:
    """Ask for all ops and acknowledge so many pages; returns the blocks, and whether that was all."""
    await peer.send(Get(1, b"", SALT, ALL))
    blocks: list[bytes] = []
    for _ in range(acknowledged + PAGES_IN_FLIGHT):
        ops, page = await peer.receive_a(Ops)
        blocks += page
        if ops.last:
            return blocks, True
        if acknowledged > 0:
            acknowledged -= 1
            await peer.send(More(1))
    return blocks, False


@pytest.mark.asyncio
async def test_who_comes_and_goes_is_served_anew_each_time(tmp_path: Path) -> None:
    history = bulk_history(jobs=12, seed="faults")
    node = NodeProcess(tmp_path / "source", create_data(tmp_path / "source"))
    store = SqliteStore(node.folder)
    await store.open()
    await store.append(history, durable=True)
    await store.close()
    network = history[0].op.id
    await node.start()
    try:
        for acknowledged in range(4):
            async with connect_raw(node.peer, network) as peer:
                await peer.shake_hands()
                blocks, is_all = await get_everything(peer, acknowledged)
                assert not is_all and len(blocks) == 200 * (acknowledged + PAGES_IN_FLIGHT)
                with pytest.raises(TimeoutError):
                    # No page comes that was not paid for.
                    await peer.receive_a(Ops, seconds=0.2)
        async with connect_raw(node.peer, network) as peer:
            await peer.shake_hands()
            blocks, is_all = await get_everything(peer, 1_000)
        assert is_all and len(blocks) == len(history)
        assert {decode_op(block).op.id for block in blocks} == {signed.op.id for signed in history}
        # A causal order: nobody has to wait for anybody.
        known: set[OpId] = set()
        for block in blocks:
            op = decode_op(block).op
            assert {*op.parents, *([op.prev] if op.prev else [])} <= known
            known.add(op.id)
        target = NodeProcess(tmp_path / "target", create_data(tmp_path / "target"))
        await join_network(target.folder, node.peer)
        for _ in range(4):
            # Killed while it fetches, and started again.
            await target.start(node.peer)
            await asyncio.sleep(0.1)
            target.kill()
        await target.start(node.peer)
        try:
            status = await wait_equal([node, target])
            assert status["ops"] == len(history)
        finally:
            target.kill()
    finally:
        node.kill()


async def lie(url: str, network: OpId, ended: list[str]) -> None:
    """Claim a million ops, differ everywhere, and have nothing; comes again and again."""
    key = SigningKey.generate()
    while True:
        try:
            async with connect_raw(url, network, key) as peer:
                await peer.shake_hands()
                await peer.send(Probe(bytes(32), 10**6))
                await peer.send(Probe(bytes(32), 10**6))
                while True:
                    head, _ = await peer.receive(60)
                    if isinstance(head, Tree):
                        views = [view for view in decode_items(head.items) if isinstance(view, LeafView | BranchView)]
                        outer = min(len(views), 1) or 0
                        offers = encode_items([Whole("0000000001", 0xFFFF), Whole("00000000f", 0xFFFF)])
                        await peer.send(TreeReply(outer, offers))
                    elif isinstance(head, Get):
                        await peer.send(Ops(head.request, True, ()))
                        await peer.send(Probe(bytes(31) + b"x", 10**6))
        except RawClosedError as closed:
            ended.append(str(closed))
            await asyncio.sleep(0.2)


@pytest.mark.asyncio
async def test_nodes_come_to_hold_the_same_while_peers_lie_to_both(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        network, ended = read_network(made[0]), list[str]()
        liars = [asyncio.create_task(lie(made[0].peer, network, ended)) for _ in range(3)]
        await made[1].start(made[0].peer)
        liars.append(asyncio.create_task(lie(made[1].peer, network, ended)))
        for number in range(10):
            source, target = made[number % 2], made[1 - number % 2]
            await source.submit("transfer", {"to": format_did(target.key.author), "amount": 1})
        status = await wait_equal(made)
        assert status["ops"] >= 11
        for task in liars:
            assert not task.done() or not task.exception(), task
            task.cancel()
        await asyncio.gather(*liars, return_exceptions=True)
        assert "Traceback" not in made[0].log.read_text() + made[1].log.read_text()


@pytest.mark.asyncio
async def test_a_question_made_to_be_costly_is_answered_and_the_node_goes_on(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start(witness=True)
        tags = tuple(bytes([place]) * 4 for place in range(16))
        prefixes = sorted(f"{place:0{digits}x}" for digits in (1, 2) for place in range(16**digits))
        views = [BranchView(prefix, len(prefix), 0xFFFF, tags) for prefix in ["", *prefixes]]
        async with connect_raw(made[0].peer, read_network(made[0])) as peer:
            await peer.shake_hands()
            for _ in range(2):
                await peer.send(Tree(b"", SALT, encode_items(views)))
                reply, _ = await peer.receive_a(TreeReply)
                assert reply.answered == 1
            await peer.send(Tree(b"", SALT, encode_items([*views, *views[:100]])))
            assert "twice" in await peer.wait_closed()

        async def is_alive() -> bool:
            return bool((await made[0].status())["ops"])

        await wait_until(is_alive, "the node answers")


@pytest.mark.asyncio
async def test_of_two_connections_of_one_node_the_newer_stays(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start(witness=True)
        network, key = read_network(made[0]), SigningKey.generate()
        async with connect_raw(made[0].peer, network, key) as first, connect_raw(made[0].peer, network, key) as second:
            await first.shake_hands()
            await second.shake_hands()
            assert "already connected" in await first.wait_closed()
            await second.send(Get(1, b"", SALT, ALL))
            ops, blocks = await second.receive_a(Ops)
            assert ops.last and len(blocks) >= 1
