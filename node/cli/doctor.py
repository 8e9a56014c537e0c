"""`doctor`: what is missing on this machine, and whether this installation judges as the protocol does."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from crdtchain.adapters.keys import self_test
from crdtchain.adapters.vectors import judge_vectors
from crdtchain.errors import CrdtchainError, NoPeerError, UsageError
from node.cli.remote import connect
from node.cli.shell import NO, Shell, command
from node.cli.work import make_sandboxes
from node.datadir import BLOBS_FOLDER, GENESIS_FILE, KEY_FILE, TOKEN_FILE

CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
FREE_BYTES_MIN: Final = 2**30
SKEW_MS_MAX: Final = 5_000
_MARKS: Final = {True: "ok     ", False: "missing", None: "note   "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        ok: whether it is as it should be; None: optional, and not there.
        text: what was found.
        hint: what to do, when something is to be done.
    """

    name: str
    ok: bool | None
    text: str
    hint: str = ""


def check_python() -> Finding:
    """Look at the interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", True, version)


def check_signatures() -> Finding:
    """Judge the bundled signature cases with the installed library."""
    try:
        self_test()
    except CrdtchainError as error:
        return Finding("signatures", False, str(error), "install the PyNaCl version that crdtchain names")
    return Finding("signatures", True, "libsodium judges all edge cases as the protocol does")


def check_chromium() -> Finding:
    """Look for a browser to run the browser's tests in; the page itself needs none of it here."""
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        return Finding("chromium", None, "not found", "only the browser's tests need it")
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("chromium", None, f"{path} does not start", "only the browser's tests need it")
    return Finding("chromium", True, answer.stdout.strip() or path)


def check_folder(folder: Path) -> list[Finding]:
    """Look at the data folder."""
    if not (folder / KEY_FILE).exists():
        return [Finding("data", None, f"no key in {folder}", "make one with `crdtchain init`")]
    found = []
    for name in (KEY_FILE, TOKEN_FILE):
        path = folder / name
        if path.exists() and path.stat().st_mode & 0o077:
            found.append(Finding(name, False, f"others may read {path}", f"run: chmod 600 {path}"))
    if not (folder / GENESIS_FILE).exists():
        found.append(Finding("network", None, "none yet", "use `crdtchain network create` or `crdtchain network join`"))
    free = shutil.disk_usage(folder).free
    enough = free >= FREE_BYTES_MIN
    hint = "" if enough else f"free some space for {folder / BLOBS_FOLDER}"
    found.append(Finding("disk", enough, f"{free // 2**20} MiB free", hint))
    return [Finding("data", True, str(folder)), *found]


async def check_sandboxes() -> list[Finding]:
    """Ask each backend whether it can run here."""
    found = []
    for name, sandbox in make_sandboxes().items():
        info = await sandbox.check()
        await sandbox.close()
        text = f"{info.version}" if info.usable else "not usable"
        # One backend is enough to work; docker is for jobs that bring an image.
        found.append(Finding(name, True if info.usable else None, text, info.hint))
    if not any(finding.ok for finding in found):
        found.append(Finding("sandbox", False, "none", "jobs can't run here: install `wasmtime` or docker"))
    return found


async def check_node(shell: Shell) -> list[Finding]:
    """Ask the running node how it does, and compare its clock with the newest ops of others."""
    try:
        async with connect(shell) as client:
            status = await client.status()
    except NoPeerError:
        return [Finding("node", None, "not running", "start it with `crdtchain serve`")]
    found = [Finding("node", True, f"{status['ops']} ops, {len(status['peers'])} peers")]
    skew = abs(int(status["time"]) - time.time_ns() // 1_000_000)
    if skew > SKEW_MS_MAX:
        found.append(Finding("clock", False, f"the node's clock is {skew} ms away", "restart the node"))
    if status.get("duty_stopped"):
        found.append(Finding("witness", False, status["duty_stopped"], "set the clock right and restart the node"))
    return found


def check_clock() -> Finding:
    """Ask the system whether its clock is synchronized, where it can tell."""
    tool = shutil.which("timedatectl")
    if tool is None:
        return Finding("clock", None, "can't tell whether it is synchronized", "witnesses need a right clock: use NTP")
    try:
        found = subprocess.run(
            [tool, "show", "-p", "NTPSynchronized", "--value"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return Finding("clock", None, "can't tell whether it is synchronized", "witnesses need a right clock: use NTP")
    if found.stdout.strip() == "yes":
        return Finding("clock", True, "synchronized")
    return Finding("clock", None, "not known to be synchronized", "witnesses need a right clock: use NTP")


async def examine(shell: Shell) -> list[Finding]:
    """Look at everything."""
    chromium, clock = await asyncio.gather(asyncio.to_thread(check_chromium), asyncio.to_thread(check_clock))
    return [
        check_python(),
        check_signatures(),
        *await check_sandboxes(),
        chromium,
        clock,
        *check_folder(shell.data),
        *await check_node(shell),
    ]


def judge_file(path: Path) -> dict[str, Any]:
    """Judge each case of a file of vectors with this installation.

    Raises:
        UsageError: it can't be read, or is of another format.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"the file {path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"the file {path} is not JSON") from None
    judged = judge_vectors(document)
    wrong = [case for case in judged if not case.equal]
    rows = [{"id": case.id, "expected": case.expected, "got": case.got, "code": case.code} for case in wrong]
    return {"ok": not wrong, "file": str(path), "cases": len(judged), "wrong": rows}


def _show_vectors(shell: Shell, path: Path) -> None:
    found = judge_file(path)
    lines = [f"{row['id']}: accepted {row['got']}, must be {row['expected']}" for row in found["wrong"]]
    lines.append(f"{found['cases']} cases, {len(found['wrong'])} judged otherwise than the protocol does")
    shell.show(found, "\n".join(lines))
    if not found["ok"]:
        raise typer.Exit(NO)


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "doctor", "doctor --vectors vectors/ed25519.json")
    def doctor(
        shell: Shell,
        vectors: Annotated[
            Path | None, typer.Option(metavar="FILE.json", help="Judge these cases; exit code 1 if one differs.")
        ] = None,
    ) -> None:
        """Tell what is missing on this machine, and what to do about it."""
        if vectors is not None:
            _show_vectors(shell, vectors)
            return
        findings = shell.run(examine(shell))
        ok = all(finding.ok is not False for finding in findings)
        lines = [
            f"{_MARKS[finding.ok]}  {finding.name}: {finding.text}{f' ({finding.hint})' if finding.hint else ''}"
            for finding in findings
        ]
        shell.show({"ok": ok, "findings": [asdict(finding) for finding in findings]}, "\n".join(lines))
        if not ok:
            raise typer.Exit(NO)
