"""The demonstration as people see it: a live picture at a terminal, plain lines elsewhere, and a summary at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from node.demo.board import END_PHASES, Board, Note, Seat
from node.demo.director import Result
from node.demo.judge import count_votes
from node.demo.plan import Member
from node.tables import format_micros

REFRESH_S: Final = 0.25
BAR_CELLS: Final = 12
SMALL_ROWS: Final = 34
WIDE_CELLS: Final = 100
_NO_WINNER: Final = {
    "refunded": "the best bid was a lie, and its job gives the bounty back then",
    "no winner": "no bid was left",
    "expired": "the witnesses could not agree in time",
}
_COLORS: Final = {
    "alice": "bright_white",
    "bob": "cyan",
    "carol": "magenta",
    "dave": "yellow",
    "vera": "green",
    "victor": "bright_blue",
}
_LAST_STAGES: Final = frozenset({"settling", "fetching the winning model", "auditing"})
_STATUS_STYLES: Final = {
    "leading": "bold green",
    "decided": "bold green",
    "claimed": "bold green",
    "on time": "green",
    "certified": "green",
    "late": "red",
    "void": "red",
    "unrevealed": "red",
    "open": "yellow",
    "valid": "green",
    "cheat": "bold red",
    "missing": "red",
}


def color_of(name: str) -> str:
    """Return a member's colour."""
    return _COLORS.get(name, "dim")


def make_printer(console: Console) -> Callable[[Note], None]:
    """Return what prints notes as plain lines."""

    def show(note: Note) -> None:
        console.print(f"{note.at_s:6.1f} s  {note.who:<9} {note.text}", markup=False, highlight=False, soft_wrap=True)

    return show


@contextlib.asynccontextmanager
async def live_screen(console: Console, board: Board) -> AsyncIterator[None]:
    """Show a board for the length of a block, again and again; its last picture stays."""
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        async def refresh() -> None:
            while True:
                live.update(render(board, console.width, console.height), refresh=True)
                await asyncio.sleep(REFRESH_S)

        task = asyncio.create_task(refresh())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            live.update(render(board, console.width, console.height), refresh=True)


# -- the picture --


def render(board: Board, width: int, height: int) -> RenderableType:
    """Return the picture of a board for a terminal of that size; on a small one without frames."""
    is_small = height < SMALL_ROWS
    frame = 0 if is_small else 2
    parts: list[RenderableType] = [_render_head(board, width)]
    parts.append(_put(_render_members(board), "six nodes", is_small))
    used = 5 + 1 + len(board.seats) + frame
    if board.job is not None:
        bids = _render_bids(board)
        parts.append(_put(bids, "the lowest bid of each", is_small))
        used += 1 + bids.row_count + frame
    notes = _render_notes(board, max(height - used - frame - 1, 2))
    parts.append(_put(notes, "what happens", is_small))
    return Group(*parts)


def _put(part: RenderableType, title: str, is_small: bool) -> RenderableType:
    return part if is_small else Panel(part, title=title, title_align="left", border_style="dim")


def _render_head(board: Board, width: int) -> RenderableType:
    plan = board.plan
    title = f"crdtchain demo · {plan.scenario} · {plan.runtime} · seed {plan.seed}"
    cells = BAR_CELLS if width >= WIDE_CELLS else BAR_CELLS // 2
    lines = Group(_describe_job(board), _render_timeline(board, cells), _describe_outcome(board))
    return Panel(lines, title=title, title_align="left", border_style="bold blue")


def _describe_job(board: Board) -> Text:
    if board.job is None:
        return Text(f"{board.stage} … ({board.now_s:.0f} s)", style="italic")
    job = board.job
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append_text(_describe_status(job))
    text.append(" · ")
    text.append(str(job["title"]), style="bold")
    text.append(f" · bounty {job['bounty']} · stake {job['stake']} · pool {job['pool']}")
    text.append(f" · {board.plan.on_cheat} on cheat")
    return text


def _describe_outcome(board: Board) -> Text:
    """Return how far the outcome is: attests, phase, claims."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if board.job is None:
        return text
    text.append("outcome ", style="bold" if board.attests else "dim")
    text.append(f"attested by {len(board.attests)} of {board.job['witnesses']} witnesses")
    if board.phase in END_PHASES:
        text.append(" · ")
        text.append(board.describe_phase(), style="bold green" if board.phase == "decided" else "bold yellow")
        certified = sum(claim["status"] == "certified" for claim in board.claims)
        text.append(f" · {certified} claims certified")
    if board.stage in _LAST_STAGES:
        text.append(f" · {board.stage} …", style="italic")
    return text


def _describe_status(row: Any) -> Text:
    """Return the status of an op as protocol section 9 words it."""
    status = str(row["status"])
    shown = f"seen by {row['seen']} of {row['witnesses']}" if status == "seen" else status
    return Text(shown, style=_STATUS_STYLES.get(status, "yellow"))


def _render_timeline(board: Board, cells: int) -> Text:
    if board.job is None:
        return Text("")
    job, now_ms = board.job, time.time_ns() // 1_000_000
    text = Text(no_wrap=True, overflow="ellipsis")
    before = int(job["time"])
    for word, until in (
        ("bidding", job["bid_until"]),
        ("revealing", job["reveal_until"]),
        ("judging", job["verdict_until"]),
    ):
        left_ms = int(until) - now_ms
        share = min(max((now_ms - before) / (int(until) - before), 0.0), 1.0)
        is_now = before <= now_ms < int(until)
        text.append(f"{word} ", style="bold" if is_now else "dim")
        text.append_text(_bar(share, cells, "green" if is_now else "dim"))
        text.append(f" {left_ms / 1_000:3.0f} s " if is_now else ("   ✓   " if left_ms <= 0 else "       "))
        before = int(until)
    return text


def _bar(share: float, cells: int, style: str) -> Text:
    filled = round(share * cells)
    bar = Text("━" * filled, style=style)
    bar.append("━" * (cells - filled), style="grey23")
    return bar


def _render_members(board: Board) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, padding=(0, 2, 0, 0))
    table.add_column("who", no_wrap=True)
    table.add_column("role", no_wrap=True)
    table.add_column("now", no_wrap=True, ratio=1)
    table.add_column("stake", no_wrap=True)
    table.add_column("credits", no_wrap=True, justify="right")
    for name, seat in board.seats.items():
        table.add_row(
            Text(name, style=color_of(name)),
            f"{seat.member.role} + witness" if seat.member.is_witness else seat.member.role,
            _describe_doing(seat),
            Text(seat.stake, style=_STATUS_STYLES.get(seat.stake, "")),
            "" if seat.balance is None else str(seat.balance),
        )
    return table


def _describe_doing(seat: Seat) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    if seat.is_cut:
        text.append("cut off ", style="bold red")
    if not seat.is_training:
        text.append(seat.doing)
    else:
        text.append(f"run {seat.runs} ")
        text.append_text(_bar(seat.epoch / max(seat.epochs, 1), BAR_CELLS, color_of(seat.member.name)))
        text.append(f" {seat.epoch}/{seat.epochs}")
    if seat.is_cut and seat.best is not None:
        text.append(f"  best {format_micros(seat.best)}, unseen", style="dim")
    elif seat.is_training and seat.loss is not None:
        text.append(f"  held-out loss {seat.loss:.4f}", style="dim")
    return text


def _render_bids(board: Board) -> Table:
    assert board.job is not None
    table = Table(box=None, pad_edge=False, expand=True, padding=(0, 2, 0, 0))
    for heading in ("bid", "by", "of", "status", "model"):
        table.add_column(heading, no_wrap=True)
    table.add_column("votes", no_wrap=True, ratio=1)
    lowest: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for bid in board.job["leaderboard"]:
        name = board.name_of(bid["author"])
        lowest.setdefault(name, bid)
        counts[name] = counts.get(name, 0) + 1
    for name, bid in lowest.items():
        reveal = bid["reveals"][0] if bid["reveals"] else None
        table.add_row(
            format_micros(bid["loss"]),
            Text(name, style=color_of(name)),
            str(counts[name]),
            _describe_status(bid),
            Text("") if reveal is None else _describe_status(reveal),
            _describe_votes(board, reveal),
        )
    return table


def _describe_votes(board: Board, reveal: Any) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for vote in () if reveal is None else reveal["votes"]:
        text.append(f"{board.name_of(vote['author'])} ")
        text.append(f"{vote['verdict']} ", style=_STATUS_STYLES.get(vote["verdict"], ""))
        text.append(f"({vote['status']})  ", style="dim")
    return text


def _render_notes(board: Board, rows: int) -> RenderableType:
    text = Text(no_wrap=True, overflow="ellipsis")
    for note in list(board.notes)[-rows:]:
        text.append(f"{note.at_s:5.1f} s ", style="dim")
        text.append(f"{note.who:<9} ", style=color_of(note.who))
        text.append(f"{note.text}\n", style="bold" if note.is_loud else "")
    text.rstrip()
    return text


# -- the end --


def print_summary(console: Console, board: Board, result: Result, next_line: str, model: str | None) -> None:
    """Print what came of it."""
    plan = board.plan
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title="credits", title_justify="left")
    table.add_column("who")
    table.add_column("at the start", justify="right")
    table.add_column("at the end", justify="right")
    table.add_column("change", justify="right")
    table.add_column("why")
    for member in plan.members:
        end = result.accounts[member.name]
        change = end - member.grant
        style = "green" if change > 0 else "red" if change < 0 else "dim"
        shown = Text(f"{change:+d}" if change else "0", style=style)
        table.add_row(member.name, str(member.grant), str(end), shown, _explain(board, result.job, member))
    total = sum(result.accounts.values())
    table.add_row("all", str(plan.granted), str(total), str(total - plan.granted))
    console.print()
    console.print(table)
    console.print()
    for label, text in _list_facts(board, result, model):
        console.print(f"{label:<8} {text}", markup=False, highlight=False, soft_wrap=True)
    for fault in result.verdict.faults:
        console.print(f"FAULT    {fault}.", style="bold red", markup=False, soft_wrap=True)
    console.print(f"{'next':<8} {next_line}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _explain(board: Board, job: Any, member: Member) -> str:
    """Return why a member's credits are what they are."""
    outcome, reasons = job["outcome"], list[str]()
    if outcome is None:
        return "no outcome"
    did = board.seats[member.name].did
    if member.role == "poster":
        reasons.append("paid the pool; the bounty came back" if outcome["winner"] is None else "paid bounty and pool")
    if outcome["winner_author"] == did:
        reasons.append("won the bounty")
    if did in outcome["cheats"]:
        reasons.append("lost its stake, and is banned: its model is not what it announced")
    elif did in outcome["forfeits"]:
        reasons.append("lost its stake: it did not reveal its bid")
    elif member.role == "worker" and not reasons:
        is_late = any(bid["author"] == did and bid["status"] == "late" for bid in job["leaderboard"])
        reasons.append("got its stake back; its bids were late" if is_late else "got its stake back")
    if votes := count_votes(board, job).get(member.name, 0):
        reasons.append(f"was paid for {votes} vote{'s' if votes > 1 else ''}")
    return ", ".join(reasons)


def _list_facts(board: Board, result: Result, model: str | None) -> list[tuple[str, str]]:
    facts = []
    outcome = result.job["outcome"]
    if outcome is not None and outcome["winner_author"] is not None:
        loss = format_micros(outcome["loss"])
        facts.append(("winner", f"{board.name_of(outcome['winner_author'])}, with an announced loss of {loss}"))
    else:
        facts.append(("winner", f"nobody: {_NO_WINNER.get(board.phase, board.phase)}"))
    if result.model is not None and model is not None:
        accuracy = result.model.accuracy or 0
        facts.append(("model", model))
        facts.append(("tested", f"loss {format_micros(result.model.loss)}, {accuracy:.2%} of the test digits right"))
    if len(set(result.digests.values())) == 1:
        facts.append(("state", f"{next(iter(result.digests.values()))}, the same on all six nodes"))
    if result.audit is not None:
        found = "no fault" if result.audit.ok else f"{len(result.audit.faults)} faults"
        same = "the same state" if result.audit.state_digest in result.digests.values() else "ANOTHER STATE"
        facts.append(("audit", f"{result.audit.ops} ops replayed from nothing: {found}, {same}"))
    facts.append(("took", f"{result.seconds:.0f} s"))
    return facts
