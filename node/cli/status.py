"""`status`: what this node holds, and how it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_did
from crdtchain.errors import NoPeerError
from crdtchain.views import ledger_status, own_balance
from node.cli.init import get_passphrase
from node.cli.network import load_genesis
from node.cli.remote import connect
from node.cli.shell import Shell, command
from node.datadir import load_key
from node.ledger_file import open_ledger
from node.partial import load_selector, selector_to_json


async def read_offline(shell: Shell) -> dict[str, Any]:
    """Return the status of a data folder in which no node runs."""
    load_genesis(shell)
    key = load_key(shell.data, get_passphrase())
    store = SqliteStore(shell.data)
    await store.open()
    try:
        ledger = await open_ledger(store, shell.data)
        selector = await load_selector(store)
    finally:
        await store.close()
    return {
        **ledger_status(ledger, ledger.state_digest()),
        "did": format_did(key.author),
        "balance": own_balance(ledger, key.author),
        "peers": [],
        "waiting": 0,
        "scope": selector_to_json(selector) if selector else None,
        "running": False,
    }


async def read_status(shell: Shell) -> dict[str, Any]:
    """Return the status of the running node, or else of the data folder."""
    try:
        async with connect(shell) as client:
            return {**await client.status(), "running": True}
    except NoPeerError:
        return await read_offline(shell)


def describe(values: Mapping[str, Any]) -> str:
    """Write a status for people."""
    lines = [
        f"network   {values['name']}, {values['network']}",
        f"key       {values['did']}",
        f"balance   {values['balance']} credits",
        f"ledger    ops {values['ops']}, heads {len(values['heads'])}, jobs {values['jobs']}",
        f"heads     {values['heads_digest']}",
        f"state     {values['state_digest']}",
        f"waiting   {values['waiting']} ops wait for ops that they link to",
    ]
    if values.get("scope"):
        lines.append("scope     a partial replica: what it can't judge is told by `crdtchain scope show`")
    if not values["running"]:
        return "\n".join([*lines, "node      not running: start it with `crdtchain serve`"])
    state = ", in step" if values.get("synced") else ", catching up" if values["peers"] else ""
    lines.append(f"peers     {len(values['peers'])} connected{state}: `crdtchain peers` tells more")
    for name, meaning in (
        ("waits_for_tip", "signing waits for"),
        ("duty_stopped", "the witness has stopped:"),
        ("disk_full", "the disk is full:"),
    ):
        if values.get(name):
            lines.append(f"attention {meaning} {values[name]}")
    return "\n".join(lines)


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "status", "status --json")
    def status(shell: Shell) -> None:
        """Show heads, digests, balance and what waits; works without a running node too."""
        values = shell.run(read_status(shell))
        shell.show(values, describe(values))
