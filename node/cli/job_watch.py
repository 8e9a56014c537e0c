"""`job watch`: a job as it goes on, live: where it is, how long yet, who leads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from node.cli.jobs import JobArgument, make_leaderboard, now_ms, show_job
from node.cli.remote import connect, find_job
from node.cli.shell import Shell, command
from node.tables import format_duration, format_micros

POLL_S = 0.5
_ENDS = {"bidding": "bid_until", "revealing": "reveal_until", "judging": "verdict_until"}
OVER = frozenset({"decided", "no winner", "refunded", "expired", "conflict"})
"""Phases after which nothing comes."""


def render(job: Mapping[str, Any], now: int) -> Group:
    """Make the picture of a job at a moment."""
    phase = job["phase"]
    head = Text(f"{job['title']}  ", style="bold")
    head.append(phase, style="green" if phase == "decided" else "cyan")
    if phase in _ENDS:
        left = max(job[_ENDS[phase]] - now, 0)
        head.append(f"  {format_duration(left // 1_000 * 1_000)} left", style="yellow")
    money = Text(f"bounty {job['bounty']}  stake {job['stake']}  pool {job['pool']}  {job['metric']}  {job['status']}")
    parts: list[Any] = [head, money]
    if job["leaderboard"]:
        parts.append(make_leaderboard(job))
    else:
        parts.append(Text("No bids yet.", style="dim"))
    outcome = job["outcome"]
    if outcome is not None and outcome["winner_author"] is not None:
        text = f"{outcome['winner_author']} wins with a loss of {format_micros(outcome['loss'])}."
        parts.append(Text(text, style="bold green"))
    return Group(*parts)


async def watch_job(shell: Shell, text: str, once: bool) -> Mapping[str, Any]:
    """Show a job until it is over; returns its last state."""
    async with connect(shell) as client:
        id = await find_job(client, text)
        job = await client.job(id)
        if once or shell.as_json:
            while not once and job["phase"] not in OVER:
                await asyncio.sleep(POLL_S)
                job = await client.job(id)
            return job
        with Live(render(job, now_ms()), console=shell.err, refresh_per_second=4, transient=True) as live:
            while job["phase"] not in OVER:
                await asyncio.sleep(POLL_S)
                job = await client.job(id)
                live.update(render(job, now_ms()))
        return job


def add_to(group: typer.Typer) -> None:
    """Add the command to the group of jobs."""

    @command(group, "watch", "job watch bafyrei3x")
    def watch(
        shell: Shell,
        job: JobArgument,
        once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    ) -> None:
        """Follow a job live until it is over."""
        last = shell.run(watch_job(shell, job, once))
        shell.show(last, lambda out: show_job(out, last))
