"""A cable between two nodes that can be pulled: forwards TCP connections of this machine, until it is cut.

While it is cut, connections that were open are reset and new ones get no answer, as on a network that drops what is
sent. Those that wait when it is mended go on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

BLOCK_BYTES: Final = 64 * 1024


class Relay:
    """Forwards what comes to a free port of this machine to another port; use it as a context manager."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._whole = asyncio.Event()
        self._whole.set()
        self._pairs: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        await self._end_all()

    @property
    def is_cut(self) -> bool:
        """Whether nothing goes through."""
        return not self._whole.is_set()

    async def cut(self) -> None:
        """Reset all connections, and let nothing through."""
        self._whole.clear()
        await self._end_all()

    def mend(self) -> None:
        """Let everything through again."""
        self._whole.set()

    async def _end_all(self) -> None:
        pairs = list(self._pairs)
        for task in pairs:
            task.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            # A cut resets the connection; the server's own task must not end as cancelled.
            pass
        finally:
            self._pairs.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        except* OSError:
            pass
        finally:
            far_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward one direction to its end, then say so to the other side."""
    while data := await reader.read(BLOCK_BYTES):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
