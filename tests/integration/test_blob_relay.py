"""Blobs in a star: nodes that do not listen and know the hub alone get each other's files, and nothing else."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec
import pytest

from crdtchain.codec import Link, compute_blob_id, format_cid, parse_cid
from crdtchain.errors import NoPeerError
from crdtchain.scalars import BlobId
from crdtchain.shapes import decode_op
from crdtchain.sync.messages import Blob, BlobGet
from crdtchain.views import body_to_json
from tests.builders import World
from tests.integration.node_process import NodeProcess, join_all, nodes, wait_equal
from tests.integration.raw_peer import RawClosedError, connect_raw

pytestmark = pytest.mark.integration


async def start_star(made: list[NodeProcess]) -> None:
    """Start the hub, which listens, and the others, which do not."""
    await made[0].start(witness=True)
    await join_all(made)
    for node in made[1:]:
        await node.start(made[0].peer, listen=False)
    await wait_equal(made)


async def name_blob(node: NodeProcess, blob: str) -> None:
    """Post a job whose labels are a blob."""
    world = World(seed="relay")
    world.now = time.time_ns() // 1_000_000
    terms = world.terms(60_000)
    terms = msgspec.structs.replace(terms, data=msgspec.structs.replace(terms.data, labels=Link(parse_cid(blob))))
    await node.submit("job", body_to_json(terms))


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 12, 2**20, 3 * 2**20 + 17])
async def test_a_blob_reaches_over_the_hub_who_does_not_listen(tmp_path: Path, size: int) -> None:
    async with nodes(tmp_path, 4) as made:
        await start_star(made)
        data, target = os.urandom(size), tmp_path / "got"
        async with made[1].client() as worker, made[2].client() as verifier, made[3].client() as other:
            cid = await worker.put_blob(data)
            with pytest.raises(NoPeerError):
                await verifier.read_blob(cid)
            await name_blob(made[0], cid)
            await wait_equal(made)
            await asyncio.gather(verifier.get_blob(cid, target), other.get_blob(cid, tmp_path / "other"))
            assert target.read_bytes() == data == (tmp_path / "other").read_bytes()


@pytest.mark.asyncio
async def test_what_nobody_has_is_an_error_soon(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as made:
        await start_star(made)
        cid = format_cid(compute_blob_id(b"nobody has this"))
        await name_blob(made[0], cid)
        await wait_equal(made)
        started_s = time.monotonic()
        for node in made[1:]:
            async with node.client() as client:
                with pytest.raises(NoPeerError, match="no connected peer has the blob"):
                    await client.read_blob(cid)
        assert time.monotonic() - started_s < 10


async def lie(url: str, network: bytes, is_there: asyncio.Event) -> str:
    """Answer whatever blob is asked for with other bytes; returns why the connection was ended."""
    async with connect_raw(url, network) as peer:
        await peer.shake_hands()
        is_there.set()
        try:
            while True:
                if isinstance((await peer.receive())[0], BlobGet):
                    await peer.send(Blob(4, 4), [b"lies"])
        except RawClosedError as closed:
            return str(closed)


@pytest.mark.asyncio
async def test_who_sends_other_bytes_is_dropped_and_the_blob_comes_from_another(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        network = decode_op((made[0].folder / "genesis.cbor").read_bytes()).op.id
        is_there = asyncio.Event()
        liar = asyncio.create_task(lie(made[0].peer, network, is_there))
        await is_there.wait()
        await made[1].start(made[0].peer, listen=False)
        await wait_equal(made)
        async with made[0].client() as hub, made[1].client() as honest:
            cid = await honest.put_blob(b"the truth")
            assert BlobId(parse_cid(cid)) == compute_blob_id(b"the truth")
            assert await hub.read_blob(cid) == b"the truth"
        assert "other bytes" in await liar
