"""The store when the disk is full, an operation fails, the process is killed, or the power is cut."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crdtchain.adapters.opening import open_ledger
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE
from crdtchain.errors import StoreError, StoreFullError
from crdtchain.ops import Beat, SignedOp
from tests.builders import World
from tests.integration.store_writer import write_blocks

pytestmark = pytest.mark.integration

BATCH = 20


@pytest.fixture(scope="module")
def history() -> list[SignedOp]:
    world = World()
    world.play_job("alice", {"bob": [90, 80], "carol": [85]})
    for number in range(2_500):
        name = f"w{number % 4}"
        world.say(name, Beat(), parents=world.witness_tips(name))
    return world.log


@pytest.fixture(scope="module")
def blocks_file(history: list[SignedOp], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blocks") / "blocks"
    write_blocks(path, history)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def check_integrity(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


async def assert_holds_prefix(folder: Path, history: list[SignedOp], count_min: int) -> int:
    """The store opens, is whole, and holds the first ops, at least `count_min`; returns how many."""
    store = SqliteStore(folder)
    await store.open()
    try:
        count = await store.count()
        assert count >= count_min
        blocks = [block for _, block in await store.read(-1, len(history))]
        assert blocks == [signed.block for signed in history[:count]]
        assert await store.ids(len(history)) == [signed.op.id for signed in history[:count]]
        if count:
            assert len(await open_ledger(store)) == count
            tip = await store.own_tip(history[0].op.author)
            assert tip is not None and tip.branches == 1
    finally:
        # A store left open keeps its thread, and with it the process.
        await store.close()
    assert check_integrity(folder / STORE_FILE) == "ok"
    return count


async def append_until_full(store: SqliteStore, history: list[SignedOp], done: int, size: int, durable: bool) -> int:
    """Append ops from the one numbered `done` on until the disk is full; returns how many are stored."""
    for first in range(done, len(history), size):
        try:
            await store.append(history[first : first + size], durable=durable)
        except StoreFullError as error:
            assert "no space" in str(error)
            return first
    raise AssertionError("the disk is never full")


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4_096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.asyncio
@pytest.mark.parametrize("free_kib", [150, 300, 400, 700, 1_100, 1_500])
@pytest.mark.parametrize("durable", [False, True])
async def test_a_full_disk_is_a_typed_error_and_reads_go_on(
    small_disk: Path, history: list[SignedOp], free_kib: int, durable: bool
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((2_048 - free_kib) * 1024))
    store = SqliteStore(small_disk / "data")
    await store.open()
    done = await append_until_full(store, history, 0, BATCH, durable)
    for _ in range(3):
        assert await store.count() == done
        assert [block for _, block in await store.read(-1, 9_999)] == [signed.block for signed in history[:done]]
        done = await append_until_full(store, history, done, 500, durable)
    ballast.unlink()
    # The same ops again: nothing of the failed write was kept, so no position and no seq is used up.
    await store.append(history[done : done + BATCH], durable=durable)
    await store.close()
    assert await assert_holds_prefix(small_disk / "data", history, done + BATCH) == done + BATCH


@pytest.mark.asyncio
async def test_a_store_on_a_full_disk_is_refused_and_opens_when_there_is_space(
    small_disk: Path, history: list[SignedOp]
) -> None:
    ballast = small_disk / "ballast"
    fill(ballast)
    store = SqliteStore(small_disk / "data")
    with pytest.raises(StoreError):
        await store.open()
    ballast.unlink()
    await store.open()
    await store.append(history[:10], durable=True)
    await store.close()
    await assert_holds_prefix(small_disk / "data", history, 10)


def start_writer(
    folder: Path, blocks: Path, size: int, mode: str, prefix: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-m", "tests.integration.store_writer", str(folder), str(blocks), str(size)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [*command, mode], stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, **environment}
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("limit_kib", [64, 200, 700])
async def test_a_write_that_fails_is_a_store_error_and_reads_go_on(
    tmp_path: Path, history: list[SignedOp], blocks_file: Path, limit_kib: int
) -> None:
    # No file of the process may grow above the limit: SQLite sees an error from write(), not a full disk.
    prefix = ("prlimit", f"--fsize={limit_kib * 1024}")
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit of util-linux is missing")
    writer = start_writer(tmp_path, blocks_file, BATCH, "durable", prefix)
    output, _ = writer.communicate(timeout=60)
    name, count, readable = output.splitlines()[-1].split()
    assert writer.returncode == 0
    assert name in ("StoreError", "StoreFullError") and readable == "True"
    assert await assert_holds_prefix(tmp_path, history, int(count)) == int(count)


def kill_after(writer: subprocess.Popen[str], acknowledgements: int) -> int:
    """Read so many acknowledgements, kill, and return the last count that was acknowledged."""
    assert writer.stdout is not None
    last = 0
    for _ in range(acknowledgements):
        line = writer.stdout.readline()
        if not line:
            break
        last = int(line)
    writer.send_signal(signal.SIGKILL)
    for line in writer.stdout:
        if line.endswith("\n"):
            last = int(line)
    writer.wait()
    writer.stdout.close()
    return last


@pytest.mark.asyncio
@pytest.mark.parametrize(("size", "mode"), [(1, "durable"), (7, "durable"), (50, "lazy")])
async def test_a_killed_writer_loses_nothing_acknowledged(
    tmp_path: Path, history: list[SignedOp], blocks_file: Path, size: int, mode: str
) -> None:
    rng = random.Random(size)
    count = 0
    for _ in range(5):
        writer = start_writer(tmp_path, blocks_file, size, mode)
        acknowledged = kill_after(writer, rng.randint(1, 12))
        count = await assert_holds_prefix(tmp_path, history, max(count, acknowledged))
    assert count > 0


POWER_CUT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Keeps, in the folder IMAGE, each file as it was when it was last synced: what is left after a power cut. */
static void keep(int fd)
{
    char link[64], name[PATH_MAX], part[PATH_MAX + 16], kept[PATH_MAX + 16], buffer[65536];
    const char *folder = getenv("IMAGE");
    struct stat status;
    ssize_t length, at = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, name, sizeof name - 1);
    if (!folder || length < 0 || fstat(fd, &status) || !S_ISREG(status.st_mode)) return;
    name[length] = 0;
    const char *base = strrchr(name, '/') + 1;
    snprintf(part, sizeof part, "%s/%s.part", folder, base);
    snprintf(kept, sizeof kept, "%s/%s", folder, base);
    int out = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while ((length = pread(fd, buffer, sizeof buffer, at)) > 0) {
        if (write(out, buffer, length) != length) abort();
        at += length;
    }
    close(out);
    rename(part, kept);
}

int fsync(int fd) { keep(fd); return 0; }
int fdatasync(int fd) { keep(fd); return 0; }
"""


@pytest.fixture(scope="module")
def power_cut_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("a C compiler is missing: apt-get install gcc")
    folder = tmp_path_factory.mktemp("power")
    (folder / "cut.c").write_text(POWER_CUT)
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "cut.so"), str(folder / "cut.c")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cut.so"


@pytest.mark.asyncio
@pytest.mark.parametrize(("size", "mode"), [(1, "durable"), (5, "durable"), (5, "twice")])
async def test_after_a_power_cut_every_durable_op_is_there(
    tmp_path: Path, history: list[SignedOp], blocks_file: Path, power_cut_library: Path, size: int, mode: str
) -> None:
    for acknowledgements in (1, 2, 9, 60):
        image = tmp_path / f"image{acknowledgements}"
        image.mkdir()
        writer = start_writer(
            tmp_path / f"data{acknowledgements}",
            blocks_file,
            size,
            mode,
            LD_PRELOAD=str(power_cut_library),
            IMAGE=str(image),
        )
        acknowledged = kill_after(writer, acknowledgements)
        assert acknowledged >= acknowledgements * size
        await assert_holds_prefix(image, history, acknowledged)


@pytest.mark.asyncio
async def test_after_a_power_cut_lazy_ops_may_be_lost_but_what_is_left_is_whole(
    tmp_path: Path, history: list[SignedOp], blocks_file: Path, power_cut_library: Path
) -> None:
    image = tmp_path / "image"
    image.mkdir()
    library = str(power_cut_library)
    writer = start_writer(tmp_path / "data", blocks_file, 10, "lazy", LD_PRELOAD=library, IMAGE=str(image))
    acknowledged = kill_after(writer, 20)
    # This also shows that the test above can fail: without the sync the ops are not in the image.
    assert await assert_holds_prefix(image, history, 0) < acknowledged
