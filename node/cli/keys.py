"""`key export`, `key import`: a key's secret as a file, for a backup or another machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crdtchain.adapters.data_folder import DataFolderLock
from crdtchain.adapters.keys import create_key_file, load_key_file
from crdtchain.codec import format_did
from node.cli.init import ask_new_passphrase, get_passphrase
from node.cli.shell import Shell, command, make_group
from node.datadir import KEY_FILE, load_key, load_token


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = make_group(app, "key", "Back a key up, or bring one here.")

    @command(group, "export", "key export backup.key --passphrase")
    def export(
        shell: Shell,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; mode 0600.")],
        passphrase: Annotated[bool, typer.Option("--passphrase", help="Protect the copy with a passphrase.")] = False,
    ) -> None:
        """Copy this folder's key into a file."""
        key = load_key(shell.data, get_passphrase())
        create_key_file(file, key, ask_new_passphrase() if passphrase else None)
        shell.note("Whoever has this file can sign in your name and spend your credits.")
        shell.show({"did": format_did(key.author), "file": str(file)}, str(file))

    @command(group, "import", "key import backup.key")
    def import_(
        shell: Shell,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A file made by `key export`.")],
        passphrase: Annotated[
            bool, typer.Option("--passphrase", help="Protect the key here with a passphrase.")
        ] = False,
    ) -> None:
        """Make a data folder with the key of a file; never replaces a key."""
        key = load_key_file(file, get_passphrase())
        with DataFolderLock(shell.data):
            create_key_file(shell.data / KEY_FILE, key, ask_new_passphrase() if passphrase else None)
            load_token(shell.data)
        shell.note("One key, one machine: stop the other node for good before this one signs.")
        shell.show({"did": format_did(key.author), "data": str(shell.data)}, format_did(key.author))
