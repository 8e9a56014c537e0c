"""A peer by hand, for tests: speaks the sync protocol over a real WebSocket, and says what the test wants.

    async with connect_raw(node.peer, network) as peer:
        await peer.shake_hands()
        await peer.send(Probe(bytes(32), 7))
        head, blocks = await peer.receive()

`receive` raises `RawClosedError` when the other side closes; its text is the reason. Nothing is answered by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import msgspec

from crdtchain.adapters.keys import SigningKey, is_accepted
from crdtchain.scalars import Author
from crdtchain.sync.messages import (
    PROTOCOL_VERSION,
    Auth,
    Frame,
    Head,
    Hello,
    auth_bytes,
    decode_frame,
    encode_frame,
)

WAIT_S = 20.0
RECEIVED = TypeVar("RECEIVED", bound=Head)


class RawClosedError(Exception):
    """The other side has closed the connection; the text is its reason."""


class RawPeer:
    """One connection to the peer port of a node, driven by the test."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, network: bytes, key: SigningKey | None = None) -> None:
        self.socket = socket
        self.key = key or SigningKey.generate()
        self.hello = self.make_hello(network)
        """What this side says first; a test may replace it before `shake_hands`."""
        self.theirs: Hello | None = None
        """What the other side said first."""
        self.log: list[Frame] = []
        """All that was received."""

    def make_hello(self, network: bytes, **changes: Any) -> Hello:
        """Return a hello of this peer's key, with an empty set; `changes` replace fields."""
        hello = Hello(
            version=PROTOCOL_VERSION,
            network=bytes(network),
            node=bytes(self.key.author),
            nonce=secrets.token_bytes(32),
            root=bytes(32),
            count=0,
            scope=b"",
            time_ms=time.time_ns() // 1_000_000,
            blobs="",
        )
        return msgspec.structs.replace(hello, **changes)

    # -- frames --

    async def send_bytes(self, frame: bytes) -> None:
        """Send one frame as it is."""
        await self.socket.send_bytes(frame)

    async def send(self, head: Head, blocks: Sequence[bytes] = ()) -> None:
        """Send a message."""
        await self.send_bytes(encode_frame(head, blocks))

    async def receive(self, seconds: float = WAIT_S) -> Frame:
        """Return the next message.

        Raises:
            RawClosedError: there is none, because the other side closed.
        """
        message = await asyncio.wait_for(self.socket.receive(), seconds)
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise RawClosedError(str(message.extra or ""))
        self.log.append(decode_frame(message.data))
        return self.log[-1]

    async def receive_a(self, kind: type[RECEIVED], seconds: float = WAIT_S) -> tuple[RECEIVED, list[bytes]]:
        """Return the next message of a kind; others before it are left to `log`."""
        async with asyncio.timeout(seconds):
            while True:
                head, blocks = await self.receive(seconds)
                if isinstance(head, kind):
                    return head, blocks

    async def wait_closed(self, seconds: float = WAIT_S) -> str:
        """Return the reason with which the other side closes; what it says before is left to `log`."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.receive(seconds)
        except RawClosedError as closed:
            return str(closed)

    # -- handshake --

    async def say_hello(self) -> Hello:
        """Say hello, and return the other side's."""
        await self.send(self.hello)
        self.theirs, _ = await self.receive_a(Hello)
        return self.theirs

    def sign_auth(self, is_dialler: bool = True) -> Auth:
        """Return this side's proof of its key; `is_dialler=False` claims the other role."""
        assert self.theirs is not None, "say hello first"
        return Auth(self.key.sign(auth_bytes(self.hello, self.theirs, is_dialler)))

    async def shake_hands(self) -> Hello:
        """Say hello, prove the key and check the other side's proof; returns its hello.

        Raises:
            RawClosedError: the other side closed instead.
        """
        theirs = await self.say_hello()
        await self.send(self.sign_auth())
        auth, _ = await self.receive_a(Auth)
        message = auth_bytes(self.hello, theirs, is_dialler=False)
        assert is_accepted(Author(theirs.node), message, auth.signature), "the node did not prove its key"
        return theirs


@asynccontextmanager
async def connect_raw(url: str, network: bytes, key: SigningKey | None = None) -> AsyncIterator[RawPeer]:
    """Connect to the peer port of a node; nothing has been said yet."""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/sync", heartbeat=None, max_msg_size=0) as link:
        yield RawPeer(link, network, key)
