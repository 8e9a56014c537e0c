"""The two ports as aiohttp applications.

The *peer* port serves other nodes: `/sync`, `/genesis`, `/blobs/{cid}`; it never signs. The *local* port serves the
person at this machine: the page and the API, behind `security.Guard`.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from crdtchain import codec, limits
from crdtchain.scalars import BlobId
from node.node import Node
from node.server import api, views
from node.server.blobs import connect_blobs, send_blob
from node.server.problems import catch_problems
from node.server.security import Guard, add_headers
from node.server.ws import NODE, handle_sync

CBOR_TYPE: Final = "application/vnd.ipld.dag-cbor"


def make_peer_app(node: Node) -> web.Application:
    """Return the application of the peer port."""
    app = web.Application(middlewares=[catch_problems], client_max_size=1_024)
    app[NODE] = node
    app.router.add_get("/sync", handle_sync)
    app.router.add_get("/genesis", handle_genesis)
    app.router.add_get("/blobs/{cid}", handle_blob)
    app.router.add_get("/blobs/{cid}/list", handle_blob_list)
    return app


def make_local_app(node: Node, guard: Guard) -> web.Application:
    """Return the application of the local port."""
    app = web.Application(middlewares=[catch_problems, guard.middleware], client_max_size=limits.HTTP_BODY_BYTES_MAX)
    app[NODE] = node
    app.on_response_prepare.append(add_headers)
    connect_blobs(app, node)
    app.router.add_get("/", views.handle_page)
    app.router.add_get("/healthz", views.handle_health)
    app.router.add_get("/metrics", views.handle_metrics)
    app.router.add_get("/openapi.json", api.handle_openapi)
    app.router.add_get("/api/v1/sync", handle_sync)
    app.router.add_get("/api/v1/genesis", handle_genesis)
    api.add_routes(app)
    return app


async def handle_genesis(request: web.Request) -> web.Response:
    """Answer the block of genesis: what a newcomer needs to join."""
    node = request.app[NODE]
    blocks = await node.read_blocks([node.runtime.ledger.params.network])
    return web.Response(body=blocks[0], content_type=CBOR_TYPE)


def _refuse_in_private(request: web.Request) -> None:
    """Serve no blobs here in a private network: who asks over `/sync` has proved a key, who asks here has not."""
    if request.app[NODE].allow.is_private:
        raise web.HTTPForbidden(text="This network is private: blobs are served to its nodes only.")


async def handle_blob(request: web.Request) -> web.StreamResponse:
    """Stream a blob that is here; what is fetched for other nodes is asked for over `/sync`."""
    _refuse_in_private(request)
    blob = BlobId(codec.parse_cid(request.match_info["cid"]))
    return await send_blob(request, blob)


async def handle_blob_list(request: web.Request) -> web.Response:
    """Answer the list of a large blob's chunks."""
    _refuse_in_private(request)
    block = await request.app[NODE].blobs.read_list(BlobId(codec.parse_cid(request.match_info["cid"])))
    if block is None:
        raise web.HTTPNotFound
    return web.Response(body=block, content_type=CBOR_TYPE)
