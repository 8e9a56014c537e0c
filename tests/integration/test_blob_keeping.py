"""What stays and what goes: the quota, what open jobs need, what was put or pinned, and what a start finds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crdtchain.codec import compute_blob_id, format_cid
from crdtchain.errors import StoreFullError, UsageError
from crdtchain.scalars import BlobId
from node.blobs import Blobs
from tests.integration.blob_ports import CHUNK, PortOf, list_names, name_blob, open_blobs, open_ports

pytestmark = pytest.mark.integration


async def take(blobs: Blobs, size: int, for_others: bool = False) -> BlobId:
    """Fetch a new blob of a size from a port of its own."""
    data = os.urandom(size)
    blob, block = name_blob(data)
    async with open_ports(PortOf(data, block)) as urls:
        blobs.find_sources = lambda: urls
        await blobs.ensure(blob, for_others=for_others)
    return blob


def here(blobs: Blobs) -> set[BlobId]:
    return {row[0] for row in blobs.list_items()}


@pytest.mark.asyncio
async def test_what_was_used_the_longest_time_ago_goes_and_what_is_kept_stays(tmp_path: Path) -> None:
    async with open_blobs(tmp_path / "node", quota_mib=12) as blobs:
        needed: dict[BlobId, str] = {}
        blobs.find_needed = lambda: needed
        own = await blobs.put_bytes(os.urandom(2 * CHUNK))
        pinned = await take(blobs, 2 * CHUNK)
        await blobs.pin(pinned)
        for_job = await take(blobs, 2 * CHUNK)
        needed[for_job] = "data of a job"
        first, second = await take(blobs, 2 * CHUNK), await take(blobs, 2 * CHUNK)
        await blobs.read(first)
        third = await take(blobs, 3 * CHUNK)
        assert here(blobs) == {own, pinned, for_job, first, third}
        fourth = await take(blobs, 6 * CHUNK)
        assert here(blobs) == {own, pinned, for_job, fourth}
        with pytest.raises(StoreFullError, match="blob_quota_mib"):
            await take(blobs, 7 * CHUNK)
        assert here(blobs) == {own, pinned, for_job, fourth}
        kept = {blob: why for blob, _, why in blobs.list_items()}
        assert kept == {own: "put here", pinned: "pinned", for_job: "data of a job", fourth: ""}
        with pytest.raises(StoreFullError):
            await blobs.put_bytes(os.urandom(7 * CHUNK))
        # An own blob makes others go, too.
        another = await blobs.put_bytes(os.urandom(5 * CHUNK))
        assert here(blobs) == {own, pinned, for_job, another}
        needed.clear()
        await blobs.unpin(own)
        await take(blobs, 5 * CHUNK)
        assert for_job not in here(blobs) and own not in here(blobs) and pinned in here(blobs)
        assert blobs.used_bytes <= 12 * CHUNK
        assert blobs.used_bytes == sum(item.size for _, item, _ in blobs.list_items())
    assert second not in here(blobs)


@pytest.mark.asyncio
async def test_for_others_a_tenth_of_the_quota_stays_free(tmp_path: Path) -> None:
    async with open_blobs(tmp_path / "node", quota_mib=20) as blobs:
        blobs.find_needed = dict
        await blobs.put_bytes(os.urandom(12 * CHUNK))
        mine = await take(blobs, 3 * CHUNK)
        theirs = await take(blobs, 3 * CHUNK, for_others=True)
        assert here(blobs) >= {mine, theirs}
        # Beyond 18 MiB others' wishes make room first, and own ones do not have to.
        await take(blobs, 2 * CHUNK)
        assert blobs.used_bytes == 20 * CHUNK
        await take(blobs, 2 * CHUNK, for_others=True)
        assert mine not in here(blobs) and blobs.used_bytes <= 18 * CHUNK
        with pytest.raises(StoreFullError):
            await take(blobs, 7 * CHUNK, for_others=True)


@pytest.mark.asyncio
async def test_without_knowing_what_jobs_need_no_whole_blob_goes(tmp_path: Path) -> None:
    async with open_blobs(tmp_path / "node", quota_mib=4) as blobs:
        first = await take(blobs, 3 * CHUNK)
        with pytest.raises(StoreFullError):
            await take(blobs, 2 * CHUNK)
        assert here(blobs) == {first}


@pytest.mark.asyncio
async def test_unfinished_blobs_count_and_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.blobs.fetching.RECONNECT_S", 0.1)
    data = os.urandom(6 * CHUNK)
    blob, block = name_blob(data)
    port = PortOf(data, block)
    port.breaks_after = 4
    async with open_blobs(tmp_path / "node", quota_mib=10) as blobs, open_ports(port) as urls:
        blobs.find_needed = dict
        old = await take(blobs, 3 * CHUNK)
        blobs.find_sources = lambda: urls
        with pytest.raises(Exception, match="no connected peer"):
            await blobs.ensure(blob)
        assert here(blobs) == {old, blob} and blobs.used_bytes >= 7 * CHUNK
        new = await take(blobs, 5 * CHUNK)
        assert here(blobs) == {old, new}
    assert {name for name in list_names(tmp_path / "node") if name.endswith(".part")} == set()


@pytest.mark.asyncio
async def test_who_removes_a_needed_blob_has_to_insist(tmp_path: Path) -> None:
    async with open_blobs(tmp_path / "node") as blobs:
        blob = await blobs.put_bytes(b"needed")
        blobs.find_needed = lambda: {blob: "code of a job"}
        with pytest.raises(UsageError, match="code of a job"):
            await blobs.remove(blob)
        assert await blobs.remove(blob, force=True) == 6
        for change in (blobs.remove, blobs.pin, blobs.unpin):
            with pytest.raises(UsageError, match="is not here"):
                await change(blob)
    assert list_names(tmp_path / "node") == set()


@pytest.mark.asyncio
async def test_two_at_once_share_the_quota(tmp_path: Path) -> None:
    async with open_blobs(tmp_path / "node", quota_mib=5) as blobs:

        async def parts() -> AsyncIterator[bytes]:
            yield bytes(3 * CHUNK)
            await blobs.put_bytes(b"\x01" * 2 * CHUNK)
            yield bytes(1)

        with pytest.raises(StoreFullError):
            await blobs.put(parts())
        assert blobs.used_bytes == 2 * CHUNK


@pytest.mark.asyncio
async def test_a_start_finds_what_is_whole_and_removes_what_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    files = folder / "blobs"
    async with open_blobs(folder) as blobs:
        small, large = await blobs.put_bytes(b"small"), await blobs.put_bytes(os.urandom(3 * CHUNK))
        gone, cut = await blobs.put_bytes(b"gone"), await blobs.put_bytes(b"cut off")
        pinned = await blobs.put_bytes(b"pinned")
        await blobs.pin(pinned)
    (files / format_cid(gone)).unlink()
    (files / format_cid(cut)).write_bytes(b"cut")
    orphan, liar = compute_blob_id(b"orphan"), compute_blob_id(b"something else")
    (files / format_cid(orphan)).write_bytes(b"orphan")
    (files / format_cid(liar)).write_bytes(b"a lie")
    (files / f"{format_cid(liar)}.list").write_bytes(b"of nothing")
    (files / ".0123.tmp").write_bytes(b"half")
    (files / "a file of somebody.txt").write_bytes(b"mine")
    old = files / f"{format_cid(large)[:-1]}q.part"
    async with open_blobs(folder) as blobs:
        found = {blob: (item.size, why) for blob, item, why in blobs.list_items()}
        assert found == {
            small: (5, "put here"),
            large: (3 * CHUNK, "put here"),
            pinned: (6, "pinned"),
            orphan: (6, ""),
        }
    assert list_names(folder) == {
        *(format_cid(blob) for blob in found),
        f"{format_cid(large)}.list",
        "a file of somebody.txt",
    }
    assert not old.exists()


@pytest.mark.asyncio
async def test_blobs_of_the_format_before_are_read_and_stay(tmp_path: Path) -> None:
    # One file for each, a list beside large ones, and a row that says `whole`.
    from crdtchain.adapters.sqlite_store import SqliteStore

    data = os.urandom(2 * CHUNK + 1)
    blob, block = name_blob(data)
    (tmp_path / "node" / "blobs").mkdir(parents=True)
    (tmp_path / "node" / "blobs" / format_cid(blob)).write_bytes(data)
    (tmp_path / "node" / "blobs" / f"{format_cid(blob)}.list").write_bytes(block)
    store = SqliteStore(tmp_path / "node")
    await store.open()
    await store.blobs.put(blob, len(data), 5)
    await store.close()
    async with open_blobs(tmp_path / "node") as blobs:
        assert await blobs.read(blob) == data and await blobs.read_list(blob) == block
        assert [why for _, _, why in blobs.list_items()] == ["put here"]


@pytest.mark.asyncio
async def test_what_was_used_last_is_known_after_a_restart(tmp_path: Path) -> None:
    async with open_blobs(tmp_path / "node") as blobs:
        first, second = await take(blobs, 10), await take(blobs, 10)
    for blob, age_s in ((first, 100), (second, 5_000)):
        path = tmp_path / "node" / "blobs" / format_cid(blob)
        then = path.stat().st_mtime - age_s
        os.utime(path, (then, then))
    async with open_blobs(tmp_path / "node") as blobs:
        assert [row[0] for row in blobs.list_items()] == [first, second]
        await blobs.read(second)
    async with open_blobs(tmp_path / "node") as blobs:
        assert [row[0] for row in blobs.list_items()] == [second, first]
