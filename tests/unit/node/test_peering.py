"""The lists that people keep, `peers.list` and `peers.allow`, and the commands that write them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.adapters.address_book import AddressRow, SqliteAddresses
from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_did
from crdtchain.errors import PeerError, UsageError
from node.allow import ALLOW_FILE, Allow, read_keys
from node.book import Book, Source
from node.cli.main import main
from node.datadir import PEERS_FILE, write_private
from node.watched import add_line, read_lines, remove_lines

ALICE, BOB = SigningKey.generate().author, SigningKey.generate().author


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_without_a_file_everybody_may_and_with_an_empty_one_nobody(tmp_path: Path) -> None:
    allow = Allow.open(tmp_path, "")
    allow.check(ALICE)
    assert not allow.is_private
    path = tmp_path / ALLOW_FILE
    path.write_text("# nobody\n\n")
    with pytest.raises(PeerError, match="not on the other's list"):
        allow.check(ALICE)
    path.write_text(f"{format_did(ALICE)}   # Alice\n")
    allow.check(ALICE)
    assert not allow.is_allowed(BOB) and allow.is_private


def test_a_slip_never_opens_a_private_network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "list"
    with pytest.raises(UsageError, match="is missing"):
        Allow.open(tmp_path, "list")
    path.write_text(format_did(ALICE))
    allow = Allow.open(tmp_path, "list")
    for content in (b"did:key:nonsense\n", b"\xff\xfe", b"#" * 2**21):
        path.write_bytes(content)
        assert allow.keys == {ALICE}
    path.unlink()
    assert allow.keys == {ALICE}
    assert "stays as it was" in caplog.text and "is gone" in caplog.text
    path.write_text(format_did(BOB))
    assert allow.keys == {BOB}
    (tmp_path / ALLOW_FILE).write_text("did:key:nonsense")
    with pytest.raises(UsageError, match="no did:key"):
        Allow.open(tmp_path, "")


@given(st.lists(st.sampled_from(["a", "b", "# c", "", "a  # d", "  b"])), st.booleans())
def test_adding_and_removing_lines_keeps_all_others(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ends: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    assert read_lines(path) is None
    path.write_text("\n".join(lines) + ("\n" if ends else ""))
    before = read_lines(path) or []
    assert add_line(path, "x", "header", write_private)
    assert not add_line(path, "x", "header", write_private)
    assert read_lines(path) == [*before, "x"]
    assert remove_lines(path, lambda line: line in ("x", "a"), write_private)
    assert read_lines(path) == [line for line in before if line != "a"]
    assert [line for line in path.read_text().splitlines() if line.startswith("#")] == [
        line for line in lines if line.startswith("#")
    ]
    assert os.stat(path).st_mode & 0o077 == 0


def test_people_allow_and_forbid_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alice, bob = format_did(ALICE), format_did(BOB)
    code, _, err = call(capsys, "peers", "forbid", alice, "--data", tmp_path)
    assert code == 2 and "there is no list" in err
    code, out, err = call(capsys, "peers", "allow", alice, "--data", tmp_path, "--json")
    assert code == 0 and json.loads(out)["allowed"] == [alice] and "Only nodes on the list" in err
    code, out, err = call(capsys, "--data", tmp_path, "peers", "--json", "allow", bob)
    assert code == 0 and json.loads(out)["allowed"] == [alice, bob] and "Only nodes" not in err
    assert call(capsys, "peers", "allow", bob, "--data", tmp_path)[0] == 0
    assert read_keys(tmp_path / ALLOW_FILE) == {ALICE, BOB}
    assert call(capsys, "peers", "forbid", alice, "--data", tmp_path)[0] == 0
    code, _, err = call(capsys, "peers", "forbid", alice, "--data", tmp_path)
    assert code == 2 and "is not on the list" in err
    code, _, err = call(capsys, "peers", "forbid", bob, "--data", tmp_path)
    assert code == 0 and "nobody may connect" in err
    assert call(capsys, "peers", "allow", "bob", "--data", tmp_path)[0] == 2
    assert call(capsys, "peers", "allow", bob, "--data", tmp_path / "nowhere")[0] == 2
    (tmp_path / "config.toml").write_text('allow = "friends"\n')
    assert call(capsys, "peers", "allow", alice, "--data", tmp_path)[0] == 0
    assert read_keys(tmp_path / "friends") == {ALICE}


def test_people_add_and_forget_addresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "peers", "add", "wss://example.org/a/", "--data", tmp_path, "--json")
    assert code == 0 and json.loads(out)["address"] == "https://example.org/a"
    assert call(capsys, "peers", "add", "https://example.org/a", "--data", tmp_path)[0] == 0
    assert call(capsys, "peers", "add", "http://192.0.2.1:5", "--data", tmp_path)[0] == 0
    assert read_lines(tmp_path / PEERS_FILE) == ["https://example.org/a", "http://192.0.2.1:5"]
    assert call(capsys, "peers", "forget", "192.0.2.1:5", "--data", tmp_path)[0] == 0
    code, _, err = call(capsys, "peers", "forget", "192.0.2.1:5", "--data", tmp_path)
    assert code == 2 and "no known address" in err
    assert call(capsys, "peers", "add", "nonsense://", "--data", tmp_path)[0] == 2
    assert call(capsys, "peers", "add", "http://a", "--data", tmp_path / "nowhere")[0] == 2
    (tmp_path / "config.toml").write_text('peers = ["http://example.org:9"]\n')
    (tmp_path / PEERS_FILE).write_text("example.org:9\n")
    code, _, err = call(capsys, "peers", "forget", "http://example.org:9", "--data", tmp_path)
    assert code == 0 and "take it out there" in err


def test_an_address_of_the_book_is_forgotten_while_no_node_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fill() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        await SqliteAddresses.of(store).save([AddressRow("http://old.example.org:1", Source.TOLD.value)], [])
        await store.close()

    async def count() -> int:
        store = SqliteStore(tmp_path)
        await store.open()
        book = Book(SqliteAddresses.of(store), lambda: 1)
        await book.load()
        await store.close()
        return len(book.rows)

    asyncio.run(fill())
    assert asyncio.run(count()) == 1
    assert call(capsys, "peers", "forget", "old.example.org:1", "--data", tmp_path)[0] == 0
    assert asyncio.run(count()) == 0
