"""What a few bytes may make the other side do is bounded, and others have their turn meanwhile."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from hashlib import sha256

import pytest

from crdtchain.errors import PeerError
from crdtchain.sync.messages import Get, Ops
from crdtchain.sync.outputs import Read
from crdtchain.sync.reconcile import TAGGED_MAX, TAGGED_STEP, Selection, Tags, answer, prepare_parts
from crdtchain.sync.regions import Except, LeafView, Only, Part, Whole, decode_items, encode_items
from tests.sync_pair import TableShelf, connect, settle, talk

SALT = bytes(16)
COUNT = 80_000
PREFIXES = sorted({f"{number // 10:010x}"[:9] for number in range(COUNT)})
"""Of regions of 160 ops each."""


@pytest.fixture(scope="module")
def shelf() -> TableShelf:
    return TableShelf(f"{number // 10:010x}{sha256(number.to_bytes(8, 'big')).hexdigest()}" for number in range(COUNT))


def test_a_request_for_nothing_is_looked_for_in_steps_and_paid_for(shelf: TableShelf) -> None:
    selection = Selection(shelf.holdings.tree(), SALT, [Only(prefix, (b"none",)) for prefix in PREFIXES])
    steps = 0
    while not selection.is_done:
        before = selection.passed
        assert selection.take(200) == []
        assert selection.passed - before <= TAGGED_STEP
        steps += 1
    assert steps >= COUNT // TAGGED_STEP and selection.passed == COUNT
    asking, answering = connect(shelf, shelf)
    talk(asking, answering)
    answering.reads_at_once = False
    items = encode_items([Only(prefix, (b"none",)) for prefix in PREFIXES])
    for request in range(1, 10):
        with contextlib.suppress(PeerError):
            answering.hear(Get(request, b"", SALT, items))
            while answering.reads:
                assert answering.reads[0] == Read(request, [])
                answering.read()
            assert [head for head, _ in answering.said()] == [Ops(request, True, ())]
            continue
        break
    # What was looked at costs more than the bytes of the request.
    assert request == 3


def test_a_request_that_passes_much_over_still_brings_what_it_is_for(shelf: TableShelf) -> None:
    tree, tags = shelf.holdings.tree(), Tags(SALT)
    wanted = [next(tree.iterate(prefix)) for prefix in PREFIXES[::50]]
    parts = [Only(tree.key(number)[:9], (tags.tag(tree.digest(number)),)) for number in wanted]
    selection, found = Selection(tree, SALT, parts), list[int]()
    while not selection.is_done:
        found += selection.take(200)
    assert found == wanted


@pytest.mark.parametrize("kind", ["whole", "only", "except"])
def test_parts_that_a_peer_names_are_made_ready_within_bounds(shelf: TableShelf, kind: str) -> None:
    make: dict[str, Callable[[str], Part]] = {
        "whole": lambda prefix: Whole(prefix[:8], 1 << int(prefix[8], 16)),
        "only": lambda prefix: Only(prefix, (b"none",)),
        "except": lambda prefix: Except(prefix, ()),
    }
    parts = [make[kind](prefix) for prefix in PREFIXES]
    found = prepare_parts(shelf.holdings.tree(), Tags(SALT), parts)
    # Single ops are asked for as they were named, though some may be here by now.
    assert len(found) == (len(PREFIXES) if kind == "only" else TAGGED_MAX // 160)
    assert [part.prefix for part in found] == PREFIXES[: len(found)]


def test_an_answer_compares_op_by_op_within_bounds(shelf: TableShelf) -> None:
    views = [LeafView(prefix, ()) for prefix in PREFIXES[:300]]
    found = answer(shelf.holdings.tree(), SALT, views)
    assert found.answered == len(views) and not found.lacking
    offers = decode_items(found.items)
    assert offers and all(isinstance(offer, Only) and len(offer.tags) == 160 for offer in offers)


@pytest.mark.parametrize("lacking", [1, 20])
def test_a_walk_ends_before_it_costs_the_connection_while_the_other_side_is_busy(
    shelf: TableShelf, lacking: int
) -> None:
    keys = [shelf.key(op) for op in shelf.ids]
    random.Random(lacking).shuffle(keys)
    full, busy = TableShelf(keys[lacking:]), TableShelf(keys[: len(keys) // 2])
    asking, answering = connect(full, busy)
    answering.pulls = False
    talk(asking, answering)
    for end in (asking, answering) * 3:
        end.act(end.session.probe(is_forced=True))
        talk(asking, answering)
    assert asking.trips and not asking.session.is_pulling
    answering.pulls = True
    answering.pull()
    settle(asking, answering)
