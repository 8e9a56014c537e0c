"""The command line without a node: help, wrong usage, exit codes, results as JSON, and what helpers decide."""

from __future__ import annotations

import asyncio
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from crdtchain import limits
from crdtchain.codec import format_cid
from crdtchain.errors import (
    CrdtchainError,
    InvalidOpError,
    KeyFileError,
    NoPeerError,
    PeerError,
    RuleError,
    SandboxError,
    StoreError,
    UsageError,
)
from node.allow import REFUSED
from node.cli.accounts import show_account
from node.cli.archive import parse_moment
from node.cli.connections import describe_peers
from node.cli.importing import BlobAssembler
from node.cli.job_watch import render
from node.cli.main import app, main
from node.cli.network import parse_grants
from node.cli.shell import AnswerNoError, Shell, find_exit_code, find_one, shorten
from node.jobfile import compute_data_id

ROOT = Path(__file__).parents[3]
ALICE = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"


def list_commands() -> Iterator[list[str]]:
    """Yield the words of every command."""

    def walk(command: Any, words: list[str]) -> Iterator[list[str]]:
        if hasattr(command, "commands"):
            if words and command.invoke_without_command:
                yield words
            for name, child in command.commands.items():
                yield from walk(child, [*words, name])
        else:
            yield words

    yield from walk(typer.main.get_command(app), [])


COMMANDS = list(list_commands())


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_all_commands_of_the_design_are_there() -> None:
    names = {" ".join(words) for words in COMMANDS}
    assert names >= {
        "init", "network create", "network join", "network show", "serve", "status", "peers", "doctor", "account",
        "transfer", "invite", "key export", "key import", "job post", "job list", "job show", "job watch", "job model",
        "job try", "stake", "bid", "reveal", "claim", "vote", "blob put", "blob get", "work", "export", "import",
        "audit",
    }  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_each_command_has_an_example_and_the_common_options(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert f"Example: crdtchain {' '.join(words)}" in text
    for option in ("--data", "--json", "--debug"):
        assert option in text


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("job", "nonsense"),
        ("status", "--nonsense"),
        ("transfer",),
        ("transfer", ALICE, "0"),
        ("transfer", ALICE, "many"),
        ("vote", "bafy", "perhaps"),
        ("network", "create"),
        ("network", "create", "--name", "x", "--delta-ms", "0"),
        ("network", "create", "--name", "x", "--grant", "alice"),
        ("network", "create", "--name", "x", "--witness", "alice"),
        ("init", "--name", "x" * 101),
        ("job", "try", "none.toml"),
        ("work", "none.toml"),
        ("doctor", "--vectors", "none.json"),
        ("audit", "none.car"),
        ("import", "none.car"),
        ("export", "x.car", "--full", "--job", "b"),
        ("blob", "get", "x", "-o", "y"),
        ("blob", "put", "none"),
        ("serve", "--local", "nowhere"),
        ("serve", "--log-level", "loud"),
        ("key", "import", "none.key"),
        ("key", "export", "out.key"),
        ("status",),
        ("network", "show"),
        ("vote", "bafy", "valid", "--loss", "-1"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words, "--data", str(tmp_path / "data"))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.endswith(".\n") and err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code"),
    [(("status",), 2), (("stauts",), 2), (("demo", "--scenario", "x"), 2), (("job",), 2), (("job", "list"), 3)],
)
def test_an_error_is_a_document_too(
    words: tuple[str, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = call(capsys, "--data", str(tmp_path), *words, "--json")
    document = json.loads(out)
    assert (found, document["exit_code"]) == (code, code)
    assert document["error"] and "Value error" not in err and "?." not in err


@pytest.mark.parametrize("words", [("job", "list"), ("peers",), ("account",), ("job", "show", "b"), ("claim", "b")])
def test_without_a_node_the_exit_code_is_3(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "--data", str(tmp_path), *words)
    assert (code, out) == (3, "")
    assert err == f"error: no node runs in {tmp_path}: start it with 'crdtchain serve'.\n"


def test_debug_adds_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "job", "list", "--data", str(tmp_path), "--debug")
    assert code == 3
    assert "Traceback" in err and err.rstrip().endswith("start it with 'crdtchain serve'.")


def test_a_bug_is_one_sentence_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("node.cli.init.create_data", fail)
    code, out, err = call(capsys, "init")
    assert (code, out) == (2, "")
    assert err == "error: this is a bug in crdtchain (ZeroDivisionError: oops); run the command again with --debug.\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (KeyFileError("x"), 2),
        (StoreError("x"), 2),
        (AnswerNoError("x"), 1),
        (NoPeerError("x"), 3),
        (PeerError("x"), 3),
        (RuleError("balance", "x"), 4),
        (InvalidOpError("x", "x"), 4),
        (SandboxError("x"), 5),
        (KeyboardInterrupt(), 130),
        (asyncio.CancelledError(), 130),
        (ValueError(), 2),
    ],
)
def test_the_exit_code_says_whose_fault_it_is(error: BaseException, code: int) -> None:
    assert find_exit_code(error) == code
    assert isinstance(error, CrdtchainError) or code in (2, 130)


def test_a_network_is_founded_shown_and_its_status_read_without_a_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "data")
    code, out, _ = call(capsys, "--json", "init", "--name", "alice", "--data", folder)
    did = json.loads(out)["did"]
    assert code == 0 and did.startswith("did:key:z6Mk")
    assert stat.S_IMODE((tmp_path / "data" / "key").stat().st_mode) == 0o600
    code, out, _ = call(capsys, "network", "create", "--name", "n", "--grant", f"{did}=7", "--data", folder, "--json")
    network = json.loads(out)
    assert code == 0 and network["grants"] == {did: 7} and network["witnesses"] == [did]
    code, out, _ = call(capsys, "status", "--data", folder, "--json")
    status = json.loads(out)
    assert code == 0
    assert status["network"] == network["network"] and status["did"] == did and status["balance"] == 7
    assert status["ops"] == 1 and status["heads"] == [network["network"]]
    assert set(status) >= {"heads_digest", "state_digest", "peers", "waiting"}
    assert call(capsys, "network", "create", "--name", "m", "--data", folder)[0] == 2
    assert call(capsys, "network", "show", "--data", folder)[1].startswith(network["network"])


def test_a_key_travels_by_file_and_never_replaces_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, file = str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "key")
    did = call(capsys, "init", "--data", first)[1].strip()
    assert call(capsys, "key", "export", file, "--data", first)[0] == 0
    assert call(capsys, "key", "import", file, "--data", second)[1].strip() == did
    assert call(capsys, "key", "import", file, "--data", second)[0] == 2
    assert call(capsys, "key", "export", file, "--data", first)[0] == 2


def test_export_import_and_audit_work_without_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, car = str(tmp_path / "a"), str(tmp_path / "b"), tmp_path / "x.car"
    call(capsys, "init", "--data", first)
    call(capsys, "network", "create", "--name", "n", "--data", first)
    assert call(capsys, "export", str(car), "--data", first)[0] == 0
    code, out, _ = call(capsys, "import", str(car), "--data", second, "--json")
    assert code == 0 and json.loads(out)["added"] == 1
    code, out, _ = call(capsys, "import", str(car), "--data", second, "--json")
    assert json.loads(out) == {"added": 0, "known": 1, "waiting": 0, "blobs": 0, "rejected": [], "missing": []}
    for source in (str(car), second):
        code, out, _ = call(capsys, "audit", source, "--json")
        assert code == 0 and json.loads(out)["ok"] and json.loads(out)["ops"] == 1
    data = bytearray(car.read_bytes())
    data[-1] ^= 1
    car.write_bytes(data)
    code, out, _ = call(capsys, "audit", str(car), "--json")
    assert code == 1 and json.loads(out)["faults"]
    assert call(capsys, "import", str(car), "--data", second)[0] == 2


def test_a_file_of_another_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        call(capsys, "init", "--data", str(tmp_path / name))
        call(capsys, "network", "create", "--name", name, "--data", str(tmp_path / name))
    call(capsys, "export", str(tmp_path / "a.car"), "--data", str(tmp_path / "a"))
    code, _, err = call(capsys, "import", str(tmp_path / "a.car"), "--data", str(tmp_path / "b"))
    assert code == 2 and "the file is of another network" in err


def test_vectors_are_judged_and_a_difference_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps({"cases": [{"id": "one", "hex": "01", "accept": True}]}))
    code, out, _ = call(capsys, "doctor", "--vectors", str(path), "--json")
    assert code == 0 and json.loads(out) == {"ok": True, "file": str(path), "cases": 1, "wrong": []}
    path.write_text(json.dumps({"cases": [{"id": "one", "hex": "01", "accept": False}]}))
    code, out, _ = call(capsys, "doctor", "--vectors", str(path))
    assert code == 1 and out.startswith("one: ")
    path.write_text("[]")
    assert call(capsys, "doctor", "--vectors", str(path))[0] == 2


def test_ids_may_be_shortened_to_what_is_unambiguous() -> None:
    known = ["bafyreiaaa", "bafyreiaab", ALICE]
    assert find_one("bafyreiaab", known, "job") == "bafyreiaab"
    assert find_one("z6Mkha", known, "account") == ALICE
    assert find_one("did:key:z6Mkha", known, "account") == ALICE
    assert find_one(shorten(ALICE), known, "account") == ALICE
    with pytest.raises(UsageError, match="bafyreiaa fits 2 jobs, such as bafyreiaaa and bafyreiaab"):
        find_one("bafyreiaa", known, "job")
    for text in ("bafyreix", ""):
        with pytest.raises(UsageError, match="there is no job"):
            find_one(text, known, "job")


def test_grants_are_pairs() -> None:
    assert list(parse_grants([f"{ALICE}=5"]).values()) == [5]
    for texts in ([f"{ALICE}=0"], [ALICE], [f"{ALICE}=5", f"{ALICE}=6"], [f"{ALICE}=9007199254740992"], ["=5"]):
        with pytest.raises(UsageError):
            parse_grants(texts)


def test_moments_have_a_zone() -> None:
    assert parse_moment("1800000000000") == 1_800_000_000_000
    assert parse_moment("2027-01-15T08:00:00Z") == 1_800_000_000_000
    assert parse_moment("bafyrei") is None
    with pytest.raises(UsageError, match="with its time zone"):
        parse_moment("2027-01-15T08:00:00")


def test_chunks_are_put_together_behind_their_list() -> None:
    from node.blobs import encode_chunk_list

    parts = [bytes(2**20), b"rest"]
    ids = [compute_data_id(part) for part in parts]
    whole = b"".join(parts)
    assembler = BlobAssembler()
    assert assembler.take(compute_data_id(b"small"), b"small") == b"small"
    assert assembler.take(compute_data_id(whole), encode_chunk_list(len(whole), ids)) is None
    assert assembler.take(ids[0], parts[0]) is None
    assert assembler.take(ids[1], parts[1]) == whole
    assert assembler.take(ids[1], parts[1]) == parts[1]


def test_a_watched_job_shows_phase_countdown_and_leader() -> None:
    from rich.console import Console

    bid: dict[str, Any] = {
        "id": "bafyreib", "author": ALICE, "name": None, "loss": 250_000, "status": "leading", "reason": "",
        "reveals": [],
    }  # fmt: skip
    job = {
        "title": "Digits", "phase": "bidding", "bid_until": 90_000, "bounty": 100, "stake": 5, "pool": 10,
        "metric": "log_loss", "status": "certified", "leaderboard": [bid], "outcome": None,
    }  # fmt: skip
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(job, 30_000))
    text = console.export_text()
    assert "Digits  bidding  1m left" in text and "0.250000" in text and "leading" in text


def test_an_account_shows_its_history() -> None:
    from rich.console import Console

    row = {"id": "bafyreic", "kind": "stake", "change": -5, "balance": 95, "status": "certified"}
    account = {
        "did": ALICE, "name": "alice", "balance": 95, "certified_balance": 95, "banned": False, "equivocated": True,
        "grant": 100, "history": [row], "incoming": [],
    }  # fmt: skip
    console = Console(width=120, record=True, file=io.StringIO())
    show_account(console, account)
    text = console.export_text()
    assert f"{ALICE} (alice)" in text and "-5" in text and "+100" in text and "equivocated" in text


def test_the_shell_prints_one_document_or_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shell(tmp_path, as_json=True, debug=False).show({"a": "é"}, "text")
    assert json.loads(capsys.readouterr().out) == {"a": "é"}
    Shell(tmp_path, as_json=False, debug=False).show({"a": 1}, "did:key:z [bold]")
    assert capsys.readouterr().out == "did:key:z [bold]\n"


def test_trying_a_job_prints_the_loss_a_bid_would_announce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "examples/digits-wasm/job.toml").read_text().replace("epochs = 300", "epochs = 3")
    text = text.replace('"trainer.wasm"]', f'"{ROOT}/examples/digits-wasm/trainer.wasm"]')
    (tmp_path / "job.toml").write_text(text.replace('"../digits/', f'"{ROOT}/examples/digits/'))
    words = ("job", "try", str(tmp_path / "job.toml"), "--seed", "5", "-o", str(tmp_path / "model.raw"), "--json")
    code, out, _ = call(capsys, *words)
    first = json.loads(out)
    assert code == 0 and 0 < first["loss"] < 2_500_000 and first["seed"] == 5
    assert (tmp_path / "model.raw").stat().st_size == first["model_bytes"] == 19_280
    assert json.loads(call(capsys, *words)[1])["loss"] == first["loss"]
    (tmp_path / "bad.toml").write_text(
        text.replace('"trainer.wasm"]', '"job.toml"]')
        .replace("trainer.wasm", "job.toml")
        .replace('"../digits/', f'"{ROOT}/examples/digits/')
    )
    code, out, err = call(capsys, "job", "try", str(tmp_path / "bad.toml"))
    assert (code, out) == (5, "") and err.splitlines()[-1].startswith("error: training ended as ")


def test_peers_say_how_each_connection_stands_and_why_others_are_missing() -> None:
    peer = {
        "address": "http://192.0.2.7:8471", "node": ALICE, "dialled": True, "synced": False, "ops": 68,
        "lacking_here": 12, "lacking_there": 3, "live": "pushed", "partial": True,
        "traffic": {"received_bytes": 4_200, "sent_bytes": 900},
        "last_sync": {"ops": 12, "op_bytes": 3_100, "round_trips": 2, "negotiated_bytes": 188},
    }  # fmt: skip
    gone = "http://192.0.2.8:8471"
    ended = [
        {"address": "192.0.2.9", "node": ALICE, "reason": reason, "time": 0}
        for reason in ("already connected", REFUSED, f"the peer closed: {REFUSED}", "the peer closed: so it is")
    ]
    lines = describe_peers(
        {"connected": [peer], "failed": {gone: f"nobody answers at {gone}: connection refused"}, "ended": ended}
    ).splitlines()
    assert lines[:4] == [
        "http://192.0.2.7:8471  z6MkhaXgBZDvotDkL5  dialled from here, keeps a part",
        "    catching up: it has 68 ops, 12 of them are missing here, it lacks 3 of ours",
        "    last sync: 12 ops (3.1 kB) in 2 round trips and 188 B of negotiation",
        "    in all: 4.2 kB received, 900 B sent; new ops are pushed",
    ]
    assert lines[4:6] == [gone, "    not connected: nobody answers: connection refused"]
    assert [line.partition(": ")[2] for line in lines[7::2]] == [
        "its key is not allowed here (`crdtchain peers allow`)",
        "it does not allow this node's key",
        "it said: so it is",
    ]


def test_a_blob_that_can_not_work_is_refused_before_a_node_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(limits.BLOB_BYTES_MAX + 1)
    code, _, err = call(capsys, "blob", "put", str(huge), "--data", str(tmp_path))
    assert code == 2 and "at most 256 MiB" in err
    cid = format_cid(b"\x01\x55\x12\x20" + bytes(32))
    code, _, err = call(capsys, "blob", "get", cid, "-o", str(tmp_path / "no" / "file"), "--data", str(tmp_path))
    assert code == 2 and "name a file in a folder that is there" in err
