"""The oracle's verdicts, outcomes and sums, on small cases worked out by hand.

One witness: f = 0, q = 1. Bids until 10,000, reveals until 14,000, verdicts until 20,000; the last window closes after
21,000. A job holds bounty 100 and pool 7, a stake is 10.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from tests.oracle.drafting import Scene
from tests.oracle.model import Record

GRANTS = {"poster": 1000, "a": 50, "b": 50, "c": 50, "dave": 100, "erin": 100}
FREE = {"stake": 0, "on_cheat": "next"}
BID = 10_000


class Play(Scene):
    """One job played by witnesses that see everything at once, step by step."""

    def __init__(self, n: int = 1, bidders: Sequence[str] = ("a", "b"), terms: dict[str, Any] | None = None) -> None:
        super().__init__(n, GRANTS | dict.fromkeys(bidders, 50))
        self.bidders = list(bidders)
        self.the_job = self.job("poster", 100, BID, **(terms or {}))
        self.bids: dict[str, bytes] = {}
        self.reveals: dict[str, bytes] = {}
        body = self.oracle.ops[self.the_job].body
        self.reveal_until, self.verdict_until = body["reveal_until"], body["verdict_until"]
        self.end = (self.f + 1) * 1000 + 1
        self.seen(200, self.the_job)
        if body["stake"]:
            stakes = [self.stake(name, self.the_job, 300, *self.witnessed) for name in self.bidders]
            self.seen(400, *stakes)

    def seen(self, time: int, *ops: bytes) -> None:
        """All witnesses beat, and link to these ops and to nothing else."""
        self.witnessed = self.beats(time, *ops)

    def tip(self, name: str) -> bytes:
        return self.tips.get(self.key(name), self.genesis)

    def split(self, x: bytes, deadline: int) -> None:
        """Of two witnesses w0 has x for the deadline and w1 closes without it: OPEN for ever."""
        self.beat(0, deadline, x)
        self.witnessed = [self.beat(1, deadline + self.end), self.beat(0, deadline + self.end)]
        assert self.oracle.status(x, deadline, None) == "OPEN"

    def all_bid(self, **losses: int) -> None:
        """Bids, all seen at once, in time and in one tick, and the window closed."""
        for name, loss in losses.items():
            self.bids[name] = self.bid(name, self.the_job, loss, 500, self.the_job, *self.witnessed)
        self.seen(1000, *self.bids.values())
        self.seen(BID + self.end)

    def all_reveal(self, *names: str) -> None:
        """Reveals, all seen in time."""
        for name in names:
            self.reveals[name] = self.reveal(name, self.bids[name], BID + self.end, *self.witnessed)
        self.seen(self.reveal_until, *self.reveals.values())
        self.seen(self.reveal_until + self.end)

    def all_vote(self, *votes: tuple[str, str, str]) -> list[bytes]:
        """Votes (voter, on whose reveal, verdict), all seen in time, and the last window closed."""
        cast = [
            self.vote(voter, self.reveals[name], verdict, self.reveal_until + self.end, self.reveals[name])
            for voter, name, verdict in votes
        ]
        self.seen(self.verdict_until, *cast)
        self.seen(self.verdict_until + self.end)
        return cast

    def all_attest(self, record: Record | None = None, time: int | None = None) -> Record:
        """Every witness attests the outcome (or another record); the record comes back."""
        said = record if record is not None else self.oracle.outcome(self.the_job, None)
        assert said is not None
        at = self.verdict_until + self.end if time is None else time
        self.witnessed = [self.attest(i, self.the_job, said, at) for i in range(self.n)]
        return said

    def due(self, name: str) -> int:
        """What the author's claim, that links to all attests, would get."""
        oracle = self.oracle
        (record,) = oracle.certificates(self.the_job, None)
        return oracle.due(self.key(name), self.the_job, record, oracle.past(None), oracle.chain(self.tip(name)))


def record(**changes: Any) -> Record:
    return {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": False} | changes


# -- verdicts --


def test_lowest_loss_wins_and_is_paid() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    assert play.oracle.outcome(play.the_job, None) is None
    on_a, _ = play.all_vote(("w0", "a", "valid"), ("w0", "b", "valid"))
    assert play.all_attest() == record(winner=play.bids["a"], votes=[on_a])
    assert [play.due(name) for name in ("a", "b", "w0", "poster", "dave")] == [110, 10, 7, 0, 0]
    assert play.oracle.conservation(None)
    for name, paid in (("a", 110), ("b", 10), ("w0", 7)):
        claim = play.claim(name, play.the_job, 22_000, *play.witnessed)
        assert play.oracle.claimed(claim) == paid
    assert play.judge("poster", "claim", {"of": play.the_job}, 22_000, *play.witnessed) == "nothing_due"
    play.seen(23_000, *(play.tip(name) for name in ("a", "b")))
    assert play.oracle.accounts(None) == {
        play.key(name): amount
        for name, amount in {
            "poster": 893,
            "a": 150,
            "b": 50,
            "c": 50,
            "dave": 100,
            "erin": 100,
            "w0": 7,
            "founder": 0,
        }.items()
    }
    assert play.oracle.conservation(None)


def test_outcome_needs_the_end_of_the_last_window() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal("a")
    play.vote("w0", play.reveals["a"], "valid", 16_000)
    play.seen(21_000)
    assert play.oracle.outcome(play.the_job, None) is None
    play.seen(21_001)
    assert play.oracle.outcome(play.the_job, None) is not None


def test_no_vote_stands_and_the_pool_goes_back() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal("a")
    play.all_vote()
    assert play.all_attest() == record(winner=play.bids["a"])
    assert [play.due(name) for name in ("a", "b", "w0", "poster")] == [110, 10, 0, 7]


def test_cheat_with_refund_ends_the_search() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    on_a, _ = play.all_vote(("w0", "a", "cheat"), ("w0", "b", "valid"))
    a = play.key("a")
    assert play.oracle.verdict(play.reveals["a"], None) == "cheat"
    assert play.all_attest() == record(cheats=[a], forfeits=[a], votes=[on_a])
    assert [play.due(name) for name in ("a", "b", "w0", "poster")] == [0, 10, 17, 100]
    assert play.oracle.banned(a, None)
    assert play.oracle.conservation(None)


def test_cheat_with_next_goes_on() -> None:
    play = Play(terms={"on_cheat": "next"})
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    votes = play.all_vote(("w0", "a", "cheat"), ("w0", "b", "valid"))
    a = play.key("a")
    assert play.all_attest() == record(winner=play.bids["b"], cheats=[a], forfeits=[a], votes=sorted(votes))
    assert [play.due(name) for name in ("a", "b", "w0", "poster")] == [0, 110, 16, 1]


def test_missing_is_skipped_and_forfeits_without_a_ban() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    votes = play.all_vote(("w0", "a", "missing"), ("dave", "a", "cheat"), ("erin", "a", "valid"), ("w0", "b", "valid"))
    assert play.oracle.verdict(play.reveals["a"], None) == "missing"
    a = play.key("a")
    agreed = sorted([votes[0], votes[1], votes[3]])
    assert play.all_attest() == record(winner=play.bids["b"], forfeits=[a], votes=agreed)
    assert not play.oracle.banned(a, None)
    # pool 7 + one stake 10 = 17 among three votes: 5 each (w0 has two), 2 remain.
    assert [play.due(name) for name in ("a", "b", "w0", "dave", "erin", "poster")] == [0, 110, 10, 5, 0, 2]
    assert play.oracle.conservation(None)


def test_two_thirds_exactly_are_enough_for_cheat_and_less_is_not() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    play.all_vote(
        *(("w0", "a", "cheat"), ("dave", "a", "cheat"), ("erin", "a", "valid")),
        *(("w0", "b", "cheat"), ("dave", "b", "valid")),
    )
    assert play.oracle.verdict(play.reveals["a"], None) == "cheat"
    assert play.oracle.verdict(play.reveals["b"], None) == "stands"


def test_cheat_needs_f_plus_1_witnesses() -> None:
    play = Play(4)
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    play.all_vote(
        *(("w0", "a", "cheat"), ("dave", "a", "cheat"), ("erin", "a", "cheat")),
        *(("w0", "b", "cheat"), ("w1", "b", "cheat"), ("w2", "b", "valid")),
    )
    assert play.oracle.verdict(play.reveals["a"], None) == "stands"
    assert play.oracle.verdict(play.reveals["b"], None) == "cheat"


def test_verdict_is_undetermined_while_a_vote_is_open() -> None:
    play = Play(2)
    play.all_bid(a=5)
    play.all_reveal("a")
    vote = play.vote("dave", play.reveals["a"], "valid", play.reveal_until + 1001)
    play.beat(0, play.verdict_until, vote)
    play.beat(1, play.verdict_until + 1001)
    play.beat(0, play.verdict_until + 1001)
    assert play.oracle.status(vote, play.verdict_until, None) == "OPEN"
    assert play.oracle.verdict(play.reveals["a"], None) == "undetermined"
    assert play.oracle.due_for_outcome(play.the_job, None)
    assert play.oracle.outcome(play.the_job, None) is None


def forked_votes() -> tuple[Play, bytes, bytes]:
    """Two votes of dave on two branches, on two reveals of one job."""
    play = Play(2)
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    time = play.reveal_until + play.end
    one = play.vote("dave", play.reveals["a"], "valid", time)
    return play, one, play.vote("dave", play.reveals["b"], "valid", time, after=None)


def test_forked_votes_void_each_other() -> None:
    play, one, two = forked_votes()
    play.seen(play.verdict_until, one, two)
    play.seen(play.verdict_until + play.end)
    assert [play.oracle.void_state(x, None) for x in (one, two)] == ["void", "void"]
    assert play.all_attest() == record(winner=play.bids["a"])


def test_a_vote_on_time_with_an_open_rival_leaves_the_verdict_undetermined() -> None:
    play, one, two = forked_votes()
    play.seen(play.reveal_until + play.end, one)
    play.split(two, play.verdict_until)
    assert play.oracle.status(one, play.verdict_until, None) == "ON_TIME"
    assert play.oracle.verdict(play.reveals["a"], None) == "undetermined"
    assert play.oracle.due_for_outcome(play.the_job, None)
    assert play.oracle.outcome(play.the_job, None) is None


def test_late_votes_do_not_count() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal("a")
    play.all_vote()
    play.vote("w0", play.reveals["a"], "cheat", 21_001)
    assert play.oracle.verdict(play.reveals["a"], None) == "stands"


# -- the search --


def test_unrevealed_is_skipped_and_forfeits() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal("b")
    votes = play.all_vote(("w0", "b", "valid"))
    assert play.all_attest() == record(winner=play.bids["b"], forfeits=[play.key("a")], votes=votes)
    assert [play.due(name) for name in ("a", "b", "w0", "poster")] == [0, 110, 17, 0]


def test_nobody_left_means_no_winner() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal()
    play.all_vote()
    assert play.all_attest() == record(forfeits=[play.key("a")])
    assert [play.due(name) for name in ("a", "b", "poster")] == [0, 10, 117]


def test_only_the_lowest_bid_of_an_author_is_examined() -> None:
    play = Play()
    play.all_bid(a=9, b=7)
    play.all_reveal("a", "b")
    assert play.judge("a", "bid", {"job": play.the_job, "loss": 9, "commit": bytes(32)}, 12_000) == "loss_not_lower"
    play.all_vote()
    assert play.all_attest() == record(winner=play.bids["b"])
    low = Play()
    first = low.bid("a", low.the_job, 9, 450, *low.witnessed)
    low.all_bid(a=4, b=7)
    low.bids["a"] = first
    low.all_reveal("a", "b")
    low.all_vote()
    # The reveal of the bid with loss 9 does not help: the bid with loss 4 is the one examined, and it is unrevealed.
    assert low.all_attest() == record(winner=low.bids["b"], forfeits=[low.key("a")])


def test_bids_above_max_loss_are_not_examined() -> None:
    play = Play(terms={"max_loss": 6})
    play.all_bid(a=7, b=6)
    play.all_reveal("a", "b")
    play.all_vote(("w0", "b", "missing"))
    assert play.all_attest()["forfeits"] == [play.key("b")]


def test_job_that_is_not_certified_has_no_outcome() -> None:
    scene = Scene(2, GRANTS)
    job = scene.job("poster", 100, BID, **FREE)
    scene.beat(0, 30_000, job)
    scene.beat(1, 30_000)
    assert scene.oracle.outcome(job, None) is None
    assert not scene.oracle.due_for_outcome(job, None)


def test_equal_losses_go_to_the_earlier_tick() -> None:
    for first, second in (("a", "b"), ("b", "a")):
        play = Play()
        play.bids[first] = play.bid(first, play.the_job, 5, 500, *play.witnessed)
        play.seen(1000, play.bids[first])
        play.bids[second] = play.bid(second, play.the_job, 5, 500, *play.witnessed)
        play.seen(2000, play.bids[second])
        play.seen(BID + 1001)
        assert [play.oracle.arrival_ticks(play.bids[name], None) for name in (first, second)] == [(1, 1), (2, 2)]
        play.all_reveal("a", "b")
        play.all_vote()
        assert play.all_attest()["winner"] == play.bids[first]


def test_equal_losses_in_one_tick_go_by_hash() -> None:
    play = Play()
    play.all_bid(a=5, b=5)
    play.all_reveal("a", "b")
    play.all_vote()
    hashes = {hashlib.sha256(play.the_job + play.key(name)).digest(): name for name in ("a", "b")}
    assert play.all_attest()["winner"] == play.bids[hashes[min(hashes)]]


def test_equal_losses_with_ticks_that_overlap_stay_open() -> None:
    play = Play(2)
    for name in ("a", "b"):
        play.bids[name] = play.bid(name, play.the_job, 5, 500, *play.witnessed)
    # w0 has a for 1,000, w1 closes 1,000 without it, both have it for 3,000: nobody will ever say tick 1 or later.
    play.beat(0, 1000, play.bids["a"])
    play.beat(1, 2001)
    play.seen(3000, *play.bids.values())
    play.seen(BID + 1001)
    ticks = {name: play.oracle.arrival_ticks(play.bids[name], None) for name in ("a", "b")}
    assert ticks == {"a": (1, 3), "b": (3, 3)}
    play.all_reveal("a", "b")
    play.all_vote()
    assert play.oracle.due_for_outcome(play.the_job, None)
    assert play.oracle.outcome(play.the_job, None) is None


@pytest.mark.parametrize(("pending", "decided"), [(4, False), (5, False), (6, True)])
def test_a_pending_bid_matters_up_to_the_loss_examined(pending: int, decided: bool) -> None:
    play = Play(2, terms=FREE)
    play.bids["a"] = play.bid("a", play.the_job, 5, 500, *play.witnessed)
    open_bid = play.bid("b", play.the_job, pending, 500, *play.witnessed)
    play.seen(1000, play.bids["a"])
    play.split(open_bid, BID)
    play.all_reveal("a")
    play.all_vote()
    outcome = play.oracle.outcome(play.the_job, None)
    assert outcome == (record(winner=play.bids["a"]) if decided else None)


def test_a_pending_bid_matters_when_the_search_runs_out() -> None:
    play = Play(2, terms=FREE)
    play.bids["a"] = play.bid("a", play.the_job, 5, 500, *play.witnessed)
    open_bid = play.bid("b", play.the_job, 6, 500, *play.witnessed)
    play.seen(1000, play.bids["a"])
    play.split(open_bid, BID)
    play.all_reveal()
    play.all_vote()
    assert play.oracle.outcome(play.the_job, None) is None


def test_an_open_bid_on_another_branch_leaves_the_seen_one_undetermined() -> None:
    play = Play(2, terms=FREE)
    play.bids["a"] = play.bid("a", play.the_job, 5, 500, *play.witnessed)
    play.seen(1000, play.bids["a"])
    fork = play.bid("a", play.the_job, 5, 500, *play.witnessed, after=None)
    play.split(fork, BID)
    play.tips[play.key("a")] = play.bids["a"]
    play.all_reveal("a")
    play.all_vote()
    assert play.oracle.void_state(play.bids["a"], None) == "undetermined"
    assert play.oracle.outcome(play.the_job, None) is None


def test_an_open_reveal_leaves_the_outcome_open() -> None:
    play = Play(2)
    play.all_bid(a=5, b=7)
    play.reveals["a"] = play.reveal("a", play.bids["a"], 12_000, *play.witnessed)
    play.split(play.reveals["a"], play.reveal_until)
    play.all_vote()
    assert play.oracle.outcome(play.the_job, None) is None


def test_forked_reveals_void_each_other() -> None:
    play = Play()
    play.all_bid(a=5)
    one = play.reveal("a", play.bids["a"], 12_000, *play.witnessed)
    two = play.reveal("a", play.bids["a"], 12_001, *play.witnessed, after=play.bids["a"])
    play.seen(13_000, one, two)
    play.all_reveal()
    play.all_vote()
    assert [play.oracle.void_state(x, None) for x in (one, two)] == ["void", "void"]
    assert play.all_attest() == record(forfeits=[play.key("a")])


def test_the_search_ends_after_32_revealed_bids() -> None:
    names = [f"m{i:02}" for i in range(34)]
    play = Play(bidders=names, terms=FREE)
    play.seen(450, *(play.genesis,))
    play.all_bid(**{name: i for i, name in enumerate(names)})
    revealed = [name for name in names if name != "m03"]
    play.all_reveal(*revealed)
    play.all_vote(*(("w0", name, "missing") for name in revealed[:32]))
    outcome = play.all_attest()
    # m03 is unrevealed and not counted: m00 to m32 forfeit, and m33, which stands, is never reached.
    assert outcome["winner"] is None
    assert outcome["forfeits"] == sorted(play.key(name) for name in names[:33])
    assert len(outcome["votes"]) == 32


# -- expired, bans, electors --


def test_expired_returns_everything() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal()
    play.all_vote()
    play.all_attest(record(expired=True), 40_000)
    assert [play.due(name) for name in ("a", "b", "w0", "poster")] == [10, 10, 0, 107]
    assert play.oracle.conservation(None)
    (attest,) = (play.oracle.ops[one] for one in play.witnessed)
    assert play.oracle.right_attest(attest)


def test_audit_of_attests() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal("a")
    play.all_vote()
    right = record(winner=play.bids["a"])
    for said, time, is_right in [
        (right, 21_001, True),
        (right, 39_999, True),
        (right, 40_000, False),
        (record(expired=True), 40_000, True),
        (record(expired=True), 39_999, False),
        (record(), 21_001, False),
    ]:
        op = play.next("w0", "attest", {"job": play.the_job, "record": said}, time)
        play.oracle.insert(op)
        assert play.oracle.right_attest(op) is is_right


def test_a_banned_author_is_acknowledged_no_more() -> None:
    play = Play()
    play.all_bid(a=5, b=7)
    play.all_reveal("a", "b")
    play.all_vote(("w0", "a", "cheat"))
    before = play.transfer("a", "b", 1, 20_000)
    play.seen(21_500, before)
    play.all_attest(play.oracle.outcome(play.the_job, None), 22_000)
    after = play.transfer("a", "b", 1, 22_100)
    play.seen(22_200, after)
    assert play.oracle.certified(before, None)
    assert not play.oracle.certified(after, None)
    job = play.job("poster", 22_300, 40_000, *play.witnessed, **FREE)
    blind = play.job("b", 22_300, 40_000, bounty=1, pool=0, **FREE)
    bid = play.bid("a", job, 1, 22_400, job)
    other = play.bid("a", blind, 1, 22_400, blind)
    play.seen(22_500, bid, other)
    # Only the first job has the certificate in its past.
    assert [play.oracle.void_state(x, None) for x in (bid, other)] == ["void", "clear"]
    assert not play.oracle.elector(play.key("a"), job)


def test_a_banned_account_is_no_elector_however_rich() -> None:
    play = Play(bidders=["a"])
    rich = play.key("erin")
    cheated = record(cheats=[rich], forfeits=[rich])
    before = play.job("poster", 22_000, 40_000, **FREE)
    play.all_attest(cheated, 22_000)
    after = play.job("poster", 22_100, 40_000, *play.witnessed, **FREE)
    assert [play.oracle.elector(rich, job) for job in (before, after)] == [True, False]


def test_votes_of_a_banned_witness_are_void() -> None:
    play = Play(4, bidders=["a", "w3"])
    play.all_bid(a=7, w3=5)
    play.all_reveal("a", "w3")
    play.all_vote(("w0", "w3", "cheat"), ("w1", "w3", "cheat"))
    assert play.all_attest()["cheats"] == [play.key("w3")]
    time = play.verdict_until + 5000
    job = play.job("poster", time, 60_000, *play.witnessed, **FREE)
    assert play.oracle.elector(play.key("w3"), job)
    bid = play.bid("b", job, 3, time, job)
    play.seen(60_000, bid)
    play.seen(62_001)
    reveal = play.reveal("b", bid, 62_001, *play.witnessed)
    vote = play.vote("w3", reveal, "cheat", 62_001)
    assert play.oracle.void_state(vote, None) == "void"
    # A void vote is never undetermined: the verdict does not wait for it, though it is OPEN.
    assert play.oracle.status(vote, play.oracle.deadline_of(vote), None) == "OPEN"
    assert play.oracle.verdict(reveal, None) == "stands"


def test_electors_by_the_certified_balance_as_of_the_job() -> None:
    scene = Scene(1, GRANTS)
    scene.transfer("dave", "c", 1, 1)
    unseen = scene.job("poster", 2, BID, **FREE)
    seen = scene.beat(0, 3, scene.tips[scene.key("dave")])
    job = scene.job("poster", 4, BID, seen, **FREE)
    keys = {name: scene.key(name) for name in ("dave", "erin", "a", "w0", "nobody")}
    assert {name for name, key in keys.items() if scene.oracle.elector(key, unseen)} == {"dave", "erin", "w0"}
    assert {name for name, key in keys.items() if scene.oracle.elector(key, job)} == {"erin", "w0"}


# -- sums --


def test_shares_leave_a_remainder_to_the_poster() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal("a")
    play.all_vote(*((name, "a", "valid") for name in ("w0", "dave", "erin")))
    play.all_attest()
    assert [play.due(name) for name in ("w0", "dave", "erin", "poster")] == [2, 2, 2, 1]


def test_without_votes_forfeits_go_to_the_poster() -> None:
    play = Play()
    play.all_bid(a=5, b=6)
    play.all_reveal()
    play.all_vote()
    play.all_attest()
    assert play.due("poster") == 127


def test_a_branch_without_the_stake_or_the_job_claims_less() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal()
    play.all_vote()
    said = play.all_attest()
    oracle, z = play.oracle, play.oracle.past(None)
    assert oracle.due(play.key("b"), play.the_job, said, z, (play.genesis,)) == 0
    assert oracle.due(play.key("b"), play.the_job, said, z, oracle.chain(play.tip("b"))) == 10
    assert oracle.due(play.key("poster"), play.the_job, said, z, ()) == 0


def test_a_transfer_is_claimed_once_by_its_new_key() -> None:
    scene = Scene(1, GRANTS)
    paid = scene.transfer("a", "new", 20, 1)
    assert scene.judge("new", "claim", {"of": paid}, 2, paid) == "nothing_due"
    seen = scene.beat(0, 2, paid)
    assert scene.judge("b", "claim", {"of": paid}, 3, seen) == "nothing_due"
    assert scene.oracle.conservation(None)
    assert scene.judge("new", "profile", {"name": "x", "about": ""}, 3, seen) == "first_op"
    claim = scene.claim("new", paid, 3, seen)
    assert scene.oracle.balance(claim) == 20
    assert scene.judge("new", "claim", {"of": paid}, 4) == "claim_twice"
    scene.beat(0, 4, claim)
    assert scene.oracle.accounts(None)[scene.key("new")] == 20
    assert scene.oracle.accounts(None)[scene.key("a")] == 30
    assert scene.oracle.conservation(None)


def test_two_certified_outcomes_let_nobody_claim() -> None:
    play = Play()
    play.all_bid(a=5)
    play.all_reveal()
    play.all_vote()
    fork = play.tip("w0")
    play.all_attest()
    one = play.witnessed
    play.tips[play.w[0]] = fork
    play.all_attest(record(expired=True))
    assert len(play.oracle.certificates(play.the_job, None)) == 2
    body = {"of": play.the_job}
    assert play.judge("poster", "claim", body, 22_000, *one, *play.witnessed) == "nothing_due"
    assert play.judge("poster", "claim", body, 22_000, *one) is None
