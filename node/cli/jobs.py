"""`job post`, `list`, `show`, `model`, `try`: the market."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from crdtchain.errors import SandboxError, UsageError
from crdtchain.ops import Genesis
from crdtchain.params import compute_params
from crdtchain.views import body_to_json
from node.cli.network import load_genesis
from node.cli.remote import connect, find_job
from node.cli.scope import AS_FAR
from node.cli.shell import AnswerNoError, Shell, command, make_group, shorten
from node.cli.work import open_sandboxes
from node.jobfile import TRY_RULES, JobDraft, NetworkRules, read_job_file, wants_local_image
from node.tables import format_duration, format_micros
from node.worker.materials import use_draft
from node.worker.policy import Policy
from node.worker.sandbox.base import Progress, Status
from node.worker.training import draw_seed, measure

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or its beginning.")]
JobFileArgument = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")]


def now_ms() -> int:
    """Return the time, ms since the Unix epoch."""
    return time.time_ns() // 1_000_000


async def read_draft(shell: Shell, path: Path, rules: NetworkRules) -> JobDraft:
    """Read a job file; `image = "local"` becomes the trainer image, made if it is missing.

    Raises:
        UsageError: the file is wrong.
        SandboxError: the trainer image can't be made.
    """
    image = None
    if wants_local_image(path):
        try:
            from node.worker.sandbox.image import default_cache_dir, ensure_trainer_image
        except ImportError:
            raise SandboxError('image = "local" needs docker: install the Python package `docker`') from None
        image = await ensure_trainer_image(default_cache_dir(), shell.note)
    return read_job_file(path, rules, now_ms(), image)


def find_rules(shell: Shell) -> NetworkRules:
    """Return what this folder's network asks of a job."""
    genesis = load_genesis(shell).op
    assert isinstance(genesis.body, Genesis)
    return NetworkRules.from_params(compute_params(genesis))


def describe_time(at_ms: int, now: int) -> str:
    """Write a moment with how far away it is."""
    text = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    away = format_duration(abs(at_ms - now) // 1_000 * 1_000)
    return f"{text} (in {away})" if at_ms > now else f"{text} ({away} ago)"


def show_list(out: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print jobs as a table."""
    if not rows:
        out.print("There are no jobs yet. Post one with `crdtchain job post JOB.toml`.")
        return
    table = RichTable(box=None, pad_edge=False)
    for heading in ("job", "title", "phase", "bounty", "stake", "bids", "leading", "bidding ends"):
        table.add_column(heading, no_wrap=heading in ("job", "phase", "leading"))
    now = now_ms()
    for row in rows:
        leading = row["leading"]
        table.add_row(
            shorten(row["id"]), row["title"], row["phase"], str(row["bounty"]), str(row["stake"]), str(row["bids"]),
            "–" if leading is None else format_micros(leading["loss"]), describe_time(row["bid_until"], now),
        )  # fmt: skip
    out.print(table, markup=False)
    if any(row.get("partial") for row in rows):
        out.print(f"Jobs outside of the scope are shown {AS_FAR}.")


def make_leaderboard(job: Mapping[str, Any]) -> RichTable:
    """Make the table of a job's bids."""
    table = RichTable(box=None, pad_edge=False)
    for heading in ("#", "bid", "author", "loss", "status", "reveal", "votes"):
        table.add_column(heading)
    for place, bid in enumerate(job["leaderboard"], 1):
        reveals = bid["reveals"]
        votes = [vote["verdict"] for reveal in reveals for vote in reveal["votes"]]
        counted = ", ".join(f"{votes.count(verdict)} {verdict}" for verdict in dict.fromkeys(votes))
        table.add_row(
            str(place), shorten(bid["id"]), bid["name"] or shorten(bid["author"]), format_micros(bid["loss"]),
            f"{bid['status']}{': ' + bid['reason'] if bid['reason'] else ''}",
            f"{shorten(reveals[0]['id'])} {reveals[0]['status']}" if reveals else "–", counted or "–",
        )  # fmt: skip
    return table


def show_job(out: Console, job: Mapping[str, Any]) -> None:
    """Print all about a job."""
    now, terms = now_ms(), job["terms"]
    state = ", ".join(dict.fromkeys((job["phase"], job["status"])))
    lines = [
        f"{job['title']}: {state} (seen by {job['seen']} of {job['witnesses']} witnesses)",
        f"  job        {job['id']}",
        f"  poster     {job['poster']}",
        f"  money      bounty {job['bounty']}, stake {job['stake']}, pool {job['pool']}; on cheat: {terms['on_cheat']}",
        f"  metric     {job['metric']}, tolerance {format_micros(terms['tolerance'])}",
        f"  program    {job['runtime']}, {terms['task']['image']}",
        f"  bidding    until {describe_time(job['bid_until'], now)}",
        f"  revealing  until {describe_time(job['reveal_until'], now)}",
        f"  verdicts   until {describe_time(job['verdict_until'], now)}",
    ]
    outcome = job["outcome"]
    if outcome is not None:
        winner = outcome["winner_author"]
        loss = "" if winner is None else f" with loss {format_micros(outcome['loss'])}"
        lines.append(f"  outcome    {outcome['phase']}; winner: {winner or 'none'}{loss}")
    if job.get("partial"):
        lines.append(f"  all this is {AS_FAR}; `crdtchain scope add {shorten(job['id'])}` fetches the rest")
    out.print("\n".join(lines), markup=False)
    if job["leaderboard"]:
        out.print(make_leaderboard(job))


async def _post(shell: Shell, path: Path) -> None:
    draft = await read_draft(shell, path, find_rules(shell))
    async with connect(shell) as client:
        for file in draft.blobs.values():
            await client.put_blob(file)
        posted = await client.submit("job", body_to_json(draft.terms))
    shell.note(f"Posted: {draft.terms.title}. Follow it: `crdtchain job watch {shorten(posted['id'])}`.")
    shell.show(posted, str(posted["id"]))


async def _model(shell: Shell, text: str, target: Path) -> None:
    async with connect(shell) as client:
        job = await client.job(await find_job(client, text))
        outcome = job["outcome"]
        if outcome is None:
            raise AnswerNoError(f"the job is {job['phase']}: its outcome is not certified yet")
        if outcome["model"] is None:
            raise AnswerNoError(f"the job ended without a winner: {outcome['phase']}")
        size = await client.get_blob(outcome["model"], target)
    result = {"job": job["id"], "model": outcome["model"], "file": str(target), "bytes": size, "loss": outcome["loss"]}
    shell.show(result, f"{target}: {size} bytes, loss {format_micros(outcome['loss'])}")


async def _try(shell: Shell, path: Path, seed: int | None, keep: Path | None) -> None:
    draft = await read_draft(shell, path, TRY_RULES)
    materials, seed = use_draft(draft), draw_seed() if seed is None else seed
    runtime = draft.terms.task.runtime
    async with open_sandboxes(Policy(runtimes=(runtime,))) as sandboxes:
        sandbox = sandboxes[runtime]
        with shell.err.status(f"Training in {runtime} with seed {seed} …") as status:

            def report(progress: Progress) -> None:
                status.update(f"Training: epoch {progress.epoch}, loss {progress.loss:.6f} …")

            result = await sandbox.run(materials.make_train_spec(f"try-{secrets.token_hex(6)}", seed), report)
        model = result.files.get(f"model/{materials.schema.file_name}")
        if result.status is not Status.OK or model is None:
            raise SandboxError(f"training ended as {result.status.value}: {result.reason} {result.log_tail[-500:]}")
        found = await measure(sandbox, materials, model, f"try-{secrets.token_hex(6)}")
        if found.loss_micros is None:
            raise SandboxError(f"the trained model can't be measured: {found.status.value}. {found.reason}")
    if keep is not None:
        await asyncio.to_thread(keep.write_bytes, model)
    values = {
        "loss": found.loss_micros, "accuracy": found.accuracy, "seed": seed, "runtime": runtime,
        "model_bytes": len(model), "train_ms": result.wall_ms, "file": None if keep is None else str(keep),
    }  # fmt: skip
    accuracy = "" if found.accuracy is None else f", accuracy {found.accuracy:.2%}"
    shell.show(values, f"A bid would announce a loss of {format_micros(found.loss_micros)}{accuracy} (seed {seed}).")


def add_to(app: typer.Typer) -> typer.Typer:
    """Add the commands; returns their group."""
    group = make_group(app, "job", "Post, list, follow and try jobs.")

    @command(group, "post", "job post examples/digits-wasm/job.toml")
    def post(shell: Shell, file: JobFileArgument) -> None:
        """Upload a job's files and post it; prints its id. Bounty and pool leave the balance."""
        shell.run(_post(shell, file))

    @command(group, "list", "job list")
    def list_(shell: Shell) -> None:
        """List all jobs."""

        async def work() -> list[dict[str, Any]]:
            async with connect(shell) as client:
                return await client.jobs()

        rows = shell.run(work())
        shell.show(rows, lambda out: show_list(out, rows))

    @command(group, "show", "job show bafyrei3x")
    def show(shell: Shell, job: JobArgument) -> None:
        """Show a job: its terms, the leaderboard, the outcome."""

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                return await client.job(await find_job(client, job))

        found = shell.run(work())
        shell.show(found, lambda out: show_job(out, found))

    @command(group, "model", "job model bafyrei3x -o model.npz")
    def model(
        shell: Shell,
        job: JobArgument,
        output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the model goes.")],
    ) -> None:
        """Fetch the winning model of a decided job."""
        if output.is_dir():
            raise UsageError(f"{output} is a folder: name a file")
        shell.run(_model(shell, job, output))

    @command(group, "try", "job try examples/digits-wasm/job.toml")
    def try_(
        shell: Shell,
        file: JobFileArgument,
        seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1, help="Of the run; else drawn.")] = None,
        output: Annotated[
            Path | None, typer.Option("-o", "--output", metavar="FILE", help="Keep the trained model here.")
        ] = None,
    ) -> None:
        """Run a job's train and predict in the local sandbox; prints the loss a bid would announce."""
        shell.run(_try(shell, file, seed, output))

    return group
