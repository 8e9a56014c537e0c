"""The program `crdtchain serve`: a node with its two ports, until a signal ends it.

python -m node.serve --data DIR [--local HOST:PORT] [--listen HOST:PORT] [--peer URL]… [--witness]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from aiohttp import web

from crdtchain import limits
from crdtchain.adapters.keys import self_test
from crdtchain.codec import format_cid, format_did
from crdtchain.errors import CrdtchainError, UsageError
from node.config import Settings, default_data_dir, load_settings, split_host_port
from node.datadir import load_token, remove_node_file, write_node_file
from node.discovery import Discovery, wants_mdns
from node.gate import Gate
from node.logs import set_up_logs
from node.node import Node
from node.proxy import Proxies
from node.server.app import make_local_app, make_peer_app
from node.server.security import EVERYWHERE, Guard, local_hosts
from node.tls import ServerTls

GARBAGE_OBJECTS = 100_000
"""So many new objects make the collector of cycles look at the young ones."""
CONNECTIONS_MAX = 128
"""Connections to one port, whatever they ask for: a process has few descriptors, and its store needs some."""
PAGE_IDLE_S = 3_600.0
"""How long a connection of the local port may rest between requests."""
STOP_S = 1.0
"""Open requests get so long to end."""

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_ports(node: Node, settings: Settings) -> AsyncIterator[dict[str, str]]:
    """Open a node's ports for the length of a block; yields their addresses: `local`, and `peer` or an empty text.

    Raises:
        UsageError: a port is in use, or not this machine's.
    """
    token = load_token(node.folder)
    proxies = Proxies(settings.path_prefix, settings.trusted_proxies)
    tls = ServerTls.open(settings.tls_cert, settings.tls_key)
    async with contextlib.AsyncExitStack() as stack:
        peer, host = "", ""
        if settings.listen:
            app = make_peer_app(node)
            host, node.peer_port = await _open(stack, app, settings.listen, "--listen", proxies, tls, node.guards.gate)
            peer = _format_url(host, node.peer_port, is_https=tls is not None)
        if tls is not None:
            await _run_aside(stack, tls.follow())
            _reload_on_hangup(stack, tls)
        if wants_mdns(settings):
            await _run_aside(stack, _make_discovery(node, host, is_https=tls is not None).run())
        guard = Guard(token, settings.hosts, settings.origins)
        host, port = await _open(stack, make_local_app(node, guard), settings.local, "--local", proxies)
        guard.add_hosts(local_hosts(host, port))
        yield {"local": _format_url(host, port), "peer": peer}


async def _run_aside(stack: contextlib.AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Run work until the ports close."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


def _reload_on_hangup(stack: contextlib.AsyncExitStack, tls: ServerTls) -> None:
    """Read the certificate again at SIGHUP, where this program may handle signals."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGHUP, tls.reload)
        stack.callback(loop.remove_signal_handler, signal.SIGHUP)


def _make_discovery(node: Node, host: str, is_https: bool) -> Discovery:
    network = node.runtime.ledger.params.network
    return Discovery(network, node.author, node.book.note_local, port=node.peer_port, host=host, is_https=is_https)


async def _open(
    stack: contextlib.AsyncExitStack,
    app: web.Application,
    where: str,
    what: str,
    proxies: Proxies,
    tls: ServerTls | None = None,
    gate: Gate | None = None,
) -> tuple[str, int]:
    """Listen at an address; returns host and port."""
    host, port = split_host_port(where, what)
    # A stranger's connection that asks for nothing, or not for anything whole, is closed. People's pages keep theirs.
    idle_s = limits.HANDSHAKE_S if what == "--listen" else PAGE_IDLE_S
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=STOP_S, handle_signals=False, keepalive_timeout=idle_s
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None
    proxies.install(runner.server)
    try:
        server = await asyncio.get_running_loop().create_server(
            partial(_Door, runner.server, gate, proxies),
            host or None,
            port,
            reuse_address=True,
            ssl=None if tls is None else tls.context,
            ssl_handshake_timeout=None if tls is None else limits.HANDSHAKE_S,
        )
    except (OSError, socket.gaierror) as error:
        # The event loop puts the address into the system's words; names that are not found have a code of their own.
        is_name = isinstance(error, socket.gaierror) or not error.errno
        reason = (error.strerror or str(error)) if is_name else os.strerror(error.errno or 0)
        raise UsageError(f"can't listen at {where}: {reason}; choose another address with {what}") from None
    stack.callback(server.close)
    return host, int(server.sockets[0].getsockname()[1])


class _Door(asyncio.Protocol):
    """Hands a new connection to the server, or ends it when there are as many as one port takes."""

    def __init__(self, server: web.Server, gate: Gate | None, proxies: Proxies) -> None:
        """`gate`: that of the peer port; without one connections are only counted."""
        self._server = server
        self._gate = gate
        self._proxies = proxies

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Decide; connections that come at once are counted one after the other."""
        assert isinstance(transport, asyncio.Transport)
        if not self._is_let_in(transport):
            transport.abort()
            return
        handler = self._server()
        transport.set_protocol(handler)
        handler.connection_made(transport)

    def _is_let_in(self, transport: asyncio.Transport) -> bool:
        if self._gate is None:
            return len(self._server.connections) < CONNECTIONS_MAX
        host = str((transport.get_extra_info("peername") or ("",))[0])
        # Behind a proxy many people come from one address; they are told apart when they ask for `/sync`.
        return self._gate.knock(transport, "" if self._proxies.is_trusted(host) else host)


def _format_url(host: str, port: int, is_https: bool = False) -> str:
    if host in EVERYWHERE:
        host = "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"http{'s' if is_https else ''}://{shown}:{port}"


async def serve(
    folder: Path,
    settings: Settings,
    passphrase: str | None = None,
    on_ready: Callable[[Node, dict[str, str]], None] | None = None,
) -> None:
    """Run a node until SIGINT or SIGTERM.

    Raises:
        CrdtchainError: it can't start, or can't go on.
    """
    await asyncio.to_thread(self_test)
    # Ops are many small objects without cycles that stay for ever: looking through them again and again for garbage
    # took a third of the time of decoding and adding them in bulk.
    gc.set_threshold(GARBAGE_OBJECTS, 20, 50)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with Node.open(folder, settings, passphrase) as node, open_ports(node, settings) as addresses:
            ledger = node.runtime.ledger
            network, did = format_cid(ledger.params.network), format_did(node.author)
            write_node_file(folder, {"pid": os.getpid(), "did": did, "network": network, **addresses})
            try:
                log.info("Serving %s (%s): page and API at %s.", ledger.params.name, network, addresses["local"])
                if on_ready is not None:
                    on_ready(node, addresses)
                await stop.wait()
                log.info("Stopping.")
                await node.say_goodbye()
            finally:
                remove_node_file(folder)
    except* CrdtchainError as group:
        raise _find_first(group) from group
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _find_first(group: BaseExceptionGroup[CrdtchainError]) -> CrdtchainError:
    """Return the first exception of ours in a group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _find_first(error)
        return error
    raise AssertionError("a group is never empty")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m node.serve", description="Run a crdtchain node.")
    parser.add_argument("--data", type=Path, default=default_data_dir())
    parser.add_argument("--local")
    parser.add_argument("--listen")
    parser.add_argument("--peer", action="append", dest="peers")
    parser.add_argument("--witness", action="store_true", default=None)
    parser.add_argument("--jobs", action="append")
    parser.add_argument("--job-tags", action="append", dest="job_tags")
    parser.add_argument("--own-jobs", action="store_true", default=None, dest="own_jobs")
    parser.add_argument("--tip-wait-s", type=int, dest="tip_wait_s")
    parser.add_argument("--debounce-ms", type=int, dest="debounce_ms")
    parser.add_argument("--force-offline", action="store_true", default=None, dest="force_offline")
    parser.add_argument("--no-discover", action="store_false", default=None, dest="discover")
    parser.add_argument("--mdns", choices=("auto", "on", "off"))
    parser.add_argument("--public-url", dest="public_url")
    parser.add_argument("--tls-cert", dest="tls_cert")
    parser.add_argument("--tls-key", dest="tls_key")
    parser.add_argument("--tls-ca", dest="tls_ca")
    parser.add_argument("--path-prefix", dest="path_prefix")
    parser.add_argument("--trusted-proxy", action="append", dest="trusted_proxies")
    parser.add_argument("--log-level", dest="log_level")
    parser.add_argument("--log-json", action="store_true", default=None, dest="log_json")
    flags = vars(parser.parse_args(arguments))
    folder = flags.pop("data")
    try:
        settings = load_settings(folder, flags)
        set_up_logs(settings.log_level, settings.log_json)
        asyncio.run(serve(folder, settings, os.environ.get("CRDTCHAIN_PASSPHRASE")))
    except CrdtchainError as error:
        print(f"crdtchain: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
