"""Laws of the range tree, and of what is said about its regions: against a plain second implementation."""

from __future__ import annotations

import random
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from crdtchain.errors import PeerError
from crdtchain.scalars import OpId
from crdtchain.sync.reconcile import Tags, answer, describe, prepare_parts
from crdtchain.sync.regions import (
    BranchView,
    Except,
    Item,
    LeafView,
    Only,
    Whole,
    decode_items,
    encode_items,
    measure_item,
)
from crdtchain.sync.tree import RangeTree, count_region
from tests.vectors.make_sync import hash_region, view_region
from tests.vectors.test_sync_vectors import make_item

OP_PREFIX = b"\x01\x71\x12\x20"
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([31, 32, 33, 34, 64, 255, 256, 257, 513]))
TAG = st.binary(min_size=4, max_size=4)
RNGS = st.integers(0, 2**32).map(random.Random)
"""Seeds instead of drawn numbers: there are too many of them to shrink."""
DIGITS = st.text("0123456789abcdef", max_size=74)
SHORT = st.text("0123456789abcdef", max_size=73)
MAP = st.integers(1, 2**16 - 1)


class Table:
    """Ops without content: ids and depths."""

    def __init__(self, rng: random.Random, crowds: list[tuple[int, str]]) -> None:
        """Make for each crowd so many ops of a shape."""
        keys = set[tuple[int, bytes]]()
        for number, (size, shape) in enumerate(crowds):
            for place in range(size):
                digest = sha256(f"{number} {place} {rng.random()}".encode()).digest()
                match shape:
                    case "line":
                        keys.add((place, digest))
                    case "crowd":
                        keys.add((number, digest))
                    case "alike":
                        keys.add((5, bytes(30) + digest[:2]))
                    case "forks":
                        keys.add((rng.choice((15, 16, 255, 256, 2**39)), digest))
                    case _:
                        # Twos that part at the last digit.
                        keys.add((6, digest[:8] * 3 + bytes(7) + bytes([place % 2])))
        ops = list(keys)
        rng.shuffle(ops)
        self.ids = [OpId(OP_PREFIX + digest) for _, digest in ops]
        self.depths = [depth for depth, _ in ops]
        self.keys = [f"{depth:010x}{digest.hex()}" for depth, digest in ops]


CROWDS = st.lists(
    st.tuples(SIZES, st.sampled_from(["line", "crowd", "alike", "forks", "twos"])), min_size=0, max_size=3
)


@given(CROWDS, RNGS, st.data())
def test_a_tree_follows_from_its_set_alone(
    crowds: list[tuple[int, str]], rng: random.Random, data: st.DataObject
) -> None:
    table = Table(rng, crowds)
    numbers = list(range(len(table.ids)))
    kept = rng.sample(numbers, data.draw(st.integers(0, len(numbers))))
    bulk = RangeTree(table.ids, table.depths, kept)
    one_by_one = RangeTree(table.ids, table.depths)
    start = data.draw(st.integers(0, len(kept)))
    half = RangeTree(table.ids, table.depths, kept[:start])
    for place, number in enumerate(kept):
        one_by_one.add(number)
        if rng.random() < 0.1:
            # Roots asked for meanwhile change nothing.
            one_by_one.root()
        if place >= start:
            half.add(number)
    expected = hash_region(sorted(table.keys[number] for number in kept))
    assert bulk.root() == one_by_one.root() == half.root() == expected
    assert len(bulk) == len(one_by_one) == len(half) == len(kept)
    assert [bulk.value_of(kept)] * 2 == [one_by_one.value_of(kept), half.value_of(kept)]


@given(CROWDS, RNGS, st.data())
def test_regions_are_what_filters_of_the_sorted_list_are(
    crowds: list[tuple[int, str]], rng: random.Random, data: st.DataObject
) -> None:
    table = Table(rng, crowds)
    tree = RangeTree(table.ids, table.depths, range(len(table.ids)))
    order = sorted(range(len(table.ids)), key=table.keys.__getitem__)
    tags = Tags(bytes(16))
    some = data.draw(st.lists(st.sampled_from(table.keys), max_size=4)) if table.keys else []
    prefixes = ["", *data.draw(st.lists(DIGITS, max_size=3))]
    prefixes += [key[: data.draw(st.integers(0, 74))] for key in some]
    prefixes += [prefix[:-1] + data.draw(st.sampled_from("0f")) for prefix in prefixes if prefix]
    for prefix in prefixes:
        inner = [number for number in order if table.keys[number].startswith(prefix)]
        assert list(tree.iterate(prefix)) == inner
        assert count_region(tree.find(prefix)) == len(inner)
        for after in (*some, prefix, "0", "f" * 74):
            if after:
                assert list(tree.iterate(prefix, after)) == [number for number in inner if table.keys[number] > after]
        keys = [table.keys[number] for number in inner]
        assert tree.value(tree.find(prefix)) == hash_region(keys, len(prefix))
        assert describe(tree, tags, prefix) == make_item(view_region(keys, prefix, bytes(16)))


@given(CROWDS, CROWDS, RNGS)
def test_a_regions_value_does_not_depend_on_what_is_outside(
    crowds: list[tuple[int, str]], others: list[tuple[int, str]], rng: random.Random
) -> None:
    table = Table(rng, [*crowds, *others])
    if not table.ids:
        return
    prefix = rng.choice(table.keys)[: rng.randrange(1, 16)]
    inside = [number for number, key in enumerate(table.keys) if key.startswith(prefix)]
    outside = [number for number, key in enumerate(table.keys) if not key.startswith(prefix)]
    values = set()
    for rest in (outside, outside[::2], []):
        numbers = [*inside, *rest]
        rng.shuffle(numbers)
        tree = RangeTree(table.ids, table.depths, numbers)
        values.add(tree.value(tree.find(prefix)))
    assert len(values) == 1


ITEM: st.SearchStrategy[Item] = st.one_of(
    st.builds(LeafView, DIGITS, st.lists(TAG, max_size=32).map(tuple)),
    st.builds(Whole, SHORT, MAP),
    st.builds(Only, DIGITS, st.lists(TAG, min_size=1, max_size=40).map(tuple)),
    st.builds(Except, DIGITS, st.lists(TAG, max_size=40).map(tuple)),
    st.tuples(SHORT, MAP.filter(lambda children: children & (children - 1)), st.data()).map(
        lambda drawn: BranchView(
            drawn[0],
            drawn[2].draw(st.integers(0, len(drawn[0]))),
            drawn[1],
            tuple(drawn[2].draw(TAG) for _ in range(drawn[1].bit_count())),
        )
    ),
)


@given(st.lists(ITEM, max_size=12))
def test_items_come_back_as_they_were(items: list[Item]) -> None:
    data = encode_items(items)
    assert decode_items(data) == items
    assert len(data) <= sum(map(measure_item, items))


@given(st.lists(ITEM, min_size=1, max_size=6), RNGS)
def test_damaged_items_are_refused_or_are_what_they_encode_to(items: list[Item], rng: random.Random) -> None:
    data = bytearray(encode_items(items))
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place : place + rng.randrange(1, 5)]
            case 2:
                data[place:place] = rng.randbytes(rng.randrange(1, 5))
            case _ if place < len(data):
                data[place] = rng.choice((0, 1, 32, 33, 64, 65, 66, 74, 75, 128, 202, 203, 255))
    check_items(bytes(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_items_or_refused(data: bytes) -> None:
    check_items(data)


def check_items(data: bytes) -> None:
    """Check that bytes are refused, or are items that encode to them and that everything else can take."""
    try:
        items = decode_items(data)
    except PeerError as error:
        assert str(error)
        return
    assert encode_items(items) == data
    table = Table(random.Random(1), [(80, "line"), (80, "crowd")])
    tree = RangeTree(table.ids, table.depths, range(len(table.ids)))
    try:
        found = answer(tree, bytes(16), items)
    except PeerError as error:
        assert str(error)
        return
    prepare_parts(tree, Tags(bytes(16)), found.lacking)
