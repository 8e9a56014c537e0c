"""Bad input of people and strangers: one sentence, the right exit code, and nobody else drives the terminal."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crdtchain.codec import format_did
from crdtchain.errors import UsageError
from node.cli import accounts, connections, job_watch, jobs
from node.cli.main import main
from node.cli.shell import Shell, report
from node.datadir import create_data, join_network
from node.logs import set_up_logs
from tests.integration.node_process import ROOT, NodeProcess, nodes

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
    ended = {"address": "192.0.2.2", "node": None, "reason": text, "time": 1}
    return {"connected": [], "failed": {"http://192.0.2.1:1": text}, "ended": [ended]}


PRINTERS: list[Callable[[str], Callable[[Console], None] | str]] = [
    lambda text: lambda out: jobs.show_list(out, [hostile_job(text)]),
    lambda text: lambda out: jobs.show_job(out, hostile_job(text)),
    lambda text: lambda out: out.print(job_watch.render(hostile_job(text), 0)),
    lambda text: lambda out: accounts.show_account(out, hostile_account(text)),
    lambda text: connections.describe_peers(hostile_peers(text)),
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


@pytest.mark.asyncio
async def test_what_the_ledger_or_the_machine_refuses_has_its_code_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def call(node: NodeProcess, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*words, "--data", str(node.folder)])
        return code, *capsys.readouterr()

    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    file = tmp_path / "examples" / "digits-wasm" / "job.toml"
    rich, lost = file.with_name("rich.toml"), file.with_name("lost.toml")
    rich.write_text(file.read_text().replace("bounty = 100", "bounty = 100000"))
    lost.write_text(file.read_text().replace("digits_test_y", "lost"))
    async with nodes(tmp_path, 2) as made:
        founder, newcomer = made[0], NodeProcess(tmp_path / "new", create_data(tmp_path / "new"))
        await founder.start(witness=True)
        await join_network(newcomer.folder, founder.peer)
        try:
            await newcomer.start(founder.peer)
            posted = [json.loads((await call(founder, "job", "post", str(file), "--json"))[1])["id"] for _ in range(2)]
            did = format_did(made[1].key.author)
            before = await founder.status()
            rejected = [
                (founder, ("transfer", did, "1000000")),
                (founder, ("job", "post", str(rich))),
                (founder, ("bid", posted[0], str(ROOT / "pyproject.toml"), "--loss", "1")),
                (newcomer, ("transfer", did, "1")),
                (newcomer, ("stake", posted[0])),
            ]
            for node, words in rejected:
                code, out, err = await call(node, *words)
                assert (code, out) == (4, ""), (words, code, err)
                assert err.startswith("error: ") and err.count("\n") == 1
            usage = [
                ("job", "show", "b"),
                ("job", "show", "../../key"),
                ("job", "show", "\x1b[2J"),
                ("serve", "--local", "127.0.0.1:0"),
                ("job", "post", str(lost)),
            ]
            for words in usage:
                code, out, err = await call(founder, *words)
                assert (code, out) == (2, ""), (words, code, err)
                assert err.startswith("error: ") and err.count("\n") == 1 and "\x1b" not in err
            after = await founder.status()
            assert (after["balance"], after["jobs"]) == (before["balance"], before["jobs"])
            assert (await newcomer.status())["balance"] == 0
        finally:
            if newcomer.process is not None:
                newcomer.kill()
