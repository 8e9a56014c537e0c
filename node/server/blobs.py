"""Blobs over HTTP: streamed by parts, in both directions, on both ports.

A reader gets what it asks for (`Range`, one range of bytes) and is ended when it does not take it: who takes less than
64 KiB in 25 s holds a connection that somebody else may need.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from aiohttp import web

from crdtchain import codec, limits, needs, views
from crdtchain.errors import UsageError
from crdtchain.scalars import BlobId, OpId
from node.blobs.keeping import PART
from node.events import BlobProgress
from node.node import Node
from node.server.problems import Problem, problem_response
from node.server.ws import NODE

READ_BYTES: Final = limits.CHUNK_BYTES
WRITE_BYTES: Final = 64 * 1024
WRITE_S: Final = 25.0
"""So long a reader may take for one write."""
_RANGE: Final = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")


def connect_blobs(app: web.Application, node: Node) -> None:
    """Tell a node's blobs what its open jobs need, and its listeners how far a fetch is; end fetches with the port."""
    runtime, blobs = node.runtime, node.blobs
    blobs.find_needed = lambda: needs.find_needed(
        runtime.ledger, runtime.now_ms(), node.author, blobs.commitments(node.author)
    )
    blobs.on_progress = lambda progress: runtime.events.publish([progress])

    async def close(_: web.Application) -> None:
        await blobs.close()

    app.on_shutdown.append(close)


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(content).encode(), status=status, content_type="application/json")


def _read_id(request: web.Request) -> BlobId:
    """Return the blob that an address names.

    Raises:
        UsageError: it names something else.
    """
    blob = BlobId(codec.parse_cid(request.match_info["cid"]))
    if OpId(blob) in request.app[NODE].runtime.ledger:
        raise UsageError("this is the id of an op, not of a blob")
    return blob


# -- the local port --


async def list_blobs(request: web.Request) -> web.Response:
    """Answer the blobs here, why each stays, and what is being fetched."""
    blobs = request.app[NODE].blobs
    rows: list[views.Json] = [
        {
            "cid": codec.format_cid(blob),
            "size": item.size,
            "whole": item.state != PART,
            "kept": why or None,
            "used": item.used_ms,
        }
        for blob, item, why in blobs.list_items()
    ]
    fetching: list[views.Json] = [_progress_to_json(progress) for progress in blobs.list_progress()]
    return _json({"blobs": rows, "fetching": fetching, "bytes": blobs.used_bytes, "quota": blobs.quota_bytes})


def _progress_to_json(progress: BlobProgress) -> dict[str, views.Json]:
    return {
        "cid": codec.format_cid(progress.blob),
        "done": progress.done,
        "total": progress.total,
        "sources": progress.sources,
        "rate": progress.rate,
    }


async def put_blob(request: web.Request) -> web.Response:
    """Store the body as a blob, up to 256 MiB; answers its CID."""
    node = request.app[NODE]
    length = request.content_length
    if length is not None and length > limits.BLOB_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(limits.BLOB_BYTES_MAX, length)
    blob, size = await node.blobs.put(_stream(request))
    return _json({"cid": codec.format_cid(blob), "size": size}, 201)


async def _stream(request: web.Request) -> AsyncIterator[bytes]:
    async for part in request.content.iter_chunked(256 * 1024):
        yield part


async def get_blob(request: web.Request) -> web.StreamResponse:
    """Stream a blob, fetched from peers if it is not here."""
    blob = _read_id(request)
    await request.app[NODE].blobs.ensure(blob)
    return await send_blob(request, blob)


async def head_blob(request: web.Request) -> web.StreamResponse:
    """Answer the size of a blob that is here; nothing is fetched."""
    return await send_blob(request, _read_id(request))


async def pin_blob(request: web.Request) -> web.Response:
    """Have a blob stay, fetched from peers if it is not here."""
    blob = _read_id(request)
    blobs = request.app[NODE].blobs
    size = await blobs.ensure(blob)
    await blobs.pin(blob)
    return _json({"cid": codec.format_cid(blob), "size": size})


async def unpin_blob(request: web.Request) -> web.Response:
    """Let a blob go when there is no room."""
    blob = _read_id(request)
    await request.app[NODE].blobs.unpin(blob)
    return _json({"cid": codec.format_cid(blob), "size": request.app[NODE].blobs.find_size(blob)})


async def remove_blob(request: web.Request) -> web.Response:
    """Remove a blob; with `force=1` also one that an open job needs."""
    blob = _read_id(request)
    size = await request.app[NODE].blobs.remove(blob, force=request.query.get("force") == "1")
    return _json({"cid": codec.format_cid(blob), "size": size})


# -- both ports --


class RangeError(ValueError):
    """A range that lies outside of what there is."""


def read_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Return begin and end of the one range that a header asks for, or None for all: without it, or with others.

    Raises:
        RangeError: there is nothing in the range.
    """
    found = None if text is None else _RANGE.fullmatch(text.strip())
    if found is None or found[0].strip() == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        begin, end = max(size - int(last), 0), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < begin:
            return None
    if begin >= end:
        raise RangeError
    return begin, end


async def send_blob(request: web.Request, blob: BlobId) -> web.StreamResponse:
    """Answer a blob that is here, or the part of it that is asked for.

    Raises:
        HTTPNotFound: it is not here.
    """
    node = request.app[NODE]
    if node.blobs.find_size(blob) is None:
        raise web.HTTPNotFound
    await node.blobs.note_use(blob)
    try:
        # What is open can be read to its end, also when the blob is removed meanwhile.
        file, size = await asyncio.to_thread(_open, node.blobs.path(blob))
    except OSError:
        raise web.HTTPNotFound from None
    try:
        return await _answer(request, file, size, f'"{codec.format_cid(blob)}"')
    finally:
        os.close(file)


def _open(path: Path) -> tuple[int, int]:
    """Open a file for reading; returns its descriptor and size."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return file, os.fstat(file).st_size


async def _answer(request: web.Request, file: int, size: int, tag: str) -> web.StreamResponse:
    headers = {
        "Content-Type": "application/vnd.ipld.raw",
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "ETag": tag,
    }
    known = [part.strip().removeprefix("W/") for part in request.headers.get("If-None-Match", "").split(",")]
    if tag in known or known == ["*"]:
        return web.Response(status=304, headers=headers)
    wanted = request.headers.get("Range")
    if request.method != "GET" or request.headers.get("If-Range", tag) != tag:
        wanted = None
    try:
        span = read_range(wanted, size)
    except RangeError:
        answer = problem_response(Problem(416, "usage", f"The blob has {size} bytes, and none in this range."))
        answer.headers["Content-Range"] = f"bytes */{size}"
        return answer
    begin, end = span or (0, size)
    if span is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
    response.content_length = end - begin
    await response.prepare(request)
    if request.method == "GET":
        await _send(request, response, file, begin, end)
    return response


async def _send(request: web.Request, response: web.StreamResponse, file: int, begin: int, end: int) -> None:
    """Send a part of a file; a reader that does not take it is ended."""
    while begin < end:
        data = memoryview(await asyncio.to_thread(os.pread, file, min(READ_BYTES, end - begin), begin))
        if not data:
            # Shorter than it was: the length that was promised can't be kept, so the connection has to end.
            _abort(request)
            return
        begin += len(data)
        for at in range(0, len(data), WRITE_BYTES):
            try:
                async with asyncio.timeout(WRITE_S):
                    await response.write(data[at : at + WRITE_BYTES])
            except TimeoutError:
                _abort(request)
                return


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
