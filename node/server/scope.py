"""The API's part about what a partial replica keeps."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from crdtchain import limits
from crdtchain.codec import is_op_id, parse_cid, parse_did
from crdtchain.errors import UsageError
from crdtchain.scalars import OpId
from crdtchain.scopes import JOBS_MAX, KEYS_MAX, SELECTOR_TAGS_MAX, make_selector
from crdtchain.views import Json
from node.node import Node
from node.server.bodies import Cid, Did, read_input
from node.server.ws import NODE

Tag = Annotated[str, Meta(min_length=1, max_length=limits.TAG_BYTES_MAX)]


class ScopeInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Keep more than before."""

    jobs: Annotated[list[Cid], Meta(max_length=JOBS_MAX)] = []
    """These jobs; they need not be here yet."""
    tags: Annotated[list[Tag], Meta(max_length=SELECTOR_TAGS_MAX)] = []
    """Jobs that have one of these tags."""
    authors: Annotated[list[Did], Meta(max_length=KEYS_MAX)] = []
    """Jobs that these keys posted."""
    everything: bool = False
    """All: the node is no partial replica any more."""


def scope_to_json(node: Node) -> dict[str, Json]:
    """Return what a node keeps; `scope` is null for everything."""
    return {"partial": bool(node.partial.selector), "scope": node.partial.to_json()}


async def get_scope(request: web.Request) -> web.Response:
    """Answer what this node keeps."""
    return web.json_response(scope_to_json(request.app[NODE]))


async def post_scope(request: web.Request) -> web.Response:
    """Keep more; what is lacking is fetched from peers."""
    node, given = request.app[NODE], read_input(await request.read(), ScopeInput)
    jobs = [OpId(parse_cid(text)) for text in given.jobs]
    if not all(map(is_op_id, jobs)):
        raise UsageError("jobs names what is no id of a job")
    if given.everything:
        changed = await node.widen(None)
    elif jobs or given.tags or given.authors:
        changed = await node.widen(make_selector(jobs, given.tags, map(parse_did, given.authors)))
    else:
        raise UsageError("name jobs, tags or authors that are to be kept, or everything")
    return web.json_response({"changed": changed, **scope_to_json(node)})
