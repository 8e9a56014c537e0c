"""Nodes of the same network on the local network, by multicast DNS: `_crdtchain._tcp.local.`

What is announced: a short form of the network's id, the node's key, whether its peer port speaks https, its path. All
of it is a stranger's word: it only says where to dial (`Book.note_local`), and the key is proven after that. What fails
here, such as a machine without multicast, is logged once and does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import ifaddr
import zeroconf
from yarl import URL
from zeroconf import InterfaceChoice, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from crdtchain.codec import format_cid, format_did
from crdtchain.scalars import Author, OpId
from node.addresses import IpAddress, Reach, find_ip, find_reach
from node.config import Settings, split_host_port
from node.dialing import find_local_addresses
from node.server.security import EVERYWHERE

SERVICE: Final = "_crdtchain._tcp.local."
NETWORK_CHARACTERS: Final = 16
ASKED_MAX: Final = 16
"""Announcements looked into at once."""
ADDRESSES_MAX: Final = 4
"""Addresses taken of one announcement."""
ASK_MS: Final = 3_000
LOOK_S: Final = 5.0
RETRY_S: Final = 60.0

log = logging.getLogger(__name__)


def wants_mdns(settings: Settings) -> bool:
    """Whether the settings ask for discovery on the local network."""
    if not settings.discover:
        return False
    if settings.mdns != "auto":
        return settings.mdns == "on"
    if not settings.listen:
        return False
    host, _ = split_host_port(settings.listen, "--listen")
    address = find_ip(host)
    return host != "localhost" and (address is None or not address.is_loopback)


class Discovery:
    """Announces one node, and tells of others."""

    def __init__(
        self,
        network: OpId,
        node: Author,
        note: Callable[[str], None],
        *,
        port: int = 0,
        host: str = "",
        path: str = "",
        is_https: bool = False,
        interfaces: Sequence[str] = (),
    ) -> None:
        """`note` takes the addresses of others; without a `port` this node is not announced.

        `host` is where the peer port listens; `interfaces` are IP addresses of this machine to use, else all are.
        """
        self._network = format_cid(network)[-NETWORK_CHARACTERS:]
        self._did = format_did(node)
        self._note = note
        self._port, self._host, self._path, self._is_https = port, host, path, is_https
        self._interfaces = list(interfaces)
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._has_failed = False
        self.is_running = False

    async def run(self) -> None:
        """Announce and listen for ever; begins anew when the machine's addresses change."""
        # Its warnings repeat for each interface that can't be used.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        while True:
            addresses = find_local_addresses()
            try:
                async with self._session():
                    self.is_running = True
                    while find_local_addresses() == addresses:  # noqa: ASYNC110 - nobody tells of it
                        await asyncio.sleep(LOOK_S)
            except (OSError, RuntimeError, zeroconf.Error) as error:
                if not self._has_failed:
                    log.warning("No peers are looked for on the local network (multicast DNS): %s", error)
                self._has_failed = True
                await asyncio.sleep(RETRY_S)
            finally:
                self.is_running = False

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[None]:
        interfaces: Any = self._interfaces or InterfaceChoice.All
        session = AsyncZeroconf(interfaces=interfaces)
        browser: AsyncServiceBrowser | None = None
        try:
            if self._port and (own := self._describe()) is not None:
                await (await session.async_register_service(own, allow_name_change=True))
            browser = AsyncServiceBrowser(session.zeroconf, SERVICE, handlers=[self._notice])
            yield
        finally:
            for task in list(self._asked.values()):
                task.cancel()
            if browser is not None:
                await browser.async_cancel()
            with suppress(OSError, RuntimeError, zeroconf.Error, TimeoutError):
                async with asyncio.timeout(3):
                    # Says goodbye to the others.
                    await session.async_unregister_all_services()
            await session.async_close()

    def _describe(self) -> AsyncServiceInfo | None:
        """Return this node's announcement, or None when it has no address to announce."""
        addresses = self._find_addresses()
        if not addresses:
            return None
        name = f"{self._did[-12:]}-{self._port}"
        return AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            port=self._port,
            parsed_addresses=addresses,
            server=f"crdtchain-{name}.local.",
            properties={
                "network": self._network,
                "node": self._did,
                "path": self._path,
                "https": "1" if self._is_https else "0",
            },
        )

    def _find_addresses(self) -> list[str]:
        if self._interfaces:
            return self._interfaces
        if self._host not in EVERYWHERE:
            return [self._host] if find_ip(self._host) else []
        found = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips]
        # Those of IPv6 are tuples, with what belongs to their link.
        texts = [text if isinstance(text, str) else text[0] for text in found]
        return [text for text in texts if _is_usable(find_ip(text.partition("%")[0]))][: 2 * ADDRESSES_MAX]

    def _notice(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed or name in self._asked or len(self._asked) >= ASKED_MAX:
            return
        task = self._asked[name] = asyncio.ensure_future(self._look_into(zeroconf, name))
        task.add_done_callback(lambda _: self._asked.pop(name, None))

    async def _look_into(self, session: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(session, ASK_MS):
                return
            for url in self.read(info):
                log.debug("Found on the local network: %s.", url)
                self._note(url)
        except (OSError, ValueError, RuntimeError, zeroconf.Error) as error:
            log.debug("An announcement on the local network can't be used: %s", error)

    def read(self, info: AsyncServiceInfo) -> list[str]:
        """Return the addresses in an announcement; none if it is this node's own, or of another network."""
        properties = {name: value or b"" for name, value in info.properties.items()}
        network, node = properties.get(b"network"), properties.get(b"node")
        if network != self._network.encode() or node == self._did.encode() or not info.port:
            return []
        scheme = "https" if properties.get(b"https") == b"1" else "http"
        path = properties.get(b"path", b"").decode("ascii", "replace")
        found = []
        for text in info.parsed_addresses(IPVersion.All)[:ADDRESSES_MAX]:
            address = find_ip(text.partition("%")[0])
            if _is_usable(address, self._interfaces):
                port = None if info.port == (443 if scheme == "https" else 80) else info.port
                with suppress(ValueError):
                    found.append(str(URL.build(scheme=scheme, host=str(address), port=port, path=path.rstrip("/"))))
        return found


def _is_usable(address: IpAddress | None, interfaces: Sequence[str] = ()) -> bool:
    """Whether a node can be dialled there from the local network; IPv6's link-local addresses need more than that."""
    if address is None:
        return False
    reach = find_reach(address)
    if reach is Reach.LOOPBACK:
        return any((found := find_ip(text)) is not None and found.is_loopback for text in interfaces)
    return reach is not Reach.NEVER and not (reach is Reach.LINK and address.version == 6)
