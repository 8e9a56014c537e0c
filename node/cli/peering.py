"""`peers`: whom the node is connected to, and the two lists that people keep: addresses to dial, keys that may connect.

Both lists are files in the data folder (`peers.list`, `peers.allow`), which a running node follows; so these commands
work whether one runs or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from crdtchain.adapters.address_book import SqliteAddresses
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE
from crdtchain.codec import parse_did
from crdtchain.errors import StoreBusyError, UsageError
from node.addresses import parse_peer_url
from node.allow import ALLOW_FILE, ALLOW_HEADER
from node.cli.connections import describe_peers
from node.cli.remote import connect
from node.cli.shell import DataOption, DebugOption, JsonOption, Shell, command, make_shell, set_globals
from node.config import load_settings
from node.datadir import PEERS_FILE, PEERS_HEADER, write_private
from node.watched import add_line, read_lines, remove_lines

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="A node's peer port.")]
DidArgument = Annotated[str, typer.Argument(metavar="DID", help="A node's key.")]


def show_connections(shell: Shell) -> None:
    """Show whom the node is connected to, and why others are missing."""

    async def work() -> Mapping[str, Any]:
        async with connect(shell) as client:
            return await client.peers()

    values = shell.run(work())
    shell.show(values, describe_peers(values))


async def forget_in_book(folder: Path, url: str) -> bool:
    """Take an address out of the book of a node that does not run; returns whether it was there.

    Raises:
        StoreBusyError: the node runs.
    """
    if not (folder / STORE_FILE).exists():
        return False
    store = SqliteStore(folder)
    await store.open()
    try:
        addresses = SqliteAddresses.of(store)
        found = any(row.url == url for row in await addresses.load())
        await addresses.save([], [url])
        return found
    finally:
        await store.close()


def forget_address(shell: Shell, url: str) -> None:
    """Take an address from the list and, when no node runs, from the book.

    Raises:
        UsageError: it is in neither, or the running node knows it otherwise.
    """
    was_listed = remove_lines(shell.data / PEERS_FILE, lambda line: _names(line, url), write_private)
    try:
        was_known = shell.run(forget_in_book(shell.data, url))
    except StoreBusyError:
        if not was_listed:
            text = f"{url} is not in {PEERS_FILE}; what the node has heard of, it forgets only while it is stopped"
            raise UsageError(text) from None
        was_known = False
    if not was_listed and not was_known:
        raise UsageError(f"{url} is no known address")
    if any(_names(peer, url) for peer in load_settings(shell.data).peers):
        shell.note("The settings name it too (config.toml or CRDTCHAIN_PEERS): take it out there.")


def _names(line: str, url: str) -> bool:
    try:
        return str(parse_peer_url(line)) == url
    except UsageError:
        return line == url


def allow_path(shell: Shell) -> Path:
    """Return the list of allowed keys that the settings name."""
    return shell.data / (load_settings(shell.data).allow or ALLOW_FILE)


def _require_folder(shell: Shell) -> None:
    if not shell.data.is_dir():
        raise UsageError(f"there is no data folder {shell.data}: make one with 'crdtchain init'")


def _add_group(app: typer.Typer) -> typer.Typer:
    group = typer.Typer(
        help="Show whom the node is connected to; keep the lists of peers to dial and of keys that may connect.",
        epilog="Example: crdtchain peers",
        invoke_without_command=True,
        rich_markup_mode="markdown",
    )
    app.add_typer(group, name="peers")

    @group.callback()
    def peers(
        context: typer.Context, data: DataOption = None, as_json: JsonOption = False, debug: DebugOption = False
    ) -> None:
        shell = make_shell(data, as_json, debug)
        if context.invoked_subcommand is None:
            show_connections(shell)
        else:
            set_globals(shell.data, shell.as_json, shell.debug)

    return group


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = _add_group(app)

    @command(group, "add", "peers add https://example.org/crdtchain")
    def add(shell: Shell, url: UrlArgument) -> None:
        """Connect to a node always: now, if this one runs, and after each start."""
        _require_folder(shell)
        path, text = shell.data / PEERS_FILE, str(parse_peer_url(url))
        if not add_line(path, text, PEERS_HEADER, write_private):
            shell.note("It was on the list already.")
        shell.show({"address": text, "file": str(path)}, text)

    @command(group, "forget", "peers forget http://192.0.2.7:8471")
    def forget(shell: Shell, url: UrlArgument) -> None:
        """Connect to a node no more."""
        text = str(parse_peer_url(url))
        forget_address(shell, text)
        shell.show({"address": text}, text)

    @command(group, "allow", 'peers allow "$DID"')
    def allow(shell: Shell, did: DidArgument) -> None:
        """Let a node connect, and nobody who is not on the list: the first call makes the network private."""
        _require_folder(shell)
        parse_did(did)
        path = allow_path(shell)
        is_first = read_lines(path) is None
        if not add_line(path, did, ALLOW_HEADER, write_private):
            shell.note("It was on the list already.")
        if is_first:
            shell.note(f"Only nodes on the list connect from now on. A node that runs takes {path} up at once.")
        shell.show({"allowed": read_lines(path), "file": str(path)}, did)

    @command(group, "forbid", 'peers forbid "$DID"')
    def forbid(shell: Shell, did: DidArgument) -> None:
        """Take a node off the list of those that may connect."""
        parse_did(did)
        path = allow_path(shell)
        if read_lines(path) is None:
            raise UsageError("there is no list, so everybody may connect: begin one with 'crdtchain peers allow DID'")
        if not remove_lines(path, lambda line: line == did, write_private):
            raise UsageError(f"{did} is not on the list {path}")
        if not read_lines(path):
            shell.note(f"The list is empty: nobody may connect. Delete {path} to let everybody.")
        shell.show({"allowed": read_lines(path), "file": str(path)}, did)
