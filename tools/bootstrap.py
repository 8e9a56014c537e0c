"""Make the virtual environment and install into it, with one line of progress for each step; used by the Makefile.

    python tools/bootstrap.py .venv ".[docker,wasm]"

Needs nothing but the standard library. All that pip says goes to a log, whose end is shown when it fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
import venv
from pathlib import Path

LOG = Path(".build") / "setup.log"
STEP = re.compile(r"^\s*(Collecting|Obtaining|Downloading|Building|Installing|Successfully|Preparing|Getting)\b[^\n]*")
SILENCE_S = 10.0
"""Without a terminal, at most one line of progress in this time."""


def main() -> int:
    """Make the environment and install; 0, or pip's own exit code."""
    folder, requirement = Path(sys.argv[1]), sys.argv[2]
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"Making {folder} with Python {sys.version.split()[0]} …", flush=True)
        venv.create(folder, with_pip=True, clear=folder.exists())
    print(f"Installing {requirement} and what it needs (once; some minutes on a slow line) …", flush=True)
    started = time.monotonic()
    command = [
        *(str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--constraint", "constraints.txt", "--editable", requirement),
    ]
    code = run_quietly(command)
    if code == 0:
        print(f"Done in {time.monotonic() - started:.0f} s.", flush=True)
    return code


def run_quietly(command: list[str]) -> int:
    """Run a command with its output in the log, one line of progress, and the log's end on failure."""
    LOG.parent.mkdir(exist_ok=True)
    lines: list[str] = []
    steps, shown_at, tty = 0, 0.0, sys.stdout.isatty()
    with (
        LOG.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            match = STEP.match(line)
            if match is None:
                continue
            steps += 1
            now = time.monotonic()
            text = f"  {steps:3}  {match[0].strip()[:100]}"
            if tty:
                print(f"\r\x1b[K{text}", end="", flush=True)
            elif now - shown_at >= SILENCE_S:
                print(text, flush=True)
                shown_at = now
    if tty:
        print("\r\x1b[K", end="", flush=True)
    if process.returncode != 0:
        print("".join(lines[-30:]), file=sys.stderr)
        print(f"error: the installation failed; all of it is in {LOG}", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
