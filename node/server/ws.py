"""The sync WebSocket, the same on both ports: other nodes on the peer port, the page on the local one."""

from __future__ import annotations

import ipaddress
from typing import Final

from aiohttp import web

from crdtchain import limits
from crdtchain.errors import PeerError
from node.link import CLOSE_CODE, cut_reason
from node.node import Node
from node.server.security import SYNC_PROTOCOL

NODE: Final = web.AppKey("node", Node)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


async def handle_sync(request: web.Request) -> web.StreamResponse:
    """Talk with a peer until the connection ends."""
    node = request.app[NODE]
    address = request.remote or ""
    same = sum(link.address == address for link in node.peers.links.values())
    if same >= limits.CONNECTIONS_ADDRESS_MAX and not _is_loopback(address):
        raise web.HTTPTooManyRequests(reason="Too many connections from this address.")
    socket = web.WebSocketResponse(
        compress=False, max_msg_size=limits.FRAME_BYTES_MAX + 1, heartbeat=limits.PING_S, protocols=(SYNC_PROTOCOL,)
    )
    await socket.prepare(request)
    try:
        await node.peers.talk(socket, address, is_configured=False, is_dialler=False)
    except PeerError as error:
        await socket.close(code=CLOSE_CODE, message=cut_reason(str(error)))
    return socket
