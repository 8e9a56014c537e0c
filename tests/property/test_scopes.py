"""Scopes: the index against the definition, in any order; downsets; and that what they hold suffices to judge."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.errors import DecodeError, PeerError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, Op, SignedOp
from crdtchain.scalars import Author, OpId
from crdtchain.scopes import JOBS_MAX, ScopeIndex, Scopes, Selector, decode_selector, encode_selector, make_selector
from crdtchain.views import find_status
from tests.bridge import to_core
from tests.builders import World
from tests.oracle.histories import build_history
from tests.scope_reference import find_scope

SIZES = (1, 2, 3, 4, 7)
LENGTHS = {1: 90, 2: 110, 3: 120, 4: 130, 7: 170}
SEEDS = int(os.environ.get("CRDTCHAIN_HISTORIES", "40"))


class Scene:
    """The valid ops of a random adversarial history, and a selector."""

    def __init__(self, seed: int) -> None:
        n = SIZES[seed % len(SIZES)]
        history = build_history(random.Random(f"scope {seed}"), n, LENGTHS[n])
        converted = [to_core(draft) for draft in history.drafts if draft.id not in history.invalid]
        self.rng = random.Random(seed)
        self.ops = {op.id: SignedOp(op, b"") for op in converted}
        self.ledger = make_ledger(converted)
        self.selector = self.choose()

    def choose(self) -> Selector:
        """Select some of the jobs, a poster, an account."""
        rng = self.rng
        jobs = [op for op, signed in self.ops.items() if signed.op.kind is Kind.JOB]
        authors = sorted({signed.op.author for signed in self.ops.values()})
        return make_selector(
            rng.sample(jobs, min(len(jobs), rng.choice([0, 1, 1, 2]))),
            [],
            rng.sample(authors, rng.choice([0, 0, 1])),
            rng.sample(authors, rng.choice([0, 0, 1])),
        )

    def shuffled(self) -> list[Op]:
        """Return the ops in a random causal order."""
        left, order, have = [signed.op for signed in self.ops.values()], list[Op](), set[OpId]()
        while left:
            op = self.rng.choice([op for op in left if set(links_of(op)) <= have])
            left.remove(op)
            order.append(op)
            have.add(op.id)
        return order

    def expected(self, ops: Iterable[OpId] | None = None) -> set[OpId]:
        known = set(self.ops if ops is None else ops)
        some = {op: signed for op, signed in self.ops.items() if op in known}
        return find_scope(self.selector, some, self.ledger)


def links_of(op: Op) -> tuple[OpId, ...]:
    return op.parents if op.prev is None else (op.prev, *op.parents)


def make_ledger(ops: Sequence[Op]) -> Ledger:
    ledger = Ledger(ops[0])
    for op in ops[1:]:
        ledger.add(op)
    return ledger


def ids_of(index: ScopeIndex, ledger: Ledger) -> set[OpId]:
    return {ledger.dag.ids[number] for number in index.members}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_index_is_the_definition_in_any_order_and_at_any_time(seed: int) -> None:
    scene = Scene(seed)
    order = scene.shuffled()
    ledger = Ledger(order[0])
    index = ScopeIndex(ledger, scene.selector)
    stops = set(scene.rng.sample(range(1, len(order)), 4)) | {len(order) - 1}
    roots = set()
    for place, op in enumerate(order[1:], 1):
        ledger.add(op)
        if place in stops:
            assert ids_of(index, ledger) == scene.expected(op.id for op in order[: place + 1])
            assert index.tree.root() == ScopeIndex(ledger, scene.selector).tree.root()
            assert len(index) == len(index.members) == len(index.tree)
    for other in (ledger, scene.ledger):
        roots.add(ScopeIndex(other, scene.selector).tree.root())
    assert len(roots) == 1


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_scope_is_a_downset_and_suffices_to_judge_and_keeps_itself(seed: int) -> None:
    scene = Scene(seed)
    full, index = scene.ledger, ScopeIndex(scene.ledger, scene.selector)
    members = set(index.members)
    assert 0 in members and all(link in members for number in members for link in full.dag.links(number))
    order = [op for op in scene.shuffled() if full.dag.find(op.id) in members]
    part = make_ledger(order)
    again = ScopeIndex(part, scene.selector)
    assert len(part) == len(members) == len(again)
    assert again.tree.root() == index.tree.root()
    as_of = full.witnesses.cut(sorted(members))
    for number in index.jobs:
        job = part.dag.find(full.dag.ids[number])
        assert job is not None
        # A decided job is decided alike by who has everything; one that is not, as of the same witnesses' words.
        assert part.certificate(job, part.everything()) == full.certificate(number, full.everything())
        assert part.settlement.outcome(job, part.everything()) == full.settlement.outcome(number, as_of)
        assert find_status(part, job, part.everything()) == find_status(full, number, as_of)
        for bid in full.jobs.bids.get(number):
            mine = part.dag.find(full.dag.ids[bid])
            assert mine is not None
            assert part.votes.standing(mine, part.everything()) == full.votes.standing(bid, as_of)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_comes_next_is_expected_when_it_belongs(seed: int) -> None:
    scene = Scene(seed)
    order = scene.shuffled()
    ledger = Ledger(order[0])
    index = ScopeIndex(ledger, scene.selector)
    about = scene.expected()
    for op in order[1:]:
        is_expected = index.expects(op)
        ledger.add(op)
        index.update()
        assert is_expected == (len(ledger) - 1 in index) or not scene.selector
        assert op.id in about or not is_expected
    assert ids_of(index, ledger) == about


@pytest.mark.parametrize("seed", range(0, SEEDS, 4))
def test_chains_that_were_forgotten_are_followed_again(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdtchain.scopes.CHAINS_MAX", 1)
    scene = Scene(seed)
    assert ids_of(ScopeIndex(scene.ledger, scene.selector), scene.ledger) == scene.expected()


def test_a_larger_selector_has_a_larger_scope() -> None:
    for seed in range(10):
        scene = Scene(seed)
        small = scene.selector
        large = small.join(scene.choose())
        if small:
            assert set(ScopeIndex(scene.ledger, small).members) <= set(ScopeIndex(scene.ledger, large).members)


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    for number in range(4):
        tags = ("small", "vision") if number % 2 else ("other",)
        world.play_job("alice" if number < 3 else "bob", {"carol": [90, 80], "dave": [95]}, tags=tags)
    return world


def jobs_of(world: World) -> list[OpId]:
    return [world.ledger.dag.ids[job] for job in world.ledger.jobs.jobs]


def test_a_settled_job_needs_nothing_of_what_came_after_it(world: World) -> None:
    first, *_, last = jobs_of(world)
    sizes = [len(ScopeIndex(world.ledger, make_selector([job])).members) for job in (first, last)]
    assert sizes[0] < len(world.log) / 3 < sizes[1] <= len(world.log)
    for job in (first, last):
        index = ScopeIndex(world.ledger, make_selector([job]))
        number = world.ledger.dag.find(job)
        assert number is not None and list(index.jobs) == [number]
        assert all(index.holds(part) for part in world.ledger.jobs.bids.get(number))


def test_jobs_are_selected_by_tag_and_by_poster(world: World) -> None:
    jobs = world.ledger.jobs.jobs
    assert ScopeIndex(world.ledger, make_selector(tags=["vision"])).jobs == [jobs[1], jobs[3]]
    assert ScopeIndex(world.ledger, make_selector(authors=[world.key("bob")])).jobs == [jobs[3]]


def test_an_account_keeps_its_chain_what_it_is_given_and_how_that_is_certified() -> None:
    world = World()
    gift = world.transfer("alice", "erin", 10)
    world.certify()
    claim = world.claim("erin", gift)
    world.certify()
    for _ in range(5):
        world.transfer("alice", "bob", 1)
        world.certify()
    index = ScopeIndex(world.ledger, make_selector(accounts=[world.key("erin")]))
    part = make_ledger([world.log[number].op for number in index.members])
    assert gift in part and claim in part and len(part) < len(world.log) / 2
    number = part.dag.find(claim)
    assert number is not None and part.witnesses.is_certified(number, part.everything())


def test_the_empty_selector_is_everything(world: World) -> None:
    index = ScopeIndex(world.ledger, Selector())
    assert index.members == list(range(len(world.log))) and encode_selector(Selector()) == b""
    assert decode_selector(b"") == Selector()


IDS = st.binary(min_size=32, max_size=32).map(lambda digest: OpId(codec.OP_CID_PREFIX + digest))
KEYS = st.binary(min_size=32, max_size=32).map(Author)
TAGS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(st.sets(IDS, max_size=5), st.sets(TAGS, max_size=5), st.sets(KEYS, max_size=3), st.sets(KEYS, max_size=3))
def test_a_selector_has_one_encoding(
    jobs: set[OpId], tags: set[str], authors: set[Author], accounts: set[Author]
) -> None:
    selector = make_selector(jobs, tags, authors, accounts)
    data = encode_selector(selector)
    assert decode_selector(data) == selector and encode_selector(decode_selector(data)) == data
    assert selector.join(selector) == selector == selector.join(Selector())


@given(st.binary(max_size=80))
def test_any_bytes_are_a_selector_or_a_decode_error(data: bytes) -> None:
    with suppress(DecodeError):
        assert encode_selector(decode_selector(data)) == data


def test_a_selector_stays_within_its_bounds() -> None:
    ids = [OpId(codec.OP_CID_PREFIX + number.to_bytes(32, "big")) for number in range(JOBS_MAX + 1)]
    keys = [Author(number.to_bytes(32, "big")) for number in range(17)]
    tags = [f"{number:02}" + "x" * (limits.TAG_BYTES_MAX - 2) for number in range(33)]
    largest = make_selector(ids[:-1], tags[:-1], keys[:-1], keys[:-1])
    assert len(encode_selector(largest)) <= 8_192
    assert decode_selector(encode_selector(largest)) == largest
    for bad in (
        {"jobs": ids},
        {"tags": tags},
        {"authors": keys},
        {"accounts": keys},
        {"tags": [""]},
        {"tags": ["x" * 51]},
        {"tags": ["\ud800"]},
    ):
        with pytest.raises(UsageError):
            make_selector(**bad)  # type: ignore[arg-type]


def encode_plain(**changes: codec.Value) -> bytes:
    plain: dict[str, codec.Value] = {"jobs": [], "tags": [], "authors": [], "accounts": []}
    return codec.encode(plain | changes)


def test_scopes_in_another_form_are_refused() -> None:
    raw = Link(codec.RAW_CID_PREFIX + bytes(32))
    for data in (
        encode_plain(),
        encode_plain(tags=["b", "a"]),
        encode_plain(tags=["a", "a"]),
        encode_plain(tags=[""]),
        encode_plain(tags=["x" * 51]),
        encode_plain(jobs=[raw]),
        encode_plain(jobs=[b"\x01"]),
        encode_plain(authors=[bytes(31)]),
        encode_plain(more=[]),
        codec.encode({"jobs": []}),
        b"\x00",
    ):
        with pytest.raises(DecodeError):
            decode_selector(data)


def test_peers_scopes_are_followed_up_to_a_number_of_them(world: World) -> None:
    own = ScopeIndex(world.ledger, make_selector(tags=["own"]))
    scopes = Scopes(world.ledger, own)
    first = scopes.find(encode_selector(make_selector(tags=["0"])))
    assert scopes.find(encode_selector(make_selector(tags=["0"]))) is first
    for number in range(1, 20):
        scopes.find(encode_selector(make_selector(tags=[str(number)])))
    assert scopes.find(encode_selector(make_selector(tags=["0"]))) is not first
    assert scopes.find(encode_selector(make_selector(tags=["own"]))) is own
    with pytest.raises(PeerError):
        scopes.find(b"\x00")
