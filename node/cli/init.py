"""`init`: a key and a data folder."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from crdtchain.codec import format_did
from crdtchain.errors import UsageError
from crdtchain.limits import NAME_BYTES_MAX
from node.cli.shell import Shell, command
from node.datadir import create_data, write_private

NAME_FILE = "name"
"""What the owner wants to be called; announced as a profile when the node serves."""


def ask_new_passphrase() -> str:
    """Ask for a passphrase twice, unless the environment has it."""
    given = os.environ.get("CRDTCHAIN_PASSPHRASE")
    if given:
        return given
    passphrase = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return str(passphrase)


def get_passphrase() -> str | None:
    """Return the passphrase that the environment gives, or None."""
    return os.environ.get("CRDTCHAIN_PASSPHRASE") or None


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "init", "init --name alice")
    def init(
        shell: Shell,
        name: Annotated[str | None, typer.Option(help="What others are shown; announced once the node serves.")] = None,
        passphrase: Annotated[
            bool, typer.Option("--passphrase", help="Protect the key; asked for, or taken from CRDTCHAIN_PASSPHRASE.")
        ] = False,
    ) -> None:
        """Make a key and a data folder; prints the did:key."""
        if name is not None and not 0 < len(name.encode()) <= NAME_BYTES_MAX:
            raise UsageError(f"the name must have 1 to {NAME_BYTES_MAX} bytes")
        key = create_data(shell.data, ask_new_passphrase() if passphrase else None)
        if name is not None:
            write_private(shell.data / NAME_FILE, name.encode())
        did = format_did(key.author)
        shell.note(f"The key is in {shell.data}. Keep a copy of it: `crdtchain key export`.")
        shell.show({"did": did, "data": str(shell.data), "name": name}, did)
