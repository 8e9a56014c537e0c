"""A node behind a reverse proxy: its ports answer below a path prefix too, and limits see the real addresses.

Both are done where a request begins, before anything else looks at it: routes, the checks of Host and Origin, the
token and the limits for each address need not know of proxies.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web
from yarl import URL

from crdtchain.errors import UsageError
from node.addresses import find_ip

_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
HOPS_MAX: Final = 32

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """What the settings say of reverse proxies."""

    def __init__(self, prefix: str = "", trusted: Sequence[str] = ()) -> None:
        """Read the settings `path_prefix` and `trusted_proxies`.

        Raises:
            UsageError: one is wrong.
        """
        self.prefix = f"/{prefix.strip('/')}" if prefix.strip("/") else ""
        if self.prefix and not _PREFIX.fullmatch(self.prefix):
            raise UsageError(f"path_prefix is {prefix!r}; it must be a path such as /crdtchain")
        self._trusted = [_read_network(text) for text in trusted]

    def install(self, server: web.Server) -> None:
        """Let a server see requests as they were before a proxy passed them on."""
        if not self.prefix and not self._trusted:
            return
        make = server.request_factory

        def make_request(*arguments: Any) -> web.BaseRequest:
            return self._restore(make(*arguments))

        server.request_factory = make_request

    def _restore(self, request: web.BaseRequest) -> web.BaseRequest:
        changes: dict[str, Any] = {}
        path = request.rel_url.raw_path
        if self.prefix and (path == self.prefix or path.startswith(f"{self.prefix}/")):
            query = request.rel_url.raw_query_string
            changes["rel_url"] = URL.build(path=path[len(self.prefix) :] or "/", query_string=query, encoded=True)
        if self._trusted and (remote := self.find_remote(request)) != request.remote:
            changes["remote"] = remote
        return request.clone(**changes) if changes else request

    def find_remote(self, request: web.BaseRequest) -> str | None:
        """Return who asks: the last address of X-Forwarded-For that no trusted proxy has, if one passed it on."""
        remote = request.remote
        if remote is None or not self.is_trusted(remote):
            return remote
        lines = request.headers.getall("X-Forwarded-For", [])
        hops = [hop.strip() for line in lines for hop in line.split(",")]
        for hop in reversed(hops[-HOPS_MAX:]):
            address = find_ip(hop)
            if address is None:
                # What stands further left came with it, from who knows whom.
                return remote
            remote = str(address)
            if not self.is_trusted(remote):
                return remote
        return remote

    def is_trusted(self, text: str) -> bool:
        """Whether an address is a trusted proxy's."""
        address = find_ip(text.partition("%")[0])
        if address is None:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._trusted)


def _read_network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise UsageError(f"trusted_proxies has {text!r}; it must be an IP address or a network") from None
