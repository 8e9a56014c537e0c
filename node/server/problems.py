"""Errors over HTTP: RFC 9457 problem documents with stable types."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from crdtchain.errors import (
    CrdtchainError,
    InvalidOpError,
    KeyFileError,
    NoPeerError,
    PeerError,
    SandboxError,
    StoreError,
    StoreFullError,
    UsageError,
)

TYPE_PREFIX: Final = "urn:crdtchain:problem:"
PROBLEM_TYPE: Final = "application/problem+json"

PROBLEMS: Final = {
    "host": "Wrong host",
    "origin": "Forbidden origin",
    "token": "No authority",
    "content-type": "Wrong type of body",
    "body": "Malformed request",
    "too-large": "Too large",
    "not-found": "Not found",
    "method": "Wrong method",
    "usage": "Wrong input",
    "rejected": "Rejected by the ledger",
    "no-peer": "Nobody has it",
    "peer": "A peer failed",
    "full": "No space left",
    "store": "The store failed",
    "internal": "An error in the node",
}
"""Every type of problem, with its title."""

_BY_CLASS: Final[tuple[tuple[type[CrdtchainError], int, str], ...]] = (
    (InvalidOpError, 422, "rejected"),
    (UsageError, 400, "usage"),
    (NoPeerError, 404, "no-peer"),
    (PeerError, 502, "peer"),
    (StoreFullError, 507, "full"),
    (StoreError, 503, "store"),
    (KeyFileError, 503, "store"),
    (SandboxError, 503, "store"),
)

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(Exception):
    """An answer that is a problem document.

    Attributes:
        status: of HTTP.
        kind: a key of `PROBLEMS`; the document's `type` ends in it.
        detail: one sentence.
        code: for `rejected`: the rule.
    """

    def __init__(self, status: int, kind: str, detail: str, code: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.code = code


def make_problem(error: CrdtchainError) -> Problem:
    """Return the problem that an exception of ours is."""
    for cause, status, kind in _BY_CLASS:
        if isinstance(error, cause):
            return Problem(status, kind, str(error), error.code if isinstance(error, InvalidOpError) else "")
    return Problem(500, "internal", "The node met an error; its log says more.")


def problem_response(problem: Problem) -> web.Response:
    """Return a problem as an HTTP answer."""
    content: dict[str, object] = {
        "type": TYPE_PREFIX + problem.kind,
        "title": PROBLEMS[problem.kind],
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.code:
        content["code"] = problem.code
    return web.Response(status=problem.status, body=json.dumps(content).encode(), content_type=PROBLEM_TYPE)


@web.middleware
async def catch_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error of a handler into a problem document."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem)
    except CrdtchainError as error:
        return problem_response(make_problem(error))
    except web.HTTPException as error:
        return problem_response(_from_http(error))
    except (ConnectionError, TimeoutError):
        raise
    except Exception:
        log.exception("A request to %s failed.", request.path)
        return problem_response(Problem(500, "internal", "The node met an error; its log says more."))


def _from_http(error: web.HTTPException) -> Problem:
    if error.status == 404:
        return Problem(404, "not-found", "There is nothing at this address.")
    if error.status == 405:
        return Problem(405, "method", "This address does not take that method.")
    if error.status == 413:
        return Problem(413, "too-large", "The body is too large.")
    return Problem(error.status if error.status >= 400 else 500, "body", error.reason or "The request is malformed.")
