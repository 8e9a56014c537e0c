"""`demo`: the main job end to end, on real processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from crdtchain.errors import SandboxError, UsageError
from node.cli.shell import AnswerNoError, Shell, command, end_on_signals
from node.datadir import TOKEN_FILE


class Scenario(StrEnum):
    """What happens."""

    HONEST = "honest"
    CHEAT = "cheat"
    OFFLINE = "offline"


class OnCheat(StrEnum):
    """What the job's terms say about a cheat."""

    REFUND = "refund"
    NEXT = "next"


class Runtime(StrEnum):
    """Where training runs."""

    AUTO = "auto"
    DOCKER = "docker"
    WASM = "wasm"


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for on the command line."""

    scenario: str
    on_cheat: str
    runtime: str
    seed: int
    keep: Path | None
    hold: bool


async def choose_runtime(wanted: str) -> str:
    """Return docker when a daemon answers, else wasm; or what was wanted, if it can run.

    Raises:
        SandboxError: it can't run here.
    """
    hints = []
    for name in ("docker", "wasm") if wanted == Runtime.AUTO else (wanted,):
        hint = await _find_hint(name)
        if not hint:
            return name
        hints.append(f"{name}: {hint}")
    raise SandboxError(f"no sandbox can run here ({'; '.join(hints)})")


async def _find_hint(name: str) -> str:
    """Return what is missing for a sandbox to run here; empty when nothing is."""
    from node.demo.sandboxes import make_sandbox

    try:
        sandbox = make_sandbox(name, Path(tempfile.gettempdir()))
    except SandboxError as error:
        return str(error)
    try:
        info = await sandbox.check()
        return "" if info.usable else info.hint
    finally:
        await sandbox.close()


async def prepare_image(runtime: str, tell: Callable[[str], None]) -> str | None:
    """Return the id of the trainer image, made and loaded if it is not there; None for wasm.

    Raises:
        SandboxError: it can't be made.
    """
    if runtime != "docker":
        return None
    from node.worker.sandbox.image import default_cache_dir, ensure_trainer_image

    folder = default_cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return await ensure_trainer_image(folder, tell)


@contextlib.contextmanager
def open_folder(keep: Path | None) -> Iterator[Path]:
    """Make the folder of all data folders: the one to keep, or one that goes away.

    Raises:
        UsageError: the one to keep has something in it already.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="crdtchain-demo-", ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UsageError(f"{keep} is not an empty folder: name another one for --keep")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep.resolve()


def keep_model(file: Path, wish: Wish, runtime: str) -> Path:
    """Put the winning model where it stays when the data folders go."""
    if wish.keep is not None:
        return file
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crdtchain" / "demo"
    base.mkdir(parents=True, exist_ok=True)
    target = base / f"{wish.scenario}-{runtime}-{wish.seed}{file.suffix}"
    shutil.copyfile(file, target)
    return target


def find_program() -> str:
    """Return what to type to run this program."""
    if shutil.which("crdtchain"):
        return "crdtchain"
    return sys.argv[0] if Path(sys.argv[0]).name == "crdtchain" else "python -m node.cli.main"


def suggest_next(wish: Wish, folder: Path) -> str:
    """Return the line to type next."""
    if wish.keep is not None:
        return f"{find_program()} audit {folder / 'alice'}"
    match wish.scenario, wish.on_cheat:
        case "honest", _:
            scenario, options = "cheat", ""
        case "cheat", "refund":
            scenario, options = "cheat", "--on-cheat next"
        case "cheat", _:
            scenario, options = "offline", ""
        case _:
            scenario, options = "honest", "--keep demo-run --hold"
    if os.environ.get("MAKELEVEL"):
        return f"make demo SCENARIO={scenario}" + (f' ARGS="{options}"' if options else "")
    return f"{find_program()} demo --scenario {scenario} {options}".rstrip()


def to_json(result: Any, wish: Wish, runtime: str, model: Path | None) -> dict[str, Any]:
    """Return the document of `--json`."""
    report = None if result.audit is None else msgspec.to_builtins(result.audit)
    found = result.model
    return {
        "ok": result.verdict.ok,
        "scenario": wish.scenario,
        "runtime": runtime,
        "network": result.network,
        "jobs": [] if report is None else report["jobs"],
        "accounts": {} if report is None else report["accounts"],
        "model": {
            "file": None if model is None else str(model),
            "test_accuracy": None if found is None else found.accuracy,
            "loss": None if found is None else found.loss,
        },
        "audit": report,
        "seconds": round(result.seconds, 1),
        "on_cheat": wish.on_cheat,
        "seed": wish.seed,
        "members": {name: {"did": did, "credits": result.accounts[name]} for name, did in result.dids.items()},
        "bids": [[name, loss] for name, loss in result.leads],
        "digests": result.digests,
        "faults": result.verdict.faults,
    }


async def play(shell: Shell, wish: Wish, console: Console) -> bool:
    """Run the demonstration; returns whether everything was as it has to be.

    Raises:
        CrdtchainError: it could not be run to its end.
    """
    from node.demo.board import Board
    from node.demo.company import Company
    from node.demo.director import Director, Result
    from node.demo.plan import make_plan
    from node.demo.screen import live_screen, make_printer, print_summary

    runtime = await choose_runtime(wish.runtime)
    image = await prepare_image(runtime, shell.note)
    plan = make_plan(wish.scenario, runtime, wish.seed, wish.on_cheat)
    is_live = console.is_terminal and not shell.as_json
    board = Board(plan)
    if not is_live:
        board.on_note = make_printer(console)
    with open_folder(wish.keep) as folder:
        view = contextlib.AsyncExitStack()

        async def finish(result: Result, company: Company) -> None:
            await view.aclose()
            model = None if result.model is None else keep_model(result.model.file, wish, runtime)
            if shell.as_json:
                shell.show(to_json(result, wish, runtime, model), "")
            else:
                print_summary(console, board, result, suggest_next(wish, folder), None if model is None else str(model))
            if wish.hold:
                await _hold(console, company)

        async with view:
            if is_live:
                await view.enter_async_context(live_screen(console, board))
            result = await Director(plan, folder, board, image).run(finish)
    return result.verdict.ok


async def _hold(console: Console, company: Any) -> None:
    """Let the nodes run until Ctrl-C."""
    console.print("\nThe six nodes go on. Each has a page; it asks for the token in its folder:", markup=False)
    for name, actor in company.actors.items():
        console.print(f"  {name:<8} {actor.local}   {actor.folder / TOKEN_FILE}", markup=False, soft_wrap=True)
    console.print("Ctrl-C ends them.", markup=False)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        # Here the interrupt is the wanted end, not a failure.
        if (task := asyncio.current_task()) is not None:
            task.uncancel()


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "demo", "demo --scenario cheat --on-cheat next --runtime wasm --seed 7")
    def demo(
        shell: Shell,
        scenario: Annotated[Scenario, typer.Option(help="What happens.")] = Scenario.HONEST,
        on_cheat: Annotated[
            OnCheat, typer.Option(help="When the best bid was a lie: the bounty goes back, or to the next best.")
        ] = OnCheat.REFUND,
        runtime: Annotated[Runtime, typer.Option(help="auto: docker when a daemon answers, else wasm.")] = Runtime.AUTO,
        seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Another one trains other models.")] = 1,
        keep: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Keep all data folders here; a new or empty folder.")
        ] = None,
        hold: Annotated[bool, typer.Option("--hold", help="Let the nodes run on at the end, until Ctrl-C.")] = False,
    ) -> None:
        """Run the main job end to end: six nodes on this machine, real training, about 80 seconds."""
        wish = Wish(scenario.value, on_cheat.value, runtime.value, seed, keep, hold)

        async def work() -> bool:
            from node.demo.company import DemoError

            async with end_on_signals(signal.SIGTERM, signal.SIGHUP):
                try:
                    return await play(shell, wish, Console(stderr=shell.as_json, highlight=False))
                except DemoError as error:
                    raise AnswerNoError(str(error)) from error
                except asyncio.CancelledError:
                    shell.note("Interrupted; all nodes are stopped.")
                    raise KeyboardInterrupt from None

        if not shell.run(work()):
            raise AnswerNoError("the demonstration did not end as it has to; its faults are named above")
