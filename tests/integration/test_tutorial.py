"""The tutorial of the readme runs as it stands, but for ports, shorter windows, and all terminals in one script."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PRELUDE = """\
set -eu
note() { echo "== $*" >&2; }
is_up() {
    for _ in $(seq 300); do [ -e "play/$1/node.json" ] && return; sleep 0.1; done
    cat "play/$1.log" >&2; exit 9
}
is_in_step() {
    for _ in $(seq 100); do
        CRDTCHAIN_DATA="play/$1" crdtchain peers --json | grep -q '"synced": true' && return; sleep 0.3
    done
    cat "play/$1.log" >&2; exit 8
}
stop() {
    kill -INT "$(grep -o '"pid": *[0-9]*' "play/$1/node.json" | grep -o '[0-9]*')"
    for _ in $(seq 300); do [ -e "play/$1/node.json" ] || return 0; sleep 0.1; done
    cat "play/$1.log" >&2; exit 7
}
"""
RESULTS = """\
for who in bob carol erin; do "$who" account --json > "$who.json"; done
erin peers --json > peers.json
alice status --json > alice-status.json
erin status --json > erin-status.json
"""
SHORTER = {
    'bid_for = "2m"': 'bid_for = "60s"',
    'reveal_for = "30s"': 'reveal_for = "8s"',
    'verdict_for = "90s"': 'verdict_for = "65s"',
    "network create --name playground": "network create --delta-ms 500 --name playground",
}


def find_free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def read_blocks() -> str:
    """Return all commands of the tutorial and of the second machine, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tutorial = text[text.index("## Tutorial") : text.index("## Beside others")]
    return "".join(re.findall(r"^```sh\n(.*?)^```", tutorial, flags=re.DOTALL | re.MULTILINE))


def make_script() -> str:
    """Return the tutorial as one script: nodes in the background, and a moment where people would take one."""
    commands = read_blocks().replace("\\\n", "")
    for old, new in SHORTER.items():
        assert old in commands, old
        commands = commands.replace(old, new)
    for old_port, port in zip(
        sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", commands))), find_free_ports(8), strict=True
    ):
        commands = commands.replace(f":{old_port}", f":{port}")
    lines = []
    for line in commands.splitlines():
        if line.startswith("make venv"):
            continue
        served = re.match(r"(alice|bob|carol|erin) serve ", line)
        if served:
            name = served[1]
            lines += [f"{line} > play/{name}.log 2>&1 &", f"is_up {name}"]
            if name == "erin":
                lines += ["is_in_step erin", "sleep 3"]
            continue
        ended = re.match(r"# Ctrl-C in (\w+)'s terminal", line)
        if ended:
            lines.append(f"stop {ended[1].lower()}")
            continue
        lines += [f"note {json.dumps(line)}" if "$" not in line else "note …", line]
        if re.match(r"alice invite|JOB=|bob stake", line):
            lines.append("sleep 3")
    return PRELUDE + "\n".join(lines) + "\n" + RESULTS


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    program = tmp_path / "bin" / "crdtchain"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m node.cli.main "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", make_script()],
            cwd=tmp_path,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=360)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    assert code == 0, output.read_text()[-4000:]
    assert json.loads((tmp_path / "bob.json").read_text())["balance"] == 200
    assert json.loads((tmp_path / "carol.json").read_text())["balance"] == 110
    assert json.loads((tmp_path / "erin.json").read_text())["balance"] == 20
    connected = {peer["address"]: peer for peer in json.loads((tmp_path / "peers.json").read_text())["connected"]}
    assert len(connected) == 3, "one address is enough to find all"
    assert all(peer["synced"] for peer in connected.values())
    caught_up = [peer["last_sync"] for peer in connected.values() if peer["last_sync"]]
    assert caught_up and sum(sync["ops"] for sync in caught_up) >= 1
    statuses = [json.loads((tmp_path / f"{name}-status.json").read_text()) for name in ("alice", "erin")]
    assert statuses[0]["heads"] == statuses[1]["heads"]
    winner, model = (tmp_path / "play" / name for name in ("winner.raw", "model.raw"))
    assert winner.read_bytes() == model.read_bytes()
