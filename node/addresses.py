"""Addresses of peers' ports as URLs: how people may write them, what strangers may name, from how far each is reached.

An address is `http(s)://HOST[:PORT][/PREFIX]`; the sync WebSocket is at PREFIX/sync. What a stranger names is hostile:
it must not aim this node at its own services, at its local network, or at names that only look like hosts.
"""

from __future__ import annotations

import ipaddress
import re
from enum import IntEnum
from typing import Final, TypeAlias

from yarl import URL

from crdtchain.errors import PeerError, UsageError

URL_BYTES_MAX: Final = 256
_SCHEMES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LOCAL_SUFFIXES: Final = ("localhost", "local", "internal", "home.arpa", "localdomain", "lan")

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Reach(IntEnum):
    """From how far an address is reached; a peer may tell those that are reached from as far as it itself, or farther.

    Its values are ordered: a larger one is nearer.
    """

    PUBLIC = 0
    PRIVATE = 1
    LINK = 2
    LOOPBACK = 3
    NEVER = 4
    """Reached by nobody: unspecified, multicast, reserved."""


def parse_peer_url(text: str) -> URL:
    """Read the URL of a peer's port: http or https (ws or wss mean the same) with or without a path, or `HOST:PORT`.

    Raises:
        UsageError: it is not one.
    """
    try:
        url = URL(text if "://" in text else f"http://{text}")
        scheme, prefix = _SCHEMES.get(url.scheme), url.raw_path.rstrip("/")
        if scheme is None or not url.host or not _PREFIX.fullmatch(prefix) or len(text) > URL_BYTES_MAX:
            raise ValueError
        if url.raw_query_string or url.raw_fragment or url.user is not None or url.port == 0:
            raise ValueError
        return URL.build(scheme=scheme, host=url.host, port=url.explicit_port, path=prefix)
    except (ValueError, IndexError):
        # The library meets the end of some texts, such as `http://[::1]@`, before it expects it.
        raise UsageError(f"{text[:300]!r} is not the address of a peer; one looks like http://HOST:PORT") from None


def parse_told(text: str, reach: Reach) -> URL:
    """Read an address that a peer tells, who was itself reached from `reach`.

    Raises:
        PeerError: it is none, or one that this peer has no business telling.
    """
    if len(text) > URL_BYTES_MAX or not text.isascii() or not text.startswith(("http://", "https://")):
        raise PeerError("a told address is not one of http or https")
    try:
        url = parse_peer_url(text)
    except UsageError:
        raise PeerError("a told address is not one of a peer's port") from None
    if str(url) != text:
        # One address, one text: else a victim could be named in many ways, and each would be tried.
        raise PeerError("a told address is not in its canonical form")
    host = url.host or ""
    address = find_ip(host)
    if address is None and not _is_public_name(host):
        raise PeerError("a told address has a host that names no other machine")
    if address is not None and find_reach(address) > reach:
        raise PeerError("a told address lies nearer to this node than who tells it")
    return url


def find_ip(host: str) -> IpAddress | None:
    """Return the IP address that a host is, or None for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _is_public_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    if len(labels) < 2 or len(host) > 253 or not all(map(_LABEL.fullmatch, labels)):
        return False
    # Resolvers read 127.1, 2130706433 and 0x7f.1 as addresses, though they are none on paper.
    return not _NUMERIC.fullmatch(labels[-1]) and not f".{host.removesuffix('.')}".endswith(
        tuple(f".{suffix}" for suffix in _LOCAL_SUFFIXES)
    )


def find_reach(address: IpAddress) -> Reach:
    """Return from how far an IP address is reached, those inside it (IPv4 in IPv6) included."""
    inner = _find_inner(address)
    if inner is not None:
        return find_reach(inner)
    if address.is_loopback:
        return Reach.LOOPBACK
    if address.is_unspecified or address.is_multicast:
        return Reach.NEVER
    if address.is_link_local:
        return Reach.LINK
    if address.is_reserved:
        return Reach.NEVER
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


def _find_inner(address: IpAddress) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to, by mapping, 6to4, Teredo or NAT64."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def find_reach_of(text: str) -> Reach:
    """Return from how far the host of an address, or a bare IP address, is reached; names count as public."""
    host = URL(text).host if "://" in text else text
    address = find_ip(host or "")
    if address is None:
        return Reach.LOOPBACK if (host or "").rpartition(".")[2] == "localhost" else Reach.PUBLIC
    return find_reach(address)


def group_of(host: str) -> str:
    """Return the part of the net that a host belongs to: who owns one address of it, owns the others cheaply."""
    address = find_ip(host)
    if address is None:
        return ".".join(host.rsplit(".", 2)[-2:])
    if address.is_loopback:
        return str(address)
    return str(ipaddress.ip_network((address, 16 if address.version == 4 else 32), strict=False))


def machine_of(host: str) -> str:
    """Return what counts as one machine: the address, of IPv6 its network of 64 bits, or the name."""
    address = find_ip(host)
    if isinstance(address, ipaddress.IPv6Address):
        inner = _find_inner(address)
        return str(inner or ipaddress.ip_network((address, 64), strict=False))
    return host.lower()
