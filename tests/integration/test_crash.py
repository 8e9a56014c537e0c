"""A node that is killed while it writes loses nothing that it acknowledged, and never equivocates."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from crdtchain.adapters.opening import open_ledger
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import parse_cid
from crdtchain.errors import CrdtchainError, NoPeerError
from crdtchain.scalars import OpId
from node.client import NodeClient
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_equal, wait_until

pytestmark = pytest.mark.integration

ROUNDS = 10


async def write_until_killed(node: NodeProcess, acknowledged: list[dict[str, Any]], seconds: float) -> None:
    """Write as fast as answers come, by two writers at once; kill the node in the middle of it."""

    async def write(client: NodeClient, writer: int) -> None:
        number = 0
        while True:
            number += 1
            try:
                acknowledged.append(await client.submit("profile", {"name": f"writer {writer}", "about": str(number)}))
            except NoPeerError:
                return

    async with node.client() as client:
        writers = [asyncio.ensure_future(write(client, number)) for number in range(2)]
        await asyncio.sleep(seconds)
        node.kill()
        await asyncio.wait_for(asyncio.gather(*writers), 20)


@pytest.mark.asyncio
async def test_a_node_killed_in_a_loop_keeps_what_it_acknowledged_and_signs_no_seq_twice(tmp_path: Path) -> None:
    chance = random.Random(20)
    async with nodes(tmp_path, 2) as made:
        victim, witness = made[1], made[0]
        await witness.start(witness=True)
        await join_all(made)
        acknowledged: list[dict[str, Any]] = []
        for number in range(ROUNDS):
            # Every other time it is alone when it starts: then nobody could tell it of what it forgot.
            await (victim.start(witness.peer) if number % 2 else victim.start())
            await write_until_killed(victim, acknowledged, chance.uniform(0.02, 0.4))
        assert len(acknowledged) > ROUNDS
        assert len({op["seq"] for op in acknowledged}) == len(acknowledged)
        await victim.start(witness.peer)
        await wait_equal(made)
        for node in made:
            assert (await node.status())["equivocations"] == 0
            node.stop()
            await check_folder(node.folder, acknowledged)


async def check_folder(folder: Path, acknowledged: list[dict[str, Any]]) -> None:
    store = SqliteStore(folder)
    await store.open()
    try:
        ledger = await open_ledger(store)
        lost = [op["id"] for op in acknowledged if OpId(parse_cid(op["id"])) not in ledger]
        assert not lost
        await store.drop_snapshot()
        assert (await open_ledger(store)).state_digest() == ledger.state_digest()
    finally:
        await store.close()


@pytest.mark.asyncio
async def test_a_witness_killed_in_a_loop_never_speaks_with_two_tongues(tmp_path: Path) -> None:
    chance = random.Random(21)
    async with nodes(tmp_path, 2) as made:
        witness, other = made
        await witness.start(witness=True)
        await join_all(made)
        peer = witness.peer
        await other.start(peer)
        for _ in range(4):
            writing = asyncio.ensure_future(write_some(other))
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            witness.kill()
            await writing
            await witness.start(witness=True, flags=("--listen", peer.removeprefix("http://")))

            async def is_connected() -> bool:
                return bool((await other.status())["peers"])

            await wait_until(is_connected, "the peers are connected again")
        status = await wait_equal(made)
        assert status["equivocations"] == 0
        assert status["ops"] > 40


async def write_some(node: NodeProcess) -> None:
    async with node.client() as client:
        for number in range(20):
            try:
                await client.submit("profile", {"name": "other", "about": str(number)})
            except CrdtchainError as error:
                raise AssertionError(f"the node that was not killed failed: {error}") from error
