"""`account`, `transfer`, `invite`: credits and whom they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from crdtchain.limits import INT_MAX, MEMO_BYTES_MAX
from node.cli.remote import connect, find_did
from node.cli.scope import AS_FAR
from node.cli.shell import Shell, command, shorten

INVITATION = 20
"""Credits of an invitation when none are named."""

DidArgument = Annotated[str, typer.Argument(metavar="DID", help="A did:key, or the beginning of a known one.")]
CreditsArgument = Annotated[int, typer.Argument(metavar="CREDITS", min=1, max=INT_MAX, help="How many, at least 1.")]


def show_account(out: Console, account: Mapping[str, Any]) -> None:
    """Print an account with its history."""
    name = f" ({account['name']})" if account["name"] else ""
    out.print(f"{account['did']}{name}", markup=False, emoji=False)
    out.print(f"  balance {account['balance']} credits, of these {account['certified_balance']} certified")
    if account.get("partial"):
        out.print(f"  {AS_FAR}")
    if account["banned"]:
        out.print("  banned: a certified outcome lists it among the cheats")
    if account["equivocated"]:
        out.print("  equivocated: its key signed two ops for one place")
    table = RichTable(box=None, pad_edge=False)
    for heading in ("op", "kind", "change", "balance", "status"):
        table.add_column(heading, justify="right" if heading in ("change", "balance") else "left")
    if account["grant"]:
        table.add_row("genesis", "grant", f"+{account['grant']}", str(account["grant"]), "")
    for row in account["history"]:
        table.add_row(shorten(row["id"]), row["kind"], f"{row['change']:+d}", str(row["balance"]), row["status"])
    for row in account["incoming"]:
        table.add_row(shorten(row["id"]), "incoming", f"+{row['body']['amount']}", "", f"{row['status']}, not claimed")
    if table.row_count:
        out.print(table)


async def _transfer(shell: Shell, to: str, amount: int, memo: str | None) -> None:
    async with connect(shell) as client:
        did = await find_did(client, to)
        found = await client.submit("transfer", {"to": did, "amount": amount, "memo": memo})
    shell.show(found, f"{amount} credits for {did}: {found['id']}")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""

    @command(app, "account", "account")
    def account(
        shell: Shell,
        did: Annotated[str | None, typer.Argument(metavar="[DID]", help="Whose; else one's own.")] = None,
    ) -> None:
        """Show an account: balance and history."""

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                whole = (await client.status())["did"] if did is None else await find_did(client, did)
                return await client.account(whole)

        found = shell.run(work())
        shell.show(found, lambda out: show_account(out, found))

    @command(app, "transfer", 'transfer "$BOB" 25 --memo "thank you"')
    def transfer(
        shell: Shell,
        did: DidArgument,
        credits: CreditsArgument,
        memo: Annotated[str | None, typer.Option(help=f"For people, up to {MEMO_BYTES_MAX} bytes.")] = None,
    ) -> None:
        """Give credits to another key, whose node claims them by itself."""
        shell.run(_transfer(shell, did, credits, memo))

    @command(app, "invite", 'invite "$BOB"')
    def invite(
        shell: Shell,
        did: DidArgument,
        credits: Annotated[
            int, typer.Argument(metavar="[CREDITS]", min=1, max=INT_MAX, help="First credits.")
        ] = INVITATION,
    ) -> None:
        """Invite a newcomer: first credits, with whose claim its chain begins."""
        shell.run(_transfer(shell, did, credits, "invitation"))
