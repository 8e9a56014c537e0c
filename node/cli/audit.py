"""`audit`: read a ledger from nothing but its blocks, and say all that is wrong."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from crdtchain.adapters.auditing import audit_source
from crdtchain.audit import AuditReport
from crdtchain.errors import NoPeerError, UsageError
from node.cli.shell import NO, Shell, command, find_one, shorten
from node.config import Settings
from node.datadir import create_data, join_network
from node.node import Node
from node.tables import format_micros

FETCH_S = 120
"""So long a node may take to give its ledger."""


async def audit_node(url: str) -> AuditReport:
    """Fetch the ledger of a node by its peer port, with a key of this moment, and audit it.

    Raises:
        NoPeerError: nobody answers, or it does not come to an end.
    """
    with tempfile.TemporaryDirectory(prefix="crdtchain-audit-") as name:
        folder = Path(name) / "data"
        await asyncio.to_thread(create_data, folder)
        await join_network(folder, url)
        async with Node.open(folder, Settings(peers=(url,), discover=False)) as node:
            try:
                async with asyncio.timeout(FETCH_S):
                    while not any(link.is_synced for link in node.peers.ready()):  # noqa: ASYNC110 — nothing tells it
                        await asyncio.sleep(0.1)
            except TimeoutError:
                raise NoPeerError(f"{url} did not give its whole ledger within {FETCH_S} s") from None
        return await audit_source(folder)


async def audit(source: str) -> AuditReport:
    """Audit a CAR, a data folder, or a node by its URL."""
    return await (audit_node(source) if "://" in source else audit_source(Path(source)))


def describe(report: dict[str, Any]) -> str:
    """Write a report for people."""
    count = len(report["faults"])
    found = "No fault" if report["ok"] else "1 fault" if count == 1 else f"{count} faults"
    lines = [
        f"{found} in {report['ops']} ops.",
        f"heads  {report['heads_digest'] or '–'}",
        f"state  {report['state_digest'] or '–'}",
    ]
    for job in report["jobs"]:
        loss = "" if job["loss"] is None else f", loss {format_micros(job['loss'])} by {shorten(job['winner_author'])}"
        mark = "certified" if job["certified"] else "not certified"
        lines.append(f"job    {shorten(job['id'])}  {job['title']}: {job['outcome']}, {mark}{loss}")
    lines.extend(f"funds  {did}  {amount}" for did, amount in report["accounts"].items())
    lines.extend(
        f"guilty {row['author']} signed two ops with seq {row['seq']}: {' and '.join(map(shorten, row['ops']))}"
        for row in report["equivocations"]
    )
    lines.extend(
        f"fault  {shorten(row['op'] or 'the whole')}  {row['rule']}: {row['text']}" for row in report["faults"]
    )
    return "\n".join(lines)


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "audit", "audit ledger.car")
    def audit_(
        shell: Shell,
        source: Annotated[str, typer.Argument(metavar="SOURCE", help="A CAR, a data folder, or a node's peer port.")],
        job: Annotated[str | None, typer.Option(metavar="JOB", help="Report this job alone.")] = None,
    ) -> None:
        """Replay a ledger and judge it; exit code 1 if there is a fault."""
        if not source:
            raise UsageError("name a CAR file, a data folder or a URL")
        report: dict[str, Any] = msgspec.to_builtins(shell.run(audit(source)))
        if job is not None:
            id = find_one(job, [row["id"] for row in report["jobs"]], "job")
            report["jobs"] = [row for row in report["jobs"] if row["id"] == id]
        shell.show(report, describe(report))
        if not report["ok"]:
            raise typer.Exit(NO)
