"""What people see of a ledger."""

from __future__ import annotations

import json

from crdtchain import views
from crdtchain.codec import format_cid, format_did, parse_cid
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Bid, Job, Kind
from crdtchain.scalars import OpId
from node.server.bodies import read_terms
from tests.builders import Played, World


def play(verdicts: dict[str, str] | None = None, **changes: object) -> tuple[World, Played]:
    world = World()
    played = world.play_job("alice", {"bob": [900, 500], "carol": [700]}, verdicts, **changes)  # type: ignore[arg-type]
    return world, played


def number_of(ledger: Ledger, op: OpId) -> int:
    number = ledger.dag.find(op)
    assert number is not None
    return number


def status(world: World, op: OpId) -> object:
    ledger = world.ledger
    return views.find_status(ledger, number_of(ledger, op), ledger.everything())["status"]


def show_job(world: World, job: OpId) -> dict[str, views.Json]:
    ledger = world.ledger
    return views.job_to_json(ledger, number_of(ledger, job), ledger.everything(), world.now)


def test_a_value_op_is_local_then_seen_then_certified_then_claimed() -> None:
    world = World()
    sent = world.transfer("alice", "bob", 5)
    assert status(world, sent) == "local"
    world.beat_all(names=["w0"])
    ledger = world.ledger
    shown = views.find_status(ledger, number_of(ledger, sent), ledger.everything())
    assert shown == {"status": "seen", "reason": "", "seen": 1, "witnesses": 4}
    world.certify()
    assert status(world, sent) == "certified"
    world.claim("bob", sent)
    assert status(world, sent) == "claimed"


def test_a_played_job_shows_its_leaderboard_and_outcome() -> None:
    world, played = play()
    shown = show_job(world, played.job)
    assert shown["phase"] == "decided" and shown["status"] == "claimed" and shown["certified"] is True
    board = shown["leaderboard"]
    assert isinstance(board, list)
    rows = [(row["loss"], row["status"]) for row in board if isinstance(row, dict)]
    assert rows == [(500, "claimed"), (700, "on time"), (900, "on time")]
    outcome = shown["outcome"]
    assert isinstance(outcome, dict)
    assert outcome["winner_author"] == format_did(world.key("bob")) and outcome["loss"] == 500
    assert json.loads(json.dumps(shown)) == shown


def test_a_cheat_is_shown_as_refunded_and_its_author_as_banned() -> None:
    world, played = play({"bob": "cheat"}, on_cheat="refund")
    shown = show_job(world, played.job)
    assert shown["phase"] == "refunded"
    account = views.account_to_json(world.ledger, world.key("bob"), world.ledger.everything())
    assert account["banned"] is True and account["equivocated"] is False


def test_a_bid_that_was_not_revealed_says_so() -> None:
    world, played = play(silent=["bob"])
    assert status(world, played.bids["bob"]) == "unrevealed"
    assert status(world, played.bids["carol"]) == "claimed"


def test_the_lowest_bid_on_time_leads_and_a_late_one_is_late() -> None:
    world = World()
    job = world.post("alice")
    world.stake("bob", job)
    world.certify()
    bid = world.bid("bob", job, 500)
    assert status(world, bid) == "local"
    terms = world.job_terms(job)
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    assert status(world, bid) == "leading"
    late = world.bid("bob", job, 400)
    world.certify()
    assert status(world, late) == "late"
    assert show_job(world, job)["phase"] == "revealing"


def test_two_bids_on_two_branches_void_each_other() -> None:
    world = World()
    job = world.post("alice")
    world.stake("bob", job)
    world.certify()
    before = world.tip("bob")
    first = world.bid("bob", job, 500)
    body = world.find(first).op.body
    assert isinstance(body, Bid)
    other = Bid(job=body.job, loss=400, commit=body.commit)
    second = world.say("bob", other, parents=world.witness_tips("bob"), prev=before).op.id
    terms = world.job_terms(job)
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    assert [status(world, bid) for bid in (first, second)] == ["void", "void"]


def test_an_account_shows_its_history_and_what_waits_for_it() -> None:
    world, _ = play()
    world.transfer("alice", "carol", 7)
    shown = views.account_to_json(world.ledger, world.key("alice"), world.ledger.everything())
    history = shown["history"]
    assert isinstance(history, list)
    changes = [row["change"] for row in history if isinstance(row, dict)]
    assert changes[0] == -24 and changes[-1] == -7
    assert shown["balance"] == 1_000 + sum(change for change in changes if isinstance(change, int))
    incoming = views.account_to_json(world.ledger, world.key("carol"), world.ledger.everything())["incoming"]
    assert isinstance(incoming, list) and len(incoming) == 1
    keys = views.account_keys(world.ledger)
    assert keys == sorted(set(keys)) and world.key("dave") in keys


def test_terms_as_they_are_shown_are_terms_that_are_taken() -> None:
    world = World()
    terms = world.terms(editors=tuple(sorted([bytes(world.key("bob")), bytes(world.key("carol"))])))
    assert read_terms(json.dumps(views.body_to_json(terms)).encode()) == terms
    assert isinstance(terms, Job)


def test_every_op_of_a_long_life_can_be_shown() -> None:
    world, _ = play({"carol": "missing"})
    ledger, cut = world.ledger, world.ledger.everything()
    for number, signed in enumerate(world.log):
        row = views.row_to_json(ledger, number, cut)
        assert json.loads(json.dumps({**row, **views.op_to_json(signed.op)}))["id"] == format_cid(signed.op.id)
    shown = views.ledger_status(ledger, ledger.state_digest())
    assert shown["ops"] == len(world.log) and len(str(shown["heads_digest"])) == 64
    kinds = {views.row_to_json(ledger, number, cut)["kind"] for number in range(len(ledger))}
    assert kinds >= {Kind.ATTEST.value, Kind.VOTE.value}
    assert parse_cid(str(shown["network"])) == world.network
    assert views.params_to_json(ledger)["delta_ms"] == 200
