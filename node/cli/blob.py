"""`blob put`, `blob get` and what is kept: files by their content."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from crdtchain import limits
from crdtchain.codec import parse_cid
from crdtchain.errors import NoPeerError, UsageError
from node.cli.remote import connect, is_full_cid
from node.cli.shell import Shell, command, find_one, make_group, shorten
from node.client import NodeClient

BAR_BYTES: Final = limits.CHUNK_BYTES
"""Smaller files come and go without a bar."""
LAST_S: Final = 1.0
"""So long the last word on a fetch may come after the file."""

CidArgument = Annotated[str, typer.Argument(metavar="CID", help="The blob's full id, or the beginning of one here.")]


class Bar:
    """A bar on stderr that appears when there is something to wait for."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._done = 0

    @property
    def is_shown(self) -> bool:
        """Whether there was something to wait for."""
        return self._task is not None

    def show(self, what: str, done: int, total: int) -> None:
        """Show how far it is; small files are not shown."""
        if total <= BAR_BYTES:
            return
        if self._task is None:
            # A bar that has begun leaves a line behind, also when there was nothing to show.
            self._progress.start()
            self._task = self._progress.add_task(what)
        self._done = done
        self._progress.update(self._task, description=what, completed=done, total=total)

    def end(self) -> None:
        """Show nothing more; what is written next stands below."""
        self._progress.stop()

    def add(self, what: str, size: int, total: int) -> None:
        """Show that so many bytes more are done."""
        self.show(what, self._done + size, total)


@contextmanager
def open_bar(shell: Shell) -> Iterator[Bar]:
    """Show a bar on stderr for the length of a block."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=shell.err)
    try:
        yield Bar(progress)
    finally:
        progress.stop()


async def watch_fetch(client: NodeClient, cid: str, bar: Bar, is_open: asyncio.Event) -> None:
    """Show how far the node's fetch of a blob is, until it ends."""
    try:
        async for event in client.events(is_open.set):
            if event["type"] != "blob_progress" or event["blob"] != cid:
                continue
            sources = event["sources"]
            what = f"from {sources} peer{'s' if sources > 1 else ''}" if sources else "from peers"
            bar.show(what, event["done"], event["total"])
            if event["state"] != "fetching":
                return
    except NoPeerError:
        return
    finally:
        is_open.set()


async def fetch(shell: Shell, cid: str, output: Path) -> int:
    """Write a blob to a file, with a bar; returns its size."""
    async with connect(shell) as client:
        with open_bar(shell) as bar:
            is_open = asyncio.Event()
            watching = asyncio.create_task(watch_fetch(client, cid, bar, is_open))
            try:
                # What is told before somebody listens is lost.
                await is_open.wait()
                size = await client.get_blob(cid, output)
                if bar.is_shown:
                    await asyncio.wait({watching}, timeout=LAST_S)
                return size
            except asyncio.CancelledError:
                if bar.is_shown:
                    bar.end()
                    shell.note("What has come stays at the node, which may go on: the same command takes it up.")
                raise
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


async def send(shell: Shell, file: Path, size: int) -> str:
    """Store a file as a blob, with a bar; returns its id."""
    async with connect(shell) as client:
        with open_bar(shell) as bar:
            return await client.put_blob(file, lambda part: bar.add("to the node", part, size))


async def find_blob(client: NodeClient, text: str) -> str:
    """Return the full id of a blob; a full one need not be here."""
    return (
        text if is_full_cid(text) else find_one(text, [row["cid"] for row in (await client.blobs())["blobs"]], "blob")
    )


def show_list(found: dict[str, Any], out: Console) -> None:
    """Print the blobs of a node for people."""
    table = Table(box=None, pad_edge=False)
    table.add_column("CID")
    table.add_column("size", justify="right")
    table.add_column("kept")
    for row in found["blobs"]:
        kept = row["kept"] or "until room is needed"
        table.add_row(shorten(row["cid"]), decimal(row["size"]), kept if row["whole"] else f"unfinished, {kept}")
    for row in found["fetching"]:
        table.add_row(shorten(row["cid"]), decimal(row["total"]), f"being fetched: {decimal(row['done'])} are here")
    out.print(table)
    out.print(f"{decimal(found['bytes'])} of {decimal(found['quota'])} are used.", markup=False)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = make_group(app, "blob", "Keep and fetch files by their content.")
    _add_transfers(group)
    _add_keeping(group)


def _add_transfers(group: typer.Typer) -> None:
    @command(group, "put", "blob put model.npz")
    def put(shell: Shell, file: Annotated[Path, typer.Argument(metavar="FILE", help="At most 256 MiB.")]) -> None:
        """Keep a file and offer it to peers; prints its id."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
        size = file.stat().st_size
        if size > limits.BLOB_BYTES_MAX:
            raise UsageError(f"{file} has {decimal(size)}; a blob has at most {limits.BLOB_BYTES_MAX >> 20} MiB")
        cid = shell.run(send(shell, file, size))
        shell.show({"cid": cid, "size": size}, cid)

    @command(group, "get", "blob get bafkrei… -o model.npz")
    def get(
        shell: Shell,
        cid: Annotated[str, typer.Argument(metavar="CID", help="The blob's full id.")],
        output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes.")],
    ) -> None:
        """Fetch a blob, from all peers that have it if need be, into a file; what has come is not fetched again."""
        parse_cid(cid)
        if output.is_dir() or not output.parent.is_dir():
            raise UsageError(f"{output} can't be written: name a file in a folder that is there")
        size = shell.run(fetch(shell, cid, output))
        shell.show({"cid": cid, "file": str(output), "size": size}, f"{output}: {decimal(size)}")


def _add_keeping(group: typer.Typer) -> None:
    @command(group, "list", "blob list")
    def list_(shell: Shell) -> None:
        """Show the blobs here, what they take, and why each stays."""

        async def work() -> dict[str, Any]:
            async with connect(shell) as client:
                return await client.blobs()

        found = shell.run(work())
        shell.show(found, lambda out: show_list(found, out))

    @command(group, "pin", "blob pin bafkrei…")
    def pin(shell: Shell, cid: CidArgument) -> None:
        """Have a blob stay, also when room is needed; it is fetched if it is not here."""
        _set_pinned(shell, cid, True)

    @command(group, "unpin", "blob unpin bafkrei…")
    def unpin(shell: Shell, cid: CidArgument) -> None:
        """Let a blob go when room is needed, also one that was put here; what an open job needs stays until then."""
        _set_pinned(shell, cid, False)

    @command(group, "rm", "blob rm bafkrei…")
    def rm(
        shell: Shell,
        cid: CidArgument,
        force: Annotated[bool, typer.Option("--force", help="Also one that an open job needs.")] = False,
    ) -> None:
        """Remove a blob from this node now."""

        async def work() -> dict[str, Any]:
            async with connect(shell) as client:
                return await client.remove_blob(await find_blob(client, cid), force)

        done = shell.run(work())
        shell.show(done, f"{done['cid']} is gone: {decimal(done['size'])}")


def _set_pinned(shell: Shell, cid: str, is_pinned: bool) -> None:
    async def work() -> dict[str, Any]:
        async with connect(shell) as client:
            return await client.pin_blob(await find_blob(client, cid), is_pinned)

    done = shell.run(work())
    shell.show(done, f"{done['cid']} {'stays' if is_pinned else 'may go when room is needed'}: {decimal(done['size'])}")
