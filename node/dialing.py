"""What one dialled connection needs: an HTTP session that goes nowhere else, and words for what went wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from crdtchain.errors import CrdtchainError, PeerError
from node.addresses import IpAddress, find_ip

Allows: TypeAlias = Callable[[IpAddress], bool]
"""Says whether a name may lead to an IP address."""
MakeHttp: TypeAlias = Callable[[Allows], aiohttp.ClientSession]

_EXPIRED: Final = 10
_WRONG_NAMES: Final = frozenset({62, 64})
"""Codes of OpenSSL's verification: a name, an address that the certificate is not for."""


class _Resolver(AbstractResolver):
    """Resolves names, without the addresses that they may not lead to."""

    def __init__(self, allows: Allows) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._allows = allows

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name."""
        found = await self._inner.resolve(host, port, family)
        allowed = [result for result in found if self._is_allowed(result["host"])]
        if not allowed:
            raise PeerError(f"the name {host} leads to addresses that whoever told it has no business naming")
        return allowed

    def _is_allowed(self, host: str) -> bool:
        address = find_ip(host.partition("%")[0])
        return address is not None and self._allows(address)

    async def close(self) -> None:
        """Release what is held: nothing."""


async def _refuse_redirect(session: object, context: object, params: aiohttp.TraceRequestRedirectParams) -> None:
    # A stranger's port could send this node's request anywhere.
    raise PeerError("what answers there is no peer port (it sends elsewhere)")


def make_http(
    tls: ssl.SSLContext, allows: Allows, timeout: aiohttp.ClientTimeout | None = None
) -> aiohttp.ClientSession:
    """Return a session for one connection: it remembers no names and follows no redirects."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    connector = aiohttp.TCPConnector(ssl=tls, resolver=_Resolver(allows), use_dns_cache=False, force_close=True)
    return aiohttp.ClientSession(
        connector=connector, trace_configs=[trace], trust_env=False, timeout=timeout or aiohttp.ClientTimeout()
    )


def explain(error: BaseException, url: str) -> str:
    """Return in words why a connection did not come about."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return _explain_certificate(error.certificate_error)
        case aiohttp.ClientConnectorSSLError():
            return "TLS: what answers there speaks no TLS, or none that this node can; is it http?"
        case aiohttp.ClientConnectorDNSError():
            return f"the name {error.host} is not known, or there is no network"
        case aiohttp.ClientConnectorError():
            return f"nobody answers at {url}: {_explain_os(error.os_error)}"
        case aiohttp.WSServerHandshakeError():
            return _explain_status(error.status)
        case CrdtchainError():
            return str(error)
        case TimeoutError():
            return f"nobody answers at {url} in time"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionResetError():
            return "what answers there ends the connection at once; is it https, or full?"
        case aiohttp.ClientResponseError():
            return "what answers there is no peer port (it speaks no HTTP)"
        case _:
            return f"nobody answers at {url}: {error}" if str(error) else f"nobody answers at {url}"


def _explain_os(error: OSError) -> str:
    """Return what the system says, without what the event loop adds to it."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _explain_certificate(error: BaseException) -> str:
    code = getattr(error, "verify_code", 0)
    if code == _EXPIRED:
        return "TLS: the certificate has expired"
    if code in _WRONG_NAMES:
        return "TLS: the certificate is for another name"
    return f"TLS: the certificate is not trusted ({getattr(error, 'verify_message', '') or error})"


def _explain_status(status: int) -> str:
    match status:
        case 429 | 503:
            return "refused: it has as many connections as it takes"
        case 502 | 504:
            return f"a proxy answers there, but no node behind it (status {status})"
        case _:
            return f"what answers there is no peer port (status {status})"


def explain_end(reason: str) -> str:
    """Return in words why the other side ended a connection before it was of any use."""
    _, mark, word = reason.partition("the peer closed: ")
    return f"refused: {word}" if mark else reason


def find_local_addresses() -> frozenset[str]:
    """Return the addresses from which this machine would reach the world now; nothing is sent."""
    found = set[str]()
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                found.add(str(probe.getsockname()[0]))
        except OSError:
            continue
    return frozenset(found)


def is_local_address(host: str) -> bool:
    """Whether an IP address belongs to this machine now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host.partition("%")[0], 0))
    except OSError as error:
        # A link-local address can't be bound without its link: it is not told apart from others.
        return error.errno != errno.EADDRNOTAVAIL
    return True


async def end_socket(socket: aiohttp.ClientWebSocketResponse) -> None:
    """End a connection whose other side may be gone; whoever reads from it learns at once."""
    try:
        async with asyncio.timeout(2):
            await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)
    except (TimeoutError, OSError, RuntimeError, aiohttp.ClientError):
        pass
