"""Keeps the connections that this node dials."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, MutableMapping
from typing import Final, Protocol

import aiohttp
from yarl import URL

from crdtchain import limits
from crdtchain.errors import PeerError, UsageError
from node.link import Socket

BACKOFF_S: Final = (0.25, 30.0)


class Talk(Protocol):
    """Runs one connection until it ends."""

    def __call__(self, socket: Socket, address: str, is_configured: bool) -> Awaitable[str]:
        """Return the reason for the end; raises PeerError when there are too many connections."""


def parse_peer_url(text: str) -> URL:
    """Read the URL of a peer's port: http or https (ws or wss mean the same), or `HOST:PORT`.

    Raises:
        UsageError: it is not one.
    """
    try:
        url = URL(text if "://" in text else f"http://{text}")
        scheme = {"http": "http", "ws": "http", "https": "https", "wss": "https"}.get(url.scheme)
        if scheme is None or not url.host or url.path not in ("", "/") or url.query_string or url.user:
            raise ValueError
        return URL.build(scheme=scheme, host=url.host, port=url.port)
    except ValueError:
        raise UsageError(f"{text!r} is not the address of a peer; one looks like http://HOST:PORT") from None


async def dial(http: aiohttp.ClientSession, text: str, talk: Talk, failures: MutableMapping[str, str]) -> None:
    """Keep a connection to a configured peer: for ever, with a growing pause between attempts."""
    url, pause_s = parse_peer_url(text), BACKOFF_S[0]
    while True:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(limits.HANDSHAKE_S):
                socket = await http.ws_connect(
                    url / "sync", compress=0, max_msg_size=limits.FRAME_BYTES_MAX + 1, heartbeat=limits.PING_S
                )
            failures.pop(text, None)
            failures[text] = await talk(socket, str(url), is_configured=True)
        except (OSError, aiohttp.ClientError, TimeoutError, PeerError) as error:
            failures[text] = f"nobody answers at {url}: {error}" if str(error) else f"nobody answers at {url}"
        if time.monotonic() - started_s > 5:
            pause_s = BACKOFF_S[0]
        await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
        pause_s = min(2 * pause_s, BACKOFF_S[1])
