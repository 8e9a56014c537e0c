"""Allowances and clocks: what is delayed, what never is, and that bounds hold whatever comes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.codec import OP_CID_PREFIX
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Beat, Kind, Op, SignedOp
from crdtchain.replica import Replica
from crdtchain.scalars import Author, OpId
from node.admission import WORK, Admission, LinkPace, Standing, find_standing, is_needed
from node.counters import DEFERRED, HELD, LIVE, NEEDED, PACED, Counters
from tests.builders import World

NOW_MS = 1_800_000_000_000


def make_author(number: int) -> Author:
    return Author(number.to_bytes(32, "big"))


def make_op(
    author: int,
    seq: int,
    parents: Sequence[SignedOp] = (),
    ahead_ms: int = 0,
    kind: Kind = Kind.BEAT,
    size: int = 300,
    branch: str = "",
) -> SignedOp:
    """Make an op of a chain that admission can look at; nobody has signed it."""

    def name(seq: int) -> OpId:
        return OpId(OP_CID_PREFIX + sha256(f"{author}/{seq}/{branch}".encode()).digest())

    op = Op(
        id=name(seq),
        author=make_author(author),
        seq=seq,
        prev=name(seq - 1) if seq else None,
        parents=tuple(parent.op.id for parent in parents),
        time=NOW_MS + ahead_ms,
        kind=kind,
        body=Beat(),
        size=size,
    )
    return SignedOp(op, bytes(size))


class Desk:
    """An admission with a clock to move, authors by number (0: a witness, below 100: with credits), and a ledger."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.known: set[OpId] = set()
        self.needed: set[OpId] = set()
        self.counters = Counters()
        self.admission = Admission(
            self.find_standing, self.known.__contains__, self.needed.__contains__, self.counters, lambda: self.now_s
        )

    @staticmethod
    def find_standing(author: Author) -> Standing:
        number = int.from_bytes(author, "big")
        return Standing.WITNESS if not number else Standing.FUNDED if number < 100 else Standing.NEWCOMER

    @property
    def now_ms(self) -> int:
        return NOW_MS + round(self.now_s * 1_000) - 50_000

    def offer(self, *ops: SignedOp, source: str = "peer-1") -> list[SignedOp]:
        taken = self.admission.sort(ops, source, self.now_ms)
        self.known.update(signed.op.id for signed in taken)
        return taken

    def deferred(self, limit: str) -> int:
        return self.counters.get(DEFERRED, limit)


@pytest.mark.parametrize(
    ("author", "burst", "rate", "limit"),
    [(1, limits.AUTHOR_OPS_BURST, limits.AUTHOR_OPS_S, "author"), (0, limits.WITNESS_OPS_BURST, 100, "witness")],
)
def test_an_author_has_a_burst_and_a_rate_and_no_more(author: int, burst: int, rate: int, limit: str) -> None:
    desk = Desk()
    chain = [make_op(author, seq) for seq in range(burst + 3 * rate)]
    assert desk.offer(*chain[:burst]) == chain[:burst]
    assert desk.offer(chain[burst]) == []
    assert desk.deferred(limit) == 1
    desk.now_s += 1
    assert desk.offer(*chain[burst : burst + rate]) == chain[burst : burst + rate]
    assert desk.offer(chain[burst + rate]) == []


def test_what_follows_a_deferred_op_on_its_chain_is_deferred_until_that_op_has_come() -> None:
    desk = Desk()
    chain = [make_op(1, seq) for seq in range(limits.AUTHOR_OPS_BURST + 20)]
    burst = limits.AUTHOR_OPS_BURST
    desk.offer(*chain[: burst + 5])
    assert desk.deferred("author") == 1 and desk.deferred("chain") == 4
    desk.now_s += 10
    # There is an allowance again, but taking this one would fetch all that was deferred behind its back.
    assert desk.offer(*chain[burst + 5 : burst + 10]) == []
    desk.known.update(signed.op.id for signed in chain[: burst + 10])
    assert desk.offer(*chain[burst + 10 :]) == chain[burst + 10 :]


def test_authors_without_credits_share_one_bucket() -> None:
    desk = Desk()
    crowd = [make_op(100 + number, 0) for number in range(40)]
    assert desk.offer(*crowd) == crowd[: limits.NEWCOMER_OPS_BURST]
    assert desk.deferred("newcomers") == 40 - limits.NEWCOMER_OPS_BURST
    # Others do not notice.
    others = [make_op(1, 0), make_op(0, 0)]
    assert desk.offer(*others) == others


def test_what_follows_a_newcomers_claim_is_not_a_newcomers() -> None:
    desk = Desk()
    chain = [make_op(100, 0, kind=Kind.CLAIM), *(make_op(100, seq) for seq in range(1, 60))]
    assert desk.offer(*chain) == chain


def test_an_op_that_one_of_standing_needs_is_taken_above_every_limit() -> None:
    desk = Desk()
    burst = limits.AUTHOR_OPS_BURST
    chain = [make_op(1, seq) for seq in range(burst + 3)]
    beat = make_op(0, 0, parents=[chain[-1]])
    assert desk.offer(*chain, beat) == [*chain, beat]
    assert desk.counters.get(NEEDED) == 3
    far = make_op(2, 0, ahead_ms=2 * limits.AHEAD_HOLD_MS)
    assert desk.offer(far) == []
    desk.needed.add(far.op.id)
    assert desk.offer(far) == [far]


def test_an_op_that_only_a_newcomer_links_to_is_not_needed() -> None:
    desk = Desk()
    spam = [make_op(100 + number, 0) for number in range(limits.NEWCOMER_OPS_BURST - 1)]
    far = make_op(1, 0, ahead_ms=2 * limits.AHEAD_HOLD_MS)
    assert desk.offer(far, *spam, make_op(200, 0, parents=[far])) == [*spam, make_op(200, 0, parents=[far])]


def test_ops_dated_ahead_are_taken_held_or_ignored() -> None:
    desk = Desk()
    near = make_op(1, 0, ahead_ms=limits.AHEAD_TAKE_MS)
    soon = make_op(2, 0, ahead_ms=limits.AHEAD_TAKE_MS + 1)
    late = make_op(3, 0, ahead_ms=limits.AHEAD_HOLD_MS)
    never = make_op(4, 0, ahead_ms=limits.AHEAD_HOLD_MS + 1)
    assert desk.offer(near, soon, late, never) == [near]
    assert len(desk.admission.hold) == 2 and desk.counters.get(HELD) == 2 and desk.deferred("ahead") == 1
    assert desk.admission.release(NOW_MS) == []
    assert desk.admission.hold.next_release_ms() == NOW_MS + 1
    assert desk.admission.release(NOW_MS + 1) == [("peer-1", [soon])]
    assert desk.admission.release(NOW_MS + 600_000) == [("peer-1", [late])]
    assert desk.admission.hold.next_release_ms() is None and not len(desk.admission.hold)
    # It was not remembered: offered when its time has come, it is taken.
    desk.now_s += 601
    assert desk.offer(never) == [never]


def test_a_held_op_that_is_offered_again_is_charged_once_and_taken_when_its_time_has_come() -> None:
    desk = Desk()
    soon = make_op(1, 0, ahead_ms=limits.AHEAD_TAKE_MS + 1_000)
    for source in ("peer-1", "peer-2"):
        assert desk.offer(soon, source=source) == []
    assert desk.counters.get(HELD) == 1
    desk.now_s += 1
    assert desk.offer(soon, source="peer-2") == [soon]
    assert not len(desk.admission.hold)


def test_held_ops_are_let_go_parents_first_and_at_once_when_one_of_standing_links_to_them() -> None:
    desk = Desk()
    ahead = limits.AHEAD_TAKE_MS + 5_000
    first, second = make_op(1, 0, ahead_ms=ahead), make_op(1, 1, ahead_ms=ahead)
    # Dated earlier, and linking to what is dated later.
    child = make_op(2, 0, parents=[second], ahead_ms=ahead - 1_000)
    assert desk.offer(child, source="peer-2") == [] and desk.offer(first, second) == []
    beat = make_op(0, 0, parents=[child])
    assert desk.offer(beat) == [first, second, child, beat]
    assert not len(desk.admission.hold) and desk.admission.hold.size_bytes == 0


def test_an_op_offered_by_many_is_charged_once() -> None:
    desk = Desk()
    chain = [make_op(1, seq) for seq in range(limits.AUTHOR_OPS_BURST)]
    for source in ("peer-1", "peer-2", "peer-3"):
        # Not added yet: nothing of it is known.
        assert desk.admission.sort(chain, source, NOW_MS) == chain


def test_a_peer_that_goes_on_offering_too_much_is_asked_less_and_less_but_at_least_once_a_minute() -> None:
    desk = Desk()
    desk.offer(*(make_op(100 + number, 0) for number in range(40)))
    waits = []
    for number in range(10):
        waits.append(desk.admission.pull_wait_s("peer-1"))
        # More of the same neither prolongs the wait nor puts the pull off again once it is due.
        for _ in range(5):
            desk.now_s += waits[-1] / 4
            desk.offer(*(make_op(1_000 + number, seq) for seq in range(40)))
        assert desk.admission.pull_wait_s("peer-1") == 0
        desk.admission.note_pull("peer-1")
        desk.offer(*(make_op(2_000 + number, seq) for seq in range(40)))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert desk.admission.pull_wait_s("peer-2") == 0
    desk.now_s += 60
    desk.admission.note_pull("peer-1")
    assert desk.admission.pull_wait_s("peer-1") == 0
    desk.now_s += 200
    desk.offer(*(make_op(3_000, seq) for seq in range(400)))
    assert desk.admission.pull_wait_s("peer-1") == 1
    desk.admission.forget("peer-1")
    assert desk.admission.pull_wait_s("peer-1") == 0


offers = st.lists(
    st.tuples(
        st.integers(0, 3) | st.integers(98, 103),  # authors of every standing
        st.integers(0, 60),
        st.integers(-1_000, 2 * limits.AHEAD_HOLD_MS),
        st.integers(100, limits.BLOCK_BYTES_MAX),
        st.integers(1, 3),  # sources
        st.floats(0, 30),
    ),
    max_size=150,
)


@given(offers)
def test_bounds_hold_whatever_comes_and_every_op_is_taken_held_or_counted(
    rows: list[tuple[int, int, int, int, int, float]],
) -> None:
    desk = Desk()
    for author, seq, ahead_ms, size, source, pause_s in rows:
        desk.now_s += pause_s
        signed = make_op(author, seq, ahead_ms=ahead_ms, size=size, branch=str(size))
        before = sum(desk.deferred(limit) for limit in DEFERRED.values), len(desk.admission.hold)
        was_known = signed.op.id in desk.known
        taken = desk.offer(signed, source=f"peer-{source}")
        after = sum(desk.deferred(limit) for limit in DEFERRED.values), len(desk.admission.hold)
        assert taken or was_known or after != before or signed.op.id in desk.admission.hold
        assert len(desk.admission.hold) <= 3 * limits.HELD_PEER_OPS_MAX
        assert desk.admission.hold.size_bytes <= min(limits.HELD_BYTES_MAX, 3 * limits.HELD_PEER_BYTES_MAX)
        assert 0 <= desk.admission.pull_wait_s(f"peer-{source}") <= limits.PULL_DELAY_S[1]
    left = {signed.op.id for _, ops in desk.admission.release(desk.now_ms + limits.AHEAD_HOLD_MS) for signed in ops}
    assert not len(desk.admission.hold) and desk.admission.hold.size_bytes == 0 and not left & desk.known


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0, 2)), max_size=400), st.integers(-(10**6), limits.AHEAD_TAKE_MS)
)
def test_who_stays_within_its_allowance_is_never_delayed_whatever_others_do(
    turns: list[tuple[int, float]], ahead_ms: int
) -> None:
    desk = Desk()
    level = dict.fromkeys(range(1, 5), float(limits.AUTHOR_OPS_BURST))
    seqs = dict.fromkeys(range(1, 5), 0)
    for noise, (author, pause_s) in enumerate(turns):
        desk.now_s += pause_s
        level = {key: min(limits.AUTHOR_OPS_BURST, value + pause_s * 10) for key, value in level.items()}
        desk.offer(*(make_op(50, seq) for seq in range(noise * 50, noise * 50 + 50)), source="peer-9")
        desk.offer(*(make_op(1_000 + noise, seq) for seq in range(20)), source="peer-8")
        count = min(37, int(level[author]))
        level[author] -= count
        own = [make_op(author, seqs[author] + place, ahead_ms=ahead_ms) for place in range(count)]
        seqs[author] += count
        assert desk.offer(*own) == own
    assert desk.admission.pull_wait_s("peer-1") == 0
    assert desk.counters.get(LIVE) >= sum(seqs.values())


def test_the_share_of_one_peer_and_of_all_bounds_what_is_held() -> None:
    desk = Desk()
    desk.admission.hold.add(keep := make_op(99, 0, ahead_ms=400_000), "peer-0")
    for peer in range(2 * limits.HELD_OPS_MAX // limits.HELD_PEER_OPS_MAX):
        for number in range(limits.HELD_PEER_OPS_MAX + 5):
            signed = make_op(peer, number, ahead_ms=400_000, size=500)
            desk.admission.hold.add(signed, f"peer-{peer + 1}")
    assert len(desk.admission.hold) == limits.HELD_OPS_MAX
    assert keep.op.id in desk.admission.hold


def test_need_is_found_through_others_that_wait_and_the_search_is_bounded() -> None:
    needs = {1: [make_op(100, 1).op], 2: [make_op(0, 5).op]}
    first, other = make_op(100, 0).op, make_op(101, 0).op
    waiters = {first.id: needs[1], needs[1][0].id: needs[2]}
    assert is_needed(first.id, lambda op: waiters.get(op, []), Desk.find_standing)
    assert not is_needed(other.id, lambda op: waiters.get(op, []), Desk.find_standing)
    asked = []

    def find_waiters(op: OpId) -> list[Op]:
        asked.append(op)
        return [make_op(100, len(asked)).op]

    # Newcomers without end: rather one op too many than one that is missing.
    assert is_needed(other.id, find_waiters, Desk.find_standing)
    assert len(asked) <= limits.NEEDED_STEPS_MAX + 1


def test_standing_follows_credits() -> None:
    world = World(grants={"alice": 10, "bob": 20, "carol": 10})
    ledger = world.ledger

    def standing(name: str) -> Standing:
        return find_standing(ledger, world.key(name))

    assert standing("w0") is Standing.WITNESS
    assert standing("alice") is Standing.FUNDED and standing("nobody") is Standing.NEWCOMER
    transfer = world.transfer("alice", "dave", 10)
    assert standing("alice") is Standing.NEWCOMER and standing("dave") is Standing.NEWCOMER
    world.beat_all()
    world.beat_all()
    world.claim("dave", transfer)
    assert standing("dave") is Standing.FUNDED
    world.post("bob", bounty=16, pool=4)
    tip = world.tip("bob")
    assert tip is not None and ledger.accounts.balance(tip.op.author, ledger.dag.find(tip.op.id) or 0) == 0
    assert standing("bob") is Standing.FUNDED


def test_a_replica_ends_up_with_all_of_a_flood_when_it_pulls_what_was_deferred() -> None:
    world = World()
    for _ in range(300):
        world.transfer("alice", "bob", 1)
    replica = Replica(Ledger(world.genesis.op), world.key("bob"))
    now_s = [0.0]
    admission = Admission(
        lambda author: find_standing(replica.ledger, author),
        replica.ledger.__contains__,
        lambda op: False,
        Counters(),
        lambda: now_s[0],
    )
    flood = world.log[1:]
    taken = admission.sort(flood, "peer-1", world.now)
    assert len(taken) == limits.AUTHOR_OPS_BURST
    replica.receive(taken, "peer-1", world.now)
    assert admission.pull_wait_s("peer-1") == 1
    now_s[0] += 1
    admission.note_pull("peer-1")
    replica.receive(flood, "peer-1", world.now)
    assert len(replica.ledger) == len(world.log)
    world.transfer("alice", "bob", 1)
    now_s[0] += 1
    assert admission.sort(world.log[-1:], "peer-1", world.now) == world.log[-1:]


def test_a_connection_has_paces_of_its_own_for_live_ops_bytes_and_requests() -> None:
    counters, now_s = Counters(), [0.0]
    pace = LinkPace(counters, lambda: now_s[0])
    for _ in range(limits.LINK_OPS_BURST // 200):
        assert pace.note_live([b"op"] * 200) == 0
    assert pace.note_live([b"op"] * 200) == 1
    now_s[0] += 100
    for _ in range(8):
        assert pace.note_live([bytes(2**19), bytes(2**19)]) == 0
    assert pace.note_live([bytes(2**19)]) == 0.5
    for _ in range(limits.LINK_WORK_BURST // WORK["tree"]):
        assert pace.note_work("tree") == 0
    assert pace.note_work("tree") > 0
    assert pace.note_work("ack") > 0
    now_s[0] += 20
    assert pace.note_work("ack") == 0
    assert [counters.get(PACED, limit) for limit in PACED.values] == [1, 1, 2]
