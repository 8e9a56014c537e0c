"""A ledger moved by files alone: what the other side lacks, whole rounds, files that are not what they should be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crdtchain.adapters.car import read_car, read_roots, write_car
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import compute_op_id, format_cid
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, SignedOp, Transfer
from crdtchain.scalars import OpId
from crdtchain.scopes import ScopeIndex, make_selector
from node.cli.main import main
from node.datadir import GENESIS_FILE, create_data
from node.hold import list_links
from tests.builders import World

AHEAD = 12
"""Ops that each side says alone."""


class Folders:
    """Two data folders with a common past, and what each of them said alone."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        self.world = World()
        self.world.play_job("alice", {"bob": [90, 80]})
        self.common = list(self.world.log)
        heads = self.world.ledger.dag.head_ids()
        pairs = (("alice", "bob"), ("bob", "alice"))
        self.own = {name: [self.speak(name, other, heads) for _ in range(AHEAD)] for name, other in pairs}
        for name, ops in self.own.items():
            self.fill(name, [*self.common, *ops])

    def speak(self, name: str, other: str, parents: Sequence[OpId]) -> SignedOp:
        return self.world.say(name, Transfer(to=self.world.key(other), amount=1, memo=None), parents=parents)

    def fill(self, name: str, ops: list[SignedOp]) -> None:
        folder = self.path / name
        create_data(folder)
        (folder / GENESIS_FILE).write_bytes(ops[0].block)

        async def work() -> None:
            store = SqliteStore(folder)
            await store.open()
            await store.append(ops, durable=False)
            await store.close()

        asyncio.run(work())

    def call(self, name: str, *words: object) -> tuple[int, str, str]:
        code = main([*map(str, words), "--data", str(self.path / name)])
        out, err = self._capsys.readouterr()
        return code, out, err

    def ask(self, name: str, *words: object) -> dict[str, Any]:
        code, out, err = self.call(name, *words, "--json")
        assert code == 0, err
        return dict(json.loads(out))

    def write_status(self, name: str) -> Path:
        path = self.path / f"{name}.json"
        path.write_text(self.call(name, "status", "--json")[1])
        return path


@pytest.fixture
def folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folders:
    return Folders(tmp_path, capsys)


def test_two_sides_that_went_apart_meet_again_by_two_files(folders: Folders) -> None:
    files = {}
    for name, other in (("alice", "bob"), ("bob", "alice")):
        files[name] = folders.path / f"{name}.car"
        done = folders.ask(name, "export", files[name], "--for", folders.write_status(other))
        # The head is unknown, and the sample's ops lie ever further back: never twice as far as they have to.
        assert AHEAD <= done["ops"] <= 3 * AHEAD < len(folders.common)
        assert done["unknown_heads"] == 1
        assert list(read_roots(files[name])) == [folders.own[name][-1].op.id]
        assert next(read_car(files[name]))[0] == folders.world.network
    for name, other in (("alice", "bob"), ("bob", "alice")):
        done = folders.ask(name, "import", files[other])
        assert (done["added"], done["waiting"], done["rejected"], done["missing"]) == (AHEAD, 0, [], [])
        assert folders.ask(name, "import", files[other])["added"] == 0
    both = [folders.ask(name, "status") for name in ("alice", "bob")]
    assert both[0]["heads_digest"] == both[1]["heads_digest"] == folders.world.ledger.heads_digest().hex()
    assert both[0]["state_digest"] == both[1]["state_digest"]
    nothing = folders.ask("alice", "export", folders.path / "none.car", "--for", folders.write_status("bob"))
    assert (nothing["ops"], nothing["unknown_heads"]) == (0, 0)
    assert [cid for cid, _ in read_car(folders.path / "none.car")] == [folders.world.network]


def test_people_are_told_that_the_other_side_has_more(folders: Folders) -> None:
    code, _, err = folders.call("alice", "export", folders.path / "x.car", "--for", folders.write_status("bob"))
    assert code == 0 and "1 of the other side's 1 heads are not here" in " ".join(err.split())


def test_who_is_only_behind_gets_what_it_lacks_and_no_more(folders: Folders) -> None:
    folders.fill("carol", folders.common)
    done = folders.ask("alice", "export", folders.path / "x.car", "--for", folders.write_status("carol"))
    assert (done["ops"], done["unknown_heads"]) == (AHEAD, 0)
    assert folders.ask("carol", "import", folders.path / "x.car")["added"] == AHEAD


def test_a_partial_replica_is_given_what_it_keeps(folders: Folders) -> None:
    folders.fill("carol", folders.common[:1])
    status = json.loads(folders.write_status("carol").read_text())
    job = folders.world.ledger.dag.ids[folders.world.ledger.jobs.jobs[0]]
    scope = {"jobs": [format_cid(job)], "tags": [], "authors": [], "accounts": []}
    (folders.path / "partial.json").write_text(json.dumps(status | {"scope": scope}))
    file = folders.path / "x.car"
    done = folders.ask("alice", "export", file, "--for", folders.path / "partial.json")
    kept = len(ScopeIndex(folders.world.ledger, make_selector([job])).members)
    assert done["ops"] == kept - 1 < len(folders.common)
    assert folders.ask("carol", "import", file)["added"] == kept - 1


def test_ops_whose_links_are_missing_wait_and_people_learn_what_to_do(folders: Folders) -> None:
    folders.fill("carol", folders.common[:50])
    file = folders.path / "x.car"
    folders.ask("bob", "export", file, "--for", folders.write_status("alice"))
    some = list(read_car(file))
    write_car(file, [], [some[0], *some[-5:]])
    code, out, _ = folders.call("carol", "import", file)
    text = " ".join(out.split())
    assert code == 0 and "0 ops added, 1 known, 5 waiting" in text and "--for STATUS.json" in text
    done = folders.ask("carol", "import", file)
    assert done["missing"] == [format_cid(folders.own["bob"][-6].op.id), *done["missing"][1:]]
    assert format_cid(folders.own["bob"][-5].op.id) not in done["missing"]
    assert folders.ask("carol", "status")["ops"] == 50


def status_of(folders: Folders, **changes: Any) -> dict[str, Any]:
    return dict(json.loads(folders.write_status("bob").read_text())) | changes


def test_junk_in_the_place_of_a_status_is_refused_in_a_sentence(folders: Folders) -> None:
    values = status_of(folders)
    without = {name: value for name, value in values.items() if name != "heads"}
    op = values["heads"][0]
    empty: dict[str, list[str]] = {"jobs": [], "tags": [], "authors": [], "accounts": []}
    raw = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
    for content, text in (
        (b"", "not what `crdtchain status --json` prints"),
        (b"\xff\xfe", "not what"),
        (b"[]", "not what"),
        (b"[" * 100_000, "not what"),
        (json.dumps(without).encode(), "missing required field `heads`"),
        (json.dumps({"network": 1, "heads": []}).encode(), "Expected `str`, got `int` - at `$.network`"),
        (json.dumps(values | {"heads": {}}).encode(), "at `$.heads`"),
        (json.dumps(values | {"heads": []}).encode(), "names no heads"),
        (json.dumps(values | {"heads": ["bafy"]}).encode(), "names what is no id"),
        (json.dumps(values | {"heads": [raw]}).encode(), "names what is no id of an op"),
        (json.dumps(values | {"network": op}).encode(), "the status of another network"),
        (json.dumps(values | {"scope": {"jobs": []}}).encode(), "missing required field `tags` - at `$.scope`"),
        (json.dumps(values | {"scope": empty | {"jobs": ["x"]}}).encode(), "names a scope that is none"),
        (json.dumps(values | {"scope": empty | {"authors": ["x"]}}).encode(), "names a scope that is none"),
        (json.dumps(values | {"scope": empty | {"tags": [""]}}).encode(), "names a scope that is none"),
        (b" " * (16 * 2**20 + 1), "more than 16 MiB"),
    ):
        path = folders.path / "bad.json"
        path.write_bytes(content)
        code, _, err = folders.call("alice", "export", folders.path / "x.car", "--for", path)
        assert code == 2 and text in " ".join(err.split()), (content[:60], err)
        assert err.count("\n") == 1 and not (folders.path / "x.car").exists()
    assert folders.call("alice", "export", folders.path / "x.car", "--for", folders.path / "none.json")[0] == 2


def test_a_file_of_another_network_changes_nothing(folders: Folders) -> None:
    other = World(seed="other")
    other.play_job("alice", {"bob": [90]})
    file = folders.path / "other.car"
    write_car(file, [], [(signed.op.id, signed.block) for signed in other.log])
    before = folders.ask("alice", "status")["heads_digest"]
    code, _, err = folders.call("alice", "import", file)
    assert code == 2 and format_cid(other.network) in err and format_cid(folders.world.network) in err
    # Without its genesis such a file shows by its signatures.
    write_car(file, [], [(signed.op.id, signed.block) for signed in other.log[1:5]])
    code, out, err = folders.call("alice", "import", file)
    assert code == 4 and "is the file of this network?" in err and out.startswith("0 ops added")
    assert folders.ask("alice", "status")["heads_digest"] == before


def test_what_comes_before_a_fault_of_a_file_stays(folders: Folders) -> None:
    folders.fill("carol", folders.common[:40])
    file = folders.path / "x.car"
    folders.ask("alice", "export", file)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 3 // 4])
    assert folders.call("carol", "import", file)[0] == 2
    count = folders.ask("carol", "status")["ops"]
    assert 40 < count < len(folders.common) + AHEAD
    file.write_bytes(data)
    assert folders.ask("carol", "import", file)["added"] == len(folders.common) + AHEAD - count


def test_a_section_that_is_neither_op_nor_blob_is_named(folders: Folders) -> None:
    file, block = folders.path / "x.car", b"\xa1\x61a\x01"
    write_car(file, [], [(compute_op_id(block), block)])
    code, _, err = folders.call("alice", "import", file)
    assert code == 2 and format_cid(compute_op_id(block)) in err


def test_the_file_makes_a_ledger_where_there_was_none(folders: Folders) -> None:
    file = folders.path / "x.car"
    folders.ask("bob", "export", file)
    assert folders.ask("new", "import", file)["added"] == len(folders.common) + AHEAD
    ledger = Ledger(folders.common[0].op)
    for signed in [*folders.common[1:], *folders.own["bob"]]:
        ledger.add(signed.op)
    create_data(folders.path / "new")
    assert folders.ask("new", "status")["state_digest"] == ledger.state_digest().hex()


def test_what_is_exported_of_a_job_or_of_a_moment_rests_on_nothing_else(folders: Folders) -> None:
    by_id = {signed.op.id: signed.op for signed in [*folders.common, *folders.own["bob"]]}
    job = next(op for op in by_id.values() if op.kind is Kind.JOB)
    middle = folders.common[len(folders.common) // 2].op

    def past_of(tops: Iterable[OpId]) -> set[OpId]:
        found, stack = set[OpId](), list(tops)
        while stack:
            if (op := stack.pop()) not in found:
                found.add(op)
                stack.extend(list_links(by_id[op]))
        return found

    on_the_job = [op.id for op in by_id.values() if op.kind in (Kind.STAKE, Kind.BID, Kind.REVEAL, Kind.VOTE)]
    attests = [op.id for op in by_id.values() if op.kind in (Kind.ATTEST, Kind.CLAIM)]
    expected = {
        ("--job", format_cid(job.id)): past_of([job.id, *on_the_job, *attests]),
        ("--until", format_cid(middle.id)): past_of([middle.id]),
        ("--until", str(middle.time)): {op.id for op in by_id.values() if op.time <= middle.time},
    }
    for number, (words, ops) in enumerate(expected.items()):
        file = folders.path / f"{number}.car"
        done = folders.ask("bob", "export", file, *words)
        assert {cid for cid, _ in read_car(file)} == ops and done["ops"] == len(ops) < len(by_id)
        taken = folders.ask(f"new {number}", "import", file)
        assert (taken["added"], taken["waiting"], taken["rejected"]) == (len(ops), 0, [])


def test_a_file_that_is_no_car_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    junk = tmp_path / "junk.car"
    junk.write_text("not a CAR")
    assert main(["init", "--data", str(tmp_path / "data")]) == 0
    capsys.readouterr()
    assert main(["import", str(junk), "--data", str(tmp_path / "data")]) == 2
    err = capsys.readouterr().err
    assert f"{junk} is no CAR file, or damaged" in err and "nothing was taken" in err
