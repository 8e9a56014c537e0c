"""`scope`: what a partial replica keeps, and keeping more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from crdtchain.errors import UsageError
from node.cli.remote import connect, find_did, find_job
from node.cli.shell import Shell, command, make_group, shorten

AS_FAR = "as far as this partial replica knows"


def describe(scope: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is kept, for people."""
    if scope is None:
        yield "This node keeps everything."
        return
    yield f"This is a partial replica: {scope.get('ops', 'some')} ops are kept, those of its scope:"
    for name, text in (
        ("jobs", "job"),
        ("tags", "jobs with the tag"),
        ("authors", "jobs that are posted by"),
        ("accounts", "the account"),
    ):
        yield from (f"  {text} {item}" for item in scope[name])
    if "found" in scope:
        yield f"Jobs found so far: {', '.join(map(shorten, scope['found'])) or 'none'}"
    yield from (f"It can't judge {text}." for text in scope.get("cannot_judge", ()))


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = make_group(app, "scope", "What a partial replica keeps.")

    @command(group, "show", "scope show")
    def show(shell: Shell) -> None:
        """Show what the node keeps, and what it can't judge."""

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                return await client.scope()

        found = shell.run(work())
        shell.show(found, "\n".join(describe(found["scope"])))

    @command(group, "add", "scope add bafyrei3x --tag vision")
    def add(
        shell: Shell,
        job: Annotated[
            list[str] | None, typer.Argument(metavar="[JOB]...", help="A job's id; in full when it is not here yet.")
        ] = None,
        tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Jobs with this tag.")] = None,
        poster: Annotated[list[str] | None, typer.Option(metavar="DID", help="Jobs that this key posts.")] = None,
    ) -> None:
        """Keep more, for good; what is lacking is fetched from peers."""
        if not (job or tag or poster):
            raise UsageError("name a job, or give --tag or --poster")

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                jobs = [await find_job(client, text) for text in job or ()]
                authors = [await find_did(client, text) for text in poster or ()]
                return await client.widen_scope(jobs=jobs, tags=tag or [], authors=authors)

        _show_change(shell, shell.run(work()))

    @command(group, "all", "scope all")
    def all_(shell: Shell) -> None:
        """Keep everything from now on; settings that name jobs count again at the next start."""

        async def work() -> Mapping[str, Any]:
            async with connect(shell) as client:
                return await client.widen_scope(everything=True)

        _show_change(shell, shell.run(work()))


def _show_change(shell: Shell, found: Mapping[str, Any]) -> None:
    shell.note("What is lacking is being fetched." if found["changed"] else "That is kept already.")
    shell.show(found, "\n".join(describe(found["scope"])))
