"""Blobs from several peers at once: who is slow, silent, lying or gone, and what survives a break."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from yarl import URL

from crdtchain.errors import NoPeerError, PeerError, StoreFullError, UsageError
from crdtchain.scalars import BlobId
from node.blobs import Blobs, encode_chunk_list
from node.events import BlobProgress
from tests.integration.blob_ports import (
    CHUNK,
    Line,
    PortOf,
    format_cid,
    list_names,
    name_blob,
    name_list,
    open_blobs,
    open_ports,
)
from tests.integration.test_store_faults import small_disk  # noqa: F401 - a fixture

pytestmark = pytest.mark.integration
SIZE = 8 * CHUNK + 12_345


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def made(data: bytes) -> tuple[BlobId, list[PortOf]]:
    """A blob, and three ports that have it."""
    blob, block = name_blob(data)
    return blob, [PortOf(data, block) for _ in range(3)]


async def fetch(blobs: Blobs, blob: BlobId, seconds: float = 60) -> bytes:
    """Fetch a blob; a limit is there only so that a test ends."""
    async with asyncio.timeout(seconds):
        await blobs.ensure(blob)
    return await blobs.read(blob)


@pytest.mark.asyncio
async def test_all_who_have_a_blob_send_parts_of_it_and_each_part_comes_once(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    for port in ports:
        port.pause_s = 0.2
    told: list[BlobProgress] = []
    async with open_ports(*ports) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        blobs.on_progress = told.append
        assert await fetch(blobs, blob) == data
        assert await blobs.read_list(blob) == ports[0].block
    assert all(port.asked for port in ports)
    assert {start for port in ports for start in port.asked} == set(range(0, SIZE, CHUNK))
    assert max(row.sources for row in told) == 3
    assert [row.done for row in told] == sorted(row.done for row in told)
    assert (told[-1].state, told[-1].done, told[-1].total) == ("done", SIZE, SIZE)


@pytest.mark.asyncio
async def test_who_never_ends_its_chunk_holds_nobody_up(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    ports[0].trickles = True
    async with open_ports(*ports) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        # Below the time that a chunk may take, so the trickling peer is not waited for.
        assert await fetch(blobs, blob, 60) == data
    assert len(ports[0].asked) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("liars", [1, 2])
async def test_the_same_lie_of_several_is_found_out_and_the_honest_one_is_enough(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]], liars: int
) -> None:
    blob, ports = made
    for port in ports[:liars]:
        port.change = lambda part: bytes(len(part))
    async with open_ports(*ports) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        assert await fetch(blobs, blob) == data
        # The next part is asked for while the first one is checked.
        assert all(len(port.asked) <= 2 for port in ports[:liars])
        before = [len(port.asked) for port in ports[:liars]]
        await blobs.remove(blob)
        assert await fetch(blobs, blob) == data
    # Who lied about a blob is not asked for it again.
    assert all(len(port.asked) == count for port, count in zip(ports, before) if count)


@pytest.mark.asyncio
@pytest.mark.parametrize("change", [lambda part: part[:-1], lambda part: part + b"x", lambda _: b""])
@pytest.mark.parametrize("size", [100, SIZE])
async def test_a_part_that_is_too_short_or_too_long_is_refused(
    tmp_path: Path, data: bytes, size: int, change: object
) -> None:
    blob, block = name_blob(data[:size])
    port = PortOf(data[:size], block)
    port.change = change  # type: ignore[assignment]
    async with open_ports(port) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        with pytest.raises(NoPeerError, match=r"than the blob's|more than it may|too short"):
            await fetch(blobs, blob)
        assert blobs.find_size(blob) is None and blobs.used_bytes == 0
    assert list_names(tmp_path / "node") == set()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "change", [lambda block: block + b"\x00", lambda block: block[:-1], lambda _: b"", lambda _: bytes(100_000)]
)
async def test_another_list_is_refused_and_the_right_one_taken(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]], change: object
) -> None:
    blob, ports = made
    ports[0].change_list = change  # type: ignore[assignment]
    async with open_ports(*ports[:2]) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        assert await fetch(blobs, blob) == data
    assert ports[0].lists == 1 and not ports[0].asked


@pytest.mark.asyncio
async def test_a_list_that_lies_about_its_blob_is_nobodys_blob(tmp_path: Path, data: bytes) -> None:
    lies = [encode_chunk_list(SIZE * 2, []), b"\xa0", b"not CBOR", encode_chunk_list(2**40, [])]
    for block in lies:
        blob, _ = name_list(block)
        port = PortOf(data, block)
        async with open_ports(port) as urls, open_blobs(tmp_path / "node") as blobs:
            blobs.find_sources = lambda urls=urls: urls  # type: ignore[misc]
            with pytest.raises(PeerError, match="names is no blob"):
                await fetch(blobs, blob)
        assert not port.asked
    assert list_names(tmp_path / "node") == set()


@pytest.mark.asyncio
async def test_a_size_that_does_not_fit_the_chunks_is_never_whole(tmp_path: Path, data: bytes) -> None:
    # The list is well-formed, but the last chunk is not as long as it says: no bytes fit it.
    _, block = name_blob(data)
    from node.blobs import decode_chunk_list

    size, chunks = decode_chunk_list(block)
    blob, lie = name_list(encode_chunk_list(size - 1, chunks))
    port = PortOf(data[:-1], lie)
    async with open_ports(port) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        with pytest.raises(NoPeerError, match="not the one of the blob"):
            await fetch(blobs, blob)


@pytest.mark.asyncio
async def test_what_came_before_a_break_is_not_fetched_again_also_after_a_restart(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.blobs.fetching.RECONNECT_S", 0.5)
    blob, ports = made
    ports[0].breaks_after = 5
    async with open_ports(*ports[:2]) as urls:
        async with open_blobs(tmp_path / "node") as blobs:
            blobs.find_sources = lambda: urls[:1]
            with pytest.raises(NoPeerError):
                await fetch(blobs, blob)
            assert blobs.find_size(blob) is None
            assert await blobs.read_list(blob) is None
            (row,) = blobs.list_items()
            assert row[0] == blob and row[1].state == "part" and row[1].size >= 4 * CHUNK
            assert blobs.used_bytes == row[1].size
        # One chunk is damaged on the disk meanwhile.
        with (tmp_path / "node" / "blobs" / f"{format_cid(blob)}.part").open("r+b") as file:
            file.seek(2 * CHUNK + 7)
            file.write(b"damage")
        async with open_blobs(tmp_path / "node") as blobs:
            blobs.find_sources = lambda: urls[1:]
            assert await fetch(blobs, blob) == data
            assert blobs.used_bytes == SIZE
    assert sorted(ports[1].asked) == sorted({2 * CHUNK, *range(5 * CHUNK, SIZE, CHUNK)})
    assert list_names(tmp_path / "node") == {format_cid(blob), f"{format_cid(blob)}.list"}


@pytest.mark.asyncio
async def test_a_peer_that_comes_back_goes_on_within_the_same_fetch(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    ports[0].breaks_after = 3
    async with open_ports(*ports[:2]) as urls, open_blobs(tmp_path / "node") as blobs:
        # The second address shows up only when the first has broken.
        blobs.find_sources = lambda: urls if len(ports[0].asked) > 3 else urls[:1]
        assert await fetch(blobs, blob) == data
    assert ports[1].asked


@pytest.mark.asyncio
async def test_connections_and_ports_are_used_at_once_and_a_liar_is_dropped(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    ports[0].pause_s = 0.05
    lines = [Line("a", data, ports[0].block), Line("b", data, ports[0].block), Line("c", None)]
    lines[1].change = lambda piece, total: (total, bytes(len(piece)) if total == SIZE else piece)
    async with open_ports(ports[0]) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        blobs.find_links = lambda: [line for line in lines if not line.dropped]
        assert await fetch(blobs, blob) == data
    assert lines[0].asked and ports[0].asked
    assert "not the one of the blob" in lines[1].dropped
    assert not lines[0].dropped and not lines[2].dropped


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [100, SIZE])
async def test_pieces_without_bytes_for_ever_end_the_connection(tmp_path: Path, data: bytes, size: int) -> None:
    blob, block = name_blob(data[:size])
    for change in (lambda _, total: (total, b""), lambda _, total: (0, b""), lambda _, total: (total + 1, b"x")):
        line = Line("liar", data[:size], block)
        line.change = change
        async with open_blobs(tmp_path / "node") as blobs:
            blobs.find_links = lambda line=line: [] if line.dropped else [line]  # type: ignore[misc]
            with pytest.raises(NoPeerError):
                await fetch(blobs, blob)
        assert line.dropped and len(line.asked) < 5


@pytest.mark.asyncio
async def test_peers_look_for_it_only_when_nobody_has_it(tmp_path: Path, data: bytes) -> None:
    blob, block = name_blob(data)
    finder, other = Line("finder", data, block), Line("other", None)
    finder.finds = True
    async with open_blobs(tmp_path / "node") as blobs:
        blobs.find_links = lambda: [other, finder]
        assert await fetch(blobs, blob) == data
    assert other.asked[:2] == [(0, 0), (0, 4)]
    assert finder.asked[0] == (0, 0) and (0, 4) in finder.asked


@pytest.mark.asyncio
async def test_who_asks_is_not_asked(tmp_path: Path) -> None:
    blob, _ = name_blob(b"a small one")
    asker = Line("asker", b"a small one")
    async with open_blobs(tmp_path / "node") as blobs:
        blobs.find_links = lambda: [asker]
        assert not await blobs.relay(blob, 3, "asker")
    assert asker.asked == []


@pytest.mark.asyncio
async def test_a_blob_larger_than_wanted_is_the_callers_error(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    async with open_ports(ports[0]) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        with pytest.raises(UsageError, match="more than the"):
            await blobs.ensure(blob, size_max=SIZE - 1)
        assert await fetch(blobs, blob) == data


@pytest.mark.asyncio
async def test_a_full_disk_is_a_typed_error_and_leaves_nothing(
    small_disk: Path,  # noqa: F811
    tmp_path: Path,
    data: bytes,
    made: tuple[BlobId, list[PortOf]],
) -> None:
    blob, ports = made
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "blobs").symlink_to(small_disk)
    small, _ = name_blob(b"small")
    async with open_ports(ports[0], PortOf(b"small", b"")) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls[:1]
        with pytest.raises(StoreFullError):
            await fetch(blobs, blob)
        with pytest.raises(StoreFullError):
            await blobs.put_bytes(data)
        assert list_names(tmp_path / "node") == set() and blobs.used_bytes == 0
        blobs.find_sources = lambda: urls[1:]
        assert await fetch(blobs, small) == b"small"
        assert await blobs.put_bytes(b"also") in [row[0] for row in blobs.list_items()]


@pytest.mark.asyncio
async def test_many_fetches_of_one_blob_are_one(tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]) -> None:
    blob, ports = made
    async with open_ports(ports[0]) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        assert set(await asyncio.gather(*(blobs.ensure(blob) for _ in range(5)))) == {SIZE}
    assert len(ports[0].asked) == 9


@pytest.mark.asyncio
async def test_who_waits_for_a_fetch_that_is_ended_gets_an_error(
    tmp_path: Path, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    ports[0].trickles = True
    async with open_ports(ports[0]) as urls, open_blobs(tmp_path / "node") as blobs:
        blobs.find_sources = lambda: urls
        waiting = asyncio.create_task(blobs.ensure(blob))
        while not ports[0].asked:
            await asyncio.sleep(0.01)
        assert [row.blob for row in blobs.list_progress()] == [blob]
        await blobs.close()
        with pytest.raises(NoPeerError, match="was ended"):
            await waiting
        assert blobs.used_bytes == 0 and blobs.list_progress() == []
    assert list_names(tmp_path / "node") == set()


@pytest.mark.asyncio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_port_that_does_not_answer_is_left_for_the_connection(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]], scheme: str
) -> None:
    # Nobody listens at the first port; the second speaks no TLS.
    blob, ports = made
    async with open_ports(ports[0]) as urls, open_blobs(tmp_path / "node") as blobs:
        url = URL("http://127.0.0.1:9") if scheme == "http" else urls[0].with_scheme("https")
        line = Line("one", data, ports[0].block)
        line.address = str(url)
        blobs.find_sources = lambda: [url]
        blobs.find_links = lambda: [line]
        assert await fetch(blobs, blob) == data
    assert line.asked and not line.dropped and not ports[0].asked


@pytest.mark.asyncio
async def test_what_is_wanted_here_has_more_room_than_what_was_begun_for_others(
    tmp_path: Path, data: bytes, made: tuple[BlobId, list[PortOf]]
) -> None:
    blob, ports = made
    async with open_ports(ports[0]) as urls, open_blobs(tmp_path / "node", quota_mib=9) as blobs:
        blobs.find_sources = lambda: urls
        await blobs.put_bytes(bytes(CHUNK // 2))
        others = asyncio.create_task(blobs.ensure(blob, for_others=True))
        await asyncio.sleep(0)
        assert await fetch(blobs, blob) == data
        with pytest.raises(StoreFullError):
            await others
