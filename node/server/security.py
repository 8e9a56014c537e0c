"""Who may ask the local port for what: Host, Origin, Sec-Fetch-Site, token, body types.

A hostile page in a browser of this machine can send requests here. So every request, WebSockets included, is checked:
its Host must be in an exact list (against DNS rebinding), its Origin absent or listed, Sec-Fetch-Site absent, `none`
or `same-origin`; under `/api/v1` it carries the token in a header that no form can set; and a body has a type that no
form can send. There are no cookies and no CORS.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from aiohttp import web

from node.server.problems import Problem, problem_response

TOKEN_PROTOCOL: Final = "crdtchain.token."  # noqa: S105 - a prefix
"""A WebSocket of a page brings the token as a subprotocol with this prefix, next to `SYNC_PROTOCOL`."""
SYNC_PROTOCOL: Final = "crdtchain.sync.1"
BODY_TYPES: Final = frozenset({"application/json", "application/cbor", "application/octet-stream"})
_FETCH_SITES: Final = frozenset({"none", "same-origin"})
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; worker-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""Sent with every answer of the local port."""

EVERYWHERE: Final = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - compared with, never bound to
"""Hosts that mean all addresses of this machine."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def local_hosts(host: str, port: int, more: Iterable[str] = ()) -> frozenset[str]:
    """Return the values of Host that a local port answers to."""
    shown = f"[{host}]" if ":" in host else host
    is_everywhere = host in EVERYWHERE
    names = set() if is_everywhere else {shown}
    if is_everywhere or host.startswith("127.") or host in ("localhost", "::1"):
        names |= {"localhost", "127.0.0.1", "[::1]"}
    return frozenset({f"{name}:{port}" for name in names} | set(more))


class Guard:
    """Checks requests to the local port."""

    def __init__(self, token: str, hosts: Iterable[str], origins: Iterable[str] = ()) -> None:
        """`hosts` are exact values of Host; their own http origins are allowed, and so are `origins`."""
        self._token = token.encode()
        self.hosts = frozenset(hosts)
        self._origins = frozenset({f"http://{host}" for host in self.hosts} | set(origins))

    def add_hosts(self, hosts: Iterable[str]) -> None:
        """Answer to further hosts: those known once the port is."""
        fresh = frozenset(hosts)
        self.hosts |= fresh
        self._origins |= {f"http://{host}" for host in fresh}

    def check(self, request: web.Request) -> None:
        """Check a request.

        Raises:
            Problem: it is refused.
        """
        headers = request.headers
        if len(headers.getall("Host", [])) != 1 or headers["Host"].lower() not in self.hosts:
            raise Problem(421, "host", "This port answers only to its own address.")
        if any(origin not in self._origins for origin in headers.getall("Origin", [])):
            raise Problem(403, "origin", "Pages of other origins may not use this node.")
        if any(site not in _FETCH_SITES for site in headers.getall("Sec-Fetch-Site", [])):
            raise Problem(403, "origin", "Pages of other sites may not use this node.")
        if request.path.startswith("/api/"):
            if not self._has_token(request):
                raise Problem(401, "token", "The token is missing or wrong; it is in the data folder's file 'token'.")
            self._check_body(request)

    def _has_token(self, request: web.Request) -> bool:
        given = request.headers.getall("Authorization", [])
        if len(given) == 1:
            scheme, _, token = given[0].partition(" ")
            return scheme.lower() == "bearer" and self._is_token(token.strip())
        if given or request.headers.get("Upgrade", "").lower() != "websocket":
            return False
        lines = request.headers.getall("Sec-WebSocket-Protocol", [])
        offered = [part.strip() for line in lines for part in line.split(",")]
        tokens = [part.removeprefix(TOKEN_PROTOCOL) for part in offered if part.startswith(TOKEN_PROTOCOL)]
        return any(self._is_token(token) for token in tokens)

    def _is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token)

    def _check_body(self, request: web.Request) -> None:
        if request.method in ("GET", "HEAD"):
            return
        types = request.headers.getall("Content-Type", [])
        if len(types) != 1 or types[0].partition(";")[0].strip().lower() not in BODY_TYPES:
            allowed = ", ".join(sorted(BODY_TYPES))
            raise Problem(415, "content-type", f"The body's type must be one of {allowed}.")
        if "Content-Encoding" in request.headers:
            raise Problem(415, "content-type", "A body must come as it is, without Content-Encoding.")

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what `check` refuses."""
        try:
            self.check(request)
        except Problem as problem:
            return problem_response(problem)
        return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to an answer, just before it is sent."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
