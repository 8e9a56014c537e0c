"""A typed client of a node's local port: for the command line, the worker, the demo.

    async with NodeClient.from_data(folder) as client: print(await client.status())

What the node refuses is raised as the exception that it met (`UsageError`, `RuleError`, …); nobody answering,
as `NoPeerError`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import aiohttp

from crdtchain import limits
from crdtchain.errors import (
    CrdtchainError,
    NoPeerError,
    PeerError,
    RuleError,
    StoreError,
    StoreFullError,
    UsageError,
)
from node.datadir import load_token, read_node_file
from node.server.problems import PROBLEM_TYPE, TYPE_PREFIX

Json = dict[str, Any]

TIMEOUT_S: Final = 60
ADDRESSES: Final = {
    "job": "jobs",
    "stake": "stakes",
    "bid": "bids",
    "reveal": "reveals",
    "vote": "votes",
    "transfer": "transfers",
    "claim": "claims",
    "profile": "profiles",
}
"""Kind of op to the address that signs it."""
_BY_TYPE: Final[dict[str, type[CrdtchainError]]] = {
    "no-peer": NoPeerError,
    "peer": PeerError,
    "full": StoreFullError,
    "store": StoreError,
    "internal": StoreError,
}


class NodeClient:
    """Talks to one node's local port; an async context manager."""

    def __init__(self, url: str, token: str) -> None:
        """`url` is the local port's, without a path."""
        self.url = url.rstrip("/")
        self._token = token
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def from_data(cls, folder: Path) -> NodeClient:
        """Return a client of the node that runs in a data folder.

        Raises:
            NoPeerError: none runs.
            KeyFileError: the token can't be used.
        """
        url = read_node_file(folder)["local"]
        return cls(url, load_token(folder))

    async def __aenter__(self) -> NodeClient:
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=5),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    # -- asking --

    async def status(self) -> Json:
        """Return what the node holds, and how it does."""
        return await self._get("status")

    async def network(self) -> Json:
        """Return the network's constants."""
        return await self._get("network")

    async def peers(self) -> Json:
        """Return connections, and configured peers that are not connected."""
        return await self._get("peers")

    async def jobs(self) -> list[Json]:
        """Return all jobs, the newest first."""
        return list((await self._get("jobs"))["jobs"])

    async def job(self, cid: str) -> Json:
        """Return one job: terms, leaderboard, outcome."""
        return await self._get(f"jobs/{cid}")

    async def accounts(self) -> list[Json]:
        """Return all accounts."""
        return list((await self._get("accounts"))["accounts"])

    async def account(self, did: str) -> Json:
        """Return one account with its history."""
        return await self._get(f"accounts/{did}")

    async def ops(self, after: int = -1, limit: int = 100, **query: str) -> Json:
        """Return a page of ops, and where the next one starts; `author` and `kind` choose."""
        return await self._get("ops", {"after": str(after), "limit": str(limit), **query})

    async def op(self, cid: str) -> Json:
        """Return one op."""
        return await self._get(f"ops/{cid}")

    async def block(self, cid: str) -> bytes:
        """Return the block of an op."""
        async with self._request("GET", f"ops/{cid}", headers={"Accept": "application/cbor"}) as response:
            return await response.read()

    async def scope(self) -> Json:
        """Return what the node keeps, when that is not everything."""
        return await self._get("scope")

    async def widen_scope(self, **more: Any) -> Json:
        """Have the node keep more: `jobs`, `tags`, `authors`, or `everything`.

        Raises:
            UsageError: it keeps everything already, or it would be too much for one scope.
        """
        async with self._request("POST", "scope", json=more) as response:
            return dict(await response.json())

    # -- signing --

    async def submit(self, kind: str, body: Mapping[str, Any]) -> Json:
        """Have the node sign an op of a kind; returns the op with its status.

        Raises:
            RuleError: the ledger rejects it; nothing was signed.
            UsageError: the body does not fit.
            StoreFullError: the node's disk is full.
        """
        async with self._request("POST", ADDRESSES[kind], json=dict(body)) as response:
            return dict(await response.json())

    async def submit_block(self, block: bytes) -> Json:
        """Hand over a block that was signed elsewhere."""
        headers = {"Content-Type": "application/cbor"}
        async with self._request("POST", "ops", data=block, headers=headers) as response:
            return dict(await response.json())

    # -- blobs --

    async def put_blob(self, content: bytes | Path, on_bytes: Callable[[int], None] | None = None) -> str:
        """Store bytes or a file as a blob; returns its CID. `on_bytes` is told of each part that is sent."""
        headers = {"Content-Type": "application/octet-stream"}
        if isinstance(content, Path):
            try:
                data: Any = _read_parts(await asyncio.to_thread(content.open, "rb"))
            except OSError as error:
                raise UsageError(f"the file {content} can't be read: {error.strerror}") from None
        else:
            data = _cut(content)
        if on_bytes is not None:
            data = _count(data, on_bytes)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with self._request("PUT", "blobs", data=data, headers=headers, timeout=timeout) as response:
            return str((await response.json())["cid"])

    async def get_blob(self, cid: str, target: Path, on_bytes: Callable[[int], None] | None = None) -> int:
        """Write a blob to a file, which the node fetches from peers if need be; returns its size in bytes.

        `on_bytes` is told of each part that was written.

        Raises:
            NoPeerError: nobody who is connected has it.
        """
        size, fresh = 0, target.with_name(f".{target.name}.{os.getpid()}.tmp")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._request("GET", f"blobs/{cid}", timeout=timeout) as response:
                file = await asyncio.to_thread(fresh.open, "wb")
                with file:
                    async for part in response.content.iter_chunked(256 * 1024):
                        size += len(part)
                        await asyncio.to_thread(file.write, part)
                        if on_bytes is not None:
                            on_bytes(len(part))
            await asyncio.to_thread(fresh.replace, target)
        except OSError as error:
            raise UsageError(f"the file {target} can't be written: {error.strerror}") from None
        finally:
            await asyncio.to_thread(fresh.unlink, missing_ok=True)
        return size

    async def read_blob(self, cid: str, size_max: int = limits.BLOB_BYTES_MAX) -> bytes:
        """Return a blob's content.

        Raises:
            NoPeerError: nobody who is connected has it.
            UsageError: it is larger than `size_max`.
        """
        parts, size = list[bytes](), 0
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with self._request("GET", f"blobs/{cid}", timeout=timeout) as response:
            async for part in response.content.iter_chunked(256 * 1024):
                size += len(part)
                if size > size_max:
                    raise UsageError(f"the blob {cid} has more than {size_max} bytes")
                parts.append(part)
        return b"".join(parts)

    async def blobs(self) -> Json:
        """Return the blobs at the node, why each stays, and what is being fetched."""
        return await self._get("blobs")

    async def pin_blob(self, cid: str, is_pinned: bool = True) -> Json:
        """Have a blob stay at the node, which fetches it if need be, or let it go when there is no room."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        path = f"blobs/{cid}/{'pin' if is_pinned else 'unpin'}"
        async with self._request("POST", path, json={}, timeout=timeout) as response:
            return dict(await response.json())

    async def remove_blob(self, cid: str, force: bool = False) -> Json:
        """Remove a blob from the node; with `force` also one that an open job needs."""
        query = {"force": "1"} if force else None
        async with self._request("DELETE", f"blobs/{cid}", json={}, params=query) as response:
            return dict(await response.json())

    # -- events --

    async def events(self, on_open: Callable[[], None] | None = None) -> AsyncIterator[Json]:
        """Yield what happens at the node from now on, until the connection ends; `on_open`: now is now."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with self._request("GET", "events", timeout=timeout) as response:
            if on_open is not None:
                on_open()
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield dict(json.loads(line[6:]))

    # -- plumbing --

    async def _get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        async with self._request("GET", path, params=query) as response:
            return dict(await response.json())

    def _request(self, method: str, path: str, **options: Any) -> _Exchange:
        if self._http is None:
            raise RuntimeError("use the client as an async context manager")
        return _Exchange(self.url, self._http.request(method, f"{self.url}/api/v1/{path}", **options))


class _Exchange:
    """One request: an async context manager whose errors are ours."""

    def __init__(self, url: str, request: Any) -> None:
        self._url = url
        self._request = request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await self._request.__aenter__()
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError):
            raise NoPeerError(f"no node answers at {self._url}: start it with 'crdtchain serve'") from None
        except TimeoutError:
            text = f"the node at {self._url} is slow to answer and may still do it: look before you ask again"
            raise NoPeerError(text) from None
        except (aiohttp.ClientError, OSError):
            raise NoPeerError(f"no node answers at {self._url}: start it with 'crdtchain serve'") from None
        if response.status >= 400:
            try:
                raise await _read_problem(response)
            finally:
                response.release()
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._request.__aexit__(kind, error, trace)
        if isinstance(error, aiohttp.ClientError):
            raise NoPeerError(f"the connection to the node at {self._url} broke") from error


async def _read_problem(response: aiohttp.ClientResponse) -> CrdtchainError:
    """Return the exception that a problem document stands for."""
    try:
        content = await response.json(content_type=PROBLEM_TYPE)
        kind = str(content["type"]).removeprefix(TYPE_PREFIX)
        detail = str(content["detail"])
    except (ValueError, KeyError, TypeError, aiohttp.ClientError):
        return PeerError(f"what answers at {response.url.origin()} is no crdtchain node (status {response.status})")
    if kind == "rejected":
        return RuleError(str(content.get("code", "")), detail)
    return _BY_TYPE.get(kind, UsageError)(detail)


async def _count(parts: AsyncIterator[bytes], on_bytes: Callable[[int], None]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield part
        on_bytes(len(part))


async def _cut(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), limits.CHUNK_BYTES):
        yield content[start : start + limits.CHUNK_BYTES]


async def _read_parts(file: Any) -> AsyncIterator[bytes]:
    with file:
        while part := await asyncio.to_thread(file.read, limits.CHUNK_BYTES):
            yield part
