"""Plant known bugs, one at a time, and see that the tests named for each turn red: the suite has teeth.

    python -m tools.mutants                     all of them
    python -m tools.mutants quorum wasm-fuel    those whose names contain one of the words
    python -m tools.mutants --list              only list them

Bugs are in `tools/planted_*.py`, each a list `PLANTED` of (name, file, old text, new text, tests). The old text must
stand in the file exactly once. `tests` are pytest's arguments, separated by spaces. Each bug is planted into a copy of
the tree in a temporary folder; the working tree is never touched. Exit code 1 when a bug survives, can't be planted any
more, or the tests are red without any bug.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Final

import tools

ROOT: Final = Path(__file__).parent.parent
FOLDERS: Final = ("crdtchain", "node", "tests", "tools", "docs", "examples", "browser", "bench")
TIME_LIMIT_S: Final = 900
"""A bug that makes its tests hang for so long counts as found."""


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug that can be planted."""

    name: str
    file: str
    old: str
    new: str
    tests: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one bug."""

    bug: Bug
    verdict: str
    """`found`, `survives`, or why it could not be judged."""
    seconds: float
    detail: str = ""


def load_bugs() -> list[Bug]:
    """Return the bugs of all modules tools/planted_*.py."""
    names = sorted(module.name for module in pkgutil.iter_modules(tools.__path__) if module.name.startswith("planted_"))
    bugs = [Bug(*row) for name in names for row in importlib.import_module(f"tools.{name}").PLANTED]
    twice = {bug.name for bug in bugs if sum(other.name == bug.name for other in bugs) > 1}
    if twice:
        raise SystemExit(f"error: names of bugs must be unique: {', '.join(sorted(twice))}")
    return bugs


def copy_tree(target: Path) -> None:
    """Copy what tests need to another folder."""
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", ".*")
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, target / path.name)
    if (ROOT / ".ci").is_dir():
        shutil.copytree(ROOT / ".ci", target / ".ci")


def run_tests(folder: Path, tests: str) -> tuple[int, str]:
    """Run tests in a copy of the tree; returns pytest's exit code (124: time is up) and its last lines."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        *shlex.split(tests),
    ]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "ci"}
    environment["CI"] = "true"  # where a part is missing, a test must be red, not skipped: it could find nothing
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end within {TIME_LIMIT_S} s"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, "\n".join(lines[-4:])


def judge(bug: Bug, folder: Path) -> Finding:
    """Plant one bug into a copy of the tree, run its tests, and put the file back."""
    started = time.monotonic()
    path = folder / bug.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    count = text.count(bug.old)
    if count != 1:
        return Finding(bug, "not planted", 0.0, f"its old text stands in {bug.file} {count} times")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
    try:
        code, tail = run_tests(folder, bug.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    verdict = {0: "survives", 1: "found", 124: "found"}.get(code, f"not judged (pytest's exit code {code})")
    return Finding(bug, verdict, time.monotonic() - started, "" if verdict == "found" else tail)


def judge_all(bugs: Sequence[Bug], workers: int) -> list[Finding]:
    """Judge all bugs, some at a time, each in one of as many copies of the tree."""
    with tempfile.TemporaryDirectory(prefix="crdtchain-mutants-") as work, ThreadPoolExecutor(workers) as pool:
        folders: Queue[Path] = Queue()
        for number in range(workers):
            copy_tree(Path(work, str(number)))
            folders.put(Path(work, str(number)))

        def with_folder(bug: Bug) -> Finding:
            folder = folders.get()
            try:
                return show(judge(bug, folder))
            finally:
                folders.put(folder)

        red = find_red(sorted({bug.tests for bug in bugs}), folders, pool)
        findings = [Finding(bug, "not judged", 0.0, "its tests are red without it") for bug in bugs if bug.tests in red]
        return [*findings, *pool.map(with_folder, [bug for bug in bugs if bug.tests not in red])]


def find_red(tests: Iterable[str], folders: Queue[Path], pool: ThreadPoolExecutor) -> set[str]:
    """Return those of the sets of tests that fail without any bug: they could not find one."""

    def is_red(selection: str) -> bool:
        folder = folders.get()
        try:
            code, tail = run_tests(folder, selection)
        finally:
            folders.put(folder)
        if code != 0:
            print(f"red without any bug: {selection}\n{tail}", flush=True)
        return code != 0

    selections = list(tests)
    print(f"Running {len(selections)} sets of tests without any bug …", flush=True)
    return {selection for selection, red in zip(selections, pool.map(is_red, selections), strict=True) if red}


def show(finding: Finding) -> Finding:
    """Print one line about a finding, and more when the bug was not found."""
    print(f"{finding.verdict:<12} {finding.seconds:6.1f} s  {finding.bug.name:<36} {finding.bug.file}", flush=True)
    if finding.detail:
        print("    " + finding.detail.replace("\n", "\n    "), flush=True)
    return finding


def main() -> int:
    """Judge the bugs that the arguments select."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants", description="Plant known bugs; tests must find each."
    )
    parser.add_argument("words", nargs="*", help="only bugs whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="only list the bugs")
    parser.add_argument("--workers", type=int, default=2, help="bugs judged at a time (2)")
    arguments = parser.parse_args()
    bugs = [bug for bug in load_bugs() if not arguments.words or any(word in bug.name for word in arguments.words)]
    if arguments.list:
        for bug in bugs:
            print(f"{bug.name:<36} {bug.file:<44} {bug.tests}")
        return 0
    if not bugs:
        print("error: no bug has such a name; --list shows all", file=sys.stderr)
        return 2
    findings = judge_all(bugs, max(1, arguments.workers))
    found = sum(finding.verdict == "found" for finding in findings)
    print(f"\n{found} of {len(findings)} planted bugs were found.")
    for finding in findings:
        if finding.verdict != "found":
            print(f"  {finding.bug.name}: {finding.verdict}")
    return 0 if found == len(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
