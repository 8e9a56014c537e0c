"""Nodes as processes find each other, stay connected, keep a private network, and do not sign from a copied folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import aiohttp
import pytest

from crdtchain.codec import format_did
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_until

pytestmark = pytest.mark.integration


async def peers_of(node: NodeProcess) -> set[str]:
    return set((await node.status())["peers"])


def did_of(node: NodeProcess) -> str:
    return format_did(node.key.author)


async def wait_connected(node: NodeProcess, *others: NodeProcess) -> None:
    wanted = {did_of(other) for other in others}

    async def is_connected() -> bool:
        return wanted <= await peers_of(node)

    await wait_until(is_connected, "the nodes are connected")


@pytest.mark.asyncio
async def test_one_address_is_enough_and_all_find_each_other_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as made:
        first, second, third = made
        await first.start(witness=True)
        await join_all(made)
        await second.start(first.peer)
        await wait_connected(second, first)
        await third.start(first.peer)
        await wait_connected(third, first, second)
        port = second.peer.rpartition(":")[2]
        first.stop()
        second.stop()
        await second.start(flags=("--listen", f"127.0.0.1:{port}"))
        await wait_connected(third, second)
        sent = await third.submit("profile", {"name": "still here"})

        async def has_come() -> bool:
            return bool(sent["id"] in (await second.status())["heads"])

        await wait_until(has_come, "what is written comes to the other without the first")


@pytest.mark.asyncio
async def test_two_nodes_that_dial_each_other_keep_one_connection(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        (made[0].folder / "peers.list").write_text(f"# the other\n{made[1].peer}\nthis is no address\n")
        await wait_connected(made[0], made[1])

        async def is_once() -> bool:
            async with made[0].client() as client:
                found = await client.peers()
            return len(found["connected"]) == 1 and not found["failed"]

        await wait_until(is_once, "one connection, and nothing is said to fail")


@pytest.mark.asyncio
async def test_a_private_network_lets_in_whom_it_lists(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        first, second = made
        allow = first.folder / "peers.allow"
        await first.start(witness=True)
        await join_all(made)
        allow.write_text("# nobody yet\n")
        await second.start(first.peer)

        async def is_refused() -> bool:
            async with second.client() as client:
                return "not on the other's list" in str((await client.peers())["failed"])

        await wait_until(is_refused, "the refusal is told")
        assert not await peers_of(first)
        allow.write_text(f"{did_of(second)}  # the second\n")
        await wait_connected(first, second)
        async with first.client() as client:
            blob = await client.put_blob(b"for the nodes of the network")
        async with aiohttp.ClientSession() as http, http.get(f"{first.peer}/blobs/{blob}") as response:
            assert response.status == 403
        async with second.client() as client:
            # Over the connection, whose key is proved, it comes.
            assert await client.read_blob(blob) == b"for the nodes of the network"
        allow.write_text("")

        async def is_dropped() -> bool:
            return not await peers_of(first)

        await wait_until(is_dropped, "who is taken off the list is dropped")


@pytest.mark.asyncio
async def test_a_copied_folder_waits_for_a_peer_before_it_signs(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        first, second = made
        await first.start(witness=True)
        await join_all(made)
        await second.start(first.peer)
        await second.submit("profile", {"name": "one"})
        second.stop()
        await second.start(first.peer)
        await wait_connected(second, first)
        second.stop()
        first.stop()
        shutil.copytree(second.folder, tmp_path / "copy")
        copy = await NodeProcess(tmp_path / "copy", second.key).start(listen=False)
        try:
            assert "copied or restored" in (await copy.status())["waits_for_tip"]
            copy.stop()
            assert "copied or restored" in (await (await copy.start(listen=False)).status())["waits_for_tip"]
            # The address was reached once, so it is dialled again.
            await first.start(witness=True, flags=("--listen", first.peer.removeprefix("http://")))

            async def is_free() -> bool:
                return not (await copy.status())["waits_for_tip"]

            await wait_until(is_free, "a peer that is in step ends the waiting")
            first.stop()
            copy.stop()
            # What was put right stays right.
            assert not (await (await copy.start(listen=False)).status())["waits_for_tip"]
            await second.start(listen=False)
            assert not (await second.status())["waits_for_tip"]
            second.stop()
            copy.stop()
            shutil.rmtree(second.folder)
            shutil.copytree(copy.folder, second.folder)
            await second.start(listen=False, flags=("--force-offline",))
            assert (await second.submit("profile", {"name": "two"}))["kind"] == "profile"
            assert "frozen for ever" in second.log.read_text()
        finally:
            copy.stop()
