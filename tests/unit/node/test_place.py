"""A copied or restored data folder is known as one; a moved, restarted or crashed one is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crdtchain.adapters.sqlite_store import SqliteStore
from node.datadir import write_private
from node.place import NOTE, PLACE_FILE, SIGNED_FILE, Place, find_machine


@asynccontextmanager
async def opened(folder: Path, machine: str = "machine") -> AsyncIterator[Place]:
    store = SqliteStore(folder)
    await store.open()
    try:
        yield Place(folder, store, write_private, machine)
    finally:
        await store.close()


async def run(folder: Path, signed: int = 0, machine: str = "machine") -> str:
    """Start and stop as a node does; returns what it suspects."""
    async with opened(folder, machine) as place:
        reason = await place.check(signed)
        if not reason:
            await place.settle()
            place.note_signed(signed)
        return reason


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


@pytest.mark.asyncio
async def test_restarts_are_nothing_to_suspect(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for signed in (0, 3, 3, 17, 120):
        assert await run(folder, signed) == ""
    assert (folder / PLACE_FILE).stat().st_mode & 0o077 == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["cp -r", "cp -a", "shutil"])
async def test_a_copy_is_suspected_and_the_original_is_not(tmp_path: Path, how: str) -> None:
    folder, other = tmp_path / "data", tmp_path / "copy"
    await run(folder)
    if how == "shutil":
        shutil.copytree(folder, other)
    else:
        subprocess.run([*how.split(), str(folder), str(other)], check=True)
    assert "another file" in await run(other)
    assert "another file" in await run(other)
    assert await run(folder) == ""


@pytest.mark.asyncio
async def test_a_moved_folder_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    await run(folder)
    folder.rename(tmp_path / "elsewhere")
    assert await run(tmp_path / "elsewhere") == ""


@pytest.mark.asyncio
async def test_a_backup_that_is_written_over_the_original_is_suspected(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    await run(folder, 2)
    copy(folder, backup)
    await run(folder, 5)
    time.sleep(0.02)
    for path in backup.iterdir():
        # Into the same files, with their old times: they keep their inodes.
        (folder / path.name).write_bytes(path.read_bytes())
        shutil.copystat(path, folder / path.name)
    assert "written anew" in await run(folder, 2)


@pytest.mark.asyncio
async def test_a_backup_of_this_very_run_is_suspected_too(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    await run(folder, 2)
    copy(folder, backup)
    time.sleep(0.02)
    for name in (PLACE_FILE, "ledger.sqlite"):
        (folder / name).write_bytes((backup / name).read_bytes())
    assert "written anew" in await run(folder, 2)


@pytest.mark.asyncio
async def test_a_database_that_was_restored_alone_is_suspected(tmp_path: Path) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    await run(folder, 2)
    copy(folder, backup)
    await run(folder, 2)
    content = (folder / "ledger.sqlite").read_bytes()
    (folder / "ledger.sqlite").write_bytes((backup / "ledger.sqlite").read_bytes())
    assert "older or newer" in await run(folder, 2)
    (folder / "ledger.sqlite").write_bytes(content)
    assert await run(folder, 2) == ""
    # From the middle of a run: the file vouches for more than the database holds.
    assert "has signed 2 ops here, and the database holds 1" in await run(folder, 1)


@pytest.mark.asyncio
async def test_a_folder_of_another_machine_is_suspected(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    await run(folder)
    assert "another machine" in await run(folder, machine="other")
    assert await run(folder, machine="") == ""


@pytest.mark.asyncio
async def test_settling_makes_a_copy_the_place(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "copy"
    await run(folder, 4)
    copy(folder, other)
    async with opened(other) as place:
        assert await place.check(3)
        place.reset_signed(3)
        await place.settle()
    assert await run(other, 3) == ""


@pytest.mark.asyncio
@pytest.mark.parametrize("step", ["before the file", "after the file"])
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_crash_while_settling_is_nothing_to_suspect(tmp_path: Path, step: str, is_first: bool) -> None:
    folder = tmp_path / "data"
    if not is_first:
        await run(folder)

    class PowerCutError(Exception):
        pass

    def write(path: Path, content: bytes) -> None:
        if step == "after the file":
            write_private(path, content)
        raise PowerCutError

    async with opened(folder) as place:
        assert await place.check(0) == ""
        place._write = write
        with pytest.raises(PowerCutError):
            await place.settle()
    assert await run(folder) == ""
    assert await run(folder) == ""


@pytest.mark.asyncio
async def test_what_the_files_hold_can_be_anything(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    await run(folder)
    (folder / SIGNED_FILE).write_bytes(b"\xff\x00many")
    assert await run(folder) == ""
    (folder / SIGNED_FILE).write_bytes(b"9" * 5_000)
    assert "has signed" in await run(folder)
    (folder / SIGNED_FILE).unlink()
    (folder / PLACE_FILE).write_bytes(os.urandom(100_000))
    assert await run(folder) != ""
    store = SqliteStore(folder)
    await store.open()
    await store.set_meta(NOTE, b"{no json")
    await store.close()
    assert await run(folder) == ""
    assert len(find_machine()) <= 64
