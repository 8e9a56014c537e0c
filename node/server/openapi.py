"""The description of the API (OpenAPI 3.1), made from the table of routes, so that it is true to the code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web
from msgspec import Struct

from crdtchain.ops import Job
from node.server.problems import PROBLEM_TYPE, PROBLEMS, TYPE_PREFIX

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
API: Final = "/api/v1"


class Route(Struct, frozen=True):
    """One address of the API."""

    method: str
    path: str
    """Below `/api/v1`."""
    handler: Handler
    summary: str
    """One sentence."""
    body: type[Struct] | None = None
    """What a JSON body holds."""
    body_type: str = ""
    """Type of a body that is not JSON."""
    answer_type: str = "application/json"
    status: int = 200
    query: tuple[str, ...] = ()


def make_openapi(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document."""
    bodies = [route.body for route in routes if route.body is not None and route.body is not Job]
    _, components = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(API + route.path, {})[route.method.lower()] = _make_operation(route)
    components["Problem"] = _PROBLEM
    components["Terms"] = {"type": "object", "description": "The terms of a job, as GET jobs/{cid} shows them."}
    return {
        "openapi": "3.1.0",
        "info": {"title": "crdtchain node", "version": "1", "description": "The local port of a crdtchain node."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


_PROBLEM: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "enum": [TYPE_PREFIX + kind for kind in PROBLEMS]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "The rule that was broken; with rejected only."},
    },
}


def _make_operation(route: Route) -> dict[str, Any]:
    answers: dict[str, Any] = {
        str(route.status): {"description": "Done.", "content": {route.answer_type: {}}}
        if route.status != 101
        else {"description": "A WebSocket."},
        "default": {
            "description": "A problem.",
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    }
    operation: dict[str, Any] = {"summary": route.summary, "responses": answers}
    parameters = [_make_parameter(name, "path") for name in ("cid", "did") if f"{{{name}}}" in route.path]
    parameters.extend(_make_parameter(name, "query") for name in route.query)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        name = "Terms" if route.body is Job else route.body.__name__
        content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.body_type:
        operation["requestBody"] = {"required": True, "content": {route.body_type: {}}}
    return operation


def _make_parameter(name: str, place: str) -> dict[str, Any]:
    kind = "integer" if name in ("after", "limit") else "string"
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": kind}}
