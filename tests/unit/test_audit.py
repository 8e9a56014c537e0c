"""Audits name every fault, report all the rest, and never raise for bad data."""

from __future__ import annotations

import random
import sqlite3
from hashlib import sha256
from pathlib import Path

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdtchain.adapters.auditing import audit_source
from crdtchain.adapters.car import write_car
from crdtchain.adapters.keys import sodium_verifier
from crdtchain.adapters.opening import save_ledger
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE
from crdtchain.audit import AuditReport, audit_blocks
from crdtchain.codec import Link, compute_blob_id, compute_op_id, format_cid, format_did
from crdtchain.errors import UsageError
from crdtchain.ops import Attest, Record, SignedOp, Transfer
from tests.builders import Played, World

REFUND = Record(winner=None, cheats=(), forfeits=(), votes=(), expired=False)


@pytest.fixture(scope="module")
def played() -> tuple[World, Played]:
    world = World()
    job = world.play_job("alice", {"bob": [90, 80], "carol": [85]}, title="Digits")
    return world, job


@pytest.fixture(scope="module")
def world(played: tuple[World, Played]) -> World:
    return played[0]


def audit(ops: list[SignedOp]) -> AuditReport:
    return audit_blocks(((n, signed.op.id, signed.block) for n, signed in enumerate(ops)), sodium_verifier)


def rules(report: AuditReport) -> list[str]:
    return [fault.rule for fault in report.faults]


def test_an_honest_history_has_no_fault(played: tuple[World, Played]) -> None:
    world, job = played
    report = audit(world.log)
    assert report.ok and report.faults == [] and report.equivocations == []
    assert report.ops == len(world.log)
    assert report.heads_digest == world.ledger.heads_digest().hex()
    assert report.state_digest == world.ledger.state_digest().hex()
    (row,) = report.jobs
    assert (row.id, row.title, row.loss, row.outcome, row.certified) == (
        format_cid(job.job),
        "Digits",
        80,
        "decided",
        True,
    )
    assert row.winner == format_cid(job.bids["bob"])
    assert row.winner_author == format_did(world.key("bob"))
    assert report.accounts[format_did(world.key("bob"))] == 1_020
    assert report.accounts[format_did(world.key("dave"))] == 1_000
    assert sum(report.accounts.values()) == 4_000


def test_the_report_as_json_has_the_documented_fields(world: World) -> None:
    shown = msgspec.json.decode(msgspec.json.encode(audit(world.log)))
    fields = {"ok", "ops", "heads_digest", "state_digest", "accounts", "jobs", "equivocations", "faults"}
    assert set(shown) == fields
    assert set(shown["jobs"][0]) == {"id", "title", "winner", "winner_author", "loss", "outcome", "certified"}


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_blocks_does_not_matter(world: World, seed: int) -> None:
    shuffled = [*world.log, *world.log[:9]]
    random.Random(seed).shuffle(shuffled)
    assert audit(shuffled) == audit(world.log)


def test_without_a_genesis_nothing_can_be_judged(world: World) -> None:
    report = audit(world.log[1:])
    assert not report.ok and rules(report) == ["network"] and report.state_digest is None
    assert audit([]).ops == 0


def test_a_missing_op_is_named_by_what_needs_it(world: World) -> None:
    report = audit([signed for n, signed in enumerate(world.log) if n != 30])
    absent = format_cid(world.log[30].op.id)
    assert not report.ok and report.ops < len(world.log)
    assert set(rules(report)) == {"missing"}
    assert any(absent in fault.text for fault in report.faults)


def test_a_block_that_is_not_what_its_id_names_is_a_fault(world: World) -> None:
    blocks = [(n, signed.op.id, signed.block) for n, signed in enumerate(world.log)]
    blocks[-1] = (0, world.log[-1].op.id, world.log[-2].block)
    report = audit_blocks(blocks, sodium_verifier)
    assert rules(report) == ["cid"]
    assert report.faults[0].op == format_cid(world.log[-1].op.id)
    assert report.ops == len(world.log) - 1


def test_a_forged_signature_and_what_builds_on_it_are_refused(world: World) -> None:
    ops, place = [*world.log], 40
    block = ops[place].block
    forged = block[:-1] + bytes([block[-1] ^ 1])
    blocks = [(n, signed.op.id, signed.block) for n, signed in enumerate(ops) if n != place]
    blocks.append((99, compute_op_id(forged), forged))
    report = audit_blocks(blocks, sodium_verifier)
    assert "signature" in rules(report) and set(rules(report)) == {"signature", "missing"}


def test_an_op_that_breaks_a_rule_is_named_with_the_rule_and_its_followers() -> None:
    world = World()
    rich = world.sign("bob", Transfer(to=world.key("carol"), amount=5_000, memo=None))
    follower = world.sign("carol", Transfer(to=world.key("bob"), amount=1, memo=None), parents=[rich.op.id])
    world.beat_all()
    report = audit([*world.log, follower, rich])
    assert {(fault.op, fault.rule) for fault in report.faults} == {
        (format_cid(rich.op.id), "balance"),
        (format_cid(follower.op.id), "links"),
    }
    assert report.ops == len(world.log)
    assert report.state_digest == world.ledger.state_digest().hex()


def test_a_foreign_genesis_and_a_foreign_op_are_faults(world: World) -> None:
    other = World(seed="other")
    foreign = other.sign("alice", Transfer(to=other.key("bob"), amount=1, memo=None))
    report = audit([*world.log, other.genesis, foreign])
    assert set(rules(report)) == {"genesis", "links"}
    assert report.ops == len(world.log)


def test_an_equivocation_is_evidence_and_not_a_fault() -> None:
    world = World()
    base = world.tip("alice")
    left = world.say("alice", Transfer(to=world.key("bob"), amount=700, memo=None), parents=[world.network])
    right = world.say(
        "alice", Transfer(to=world.key("carol"), amount=700, memo=None), prev=base, parents=[world.network]
    )
    world.certify()
    report = audit(world.log)
    (found,) = report.equivocations
    assert report.ok
    assert (found.author, found.seq) == (format_did(world.key("alice")), 0)
    assert set(found.ops) == {format_cid(left.op.id), format_cid(right.op.id)}


def attest_wrongly(names: list[str]) -> World:
    """Play a job that has a winner, though `names` attest that it has none."""
    world = World()
    job = world.post("alice", stake=0, on_cheat="next")
    terms = world.job_terms(job)
    bid = world.bid("bob", job, 10)
    world.certify()
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    world.reveal("bob", bid)
    world.certify()
    for deadline in (terms.reveal_until, terms.verdict_until):
        world.advance_to(deadline)
        world.close(deadline)
    world.advance(10)
    for name in names:
        world.say(name, Attest(job=Link(job), record=REFUND))
    world.attest_all(job, [name for name in world.witnesses if name not in names])
    world.certify()
    return world


def test_one_lying_witness_is_named_and_the_outcome_stands() -> None:
    world = attest_wrongly(["w2"])
    report = audit(world.log)
    assert rules(report) == ["attest"]
    assert format_did(world.key("w2")) in report.faults[0].text
    assert report.jobs[0].outcome == "decided" and report.jobs[0].certified


def test_a_quorum_of_lying_witnesses_is_caught_by_what_follows_from_the_ops() -> None:
    world = attest_wrongly(["w0", "w1", "w2"])
    report = audit(world.log)
    assert sorted(rules(report)) == ["attest", "attest", "attest", "outcome"]
    assert report.jobs[0].outcome == "no winner" and report.jobs[0].certified


def test_an_attest_of_an_open_job_is_a_fault() -> None:
    world = World()
    job = world.post("alice")
    world.say("w1", Attest(job=Link(job), record=REFUND))
    report = audit(world.log)
    assert rules(report) == ["attest"]
    assert report.jobs[0].outcome == "open" and not report.jobs[0].certified


def test_blobs_and_lists_of_chunks_are_checked_by_their_ids_alone(world: World) -> None:
    blob, chunks = b"a blob", cbor2.dumps({"size": 3, "chunks": []})
    blocks = [(n, bytes(signed.op.id), signed.block) for n, signed in enumerate(world.log)]
    extra = [(0, bytes(compute_blob_id(blob)), blob), (1, bytes(compute_op_id(chunks)), chunks)]
    assert audit_blocks([*blocks, *extra], sodium_verifier).ok
    report = audit_blocks([*blocks, (0, bytes(compute_blob_id(blob)), b"b blob"), extra[1]], sodium_verifier)
    assert rules(report) == ["cid"]


@settings(max_examples=30)
@given(data=st.data())
def test_no_mutation_of_a_history_raises(world: World, data: st.DataObject) -> None:
    blocks = [signed.block for signed in world.log]
    changed = data.draw(st.sets(st.integers(0, len(blocks) - 1), min_size=1, max_size=4))
    for place in changed:
        block = blocks[place]
        position = data.draw(st.integers(0, len(block) - 1))
        blocks[place] = block[:position] + data.draw(st.binary(max_size=3)) + block[position + 1 :]
    report = audit_blocks(((n, compute_op_id(b), b) for n, b in enumerate(blocks)), sodium_verifier)
    altered = any(blocks[place] != world.log[place].block for place in changed)
    assert report.ok is not altered


# -- sources on disk --


async def fill(folder: Path, world: World) -> None:
    store = SqliteStore(folder)
    await store.open()
    await store.append(world.log, durable=True)
    await save_ledger(store, world.ledger)
    await store.close()


@pytest.mark.asyncio
async def test_a_data_folder_and_a_car_give_the_same_report(tmp_path: Path, world: World) -> None:
    await fill(tmp_path, world)
    write_car(tmp_path / "ledger.car", [], ((signed.op.id, signed.block) for signed in world.log))
    before = sorted(file.name for file in tmp_path.iterdir())
    expected = audit(world.log)
    assert await audit_source(tmp_path) == expected
    assert await audit_source(tmp_path / STORE_FILE) == expected
    assert await audit_source(tmp_path / "ledger.car") == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@pytest.mark.asyncio
async def test_what_follows_from_the_blocks_is_not_believed(tmp_path: Path, world: World) -> None:
    await fill(tmp_path, world)
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        connection.execute("DELETE FROM tips")
        connection.execute("DELETE FROM ids")
        connection.execute("UPDATE snapshots SET data = x'00'")
        connection.execute("UPDATE ops SET seq = 7, author = 1, links = x''")
    assert await audit_source(tmp_path) == audit(world.log)


@pytest.mark.asyncio
async def test_a_folder_in_use_can_be_audited(tmp_path: Path, world: World) -> None:
    store = SqliteStore(tmp_path)
    await store.open()
    await store.append(world.log, durable=False)
    assert await audit_source(tmp_path) == audit(world.log)
    await store.close()


@pytest.mark.asyncio
async def test_an_altered_block_in_a_folder_is_found(tmp_path: Path, world: World) -> None:
    await fill(tmp_path, world)
    last = world.log[-1].block
    with sqlite3.connect(tmp_path / STORE_FILE) as connection:
        altered = last[:-1] + bytes([last[-1] ^ 1])
        connection.execute("UPDATE ops SET block = ? WHERE position = ?", (altered, len(world.log) - 1))
    report = await audit_source(tmp_path)
    assert rules(report) == ["signature"] and report.ops == len(world.log) - 1


@pytest.mark.asyncio
async def test_a_damaged_source_is_a_fault_and_its_readable_part_is_judged(tmp_path: Path, world: World) -> None:
    path = tmp_path / "cut.car"
    write_car(path, [], ((signed.op.id, signed.block) for signed in world.log))
    path.write_bytes(path.read_bytes()[:-10])
    report = await audit_source(path)
    assert rules(report) == ["source"] and report.ops == len(world.log) - 1
    path.write_bytes(b"nothing of the kind")
    assert rules(await audit_source(path)) == ["network", "source"]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / STORE_FILE).write_bytes(b"SQLite format 3\x00" + b"x" * 5_000)
    assert rules(await audit_source(folder)) == ["network", "source"]


@pytest.mark.asyncio
async def test_a_source_that_is_not_there_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ledger"):
        await audit_source(tmp_path)
    with pytest.raises(UsageError, match="no ledger"):
        await audit_source(tmp_path / "none.car")


def test_the_heads_digest_is_that_of_the_sorted_ids(world: World) -> None:
    linked = {link for signed in world.log for link in (signed.op.prev, *signed.op.parents)}
    heads = sorted(signed.op.id for signed in world.log if signed.op.id not in linked)
    assert audit(world.log).heads_digest == sha256(b"".join(heads)).hexdigest()
