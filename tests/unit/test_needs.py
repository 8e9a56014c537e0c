"""What open jobs need of the blobs."""

from __future__ import annotations

from crdtchain.ledger.rules import compute_commitment
from crdtchain.needs import find_needed
from crdtchain.scalars import Author, BlobId, OpId
from tests.builders import World

NOBODY = Author(bytes(32))


def needed(world: World, name: str = "", known: dict[bytes, tuple[BlobId, int]] | None = None) -> dict[BlobId, str]:
    return find_needed(world.ledger, world.now, world.key(name) if name else NOBODY, known or {})


def files(world: World, job: OpId) -> set[BlobId]:
    terms = world.job_terms(job)
    links = [link for _, link in (*terms.task.code, *terms.data.train, *terms.data.features)]
    return {BlobId(bytes(link)) for link in (*links, terms.data.labels)}


def test_a_job_needs_its_files_from_its_posting_until_its_outcome_is_certified() -> None:
    world = World()
    assert needed(world) == {}
    job = world.post("alice")
    assert set(needed(world)) == files(world, job)
    world.stake("bob", job)
    world.certify()
    bid = world.bid("bob", job, 500)
    model = BlobId(bytes(world.models[bid]))
    known = {compute_commitment(world.key("bob"), model): (model, 100)}
    assert model not in needed(world)
    assert needed(world, "bob", known)[model].startswith("the model of an own bid of job bafyrei")
    assert model not in needed(world, "carol", known)
    terms = world.job_terms(job)
    world.advance_to(terms.bid_until)
    world.close(terms.bid_until)
    reveal = world.reveal("bob", bid)
    assert needed(world)[model].startswith("a revealed model of job bafyrei")
    world.advance_to(terms.reveal_until)
    world.close(terms.reveal_until)
    for name in world.witnesses:
        world.vote(name, reveal, "valid", 500)
    world.advance_to(terms.verdict_until)
    world.close(terms.verdict_until)
    assert set(needed(world)) == {*files(world, job), model}
    world.attest_all(job)
    assert needed(world) == {}


def test_a_job_that_can_only_expire_needs_nothing_any_more() -> None:
    world = World()
    job = world.post("alice")
    params = world.ledger.params
    over_ms = world.job_terms(job).verdict_until + params.expiry_ms + params.closing_ms
    world.now = over_ms
    assert set(needed(world)) == files(world, job)
    world.now = over_ms + 1
    assert needed(world) == {}
