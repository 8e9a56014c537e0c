"""Where blobs come from: a peer over its HTTP port, over the sync connection, or over both.

Faults are of two kinds: `NoPeerError` when a peer does not have what is asked for, is silent or goes away (it may be
asked again later), any other `PeerError` when it sends what can't be right (`reject`: never again for this blob).
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import aiohttp
from yarl import URL

from crdtchain import codec, limits
from crdtchain.errors import NoPeerError, PeerError
from crdtchain.scalars import BlobId
from crdtchain.sync.messages import Blob, BlobNone
from node.blobs.lists import LIST_BYTES_MAX

STALL_S: Final = 20.0
"""So long a port may send nothing."""
CONNECT_S: Final = 5.0
RELAY_MAX_S: Final = 30.0
"""So long, for each hop, a peer that fetches a blob is asked again."""
_ASK_AGAIN_S: Final = 0.25
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,12})-([0-9]{1,12})/([0-9]{1,12})")


class Piece(Protocol):
    """What a peer answers."""

    @property
    def head(self) -> Blob | BlobNone:
        """How much there is, or that there is nothing."""
        ...

    @property
    def data(self) -> bytes:
        """The piece."""
        ...


class BlobPeer(Protocol):
    """A connection over which pieces of blobs are asked for."""

    name: str
    address: str

    async def ask_piece(self, blob: BlobId, offset: int, hops: int, is_list: bool) -> Piece:
        """Ask for a piece; raises NoPeerError when none comes."""
        ...

    def drop(self, reason: str) -> None:
        """End the connection."""
        ...


class UnreachableError(NoPeerError):
    """A port can't be spoken to, whatever it may have."""


class Port:
    """A peer's HTTP port."""

    def __init__(self, http: aiohttp.ClientSession, url: URL) -> None:
        self.url = url
        self._http = http

    async def read_all(self, blob: BlobId, is_list: bool, size_max: int) -> bytes:
        """Return a list of chunks, or a blob of one chunk."""
        url = self.url / "blobs" / codec.format_cid(blob)
        async with self._open(url / "list" if is_list else url, {}) as response:
            if response.status != 200:
                raise NoPeerError(f"status {response.status}")
            return await _read_at_most(response, size_max)

    async def read(self, blob: BlobId, start: int, size: int, total: int) -> bytes:
        """Return a part of a blob."""
        url = self.url / "blobs" / codec.format_cid(blob)
        async with self._open(url, {"Range": f"bytes={start}-{start + size - 1}"}) as response:
            if response.status != 206:
                raise NoPeerError(f"status {response.status} instead of a part")
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or [int(text) for text in found.groups()] != [start, start + size - 1, total]:
                raise PeerError("the peer sent another part of the blob than the one asked for")
            data = await _read_at_most(response, size)
        if len(data) != size:
            raise PeerError("the peer sent a part that is too short")
        return data

    @asynccontextmanager
    async def _open(self, url: URL, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            # Whatever a peer answers, it can't send this node elsewhere.
            async with self._http.get(url, headers=headers, allow_redirects=False) as response:
                if response.status == 404:
                    raise NoPeerError("it does not have it")
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnreachableError(str(error) or type(error).__name__) from None


def open_http(tls_context: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """Open a session for ports; what is silent is given up. `tls_context` checks their certificates; None: usual."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
    connector = aiohttp.TCPConnector(ssl=True if tls_context is None else tls_context)
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, read_bufsize=limits.BLOB_PIECE_BYTES
    )


async def _read_at_most(response: aiohttp.ClientResponse, size_max: int) -> bytes:
    parts, size = list[bytes](), 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > size_max:
            raise PeerError("the peer sent more than it may")
    return b"".join(parts)


class Wire:
    """A sync connection, over which one piece at a time is asked for."""

    def __init__(self, link: BlobPeer, hops: int = 0) -> None:
        """`hops`: so far the peer may look for the blob at others; 0: it hands over what it has."""
        self.link = link
        self._hops = hops
        self._asking: asyncio.Task[Piece] | None = None

    async def read_all(self, blob: BlobId, is_list: bool, size_max: int) -> bytes:
        """Return a list of chunks, or a blob of one chunk."""
        parts, size, total = list[bytes](), 0, -1
        until_s = time.monotonic() + RELAY_MAX_S * self._hops
        while size != total:
            found, data = await self._ask(blob, size, is_list, until_s)
            if found > size_max or total not in (-1, found):
                raise PeerError("the peer sent a blob of another size")
            total = found
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    async def read(self, blob: BlobId, start: int, size: int, total: int) -> bytes:
        """Return a part of a blob."""
        parts, done = list[bytes](), 0
        until_s = time.monotonic() + RELAY_MAX_S * self._hops
        while done < size:
            found, data = await self._ask(blob, start + done, False, until_s)
            if found != total:
                raise PeerError("the peer sent a blob of another size")
            parts.append(data[: size - done])
            done += len(data)
        return b"".join(parts)

    async def _ask(self, blob: BlobId, offset: int, is_list: bool, until_s: float) -> tuple[int, bytes]:
        """Return the size of what is asked for, and the piece of it at an offset, which is as long as it can be."""
        while True:
            # Who gives up meanwhile must not leave the connection between a question and its answer.
            self._asking = asyncio.ensure_future(self.link.ask_piece(blob, offset, self._hops, is_list))
            self._asking.add_done_callback(_forget)
            came = await asyncio.shield(self._asking)
            if isinstance(came.head, Blob):
                if len(came.data) != min(limits.BLOB_PIECE_BYTES, came.head.total - offset):
                    raise PeerError("the peer sent a piece of a blob that does not fit")
                return came.head.total, came.data
            if not came.head.later or time.monotonic() >= until_s:
                raise NoPeerError("it does not have it")
            await asyncio.sleep(_ASK_AGAIN_S)


def _forget(task: asyncio.Task[Piece]) -> None:
    """Take note of a result that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


class Source:
    """One peer: its port when it has one that answers, else its connection."""

    def __init__(self, name: str, port: Port | None, wire: Wire | None) -> None:
        """`name` tells one source from another while a blob is fetched."""
        assert port is not None or wire is not None
        self.name = name
        self.port = port
        self.wire = wire

    @property
    def address(self) -> str:
        """Where it is, for people."""
        if self.wire is not None:
            return self.wire.link.address
        assert self.port is not None
        return str(self.port.url)

    async def read_all(self, blob: BlobId, is_list: bool) -> bytes:
        """Return the list of a blob's chunks (`is_list`), or a blob of one chunk; unchecked, but bounded."""
        bound = LIST_BYTES_MAX if is_list else limits.CHUNK_BYTES
        if self.port is not None:
            try:
                return await self.port.read_all(blob, is_list, bound)
            except UnreachableError:
                if self.wire is None:
                    raise
                self.port = None
        assert self.wire is not None
        return await self.wire.read_all(blob, is_list, bound)

    async def read(self, blob: BlobId, start: int, size: int, total: int) -> bytes:
        """Return a part of a blob of a known size, of as many bytes as were asked for, unchecked."""
        if self.port is not None:
            try:
                return await self.port.read(blob, start, size, total)
            except UnreachableError:
                if self.wire is None:
                    raise
                self.port = None
        assert self.wire is not None
        return await self.wire.read(blob, start, size, total)

    def reject(self, reason: str) -> None:
        """Take note that it sends what can't be right: its connection ends."""
        if self.wire is not None:
            self.wire.link.drop(reason)
