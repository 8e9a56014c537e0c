"""Bad input of people and strangers: one sentence, the right exit code, and nobody else drives the terminal."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crdtchain.errors import UsageError
from node.cli import accounts, job_watch, jobs, status
from node.cli.main import main
from node.cli.shell import Shell, report
from node.logs import set_up_logs

pytestmark = pytest.mark.integration

HOSTILE = [
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b2J",
    "sent 5\rsent 9",
    "\u202etxet",
    "[/nothing]",
    "[link=http://192.0.2.1]here[/link]",
]
FORBIDDEN = frozenset("\x1b\x07\x9b\r\u202e")


def hostile_job(text: str) -> dict[str, Any]:
    bid = {
        "id": "b" * 59, "author": "did:key:z6Mk", "name": text, "loss": 1, "status": "seen", "reason": text,
        "reveals": [],
    }  # fmt: skip
    return {
        "id": "b" * 59, "title": text, "phase": "bidding", "bounty": 1, "stake": 1, "pool": 0, "bids": 1,
        "leading": None, "bid_until": 1, "reveal_until": 2, "verdict_until": 3, "status": "seen", "seen": 1,
        "witnesses": 1, "poster": "did:key:z6Mk", "metric": "mse", "runtime": "wasm", "outcome": None,
        "terms": {"on_cheat": "next", "tolerance": 1, "task": {"image": text}}, "leaderboard": [bid],
    }  # fmt: skip


def hostile_account(text: str) -> dict[str, Any]:
    return {
        "did": "did:key:z6Mk", "name": text, "balance": 1, "certified_balance": 1, "banned": False,
        "equivocated": False, "grant": 0, "history": [], "incoming": [],
    }  # fmt: skip


def hostile_peers(text: str) -> dict[str, Any]:
    return {"connected": [], "failed": {"http://192.0.2.1:1": text}}


PRINTERS: list[Callable[[str], Callable[[Console], None] | str]] = [
    lambda text: lambda out: jobs.show_list(out, [hostile_job(text)]),
    lambda text: lambda out: jobs.show_job(out, hostile_job(text)),
    lambda text: lambda out: out.print(job_watch.render(hostile_job(text), 0)),
    lambda text: lambda out: accounts.show_account(out, hostile_account(text)),
    lambda text: status.describe_peers(hostile_peers(text)),
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("printer", range(len(PRINTERS)))
def test_no_text_of_a_stranger_drives_the_terminal(
    printer: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    Shell(tmp_path, as_json=False, debug=False).show({}, PRINTERS[printer](text))
    out = capsys.readouterr().out
    assert not FORBIDDEN & set(out)
    if text.startswith("["):
        assert text in out


@pytest.mark.parametrize("text", HOSTILE)
def test_json_carries_any_text_and_shows_none_of_it_to_the_terminal(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shell(tmp_path, as_json=True, debug=False).show({"title": text}, "")
    out = capsys.readouterr().out
    assert json.loads(out) == {"title": text}
    assert not FORBIDDEN & set(out)


@pytest.mark.parametrize("text", HOSTILE)
def test_notes_errors_and_logs_are_cleaned_too(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shell(tmp_path, as_json=False, debug=False).note(text)
    assert report(UsageError(f"a peer said {text}")) == 2
    root = logging.getLogger()
    before, level, stream = root.handlers[:], root.level, io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", stream)
            set_up_logs()
            logging.getLogger("node.test").warning("The peer closed: %s", f"{text}\n2026-01-01 I All is well.")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    err = capsys.readouterr().err
    assert "a peer said" in err and not FORBIDDEN & set(err)
    assert "The peer closed" in stream.getvalue() and not FORBIDDEN & set(stream.getvalue())
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"x\n", b"\xa0", b"\x00" * 4_096], ids=["empty", "text", "map", "zeros"])
@pytest.mark.parametrize("words", [("status",), ("network", "show"), ("job", "post", "none.toml")], ids=" ".join)
def test_a_damaged_copy_of_genesis_is_the_folders_fault_and_named(
    words: tuple[str, ...], content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "data")
    assert main(["init", "--data", folder]) == 0
    assert main(["network", "create", "--name", "x", "--data", folder]) == 0
    (tmp_path / "data" / "genesis.cbor").write_bytes(content)
    capsys.readouterr()
    assert main([*words, "--data", folder]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"error: the file {folder}/genesis.cbor is damaged")
