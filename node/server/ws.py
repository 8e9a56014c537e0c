"""The sync WebSocket, the same on both ports: other nodes on the peer port, the page on the local one."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from crdtchain import limits
from crdtchain.errors import PeerError
from node.gate import Entry, RefusedError
from node.link import CLOSE_CODE, cut_reason
from node.node import Node
from node.server.security import SYNC_PROTOCOL

NODE: Final = web.AppKey("node", Node)


async def handle_sync(request: web.Request) -> web.StreamResponse:
    """Talk with a peer until the connection ends."""
    node = request.app[NODE]
    address = request.remote or ""
    try:
        entry = node.guards.gate.enter(address)
    except RefusedError as error:
        if error.limit == "full":
            # The next one who knocks finds a place, in all likelihood this one.
            node.peers.make_room()
        raise web.HTTPTooManyRequests(text=f"{error}.", headers={"Retry-After": str(error.wait_s)}) from None
    with entry:
        return await _talk(request, address, entry)


async def _talk(request: web.Request, address: str, entry: Entry) -> web.StreamResponse:
    node = request.app[NODE]
    socket = web.WebSocketResponse(
        compress=False, max_msg_size=limits.FRAME_BYTES_MAX + 1, heartbeat=limits.PING_S, protocols=(SYNC_PROTOCOL,)
    )
    await socket.prepare(request)
    node.guards.gate.keep(request.transport)
    try:
        await node.peers.talk(socket, address, is_configured=False, is_dialler=False, entry=entry)
    except PeerError as error:
        await socket.close(code=CLOSE_CODE, message=cut_reason(str(error)))
    return socket
