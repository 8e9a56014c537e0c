"""A ledger loaded from a snapshot is the one that was dumped, now and after whatever comes; all else is refused."""

from __future__ import annotations

import random
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdtchain.codec import Link
from crdtchain.crdts.multimap import GrowOnlyMultiMap
from crdtchain.crdts.register import WriteOnceMap
from crdtchain.errors import InvalidOpError
from crdtchain.ledger import snapshot
from crdtchain.ledger.replay import replay
from crdtchain.ledger.snapshot import MAGIC, SnapshotError, dump_ledger, load_ledger
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Beat, Bid, Kind, Profile, Vote
from tests.bridge import to_core
from tests.builders import World
from tests.oracle.histories import build_history


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.say("carol", Profile(name="Carol", about=""))
    world.play_job("alice", {"bob": [90, 80], "carol": [85], "dave": [10]}, {"dave": "cheat"})
    world.transfer("alice", "erin", 30, "welcome")
    world.certify()
    world.play_job("bob", {"carol": [50], "alice": [50]}, silent=["alice"], on_cheat="next")
    base = world.tip("w2")
    world.say("w2", Beat())
    world.say("w2", Beat(), time=world.now + 5, prev=base)
    return world


def assert_equal(left: Ledger, right: Ledger) -> None:
    assert left.state_digest() == right.state_digest()
    assert left.heads_digest() == right.heads_digest()
    assert dump_ledger(left) == dump_ledger(right)
    for name, index in vars(left.jobs).items():
        if name != "_dag":
            assert index == getattr(right.jobs, name), name


def test_a_loaded_ledger_equals_the_one_dumped(world: World) -> None:
    assert_equal(load_ledger(world.genesis.op, dump_ledger(world.ledger)), world.ledger)


def test_a_ledger_of_genesis_alone_can_be_dumped() -> None:
    world = World()
    loaded = load_ledger(world.genesis.op, dump_ledger(world.ledger))
    assert_equal(loaded, world.ledger)
    assert loaded.add(world.sign("w0", Beat()).op)


def test_links_in_bodies_are_links_again(world: World) -> None:
    loaded = load_ledger(world.genesis.op, dump_ledger(world.ledger))
    for number, body in world.ledger.jobs.bodies.items():
        assert loaded.jobs.bodies[number] == body
        if isinstance(body, Bid):
            other = loaded.jobs.bodies[number]
            assert isinstance(other, Bid) and type(other.job) is Link and type(other.commit) is bytes


def test_every_prefix_loaded_goes_on_like_a_replay(world: World) -> None:
    for size in range(1, len(world.log), 13):
        loaded = load_ledger(world.genesis.op, dump_ledger(replay(world.genesis.op, (s.op for s in world.log[:size]))))
        for signed in world.log[size:]:
            assert loaded.add(signed.op)
        assert_equal(loaded, world.ledger)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 5), part=st.floats(0, 1))
def test_an_adversarial_history_goes_on_the_same_after_a_load(seed: int, n: int, part: float) -> None:
    history = build_history(random.Random(seed), n, 90)
    drafts = history.drafts
    genesis = to_core(drafts[0])
    kept, loaded = Ledger(genesis), Ledger(genesis)
    middle = 1 + int(part * (len(drafts) - 1))
    for position, draft in enumerate(drafts[1:], 1):
        if position == middle:
            loaded = load_ledger(genesis, dump_ledger(kept))
        for ledger in (kept, loaded):
            try:
                ledger.add(to_core(draft))
            except InvalidOpError:
                assert draft.id in history.invalid
    assert_equal(loaded, kept)


def test_a_snapshot_that_is_cut_short_or_altered_is_refused(world: World) -> None:
    data = dump_ledger(world.ledger)
    for size in [*range(64), *range(64, len(data), 997), len(data) - 1]:
        with pytest.raises(SnapshotError):
            load_ledger(world.genesis.op, data[:size])
    for position in [*range(60), *range(60, len(data), 499)]:
        altered = bytearray(data)
        altered[position] ^= 1 << position % 8
        with pytest.raises(SnapshotError):
            load_ledger(world.genesis.op, bytes(altered))
    with pytest.raises(SnapshotError):
        load_ledger(world.genesis.op, data + b"\x00")


def test_a_snapshot_of_another_network_is_refused(world: World) -> None:
    other = World(seed="other")
    with pytest.raises(SnapshotError, match="another network"):
        load_ledger(other.genesis.op, dump_ledger(world.ledger))


def test_a_snapshot_of_another_version_is_refused(world: World) -> None:
    data = dump_ledger(world.ledger)
    with pytest.raises(SnapshotError, match="another version"):
        load_ledger(world.genesis.op, MAGIC.replace(b"1", b"2") + data[len(MAGIC) :])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (1, 7),
        (2, ["genesis"]),
        (3, b"\x00\x00\x00\x01"),
        (4, {}),
        (5, []),
        (11, b""),
        (12, bytes(8)),
        (14, [[], [], [], [], [], [], [], []]),
        (14, "no bodies"),
    ],
)
def test_a_snapshot_whose_parts_do_not_fit_is_refused(world: World, field: int, value: object) -> None:
    content = msgspec.msgpack.decode(dump_ledger(world.ledger)[len(MAGIC) + 32 :])
    content[field] = value
    encoded = msgspec.msgpack.encode(content)
    with pytest.raises(SnapshotError):
        load_ledger(world.genesis.op, MAGIC + sha256(encoded).digest() + encoded)


def test_columns_that_do_not_fit_each_other_are_refused(world: World) -> None:
    content = msgspec.msgpack.decode(dump_ledger(world.ledger)[len(MAGIC) + 32 :])
    for name in content[4]:
        if name in ("heads", "author_keys"):
            continue
        changed = [*content[:4], content[4] | {name: content[4][name][:-8]}, *content[5:]]
        encoded = msgspec.msgpack.encode(changed)
        with pytest.raises(SnapshotError):
            load_ledger(world.genesis.op, MAGIC + sha256(encoded).digest() + encoded)


def test_every_kind_with_a_body_has_a_place_in_snapshots() -> None:
    assert set(snapshot._BODY_FIELDS) == set(Kind) - {Kind.GENESIS, Kind.BEAT, Kind.ATTEST}
    assert Vote.__name__.lower() + "s" in snapshot._BODY_FIELDS.values()


def test_every_table_of_the_state_has_a_place_in_snapshots(world: World) -> None:
    """A table added to the core fails here until it is dumped, or rebuilt, and named below."""
    ledger = world.ledger
    caches = {"_electors", "_banned", "_cache", "_marks_by_lane"}
    parts = {"params", "dag", "witnesses", "deadlines", "accounts", "jobs", "votes", "settlement"}
    tables = {
        ledger: {"genesis", "records"} | parts,
        ledger.witnesses: {"marks", "acknowledgements", "attests", "records", "accused", "known_equivocations"}
        | {"equivocated_seqs"},
        ledger.accounts: {"changes", "balances", "_grants"},
        ledger.votes: set(),
        ledger.deadlines: set(),
        ledger.settlement: set(),
    }
    for part, known in tables.items():
        mutable = {
            name
            for name, value in vars(part).items()
            if isinstance(value, (dict, list, set, GrowOnlyMultiMap, WriteOnceMap)) or part is ledger
        }
        assert mutable - caches <= known, type(part).__name__
