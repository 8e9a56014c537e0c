"""`stake`, `bid`, `reveal`, `claim`, `vote`: by hand what the worker does by itself."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from crdtchain.codec import parse_cid
from crdtchain.errors import UsageError
from crdtchain.scalars import Micros, OpId
from node.cli.jobs import JobArgument
from node.cli.remote import connect, find_bid, find_job, find_reveal, is_full_cid
from node.cli.shell import Shell, command, find_one
from node.cli.work import open_sandboxes
from node.client import NodeClient
from node.server.bodies import read_terms
from node.tables import format_micros, parse_micros
from node.worker.client_market import ClientMarket, dump_terms
from node.worker.materials import fetch_materials
from node.worker.policy import Policy
from node.worker.training import measure


class VerdictWord(StrEnum):
    """What a vote may say."""

    VALID = "valid"
    CHEAT = "cheat"
    MISSING = "missing"


def parse_loss(text: str, what: str) -> Micros:
    """Read a loss as people write it.

    Raises:
        UsageError: it is none.
    """
    micros = parse_micros(text)
    if micros is None:
        raise UsageError(f"{what} is {text!r}: write a decimal number, 0 or more, with at most 6 decimals")
    return Micros(micros)


async def measure_here(shell: Shell, client: NodeClient, job: Mapping[str, Any], model: bytes) -> Micros:
    """Compute the loss of a model by a job's own program, in the sandbox here.

    Raises:
        UsageError: the job's files can't be had, or the model is not what it must be.
        SandboxError: no sandbox can run here.
    """
    terms = read_terms(dump_terms(job["terms"]))
    runtime = terms.task.runtime
    market = await ClientMarket.make(client)
    async with open_sandboxes(Policy(runtimes=(runtime,))) as sandboxes:
        with tempfile.TemporaryDirectory(prefix="crdtchain-bid-") as folder:
            materials = await fetch_materials(market, OpId(parse_cid(job["id"])), terms, Path(folder))
            if materials is None:
                raise UsageError("the job's files can't be had now: try again when a peer that has them is connected")
            found = await measure(sandboxes[runtime], materials, model, f"bid-{secrets.token_hex(6)}")
    if found.loss_micros is None:
        raise UsageError(f"the model can't be measured: {found.status.value}: {found.reason}")
    shell.note(f"It measures {format_micros(found.loss_micros)}.")
    return found.loss_micros


async def _bid(shell: Shell, text: str, file: Path, loss_text: str | None) -> None:
    try:
        model = await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        raise UsageError(f"the model {file} can't be read: {error.strerror}") from None
    announced = None if loss_text is None else parse_loss(loss_text, "--loss")
    async with connect(shell) as client:
        job = await client.job(await find_job(client, text))
        loss = announced if announced is not None else await measure_here(shell, client, job, model)
        blob = await client.put_blob(file)
        found = await client.submit("bid", {"job": job["id"], "loss": loss, "model": blob})
    shell.note("Keep the node running: it reveals the model by itself when bidding is closed.")
    shell.show(found, f"{found['id']}: loss {format_micros(loss)}")


async def _claim(shell: Shell, text: str) -> None:
    async with connect(shell) as client:
        if not is_full_cid(text):
            account = await client.account((await client.status())["did"])
            incoming = [row["id"] for row in account["incoming"]]
            text = find_one(text, [*incoming, *(job["id"] for job in await client.jobs())], "job or transfer")
        found = await client.submit("claim", {"of": text})
    shell.show(found, str(found["id"]))


def add_to(app: typer.Typer) -> None:
    """Add the commands."""

    @command(app, "stake", "stake bafyrei3x")
    def stake(shell: Shell, job: JobArgument) -> None:
        """Put down a job's stake, which lets one bid once it is certified."""

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                return await client.submit("stake", {"job": await find_job(client, job)})

        found = shell.run(work())
        shell.show(found, str(found["id"]))

    @command(app, "bid", "bid bafyrei3x model.npz")
    def bid(
        shell: Shell,
        job: JobArgument,
        model: Annotated[Path, typer.Argument(metavar="MODEL_FILE", help="The trained model.")],
        loss: Annotated[str | None, typer.Option(help='Announce it, such as "0.25"; else it is measured here.')] = None,
    ) -> None:
        """Announce a model's loss, and commit to the model without showing it."""
        shell.run(_bid(shell, job, model, loss))

    _add_reveal_and_vote(app)

    @command(app, "claim", "claim bafyrei3x")
    def claim(
        shell: Shell,
        of: Annotated[str, typer.Argument(metavar="JOB|TRANSFER", help="Its id, or the beginning of it.")],
    ) -> None:
        """Take what a job's outcome or a transfer gives; a running node does it by itself."""
        shell.run(_claim(shell, of))


def _add_reveal_and_vote(app: typer.Typer) -> None:
    @command(app, "reveal", "reveal bafyrei7q")
    def reveal(
        shell: Shell, bid: Annotated[str, typer.Argument(metavar="BID", help="The bid's id, or its beginning.")]
    ) -> None:
        """Show the model behind one's bid, when bidding is closed."""

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                whole = bid if is_full_cid(bid) else (await find_bid(client, bid))[0]
                return await client.submit("reveal", {"bid": whole})

        found = shell.run(work())
        shell.show(found, str(found["id"]))

    @command(app, "vote", "vote bafyrei9k valid --loss 0.25")
    def vote(
        shell: Shell,
        reveal: Annotated[str, typer.Argument(metavar="REVEAL", help="The reveal's id, or its beginning.")],
        verdict: Annotated[VerdictWord, typer.Argument(help="valid, cheat or missing.")],
        loss: Annotated[str | None, typer.Option(help='The loss that was measured, such as "0.25".')] = None,
    ) -> None:
        """Say what a revealed model is worth, as an elector."""
        measured = None if loss is None else parse_loss(loss, "--loss")

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                whole = await find_reveal(client, reveal)
                return await client.submit("vote", {"reveal": whole, "verdict": verdict.value, "loss": measured})

        found = shell.run(work())
        shell.show(found, str(found["id"]))
