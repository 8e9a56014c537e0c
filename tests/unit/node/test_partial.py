"""What a partial node takes of live ops, and what it says of itself."""

from __future__ import annotations

import random

import pytest

from crdtchain.adapters.memory_store import MemoryStore
from crdtchain.codec import compute_blob_id, format_cid
from crdtchain.errors import PeerError, StoreError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import SignedOp
from crdtchain.replica import Replica
from crdtchain.scalars import Author, OpId
from crdtchain.scopes import SCOPES_MAX, ScopeIndex, Selector, encode_selector, make_selector
from node.config import Settings
from node.pace import Bucket
from node.partial import NOTE, Partial, choose_selector, load_selector
from tests.builders import World


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    for poster in ("alice", "bob", "alice", "bob"):
        world.play_job(poster, {"carol": [90, 80], "dave": [95]}, tags=("even",) if poster == "bob" else ("odd",))
    return world


def make_partial(world: World, selector: Selector, own: str = "erin") -> tuple[Replica, Partial]:
    replica = Replica(Ledger(world.genesis.op))
    return replica, Partial(replica.ledger, world.key(own), selector)


def feed(replica: Replica, partial: Partial, ops: list[SignedOp], step: int) -> None:
    for start in range(0, len(ops), step):
        replica.receive(partial.admit(ops[start : start + step]), "peer", 0)


def jobs_of(world: World) -> list[OpId]:
    return [world.ledger.dag.ids[job] for job in world.ledger.jobs.jobs]


@pytest.mark.parametrize("step", [1, 7, 200])
def test_of_live_ops_the_scope_is_taken_and_little_else(world: World, step: int) -> None:
    first, *_ = jobs_of(world)
    for selector in (make_selector([first]), make_selector(tags=["even"]), make_selector(authors=[world.key("alice")])):
        replica, partial = make_partial(world, selector)
        feed(replica, partial, world.log[1:], step)
        assert partial.index is not None
        wanted = ScopeIndex(world.ledger, partial.selector)
        assert partial.index.tree.root() == wanted.tree.root()
        assert len(replica.waiting) == 0
        # Within one frame an op that follows one of the scope is taken, for it may belong to it.
        assert len(wanted) <= len(replica.ledger) <= len(wanted) + (step if step > 1 else 0)


def test_what_was_laid_aside_is_taken_when_a_witness_links_to_it(world: World) -> None:
    last = jobs_of(world)[-1]
    replica, partial = make_partial(world, make_selector([last]))
    ledger = replica.ledger
    place = next(place for place, signed in enumerate(world.log) if signed.op.id == last)
    for signed in world.log[1:place]:
        replica.receive(partial.admit([signed]), "peer", 0)
    assert len(ledger) == 1
    # The job links to all that came before it, and none of that has to be fetched.
    replica.receive(partial.admit([world.log[place]]), "peer", 0)
    assert last in ledger and len(replica.waiting) == 0


def test_ops_laid_aside_stay_within_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.partial.ASIDE_OPS_MAX", 20)
    last = jobs_of(world)[-1]
    replica, partial = make_partial(world, make_selector([last]))
    feed(replica, partial, world.log[1:], 5)
    assert len(partial._aside) <= 20
    assert last not in replica.ledger and last in replica.waiting, "what it links to has to be fetched"


def test_any_order_of_arrival_loses_nothing_that_waits_for_no_fetch(world: World) -> None:
    rng = random.Random(3)
    replica, partial = make_partial(world, make_selector(tags=["even"]))
    ops = world.log[1:]
    for start in range(0, len(ops), 12):
        batch = ops[start : start + 12]
        rng.shuffle(batch)
        for signed in batch:
            replica.receive(partial.admit([signed]), "peer", 0)
    # What was passed over comes by comparison; here by offering all again.
    feed(replica, partial, ops, 50)
    assert partial.index is not None
    assert partial.index.tree.root() == ScopeIndex(world.ledger, partial.selector).tree.root()


def test_a_full_node_takes_all_and_says_nothing_of_itself(world: World) -> None:
    _, partial = make_partial(world, Selector())
    assert partial.admit(world.log) == world.log and partial.scope == b"" and partial.to_json() is None
    assert partial.is_whole(5) and partial.is_own(world.key("bob"))
    with pytest.raises(UsageError, match="keeps everything already"):
        partial.widen(make_selector(tags=["x"]))


def test_a_scope_grows_at_run_time_and_is_told(world: World) -> None:
    first, second, *_ = jobs_of(world)
    replica, partial = make_partial(world, make_selector([first]))
    feed(replica, partial, world.log[1:], 10)
    before = len(replica.ledger)
    assert partial.widen(make_selector([second])) and not partial.widen(make_selector([second]))
    feed(replica, partial, world.log[1:], 10)
    assert len(replica.ledger) > before
    shown = partial.to_json()
    assert shown is not None and len(shown["found"]) == 2 and shown["cannot_judge"]  # type: ignore[arg-type]
    numbers = [replica.ledger.dag.find(job) for job in jobs_of(world)]
    assert [number is not None and partial.is_whole(number) for number in numbers] == [True, True, False, False]
    assert partial.is_own(world.key("erin")) and not partial.is_own(world.key("bob"))


@pytest.mark.asyncio
async def test_what_is_kept_is_noted(world: World) -> None:
    store = MemoryStore()
    await store.open()
    assert await load_selector(store) == Selector()
    _, partial = make_partial(world, make_selector(tags=["even"]))
    await partial.save(store)
    assert await load_selector(store) == partial.selector
    await store.set_meta(NOTE, b"\x00")
    with pytest.raises(StoreError, match="damaged"):
        await load_selector(store)


def test_settings_add_to_what_is_noted(world: World) -> None:
    own, job = world.key("erin"), jobs_of(world)[0]
    noted = make_selector(tags=["even"], accounts=[own])
    assert choose_selector(Settings(), own, Selector()) == Selector()
    assert choose_selector(Settings(), own, noted) == noted
    settings = Settings(jobs=(format_cid(job),), job_tags=("odd",), own_jobs=True)
    assert choose_selector(settings, own, noted) == make_selector([job], ["even", "odd"], [own], [own])
    for bad in (
        Settings(jobs=("bafy",)),
        Settings(jobs=(format_cid(compute_blob_id(b"")),)),
        Settings(job_tags=("",)),
        Settings(own_jobs=True, witness=True),
    ):
        with pytest.raises(UsageError):
            choose_selector(bad, own, Selector())
    with pytest.raises(UsageError, match="a witness keeps everything"):
        choose_selector(Settings(witness=True), own, noted)


def test_everything_is_kept_again_when_wanted(world: World) -> None:
    _, partial = make_partial(world, make_selector(tags=["even"]))
    assert partial.widen_to_all() and not partial.widen_to_all()
    assert partial.scope == b"" and partial.admit(world.log) == world.log


def test_peers_ask_for_few_new_scopes(world: World) -> None:
    _, partial = make_partial(world, Selector())
    scopes = [encode_selector(make_selector(accounts=[Author(bytes([number]) * 32)])) for number in range(40)]
    for scope in scopes[:16]:
        partial.find_part(scope)
    with pytest.raises(PeerError, match="too many scopes"):
        partial.find_part(scopes[16])
    # The one that was asked for last is at hand.
    assert partial.find_part(scopes[15]).selector.accounts == (Author(bytes([15]) * 32),)


def test_a_scope_in_use_is_not_given_up_for_another(world: World) -> None:
    _, partial = make_partial(world, Selector())
    scopes = [encode_selector(make_selector(accounts=[Author(bytes([number]) * 32)])) for number in range(SCOPES_MAX)]
    partial._new_scopes = Bucket(0, 1_000)
    partial.find_used = lambda: scopes[:1]
    first = partial.find_part(scopes[0])
    for number in range(100, 100 + SCOPES_MAX):
        partial.find_part(encode_selector(make_selector(accounts=[Author(bytes([number]) * 32)])))
        assert partial.find_part(scopes[0]) is first
    partial.find_used = lambda: scopes
    for scope in scopes:
        partial.find_part(scope)
    with pytest.raises(PeerError, match="too many scopes"):
        partial.find_part(encode_selector(make_selector(accounts=[Author(bytes(32)), Author(bytes([200]) * 32)])))
