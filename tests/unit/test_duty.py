"""A witness's duty: what it says, when it dates it, and what it must never do."""

from __future__ import annotations

import pytest

from crdtchain.codec import Link
from crdtchain.ledger.settlement import EXPIRED
from crdtchain.ops import Attest, Beat, Bid, Kind, Profile, SignedOp, Stake
from crdtchain.replica import Draft, Replica
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op, join_block
from tests.simulation.network import DELTA, START, Network, Node

BID_UNTIL = START + 20 * DELTA
SLOW_MS = 10**9
"""A debounce that never ends: what is said then is said for another reason."""


class Table:
    """A few replicas that exchange ops only when told to."""

    def __init__(self, n: int = 4, debounce_ms: int = SLOW_MS) -> None:
        self.witnesses = [f"w{number}" for number in range(n)]
        self.network = Network(0, self.witnesses, {"poster": 1_000, "alice": 100, "bob": 100})
        self.nodes = {name: Node(self.network, name, name) for name in (*self.witnesses, "poster", "alice", "bob")}
        self.network.nodes = list(self.nodes.values())
        for name in self.witnesses:
            node = self.nodes[name]
            assert node.replica.author is not None
            node.replica = Replica(node.replica.ledger, node.replica.author, debounce_ms)

    def replica(self, name: str) -> Replica:
        return self.nodes[name].replica

    def sign(self, name: str, draft: Draft, now: int) -> SignedOp:
        signed, _ = self.replica(name).commit(draft, self.network.signature(), now)
        return signed

    def say(self, name: str, body: object, now: int) -> SignedOp:
        return self.sign(name, self.replica(name).draft(body, now), now)  # type: ignore[arg-type]

    def give(self, ops: list[SignedOp], now: int, *names: str) -> None:
        for name in names or tuple(self.nodes):
            self.replica(name).receive(ops, "table", now)

    def due(self, name: str, now: int) -> list[SignedOp]:
        """Say all that is due, and return it."""
        said = []
        while (draft := self.replica(name).due(now)) is not None:
            said.append(self.sign(name, draft, now))
            assert len(said) < 50
        return said

    def beat_all(self, now: int) -> None:
        """Every witness beats and everybody gets all beats."""
        said = [self.say(name, Beat(), now) for name in self.witnesses]
        self.give(said, now)

    def post_certified(self) -> OpId:
        """A job that all witnesses acknowledge, with alice's certified stake on it."""
        for name in self.witnesses:
            self.due(name, START)
        job = self.say("poster", self.network.terms(BID_UNTIL), START + 10)
        self.give([job], START + 20)
        self.beat_all(START + 30)
        stake = self.say("alice", Stake(job=Link(job.op.id)), START + 40)
        self.give([stake], START + 50)
        self.beat_all(START + 60)
        return job.op.id

    def bid(self, job: OpId, now: int) -> SignedOp:
        return self.say("alice", Bid(job=Link(job), loss=5, commit=bytes(32)), now)

    def number(self, name: str, op: OpId) -> int:
        found = self.replica(name).ledger.dag.find(op)
        assert found is not None
        return found


def test_a_beat_answers_an_op_after_the_debounce_and_never_a_beat() -> None:
    table = Table(n=1, debounce_ms=100)
    assert table.due("w0", START) == []
    profile = table.say("alice", Profile(name="a", about=""), START + 10)
    table.give([profile], START + 20, "w0")
    assert table.due("w0", START + 119) == []
    assert table.replica("w0").next_wake_ms(START + 119) == START + 120
    (beat,) = table.due("w0", START + 120)
    assert (beat.op.kind, beat.op.time, beat.op.parents) == (Kind.BEAT, START + 120, (profile.op.id,))
    assert table.due("w0", START + 10_000) == []


def test_at_a_deadline_it_says_what_it_holds_dated_the_deadline() -> None:
    table = Table()
    job = table.post_certified()
    table.due("w0", BID_UNTIL - 600)
    bid = table.bid(job, BID_UNTIL - 500)
    table.give([bid], BID_UNTIL - 400, "w0")
    # The next tick after the bid is the deadline itself.
    assert table.replica("w0").next_wake_ms(BID_UNTIL - 400) == BID_UNTIL
    said = table.due("w0", BID_UNTIL + 7)
    assert [op.op.time for op in said] == [BID_UNTIL]
    ledger = table.replica("w0").ledger
    assert ledger.deadlines.find_holders(table.number("w0", bid.op.id), BID_UNTIL) == [
        table.number("w0", said[0].op.id)
    ]


def test_between_ticks_a_bid_is_covered_at_the_next_tick() -> None:
    table = Table()
    job = table.post_certified()
    table.due("w0", START + 5_100)
    bid = table.bid(job, START + 5_200)
    table.give([bid], START + 5_300, "w0")
    assert table.due("w0", START + 5_999) == []
    assert [op.op.time for op in table.due("w0", START + 6_050)] == [START + 6_000]


def test_what_comes_after_the_deadline_is_not_dated_back() -> None:
    table = Table()
    job = table.post_certified()
    assert table.due("w0", BID_UNTIL - 10) == []
    said = table.due("w0", BID_UNTIL + 5)
    assert [op.op.time for op in said] == [BID_UNTIL]
    bid = table.bid(job, BID_UNTIL - 500)
    table.give([bid], BID_UNTIL + 10, "w0")
    assert table.due("w0", BID_UNTIL + 20) == []


def test_a_job_found_certified_after_its_deadline_is_not_dated_back() -> None:
    table = Table()
    for name in table.witnesses:
        table.due(name, START)
    others = [name for name in table.nodes if name != "w0"]
    job = table.say("poster", table.network.terms(BID_UNTIL), START + 10)
    ops = [job]
    table.give([job], START + 20, *others)
    beats = [table.say(name, Beat(), START + 30) for name in ("w1", "w2", "w3")]
    ops += beats
    table.give(beats, START + 40, *others)
    # w0 was cut off; now everything comes at once, long after the deadline.
    late = BID_UNTIL + 10
    assert table.due("w0", late) == []
    table.give(ops, late, "w0")
    assert all(op.op.time >= late for op in table.due("w0", late + 1))
    (closing,) = table.due("w0", BID_UNTIL + 2 * DELTA + 1)
    assert closing.op.time == BID_UNTIL + 2 * DELTA + 1


def test_within_the_staircase_it_speaks_at_once_and_only_then() -> None:
    table = Table()
    job = table.post_certified()
    for name in ("w0", "w1"):
        table.due(name, BID_UNTIL - 10)
    bid = table.bid(job, BID_UNTIL - 500)
    table.give([bid], BID_UNTIL - 5, "w1")
    table.due("w0", BID_UNTIL)
    (had,) = table.due("w1", BID_UNTIL)
    assert had.op.time == BID_UNTIL
    # The bid alone is late for w0; with the word of one other it is had by the first step.
    table.give([bid], BID_UNTIL + 300, "w0")
    assert table.due("w0", BID_UNTIL + 300) == []
    table.give([had], BID_UNTIL + 400, "w0")
    (step,) = table.due("w0", BID_UNTIL + 400)
    assert step.op.time == BID_UNTIL + 400
    holders = table.replica("w0").ledger.deadlines.find_holders(table.number("w0", bid.op.id), BID_UNTIL)
    assert table.number("w0", step.op.id) in holders
    assert table.due("w0", BID_UNTIL + 401) == []


def test_past_the_first_step_one_other_is_not_enough() -> None:
    table = Table()
    job = table.post_certified()
    for name in ("w0", "w1"):
        table.due(name, BID_UNTIL - 10)
    bid = table.bid(job, BID_UNTIL - 500)
    table.give([bid], BID_UNTIL - 5, "w1")
    table.due("w0", BID_UNTIL)
    had = table.due("w1", BID_UNTIL)
    table.give([bid, *had], BID_UNTIL + DELTA + 1, "w0")
    assert table.due("w0", BID_UNTIL + DELTA + 1) == []


def test_a_window_is_closed_by_one_op_behind_the_last_step() -> None:
    table = Table()
    table.post_certified()
    table.due("w0", BID_UNTIL)
    end = BID_UNTIL + 2 * DELTA
    assert table.replica("w0").next_wake_ms(BID_UNTIL + 1) == end + 1
    assert table.due("w0", end) == []
    (closing,) = table.due("w0", end + 1)
    assert (closing.op.kind, closing.op.time) == (Kind.BEAT, end + 1)
    assert table.due("w0", end + 2) == []


def test_more_heads_than_an_op_may_link_to_take_several_ops_of_one_date() -> None:
    table = Table(n=1)
    job = table.post_certified()
    assert table.due("w0", BID_UNTIL - 10) == []
    ledger = table.replica("w0").ledger
    network = table.network
    heads = []
    for number in range(70):
        fork = Replica(table.replica("alice").ledger, table.replica("alice").author)
        draft = fork.draft(Profile(name=str(number), about=""), START + 100)
        heads.append(decode_op(join_block(draft.payload, network.signature())))
    table.give(heads, BID_UNTIL - 5, "w0")
    said = table.due("w0", BID_UNTIL + 1)
    assert [op.op.time for op in said] == [BID_UNTIL, BID_UNTIL]
    assert [len(op.op.parents) for op in said] == [64, 6]
    assert all(ledger.witnesses.is_covered_by(table.number("w0", op.op.id), len(ledger) - 1) for op in heads)
    assert job is not None


def test_it_attests_once_what_its_own_past_decides() -> None:
    table = Table(n=1)
    job = table.post_certified()
    terms = table.network.terms(BID_UNTIL)
    end = terms.verdict_until + DELTA + 1
    said = table.due("w0", end - 1)
    assert all(op.op.kind is Kind.BEAT for op in said)
    said = table.due("w0", end)
    assert [op.op.kind for op in said] == [Kind.BEAT, Kind.ATTEST]
    body = said[-1].op.body
    assert isinstance(body, Attest)
    assert body.job == job
    assert not body.record.expired
    ledger = table.replica("w0").ledger
    assert ledger.right_record(table.number("w0", said[-1].op.id)) == body.record
    assert table.due("w0", end + 10**6) == []


def test_from_the_expiry_on_the_first_attest_is_expired() -> None:
    table = Table(n=1)
    table.post_certified()
    terms = table.network.terms(BID_UNTIL)
    expiry = terms.verdict_until + table.replica("w0").ledger.params.expiry_ms
    attests = [op for op in table.due("w0", expiry) if op.op.kind is Kind.ATTEST]
    assert [op.op.body.record for op in attests] == [EXPIRED]  # type: ignore[attr-defined]


def test_a_draft_waits_for_its_signature_alone() -> None:
    table = Table(n=1, debounce_ms=0)
    profile = table.say("alice", Profile(name="a", about=""), START)
    table.give([profile], START, "w0")
    replica = table.replica("w0")
    draft = replica.draft(Profile(name="w", about=""), START)
    assert replica.due(START + 1) is None
    with pytest.raises(Exception, match="another op is being signed"):
        replica.draft(Beat(), START + 1)
    replica.abandon()
    with pytest.raises(Exception, match="not the one being signed"):
        replica.commit(draft, bytes(64), START + 1)
    assert [op.op.kind for op in table.due("w0", START + 1)] == [Kind.BEAT]
