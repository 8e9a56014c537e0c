"""Peers that hold a blob, for tests: real HTTP ports that behave as they are told, and what is asked of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from yarl import URL

from crdtchain import limits
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import compute_blob_id, format_cid, parse_cid
from crdtchain.scalars import BlobId
from crdtchain.sync.messages import Blob, BlobNone
from node.blobs import Blobs, encode_chunk_list
from node.blobs.lists import is_list_of

CHUNK = limits.CHUNK_BYTES


def name_blob(data: bytes) -> tuple[BlobId, bytes]:
    """Return the id of a blob, and the list of its chunks."""
    if len(data) <= CHUNK:
        return compute_blob_id(data), b""
    chunks = [compute_blob_id(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)]
    return name_list(encode_chunk_list(len(data), chunks))


def name_list(block: bytes) -> tuple[BlobId, bytes]:
    """Return the id that a list gives its blob."""
    from crdtchain.codec import compute_op_id

    blob = BlobId(bytes(compute_op_id(block)))
    assert is_list_of(blob, block)
    return blob, block


class PortOf:
    """A port that serves one blob; `answer` may change what a part is, or wait, or never end."""

    def __init__(self, data: bytes, block: bytes) -> None:
        self.data = data
        self.block = block
        self.asked: list[int] = []
        """Offsets of the parts that were asked for."""
        self.lists = 0
        self.breaks_after = 1 << 30
        """After so many parts the port ends every connection."""
        self.change: Callable[[bytes], bytes] = lambda part: part
        self.change_list: Callable[[bytes], bytes] = lambda block: block
        self.pause_s = 0.0
        self.trickles = False
        self.url = URL("http://127.0.0.1:9")

    async def serve_list(self, request: web.Request) -> web.Response:
        self.lists += 1
        if not self.block:
            raise web.HTTPNotFound
        return web.Response(body=self.change_list(self.block))

    async def serve(self, request: web.Request) -> web.StreamResponse:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        begin, end = (int(found[1]), int(found[2]) + 1) if found else (0, len(self.data))
        self.asked.append(begin)
        if len(self.asked) > self.breaks_after:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        await asyncio.sleep(self.pause_s)
        part = self.change(self.data[begin:end])
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(self.data)}"} if found else {}
        if not self.trickles:
            return web.Response(status=206 if found else 200, body=part, headers=headers)
        response = web.StreamResponse(status=206 if found else 200, headers=headers)
        response.content_length = len(part)
        await response.prepare(request)
        for byte in part:
            await response.write(bytes([byte]))
            await asyncio.sleep(0.2)
        return response


@asynccontextmanager
async def open_ports(*ports: PortOf) -> AsyncIterator[list[URL]]:
    """Serve on free ports for the length of a block."""
    runners = []
    try:
        for port in ports:
            app = web.Application()
            app.router.add_get("/blobs/{cid}", port.serve)
            app.router.add_get("/blobs/{cid}/list", port.serve_list)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port.url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")
        yield [port.url for port in ports]
    finally:
        for runner in runners:
            await runner.cleanup()


class Answer:
    """A piece over a connection."""

    def __init__(self, head: Blob | BlobNone, data: bytes = b"") -> None:
        self.head = head
        self.data = data


class Line:
    """A connection to a peer that holds one blob, as far as blobs see it."""

    def __init__(self, name: str, data: bytes | None, block: bytes = b"") -> None:
        self.name = name
        self.address = f"somewhere/{name}"
        self.data = data
        self.block = block
        self.asked: list[tuple[int, int]] = []
        """Offsets and hops."""
        self.dropped = ""
        self.finds = False
        """Whether the peer finds the blob when it may look for it."""
        self.change: Callable[[bytes, int], tuple[int, bytes]] = lambda piece, total: (total, piece)

    async def ask_piece(self, blob: BlobId, offset: int, hops: int, is_list: bool) -> Answer:
        await asyncio.sleep(0)
        self.asked.append((offset, hops))
        if self.data is None or (self.finds and not hops and len(self.asked) == 1):
            return Answer(BlobNone(False))
        whole = self.block if is_list else self.data
        total, piece = self.change(whole[offset : offset + limits.BLOB_PIECE_BYTES], len(whole))
        return Answer(Blob(total, len(piece)), piece)

    def drop(self, reason: str) -> None:
        self.dropped = self.dropped or reason


@asynccontextmanager
async def open_blobs(folder: Path, quota_mib: int = 1_024) -> AsyncIterator[Blobs]:
    """Open the blobs of a data folder, as a node does."""
    folder.mkdir(exist_ok=True)
    store = SqliteStore(folder)
    await store.open()
    blobs = Blobs(folder / "blobs", store.blobs, quota_mib * 2**20)
    try:
        await blobs.open()
        yield blobs
        await blobs.close()
    finally:
        await store.close()


def list_names(folder: Path) -> set[str]:
    """Return the names of the files among the blobs."""
    return {path.name for path in (folder / "blobs").iterdir()}


def cid_of(text: str) -> BlobId:
    """Return the id that a text is."""
    return BlobId(parse_cid(text))


__all__ = [
    "CHUNK", "Answer", "Line", "PortOf", "cid_of", "format_cid", "list_names", "name_blob", "name_list", "open_blobs",
    "open_ports",
]  # fmt: skip
