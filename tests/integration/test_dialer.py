"""The dialer against real sockets: it connects, comes back, says why not, and can't be led astray."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from crdtchain.errors import PeerError
from crdtchain.scalars import Author
from node import dialer as dialer_module
from node.addresses import IpAddress
from node.book import Book
from node.config import Settings
from node.dialer import ALREADY_CONNECTED, OUTBOUND_MAX, Dialer
from node.dialing import make_http
from node.link import Socket
from node.tls import ServerTls, make_client_context
from tests.certificates import Authority

pytestmark = pytest.mark.integration

WAIT_S = 30.0


async def wait_until(holds: Callable[[], object], what: str) -> None:
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until, f"not in time: {what}"
        await asyncio.sleep(0.02)


class Port:
    """A peer port that says which key its node has, and then keeps the connection."""

    def __init__(self, key: bytes, prefix: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.key = Author(key * 32)
        self.prefix = prefix
        self.sockets: set[web.WebSocketResponse] = set()
        self.count = 0
        self.refusal = ""
        self.number = 0
        self._tls = tls
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.number}{self.prefix}"

    async def open(self) -> Port:
        app = web.Application()
        app.router.add_get(f"{self.prefix}/sync", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.number, ssl_context=self._tls)
        await site.start()
        self.number = self._runner.addresses[0][1]
        return self

    async def close(self) -> None:
        for socket in list(self.sockets):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=0.5)
        await socket.prepare(request)
        self.count += 1
        if self.refusal:
            await socket.close(code=4_000, message=self.refusal.encode())
            return socket
        self.sockets.add(socket)
        await socket.send_bytes(self.key)
        async for _ in socket:
            pass
        self.sockets.discard(socket)
        return socket


class Home:
    """A node's side: a dialer, and what stands for its peers."""

    def __init__(
        self,
        *peers: str,
        authority: str = "",
        own: bytes = b"o",
        peers_file: Path | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.connected: dict[Author, int] = {}
        self.book = Book(None, lambda: time.time_ns() // 1_000_000)
        self.settings = Settings(peers=peers, tls_ca=authority)
        self.dialer = Dialer(
            self.book,
            self.talk,
            partial(make_http, make_client_context(authority)),
            self.settings,
            lambda node, is_chosen=False: node in self.connected,
            now,
            own=Author(own * 32),
            peers_file=peers_file,
        )

    async def talk(self, socket: Socket, address: str, is_configured: bool) -> str:
        message = await socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            return f"the peer closed: {message.extra}"
        key = Author(message.data)
        self.dialer.note_node(address, key)
        if self.connected.get(key):
            return ALREADY_CONNECTED
        self.connected[key] = self.connected.get(key, 0) + 1
        try:
            async for _ in socket:
                pass
            return "the connection broke"
        finally:
            del self.connected[key]


@asynccontextmanager
async def running(home: Home) -> AsyncIterator[Home]:
    task = asyncio.create_task(home.dialer.run())
    try:
        yield home
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert home.dialer.outbound_count == 0


@asynccontextmanager
async def ports(*made: Port) -> AsyncIterator[None]:
    for port in made:
        await port.open()
    try:
        yield
    finally:
        for port in made:
            await port.close()


@pytest.mark.asyncio
async def test_a_configured_peer_is_connected_and_again_after_it_was_away() -> None:
    port = Port(b"a", prefix="/some/prefix")
    async with ports(port), running(Home(port.url)) as home:
        await wait_until(lambda: port.key in home.connected, "connected")
        assert home.dialer.failures == {}
        await port.close()
        await wait_until(lambda: home.dialer.failures, "the failure is told")
        await wait_until(lambda: "nobody answers" in home.dialer.failures[port.url], "the reason is told")
        await port.open()
        await wait_until(lambda: port.key in home.connected, "connected again")
        assert home.dialer.failures == {}


@pytest.mark.asyncio
async def test_told_addresses_are_dialled_up_to_a_bound_and_one_node_once() -> None:
    made = [Port(bytes([number])) for number in range(1, OUTBOUND_MAX + 5)]
    twin = Port(made[0].key[:1])
    async with ports(*made, twin), running(Home(made[0].url, twin.url)) as home:
        await wait_until(lambda: made[0].key in home.connected, "the configured one is connected")
        # From loopback, so it may tell of loopback; each is a machine of its own, else one an hour would be tried.
        for number, port in enumerate(made):
            home.book.note_local(port.url) if number else None
        await wait_until(lambda: len(home.connected) == OUTBOUND_MAX, "as many as wanted")
        await asyncio.sleep(1.2)
        assert len(home.connected) == OUTBOUND_MAX and home.dialer.outbound_count <= OUTBOUND_MAX
        assert len(made[0].sockets) + len(twin.sockets) == 1 and twin.count + made[0].count <= 3
        assert home.dialer.failures == {}


@pytest.mark.asyncio
async def test_a_told_address_is_tried_once_however_often_it_is_told() -> None:
    port = Port(b"a")
    port.refusal = "another network"
    async with ports(port), running(Home()) as home:
        for _ in range(30):
            home.book.note_told([port.url, f"{port.url}/a", f"{port.url}/b"], Author(b"l" * 32), "127.0.0.1")
            await asyncio.sleep(0.1)
        assert port.count <= 1 and home.dialer.failures == {}


@pytest.mark.asyncio
async def test_reasons_are_told_in_words(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    contexts = []
    for signer, host in ((authority, "127.0.0.1"), (stranger, "127.0.0.1"), (authority, "example.org")):
        certificate, key = signer.sign(f"{host}-{len(contexts)}", host)
        contexts.append(ServerTls(str(certificate), str(key)).context)
    good, untrusted, misnamed = (Port(bytes([number + 1]), tls=context) for number, context in enumerate(contexts))
    other, plain = Port(b"x"), Port(b"y")
    other.refusal = "another network"
    async with ports(good, untrusted, misnamed, other, plain):
        wrong_path, not_tls = f"{plain.url}/wrong", f"https://127.0.0.1:{plain.number}"
        not_plain, nobody, unknown = f"http://127.0.0.1:{good.number}", "http://127.0.0.1:9", "http://nowhere.invalid"
        urls = (good.url, untrusted.url, misnamed.url, other.url, wrong_path, not_tls, not_plain, nobody, unknown)
        async with running(Home(*urls, authority=str(authority.path))) as home:
            failures = home.dialer.failures
            await wait_until(lambda: len(failures) == 8 and good.key in home.connected, "all were tried")
            assert "TLS: the certificate is not trusted" in failures[untrusted.url]
            assert failures[misnamed.url] == "TLS: the certificate is for another name"
            assert failures[other.url] == "refused: another network"
            assert failures[wrong_path] == "what answers there is no peer port (status 404)"
            assert "speaks no TLS" in failures[not_tls]
            assert "no peer port" in failures[not_plain] or "ends the connection" in failures[not_plain]
            assert "nobody answers" in failures[nobody]
            assert "nowhere.invalid is not known" in failures[unknown]


@pytest.mark.asyncio
async def test_a_peer_that_sends_elsewhere_is_not_followed() -> None:
    target = Port(b"t")
    app = web.Application()
    async with ports(target):

        async def redirect(request: web.Request) -> web.Response:
            raise web.HTTPFound(f"{target.url}/sync")

        app.router.add_get("/sync", redirect)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with running(Home(url)) as home:
                await wait_until(lambda: home.dialer.failures, "the failure is told")
                assert "sends elsewhere" in home.dialer.failures[url] and target.count == 0
        finally:
            await runner.cleanup()


@pytest.mark.asyncio
async def test_a_name_leads_only_where_it_may() -> None:
    seen: list[str] = []

    def allows(address: IpAddress) -> bool:
        seen.append(str(address))
        return False

    async with make_http(make_client_context(), allows) as http:
        with pytest.raises(PeerError, match="no business"):
            await http.get("http://localhost:9/")
    assert set(seen) & {"127.0.0.1", "::1"}


@pytest.mark.asyncio
async def test_the_own_address_is_not_dialled_again_and_again() -> None:
    port = Port(b"o")
    async with ports(port), running(Home(port.url)) as home:
        # What stands for the node's peers would keep it; a node ends a connection to itself.
        await wait_until(lambda: port.key in home.connected, "connected")
        await next(iter(port.sockets)).close()
        await wait_until(lambda: home.dialer.failures, "the failure is told")
        assert home.dialer.failures[port.url] == "this is this node's own address"
        await asyncio.sleep(1.5)
        assert port.count == 1


@pytest.mark.asyncio
async def test_the_list_of_peers_is_followed(tmp_path: Path) -> None:
    one, two, path = Port(b"a"), Port(b"b"), tmp_path / "peers.list"
    async with ports(one, two), running(Home(one.url, peers_file=path)) as home:
        await wait_until(lambda: one.key in home.connected, "the one of the settings is connected")
        path.write_text(f"# more\n{two.url}\nno address at all\n")
        await wait_until(lambda: two.key in home.connected, "the one of the list is connected")
        path.write_text("")
        await wait_until(lambda: two.key not in home.connected, "the one that was taken out is left")
        assert two.url not in home.book.rows and one.key in home.connected


async def fail_often(home: Home, url: str) -> None:
    """Let the pauses grow to their end."""
    await wait_until(lambda: url in home.book.rows, "the address is known")
    for _ in range(12):
        home.book.note_failure(url)


@pytest.mark.asyncio
async def test_a_machine_that_slept_reconnects_at_once_and_ends_dead_connections() -> None:
    port, clock = Port(b"a"), [time.time()]
    begin = time.monotonic(), time.time()
    ahead = 0.0

    def now() -> float:
        return begin[1] + (time.monotonic() - begin[0]) + ahead

    clock[0] = now()
    async with ports(port), running(Home(port.url, now=now)) as home:
        await wait_until(lambda: port.key in home.connected, "connected")
        ahead += 600
        await wait_until(lambda: port.count == 2 and port.key in home.connected, "the old connection was replaced")
        await port.close()
        await wait_until(lambda: home.dialer.failures, "it is away")
        await fail_often(home, port.url)
        await port.open()
        ahead += 3_600
        before_s = time.monotonic()
        await wait_until(lambda: port.key in home.connected, "connected after the sleep")
        assert time.monotonic() - before_s < 15


@pytest.mark.asyncio
async def test_a_machine_in_another_network_reconnects_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    port, addresses = Port(b"a"), [frozenset({"192.0.2.1"})]
    monkeypatch.setattr(dialer_module, "find_local_addresses", lambda: addresses[0])
    await port.open()
    await port.close()
    async with running(Home(port.url)) as home:
        await wait_until(lambda: home.dialer.failures, "it is away")
        await fail_often(home, port.url)
        await port.open()
        try:
            addresses[0] = frozenset({"192.0.2.77"})
            await wait_until(lambda: port.key in home.connected, "connected in the new network")
            # A connection whose own address is still there is kept.
            addresses[0] = frozenset({"192.0.2.78"})
            await asyncio.sleep(3)
            assert port.count == 1 and port.key in home.connected
        finally:
            await port.close()


def test_the_types_fit() -> None:
    check: Callable[..., Awaitable[str]] = Home().talk
    assert check
