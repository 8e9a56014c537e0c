"""`network create`, `network join`, `network show`: the ledger that a data folder belongs to."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from crdtchain.codec import format_cid, parse_did
from crdtchain.errors import InvalidOpError, StoreError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.limits import INT_MAX
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author
from crdtchain.shapes import decode_op
from crdtchain.views import params_to_json
from node.cli.init import get_passphrase
from node.cli.shell import Shell, command, make_group
from node.datadir import GENESIS_FILE, found_network, join_network, load_key, validate_genesis


def load_genesis(shell: Shell) -> SignedOp:
    """Read the genesis of a data folder.

    Raises:
        UsageError: it belongs to no network yet.
        StoreError: the file can't be read, or holds something else.
    """
    try:
        signed = decode_op((shell.data / GENESIS_FILE).read_bytes())
        validate_genesis(signed)
        return signed
    except InvalidOpError as error:
        path = shell.data / GENESIS_FILE
        raise StoreError(f"the file {path} is damaged ({error}): move it away and join the network again") from None
    except FileNotFoundError:
        raise UsageError(
            f"{shell.data} belongs to no network: use `crdtchain network create` or `crdtchain network join`"
        ) from None
    except OSError as error:
        raise StoreError(f"the file {shell.data / GENESIS_FILE} can't be read: {error.strerror}") from None


def parse_grants(texts: list[str]) -> dict[Author, int]:
    """Read DID=CREDITS pairs.

    Raises:
        UsageError: one is not such a pair, or a key comes twice.
    """
    grants: dict[Author, int] = {}
    for text in texts:
        did, separator, amount = text.rpartition("=")
        if not separator or not amount.isascii() or not amount.isdigit() or not 1 <= int(amount) <= INT_MAX:
            raise UsageError(f"--grant is {text!r}: write DID=CREDITS, at least 1 credit")
        author = parse_did(did)
        if author in grants:
            raise UsageError(f"--grant names {did} twice")
        grants[author] = int(amount)
    return grants


def describe(signed: SignedOp) -> dict[str, Any]:
    """Return a network's constants as JSON."""
    return dict(params_to_json(Ledger(signed.op)))


def _show(shell: Shell, signed: SignedOp, what: str) -> None:
    values = describe(signed)
    lines = [what, *(f"  {name}: {value}" for name, value in values.items())]
    shell.show(values, "\n".join(lines))


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = make_group(app, "network", "Found, join or show a ledger.")

    @command(group, "create", 'network create --name demo --grant "$ALICE=1000"')
    def create(
        shell: Shell,
        name: Annotated[str, typer.Option(help="Shown to people, 1 to 100 bytes.")],
        witness: Annotated[
            list[str] | None, typer.Option(metavar="DID", help="A witness; without any, this key is the only one.")
        ] = None,
        grant: Annotated[list[str] | None, typer.Option(metavar="DID=CREDITS", help="First credits of a key.")] = None,
        delta_ms: Annotated[int, typer.Option(min=1, help="Time in which witnesses reach each other, ms.")] = 5_000,
        tick_ms: Annotated[int | None, typer.Option(min=1, help="Deadlines are multiples of it, ms; else Δ.")] = None,
        expiry_ms: Annotated[int, typer.Option(min=1, help="After so long an open job is refunded, ms.")] = 86_400_000,
        elector_min: Annotated[int, typer.Option(min=1, help="Credits that make an account an elector.")] = 1,
        verdict_min: Annotated[int, typer.Option(min=1, help="Votes without which nobody is a cheat.")] = 1,
        bounty_min: Annotated[int, typer.Option(min=1, help="Least bounty, credits.")] = 1,
    ) -> None:
        """Found a network with this folder's key; prints its id."""
        signed = shell.run(
            found_network(
                shell.data,
                name,
                [parse_did(did) for did in witness or ()],
                parse_grants(grant or []),
                delta_ms=delta_ms,
                tick_ms=tick_ms,
                expiry_ms=expiry_ms,
                elector_min=elector_min,
                verdict_min=verdict_min,
                bounty_min=bounty_min,
                passphrase=get_passphrase(),
            )
        )
        shell.note(f"The network {name} is founded. Start its node: `crdtchain serve --witness --listen HOST:PORT`.")
        shell.show(describe(signed), format_cid(signed.op.id))

    @command(group, "join", "network join http://192.0.2.7:8471")
    def join(shell: Shell, url: Annotated[str, typer.Argument(metavar="URL", help="A node's peer port.")]) -> None:
        """Join the network of a node; the same one again changes nothing."""
        load_key(shell.data, get_passphrase())
        signed = shell.run(join_network(shell.data, url, is_kept=True))
        shell.note(f"Now start the node: `crdtchain serve --peer {url}`.")
        shell.show(describe(signed), format_cid(signed.op.id))

    @command(group, "show", "network show")
    def show(shell: Shell) -> None:
        """Show the constants of this folder's network."""
        signed = load_genesis(shell)
        _show(shell, signed, format_cid(signed.op.id))
