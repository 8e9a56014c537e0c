"""What a worker decides without a sandbox: times of runs, votes, what is kept on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.codec import compute_blob_id
from crdtchain.learning.schema import ModelSchema
from crdtchain.ledger.rules import compute_commitment
from crdtchain.scalars import BlobId, Credits, Micros, OpId
from node.jobfile import compute_data_id
from node.worker.evaluate import Evaluation
from node.worker.loop import Worker
from node.worker.market import BidView, JobView, RevealView
from node.worker.materials import Materials, make_schema
from node.worker.policy import Policy
from node.worker.sandbox.base import Mode, Status
from node.worker.shelf import Note, Shelf
from node.worker.strategy import Honest
from node.worker.training import Pace, plan_seconds
from node.worker.verifying import compute_missing_at, judge, may_vote
from tests.unit.node.test_policy import ALICE, BOB, NOW, make_terms

JOB = OpId(b"\x01\x71\x12\x20" + bytes(32))
BLOB = BlobId(compute_blob_id(b"model"))


@given(
    st.integers(-10_000, 10**8), st.integers(0, 10_000), st.integers(1, 10_000), st.integers(0, 10**6),
    st.integers(250, 10**5),
)  # fmt: skip
def test_no_run_is_planned_that_cannot_end_and_be_bid_in_time(
    left_ms: int, margin_ms: int, most: int, train_ms: int, evaluate_ms: int
) -> None:
    pace = Pace(train_ms=train_ms, evaluate_ms=evaluate_ms)
    seconds = plan_seconds(left_ms, margin_ms, most, pace)
    assert 0 <= seconds <= most
    if seconds:
        expected_ms = train_ms if train_ms and train_ms < 1_000 else seconds * 1_000
        assert min(expected_ms, seconds * 1_000) + evaluate_ms + margin_ms <= left_ms


def test_a_run_gets_the_whole_limit_when_there_is_time() -> None:
    assert plan_seconds(3_600_000, 500, 120, Pace()) == 120
    assert plan_seconds(10_000, 500, 120, Pace()) == 5
    assert plan_seconds(4_000, 500, 120, Pace()) == 0


class ManyMoments:
    """A market that has nothing and stirs at every turn of the loop."""

    me = ALICE

    def now_ms(self) -> int:
        return NOW

    async def balance(self) -> Credits:
        return Credits(0)

    async def jobs(self) -> list[JobView]:
        return []

    async def wait(self, timeout_s: float) -> None:
        await asyncio.sleep(0)


async def interrupt_worker(turns: int, folder: Path) -> None:
    market: Any = ManyMoments()
    task = asyncio.create_task(Worker(market, {}, Policy(verify="only"), folder).run())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_worker_that_is_interrupted_at_any_moment_ends(tmp_path: Path) -> None:
    for turns in range(60):
        asyncio.run(interrupt_worker(turns, tmp_path))


@pytest.mark.parametrize(
    ("status", "loss", "is_last", "verdict"),
    [
        (Status.OK, 100, False, "valid"),
        (Status.OK, 107, False, "valid"),
        (Status.OK, 108, False, "cheat"),
        (Status.OK, 0, False, "valid"),
        (Status.BAD_OUTPUT, None, False, "cheat"),
        (Status.JOB_ERROR, None, False, "cheat"),
        (Status.CRASHED, None, False, "cheat"),
        (Status.TIMEOUT, None, False, None),
        (Status.TIMEOUT, None, True, "cheat"),
        (Status.OOM, None, False, None),
        (Status.INFRA_ERROR, None, False, None),
        (Status.INFRA_ERROR, None, True, None),
        (Status.POLICY_REFUSED, None, True, None),
    ],
)
def test_votes_blame_the_bidder_for_the_model_and_nobody_for_the_machine(
    status: Status, loss: int | None, is_last: bool, verdict: str | None
) -> None:
    found = Evaluation(status, None if loss is None else Micros(loss), reason="because")
    judgement = judge(make_terms(tolerance=7), Micros(100), found, is_last)
    assert (judgement.verdict if judgement else None) == verdict


def test_missing_is_said_late_but_before_the_end() -> None:
    terms = make_terms(reveal_until=NOW, verdict_until=NOW + 120_000)
    assert compute_missing_at(terms, 2_000) == NOW + 120_000 - 9_000
    terms = make_terms(reveal_until=NOW, verdict_until=NOW + 6_000)
    assert compute_missing_at(terms, 2_000) == NOW + 4_000


def make_view(**changes: object) -> JobView:
    values: dict[str, object] = {"id": JOB, "poster": ALICE, "terms": make_terms(), "elector": True, **changes}
    return JobView(**values)  # type: ignore[arg-type]


def test_only_electors_who_neither_posted_nor_bid_vote_and_only_in_time() -> None:
    bid = BidView(JOB, BOB, Micros(5), bytes(32))
    assert may_vote(make_view(), BOB, NOW)
    assert not may_vote(make_view(elector=False), BOB, NOW)
    assert not may_vote(make_view(), ALICE, NOW)
    assert not may_vote(make_view(bids=(bid,)), BOB, NOW)
    assert not may_vote(make_view(staked=True), BOB, NOW)
    assert not may_vote(make_view(decided=True), BOB, NOW)
    assert not may_vote(make_view(), BOB, make_terms().verdict_until)


def test_own_bids_come_with_the_lowest_loss_first() -> None:
    bids = tuple(BidView(JOB, author, Micros(loss), b"") for author, loss in ((BOB, 7), (ALICE, 1), (BOB, 3)))
    assert [bid.loss for bid in make_view(bids=bids).bids_of(BOB)] == [3, 7]


def test_an_honest_worker_announces_what_it_measured_when_it_is_its_best() -> None:
    honest, terms = Honest(), make_terms(max_loss=50)
    assert honest.announce(terms, Micros(50), None) == 50
    assert honest.announce(terms, Micros(51), None) is None
    assert honest.announce(terms, Micros(40), Micros(41)) == 40
    assert honest.announce(terms, Micros(41), Micros(41)) is None


def test_a_kept_model_is_found_again_by_its_commitment(tmp_path: Path) -> None:
    cid = compute_data_id(b"model")
    commit = compute_commitment(BOB, cid)
    Shelf(tmp_path).keep(JOB, commit, b"model", Note(cid.hex(), 7, 5, 5))
    shelf = Shelf(tmp_path)
    note = shelf.find_note(JOB, commit)
    assert shelf.find(JOB, commit) == b"model"
    assert note is not None and note.model_id() == cid and note.seed == 7
    assert shelf.seeds(JOB) == {7}
    assert shelf.find(JOB, bytes(32)) is None and shelf.find_note(JOB, bytes(32)) is None
    shelf.forget_files(JOB)
    assert shelf.find(JOB, commit) == b"model"


def test_labels_are_in_no_spec_and_features_only_where_the_model_is(tmp_path: Path) -> None:
    terms = make_terms()
    assert make_schema(terms) == ModelSchema.parse("raw", {"w": "float64[]"})
    files = {"x": tmp_path / "x"}
    materials = Materials("job", terms, make_schema(terms), {"m": tmp_path / "m"}, files, files, b"the truth")
    train, predict = materials.make_train_spec("run", 3, 10), materials.make_predict_spec("run")
    assert (train.mode, train.seed, train.resources.seconds, train.features) == (Mode.TRAIN, 3, 10, {})
    assert (predict.mode, predict.train, predict.features) == (Mode.PREDICT, {}, files)
    assert train.expect == ("model.raw",) and predict.expect == ()
    assert materials.make_train_spec("run", 3, 10**6).resources.seconds == terms.task.resources.seconds
    assert "the truth" not in repr((train, predict))


def test_a_snapshot_has_nothing_due_unless_it_is_said() -> None:
    assert make_view().due == Credits(0)
    assert RevealView(JOB, BOB, JOB, Micros(1), BLOB, 5).voted is False
