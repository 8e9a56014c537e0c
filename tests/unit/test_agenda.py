"""What an author's node does by itself."""

from __future__ import annotations

from crdtchain.agenda import find_claims, find_reveals
from crdtchain.codec import Link
from crdtchain.ledger.rules import compute_commitment
from crdtchain.ops import Claim, Reveal
from crdtchain.scalars import BlobId, OpId
from tests.builders import World


def claimed(world: World, name: str) -> list[OpId]:
    bodies = find_claims(world.ledger, world.key(name))
    return [OpId(bytes(body.of)) for body in bodies if isinstance(body, Claim)]


def test_a_transfer_is_claimed_once_it_is_certified_and_only_once() -> None:
    world = World()
    sent = world.transfer("alice", "erin", 5)
    assert claimed(world, "erin") == []
    world.certify()
    assert claimed(world, "erin") == [sent]
    assert claimed(world, "alice") == claimed(world, "bob") == []
    world.claim("erin", sent)
    assert claimed(world, "erin") == []


def test_a_decided_job_is_claimed_by_all_to_whom_it_gives_something_and_nobody_else() -> None:
    world = World()
    job = world.post("alice", stake=5)
    for name in ("bob", "carol"):
        world.stake(name, job)
    world.certify()
    bids = {name: world.bid(name, job, loss) for name, loss in (("bob", 500), ("carol", 700))}
    terms = world.job_terms(job)
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    reveal = world.reveal("bob", bids["bob"])
    world.advance_to(terms.reveal_until)
    world.close(terms.reveal_until)
    for name in world.witnesses:
        world.vote(name, reveal, "valid", 500)
    world.advance_to(terms.verdict_until)
    world.close(terms.verdict_until)
    assert claimed(world, "bob") == []
    world.attest_all(job)
    assert claimed(world, "bob") == claimed(world, "carol") == claimed(world, "w0") == [job]
    assert claimed(world, "dave") == []
    for name in ("bob", "carol", *world.witnesses):
        world.say(name, Claim(of=Link(job)))
        assert claimed(world, name) == []


def models(world: World, name: str, *bids: OpId) -> dict[bytes, tuple[BlobId, int]]:
    key = world.key(name)
    blobs = [BlobId(bytes(world.models[bid])) for bid in bids]
    return {compute_commitment(key, blob): (blob, 100) for blob in blobs}


def test_the_lowest_bid_is_revealed_when_bidding_is_closed_and_while_it_may_count() -> None:
    world = World()
    job = world.post("alice")
    world.stake("bob", job)
    world.certify()
    bids = [world.bid("bob", job, loss) for loss in (900, 500)]
    known = models(world, "bob", *bids)
    terms = world.job_terms(job)
    assert find_reveals(world.ledger, world.key("bob"), known) == []
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    found = find_reveals(world.ledger, world.key("bob"), known)
    assert found == [Reveal(bid=Link(bids[1]), model=world.models[bids[1]], size=100)]
    assert find_reveals(world.ledger, world.key("bob"), {}) == []
    assert find_reveals(world.ledger, world.key("carol"), known) == []
    world.say("bob", found[0], parents=world.witness_tips("bob"))
    assert find_reveals(world.ledger, world.key("bob"), known) == []


def test_no_bid_is_revealed_when_it_is_too_late_or_the_bid_was() -> None:
    world = World()
    job = world.post("alice")
    world.stake("bob", job)
    world.certify()
    early = world.bid("bob", job, 900)
    terms = world.job_terms(job)
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    late = world.bid("bob", job, 500)
    world.certify()
    known = models(world, "bob", early, late)
    (body,) = find_reveals(world.ledger, world.key("bob"), known)
    assert isinstance(body, Reveal) and bytes(body.bid) == early
    world.advance_to(terms.reveal_until)
    world.close(terms.reveal_until)
    assert find_reveals(world.ledger, world.key("bob"), known) == []
