"""Ports that serve a blob and mean harm: they send elsewhere, or send other bytes of the right length."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from crdtchain import limits
from crdtchain.errors import NoPeerError
from crdtchain.scalars import BlobId
from node.blobs.store import RELAYS_MAX
from tests.integration.blob_ports import CHUNK, Answer, Line, PortOf, list_names, name_blob, open_blobs, open_ports

pytestmark = pytest.mark.integration

SMALL = b"a blob of one chunk"
LARGE = bytes(CHUNK) + b"and a few bytes more"


@pytest.mark.asyncio
@pytest.mark.parametrize("data", [SMALL, LARGE])
async def test_a_port_aims_a_node_at_nobody_else(tmp_path: Path, data: bytes) -> None:
    blob, block = name_blob(data)
    liar, victim = PortOf(data, block), PortOf(data, block)

    def send_elsewhere(part: bytes) -> bytes:
        raise web.HTTPFound(victim.url / "blobs/anything")

    liar.change = send_elsewhere
    async with open_ports(liar, victim) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls[:1]
        with pytest.raises(NoPeerError):
            await blobs.ensure(blob)
    assert liar.asked and not victim.asked
    assert not any("part" in name for name in list_names(tmp_path / "node"))


@pytest.mark.asyncio
async def test_other_bytes_for_a_small_blob_are_refused_and_their_sender_is_asked_no_more(tmp_path: Path) -> None:
    blob, _ = name_blob(SMALL)
    liar, honest = Line("liar", SMALL), Line("honest", SMALL)
    liar.change = lambda piece, total: (total, bytes(len(piece)))
    async with open_blobs(tmp_path / "node") as blobs:
        blobs.find_links = lambda: [liar]
        with pytest.raises(NoPeerError, match="other bytes"):
            await blobs.ensure(blob, hops=0)
        assert liar.dropped and len(liar.asked) == 1
        with pytest.raises(NoPeerError):
            await blobs.ensure(blob, hops=0)
        assert len(liar.asked) == 1 and not list_names(tmp_path / "node")
        blobs.find_links = lambda: [liar, honest]
        assert await blobs.ensure(blob) == len(SMALL)
        assert await blobs.read(blob) == SMALL and len(liar.asked) == 1


@pytest.mark.asyncio
async def test_other_bytes_for_a_chunk_are_refused(tmp_path: Path) -> None:
    blob, block = name_blob(LARGE)
    liar, honest = PortOf(LARGE, block), PortOf(LARGE, block)
    liar.change = lambda part: b"x" * len(part)
    async with open_ports(liar, honest) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls[:1]
        with pytest.raises(NoPeerError, match="not the one of the blob"):
            await blobs.ensure(blob)
        assert blobs.find_size(blob) is None
        blobs.find_sources = lambda: urls[1:]
        # Not compared in the assertion: nobody reads how two megabytes differ.
        is_right = await blobs.ensure(blob) == len(LARGE) and await blobs.read(blob) == LARGE
    assert is_right


@pytest.mark.asyncio
async def test_who_calls_a_small_blob_large_is_not_listened_to(tmp_path: Path) -> None:
    blob, _ = name_blob(SMALL)
    liar = Line("liar", SMALL)
    liar.change = lambda piece, total: (2**27, bytes(limits.BLOB_PIECE_BYTES))
    async with open_blobs(tmp_path / "node") as blobs:
        blobs.find_links = lambda: [liar]
        with pytest.raises(NoPeerError, match="of another size"):
            await blobs.ensure(blob, hops=0)
    assert len(liar.asked) == 1 and liar.dropped


class SilentLine(Line):
    """A connection to a peer that never answers."""

    async def ask_piece(self, blob: BlobId, offset: int, hops: int, is_list: bool) -> Answer:
        self.asked.append((offset, hops))
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.asyncio
async def test_only_so_many_blobs_are_fetched_for_others_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.blobs.store.RELAY_WAIT_S", 0.05)
    silent = SilentLine("silent", None)
    async with open_blobs(tmp_path / "node") as blobs:
        blobs.find_links = lambda: [silent]
        for number in range(RELAYS_MAX + 3):
            assert not await blobs.relay(name_blob(bytes([number]))[0], 0, "asker")
        assert len(silent.asked) == len(blobs.list_progress()) == RELAYS_MAX
