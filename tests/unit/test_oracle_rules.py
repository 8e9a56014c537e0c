"""The oracle's rules of validity: each is broken once, and holds in the nearest valid case."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.oracle.drafting import Scene, blob, job_body
from tests.oracle.model import OracleOp

GRANTS = {"poster": 1000, "a": 50, "b": 50, "dave": 100}
FREE = {"stake": 0, "on_cheat": "next"}
BID = 10_000


def two_ops() -> tuple[Scene, OracleOp]:
    """A transfer of a's that was added, and a valid next one that was not."""
    scene = Scene(4, GRANTS)
    scene.transfer("a", "b", 1, 10)
    scene.beat(0, 1)
    return scene, scene.next(
        "a", "transfer", {"to": scene.key("b"), "amount": 49, "memo": None}, 10, scene.tips[scene.w[0]]
    )


def test_judging_leaves_no_trace() -> None:
    scene, op = two_ops()
    before = (len(scene.oracle.ops), len(scene.oracle.memo))
    assert scene.oracle.judge(op) is None
    assert scene.oracle.judge(dataclasses.replace(op, body=op.body | {"amount": 50})) == "balance"
    assert (len(scene.oracle.ops), len(scene.oracle.memo)) == before
    scene.oracle.add(op)
    assert scene.oracle.judge(op) is None
    with pytest.raises(ValueError, match="balance"):
        scene.transfer("a", "b", 1, 11, after=op.id)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"seq": 2}, "seq"),
        ({"seq": 0}, "seq"),
        ({"prev": None}, "seq"),
        ({"prev": b"x" * 36}, "links"),
        ({"parents": (b"x" * 36,)}, "links"),
        ({"prev": None, "parents": (), "seq": 0}, "links"),
        ({"time": 9}, "time"),
        ({"time": 2**52 + 1}, "time"),
        ({"time": 2**52}, None),
        ({"kind": "genesis"}, "genesis"),
        ({"kind": "gift"}, "kind"),
        ({"body": {"amount": 1}}, "kind"),
    ],
)
def test_common_rules(changes: dict[str, Any], code: str | None) -> None:
    scene, op = two_ops()
    assert scene.oracle.judge(dataclasses.replace(op, id=b"y" * 36, **changes)) == code


def test_parents_are_sorted_unique_and_of_others() -> None:
    scene, op = two_ops()
    beats = sorted(scene.beats(2))
    assert scene.oracle.judge(dataclasses.replace(op, parents=tuple(beats))) is None
    assert scene.oracle.judge(dataclasses.replace(op, parents=tuple(reversed(beats)))) == "parents"
    assert scene.oracle.judge(dataclasses.replace(op, parents=(beats[0], beats[0]))) == "parents"
    assert op.prev is not None
    assert scene.oracle.judge(dataclasses.replace(op, parents=(op.prev,))) == "parents"
    assert scene.oracle.judge(dataclasses.replace(op, prev=beats[0], parents=())) == "prev"


def test_parents_at_most_16_and_64_for_a_witness() -> None:
    names = [f"m{i}" for i in range(65)]
    scene = Scene(1, dict.fromkeys(names, 1))
    profiles = [scene.add(name, "profile", {"name": name, "about": ""}, 1) for name in names]
    body = {"name": "m0", "about": ""}
    assert scene.judge("m0", "profile", body, 2, *profiles[1:17]) is None
    assert scene.judge("m0", "profile", body, 2, *profiles[1:18]) == "parents"
    assert scene.judge("w0", "beat", {}, 2, *profiles[:64]) is None
    assert scene.judge("w0", "beat", {}, 2, *profiles[:65]) == "parents"


def test_a_chain_starts_with_a_named_key_or_a_claim_of_a_transfer() -> None:
    scene = Scene(1, GRANTS)
    body = {"name": "x", "about": ""}
    assert scene.judge("a", "profile", body, 1) is None
    assert scene.judge("stranger", "profile", body, 1) == "first_op"
    assert scene.judge("founder", "profile", body, 1, scene.beat(0, 1), after=None) is None
    job = scene.job("poster", 2, BID, **FREE)
    assert scene.judge("stranger", "claim", {"of": job}, 3, job) == "first_op"
    paid = scene.transfer("a", "stranger", 1, 3)
    assert scene.judge("stranger", "claim", {"of": paid}, 4, paid) == "nothing_due"
    assert scene.judge("stranger", "claim", {"of": paid}, 4, scene.beat(0, 4, paid)) is None


def test_a_transfer() -> None:
    scene = Scene(1, GRANTS)
    to = scene.key("b")
    for body, code in [
        ({"to": to, "amount": 50, "memo": None}, None),
        ({"to": to, "amount": 51, "memo": None}, "balance"),
        ({"to": to, "amount": 0, "memo": None}, "transfer"),
        ({"to": scene.key("a"), "amount": 1, "memo": None}, "transfer"),
        ({"to": to, "amount": 1, "memo": "é" * 100}, None),
        ({"to": to, "amount": 1, "memo": "é" * 101}, "transfer"),
    ]:
        assert scene.judge("a", "transfer", body, 1) == code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"bounty": 993}, None),
        ({"bounty": 994}, "balance"),
        ({"bounty": 0}, "terms"),
        ({"bounty": 2**53 - 1, "pool": 1}, "terms"),
        ({"stake": 0}, "terms"),
        ({"stake": 0, "on_cheat": "next"}, None),
        ({"on_cheat": "again"}, "terms"),
        ({"tolerance": -1}, "terms"),
        ({"max_loss": -1}, "terms"),
        ({"max_loss": 0}, None),
        ({"bid_until": 9_999}, "terms"),
        ({"bid_until": 9_000}, None),
        ({"bid_until": 11_000}, "terms"),
        ({"reveal_until": 15_500}, "terms"),
        ({"reveal_until": 16_000}, "terms"),
        ({"reveal_until": 14_000}, "terms"),
        ({"verdict_until": 21_000}, "terms"),
        ({"verdict_until": 23_000}, None),
        ({"metric": "beauty"}, "terms"),
        ({"tags": ["t"] * 9}, "terms"),
        ({"title": "t" * 201}, "terms"),
    ],
)
def test_terms(changes: dict[str, Any], code: str | None) -> None:
    # n = 4, f = 1: five Δ from 10,000 to 15,000, and seven seconds more to 22,000.
    scene = Scene(4, GRANTS)
    assert scene.judge("poster", "job", job_body(BID, 1) | changes, 8_999) == code


def test_a_job_is_older_than_its_deadline() -> None:
    scene = Scene(4, GRANTS)
    assert scene.judge("poster", "job", job_body(BID, 1), BID - 1) is None
    assert scene.judge("poster", "job", job_body(BID, 1), BID) == "terms"


def test_a_stake() -> None:
    scene = Scene(2, GRANTS)
    job = scene.job("poster", 1, BID)
    body = {"job": job}
    first = scene.beat(0, 2, job)
    second = scene.beat(1, 2, job)
    assert scene.judge("a", "stake", body, 3) == "named"
    assert scene.judge("a", "stake", body, 3, first) == "job_not_certified"
    assert scene.judge("a", "stake", body, 3, first, second) is None
    assert scene.judge("poster", "stake", body, 3, first, second) == "own_job"
    # A witness's own stake covers the job, and so is the second acknowledgement itself.
    poor = scene.next("w1", "stake", body, 3, first)
    assert scene.oracle.judge(poor) == "balance"
    stake = scene.stake("a", job, 3, first, second)
    assert scene.judge("a", "stake", body, 4) == "stake_twice"
    expired: dict[str, Any] = {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": True}
    attests = [scene.attest(i, job, expired, 50_000) for i in range(2)]
    assert scene.judge("b", "stake", body, 5, attests[0]) == "job_not_certified"
    assert scene.judge("b", "stake", body, 5, attests[0], second) is None
    assert scene.judge("b", "stake", body, 5, *attests) == "outcome_certified"
    assert stake in scene.oracle.past(None)


def test_a_bid() -> None:
    scene = Scene(1, GRANTS)
    job = scene.job("poster", 1, BID)
    seen = scene.beat(0, 2, job)
    body = {"job": job, "loss": 5, "commit": bytes(32)}
    assert scene.judge("a", "bid", body, 3, seen) == "stake_missing"
    stake = scene.stake("a", job, 3, seen)
    assert scene.judge("a", "bid", body, 3) == "stake_missing"
    certified = scene.beat(0, 4, stake)
    assert scene.judge("a", "bid", body, 4, certified) is None
    assert scene.judge("b", "bid", body, 4, certified) == "stake_missing"
    assert scene.judge("a", "bid", body | {"loss": -1}, 4, certified) == "bid"
    assert scene.judge("poster", "bid", body, 4, certified) == "own_job"
    assert scene.judge("a", "bid", body, 4, certified, after=None) == "stake_missing"
    free = scene.job("poster", 4, BID, **FREE)
    assert scene.judge("b", "bid", body | {"job": free}, 4, free) is None
    assert scene.judge("b", "bid", body | {"job": free}, 4, seen) == "named"


def test_bids_fall_and_are_at_most_32() -> None:
    scene = Scene(1, GRANTS)
    job = scene.job("poster", 1, BID, **FREE)
    for loss in range(100, 69, -1):
        scene.bid("a", job, loss, 2, job)
    body = {"job": job, "loss": 70, "commit": bytes(32)}
    assert scene.judge("a", "bid", body, 2) == "loss_not_lower"
    scene.bid("a", job, 69, 2)
    assert scene.judge("a", "bid", body | {"loss": 68}, 2) == "too_many_bids"


def test_a_reveal() -> None:
    scene = Scene(2, GRANTS)
    job = scene.job("poster", 1, BID, **FREE)
    bid = scene.bid("a", job, 5, 2, job)
    body = {"bid": bid, "model": blob("a-5"), "size": 8}
    one, two = scene.beats(BID + 1001, bid)
    early = scene.beat(0, BID + 1001)
    assert scene.judge("a", "reveal", body, 3, one) == "reveal_early"
    assert scene.judge("a", "reveal", body, 3, one, early) == "reveal_early"
    assert scene.judge("a", "reveal", body, 3, one, two) is None
    assert scene.judge("b", "reveal", body, 3, one, two) == "not_own_bid"
    assert scene.judge("a", "reveal", body, 3, one, two, after=None) == "not_own_bid"
    assert scene.judge("a", "reveal", body | {"model": blob("a-6")}, 3, one, two) == "commit"
    assert scene.judge("a", "reveal", body | {"size": -1}, 3, one, two) == "reveal"
    scene.reveal("a", bid, 3, one, two)
    assert scene.judge("a", "reveal", body, 3) == "reveal_twice"


def test_a_reveal_at_the_end_of_the_window_is_early() -> None:
    scene = Scene(1, GRANTS)
    job = scene.job("poster", 1, BID, **FREE)
    bid = scene.bid("a", job, 5, 2, job)
    body = {"bid": bid, "model": blob("a-5"), "size": 8}
    assert scene.judge("a", "reveal", body, 3, scene.beat(0, BID + 1000)) == "reveal_early"
    assert scene.judge("a", "reveal", body, 3, scene.beat(0, BID + 1001)) is None


def revealed(n: int) -> tuple[Scene, bytes, bytes]:
    scene = Scene(n, GRANTS)
    job = scene.job("poster", 1, BID, **FREE)
    bid = scene.bid("a", job, 5, 2, job)
    return scene, job, scene.reveal("a", bid, 3, *scene.beats(BID + 2001))


def test_a_vote() -> None:
    scene, job, reveal = revealed(2)
    body = {"reveal": reveal, "verdict": "valid", "loss": 5}
    assert scene.judge("w0", "vote", body, 20_000, reveal) is None
    assert scene.judge("w0", "vote", body, 20_000) == "named"
    assert scene.judge("dave", "vote", body, 20_000, reveal) is None
    assert scene.judge("b", "vote", body, 20_000, reveal) == "not_elector"
    assert scene.judge("poster", "vote", body, 20_000, reveal) == "own_job"
    assert scene.judge("w0", "vote", body | {"verdict": "good"}, 20_000, reveal) == "vote"
    assert scene.judge("w0", "vote", body | {"loss": -1}, 20_000, reveal) == "vote"
    scene.vote("w0", reveal, "valid", 20_000)
    assert scene.judge("w0", "vote", body, 20_000) == "vote_twice"
    own = scene.bid("dave", job, 3, 2, job)
    assert scene.judge("dave", "vote", body, 20_000, reveal) == "bid_by_elector"
    fork = scene.next("dave", "vote", body, 20_000, reveal, after=None)
    assert scene.oracle.judge(fork) is None
    known = scene.next("dave", "vote", body, 20_000, reveal, scene.beat(1, 20_000, own), after=None)
    assert scene.oracle.judge(known) == "bid_by_elector"


def test_the_poster_votes_in_the_simple_mode_only() -> None:
    scene = Scene(1, GRANTS)
    job = scene.job("dave", 1, BID, bounty=10, **FREE)
    bid = scene.bid("a", job, 5, 2, job)
    reveal = scene.reveal("a", bid, 3, scene.beat(0, BID + 2001))
    body = {"reveal": reveal, "verdict": "valid", "loss": None}
    # 100 - 10 - 7 = 83 are left, but the job is not yet certified as of itself: the grant of 100 counts.
    assert scene.judge("dave", "vote", body, 20_000, reveal) is None


def test_only_witnesses_beat_and_attest() -> None:
    scene = Scene(1, GRANTS)
    job = scene.job("poster", 1, BID)
    empty: dict[str, Any] = {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": False}
    assert scene.judge("a", "beat", {}, 1) == "not_witness"
    assert scene.judge("a", "attest", {"job": job, "record": empty}, 1, job) == "not_witness"
    assert scene.judge("w0", "attest", {"job": job, "record": empty}, 1) == "named"
    one, two = sorted([scene.key("a"), scene.key("b")])
    changed: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({"expired": True}, None),
        ({"expired": True, "forfeits": [one]}, "record"),
        ({"expired": True, "winner": job}, "record"),
        ({"forfeits": [one, two], "cheats": [two]}, None),
        ({"forfeits": [two, one]}, "record"),
        ({"forfeits": [one, one]}, "record"),
        ({"forfeits": [one], "cheats": [two]}, "record"),
        ({"votes": [b"v" * 36, b"u" * 36]}, "record"),
        ({"forfeits": [i.to_bytes(32) for i in range(500)]}, None),
        ({"forfeits": [i.to_bytes(32) for i in range(501)]}, "record"),
        ({"votes": [i.to_bytes(36) for i in range(501)]}, "record"),
    ]
    for changes, code in changed:
        assert scene.judge("w0", "attest", {"job": job, "record": empty | changes}, 1, job) == code
    scene.attest(0, job, empty, 1, job)
    assert scene.judge("w0", "attest", {"job": job, "record": empty | {"expired": True}}, 2) == "attest_twice"


def test_a_claim_of_a_job() -> None:
    scene = Scene(2, GRANTS)
    job = scene.job("poster", 1, BID)
    scene.beats(2, job)
    expired: dict[str, Any] = {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": True}
    first = scene.attest(0, job, expired, 50_000)
    assert scene.judge("poster", "claim", {"of": job}, 3, first) == "nothing_due"
    second = scene.attest(1, job, expired, 50_000)
    assert scene.judge("poster", "claim", {"of": job}, 3, first, second) is None
    assert scene.judge("a", "claim", {"of": job}, 3, first, second) == "nothing_due"
    assert scene.judge("poster", "claim", {"of": job}, 3, first, second, after=None) == "nothing_due"
    assert scene.judge("poster", "claim", {"of": first}, 3, first, second) == "named"
    claim = scene.claim("poster", job, 3, first, second)
    assert scene.oracle.balance(claim) == 1000
    assert scene.judge("poster", "claim", {"of": job}, 3) == "claim_twice"


def test_a_profile() -> None:
    scene = Scene(1, GRANTS)
    assert scene.judge("a", "profile", {"name": "n" * 100, "about": "a" * 1000}, 1) is None
    assert scene.judge("a", "profile", {"name": "n" * 101, "about": ""}, 1) == "profile"
    assert scene.judge("a", "profile", {"name": "", "about": "a" * 1001}, 1) == "profile"
