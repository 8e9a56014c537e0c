"""A node behind reverse proxies: path prefix, real addresses, the checks of the local port, TLS of the peer port."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from crdtchain.errors import UsageError
from node.book import Book
from node.config import Settings
from node.datadir import create_data, found_network, join_network, load_token
from node.dialer import Dialer
from node.dialing import make_http
from node.node import Node
from node.proxy import HOPS_MAX, Proxies
from node.serve import open_ports
from node.tls import make_client_context
from tests.certificates import Authority
from tests.integration.node_process import wait_until

pytestmark = pytest.mark.integration

PREFIX = "/some/prefix"


@asynccontextmanager
async def serving(folder: Path, **values: object) -> AsyncIterator[tuple[Node, dict[str, str]]]:
    settings = Settings(local="127.0.0.1:0", listen="127.0.0.1:0", **values)  # type: ignore[arg-type]
    async with Node.open(folder, settings) as node, open_ports(node, settings) as addresses:
        yield node, addresses


@asynccontextmanager
async def reverse_proxy(target: str, headers: Mapping[str, str]) -> AsyncIterator[str]:
    """Pass requests and WebSockets on as they are, with further headers."""

    async def handle(request: web.Request) -> web.StreamResponse:
        kept = {name: value for name, value in request.headers.items() if name.lower() in KEPT}
        async with aiohttp.ClientSession() as http:
            if request.headers.get("Upgrade", "").lower() == "websocket":
                async with http.ws_connect(f"{target}{request.rel_url}", headers={**kept, **headers}) as inner:
                    outer = web.WebSocketResponse()
                    await outer.prepare(request)
                    await asyncio.wait(
                        [asyncio.ensure_future(pass_on(*pair)) for pair in ((inner, outer), (outer, inner))]
                    )
                    return outer
            async with http.request(
                request.method, f"{target}{request.rel_url}", headers={**kept, **headers}
            ) as answer:
                return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


KEPT = {"authorization", "origin", "host", "sec-fetch-site"}


async def pass_on(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    async for message in source:
        await target.send_bytes(message.data)
    await target.close()


def ask(proxies: Proxies, remote: str, *lines: str) -> str | None:
    request = make_mocked_request("GET", "/sync", headers=[("X-Forwarded-For", line) for line in lines])  # type: ignore[arg-type]
    return proxies.find_remote(request.clone(remote=remote))


def test_only_trusted_proxies_say_who_asks() -> None:
    proxies = Proxies("", ["127.0.0.1", "10.0.0.0/8", "fd00::/8"])
    assert ask(proxies, "8.8.8.8", "9.9.9.9") == "8.8.8.8"
    assert ask(proxies, "127.0.0.1") == "127.0.0.1"
    assert ask(proxies, "127.0.0.1", "9.9.9.9") == "9.9.9.9"
    assert ask(proxies, "::ffff:127.0.0.1", "9.9.9.9") == "9.9.9.9"
    # What a client wrote itself stands to the left of what proxies added.
    assert ask(proxies, "127.0.0.1", "1.1.1.1, 9.9.9.9, 10.1.1.1") == "9.9.9.9"
    assert ask(proxies, "127.0.0.1", "1.1.1.1", "9.9.9.9") == "9.9.9.9"
    assert ask(proxies, "127.0.0.1", "1.1.1.1, nonsense") == "127.0.0.1"
    assert ask(proxies, "127.0.0.1", "nonsense, 10.0.0.1") == "10.0.0.1"
    assert ask(proxies, "127.0.0.1", "2001:db8::7, fd00::1") == "2001:db8::7"
    assert ask(proxies, "127.0.0.1", ",".join(["10.0.0.1"] * (HOPS_MAX + 5))) == "10.0.0.1"
    for prefix, trusted in (("/a b", ()), ("/../x", ()), ("", ("proxy",)), ("", ("10.0.0.1/8",))):
        with pytest.raises(UsageError):
            Proxies(prefix, trusted)
    assert Proxies("crdtchain/").prefix == "/crdtchain"


@pytest.mark.asyncio
async def test_both_ports_answer_below_the_prefix_and_keep_their_checks(tmp_path: Path) -> None:
    create_data(tmp_path / "data")
    await found_network(tmp_path / "data", "a test")
    token = load_token(tmp_path / "data")
    origin = "https://example.org"
    values = {"path_prefix": PREFIX, "hosts": ("example.org",), "origins": (origin,)}
    async with serving(tmp_path / "data", **values) as (_, addresses), aiohttp.ClientSession() as http:

        async def status(url: str, **headers: str) -> int:
            async with http.get(url, headers=headers) as answer:
                return answer.status

        local, peer = addresses["local"], addresses["peer"]
        bearer = f"Bearer {token}"
        for prefix in ("", PREFIX):
            assert await status(f"{peer}{prefix}/genesis") == 200
            assert await status(f"{local}{prefix}/healthz") == 200
            assert await status(f"{local}{prefix}/") == 200
            # The token is asked for below the prefix too, and so are Host and Origin.
            assert await status(f"{local}{prefix}/api/v1/status") == 401
            assert await status(f"{local}{prefix}/api/v1/status?a=b", Authorization=bearer) == 200
            assert await status(f"{local}{prefix}/api/v1/status", Authorization=bearer, Host="evil.example") == 421
            assert await status(f"{local}{prefix}/api/v1/status", Authorization=bearer, Origin="https://evil") == 403
        assert await status(f"{local}{PREFIX}") == 200
        assert await status(f"{local}{PREFIX}x/healthz") == 404
        assert await status(f"{local}{PREFIX}{PREFIX}/healthz") == 404
        async with reverse_proxy(local, {}) as outside:
            common = {"Authorization": bearer, "Host": "example.org"}
            assert await status(f"{outside}{PREFIX}/api/v1/status", **common, Origin=origin) == 200
            assert await status(f"{outside}{PREFIX}/api/v1/status", **common, Origin="https://evil.example") == 403


@pytest.mark.asyncio
async def test_nodes_sync_through_a_proxy_and_limits_see_the_real_address(tmp_path: Path) -> None:
    for name in ("one", "two"):
        create_data(tmp_path / name)
    await found_network(tmp_path / "one", "a test")
    values = {"path_prefix": PREFIX, "trusted_proxies": ("127.0.0.1",)}
    async with (
        serving(tmp_path / "one", **values) as (one, addresses),
        reverse_proxy(addresses["peer"], {"X-Forwarded-For": "203.0.113.9"}) as outside,
    ):
        await join_network(tmp_path / "two", f"{outside}{PREFIX}")
        async with serving(tmp_path / "two", peers=(f"{outside}{PREFIX}",), tip_wait_s=0) as (two, _):
            await wait_connected(two, one)
            assert [link.address for link in one.peers.ready()] == ["203.0.113.9"]


@asynccontextmanager
async def dialling(node: Node, url: str, authority: Authority) -> AsyncIterator[None]:
    """Let a node dial an address whose certificate is checked by an authority of its own."""
    http = partial(make_http, make_client_context(str(authority.path)))
    book = Book(None, lambda: time.time_ns() // 1_000_000)
    dialer = Dialer(book, node.peers.talk, http, Settings(peers=(url,)), node.peers.is_connected)
    task = asyncio.create_task(dialer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wait_connected(node: Node, *others: Node) -> None:
    async def is_connected() -> bool:
        return {other.author for other in others} <= {link.node for link in node.peers.ready()}

    await wait_until(is_connected, "the nodes are connected")


@pytest.mark.asyncio
async def test_nodes_sync_over_tls_with_an_authority_of_their_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = map(str, authority.sign("node"))
    for name in ("one", "two"):
        create_data(tmp_path / name)
    await found_network(tmp_path / "one", "a test")
    async with serving(tmp_path / "one", tls_cert=certificate, tls_key=key) as (one, addresses):
        url = addresses["peer"]
        assert url.startswith("https://")
        with pytest.raises(Exception, match="certificate is not trusted"):
            await join_network(tmp_path / "two", url)
        (tmp_path / "two" / "config.toml").write_text(f'tls_ca = "{authority.path}"\n')
        await join_network(tmp_path / "two", url, is_kept=True)
        assert url in (tmp_path / "two" / "peers.list").read_text()
        async with serving(tmp_path / "two") as (two, _), dialling(two, url, authority):
            await wait_connected(two, one)


NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {map}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        {locations}
    }}
}}
"""


def find_example() -> tuple[str, str]:
    """Return the map and the locations of the example in the documentation."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "behind-a-reverse-proxy.md").read_text()
    example = page.partition("```nginx\n")[2].partition("```")[0]
    head, _, rest = example.partition("server {")
    return head, rest[rest.index("location") : rest.rindex("}")]


@pytest.mark.asyncio
async def test_the_documented_nginx_passes_nodes_on(tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed; the aiohttp proxy stands for it")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.sign("nginx")
    for name in ("one", "two"):
        create_data(tmp_path / name)
    await found_network(tmp_path / "one", "a test")
    host, url = f"127.0.0.1:{port}", f"https://127.0.0.1:{port}/crdtchain"
    values = {"path_prefix": "/crdtchain", "trusted_proxies": ("127.0.0.1",), "public_url": url}
    local = {"hosts": (host,), "origins": (f"https://{host}",)}
    async with serving(tmp_path / "one", **values, **local) as (one, addresses):
        head, locations = find_example()
        locations = locations.replace("http://127.0.0.1:8471", addresses["peer"])
        locations = locations.replace("http://127.0.0.1:8470", addresses["local"])
        config = tmp_path / "nginx.conf"
        config.write_text(
            NGINX.format(folder=tmp_path, port=port, certificate=certificate, key=key, map=head, locations=locations)
        )
        process = subprocess.Popen([nginx, "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.PIPE)
        try:
            (tmp_path / "two" / "config.toml").write_text(f'tls_ca = "{authority.path}"\n')

            async def has_joined() -> bool:
                assert process.poll() is None, process.stderr and process.stderr.read()
                try:
                    await join_network(tmp_path / "two", url)
                except Exception:
                    return False
                return True

            await wait_until(has_joined, "nginx passes the genesis on")
            async with serving(tmp_path / "two") as (two, _), dialling(two, url, authority):
                await wait_connected(two, one)
        finally:
            process.terminate()
            process.wait()
            if process.stderr:
                process.stderr.close()
