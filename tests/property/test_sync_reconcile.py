"""Two replicas with any two sets come to hold the same, at a bounded price, whatever happens on the way."""

from __future__ import annotations

import random
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from crdtchain.sync.reconcile import REGIONS_MAX, Selection, Tags, Walk, answer, prepare_parts, split_parts
from crdtchain.sync.regions import BranchView, Part, decode_items, encode_items
from crdtchain.sync.session import BUDGET_BYTES, BUDGET_OP_BYTES
from crdtchain.sync.tree import RangeTree
from tests.property.test_sync_tree import CROWDS, RNGS, Table
from tests.sync_pair import TableShelf, connect, settle, talk

SPLIT = st.sampled_from(["random", "newest", "oldest", "few of mine", "few of theirs", "one each", "halves", "digits"])


def split_keys(rng: random.Random, keys: list[str], how: str) -> tuple[list[str], list[str]]:
    """Return what each of two sides holds; together they hold everything."""
    order = sorted(keys)
    both, mine, theirs = set[str](order), set[str](), set[str]()
    count = rng.choice((1, 2, 31, 32, 33, 100))
    match how:
        case "random":
            share = rng.random()
            for key in order:
                if rng.random() < share:
                    (mine if rng.random() < 0.5 else theirs).add(key)
        case "newest":
            mine.update(order[-count:])
        case "oldest":
            theirs.update(order[:count])
        case "few of mine":
            theirs.update(set(order) - set(rng.sample(order, min(len(order), count))))
        case "few of theirs":
            mine.update(order)
            theirs.update(rng.sample(order, min(len(order), count)))
            mine -= theirs
        case "one each":
            picked = rng.sample(order, min(len(order), 2))
            mine.update(picked[:1])
            theirs.update(picked[1:])
        case "halves":
            middle = len(order) // 2
            mine.update(order[:middle])
            theirs.update(order[middle:])
        case _:
            # By a digit somewhere: regions that only one side has, next to others'.
            place = rng.randrange(6, 14)
            mine.update(key for key in order if int(key[place], 16) % 2)
            theirs.update(set(order) - mine)
    both -= mine | theirs
    return sorted(both | mine), sorted(both | theirs)


def get_all(tree: RangeTree, server: RangeTree, salt: bytes, parts: list[Part]) -> list[int]:
    """Return what requests for parts bring."""
    found: list[int] = []
    rest = prepare_parts(tree, Tags(salt), parts)
    while rest:
        now, rest = split_parts(rest)
        selection = Selection(server, salt, decode_items(encode_items(now)))
        while page := selection.take(7):
            found.extend(page)
        assert selection.is_done
    return found


@given(CROWDS, SPLIT, RNGS)
def test_one_walk_finds_what_both_lack_and_nothing_else(
    crowds: list[tuple[int, str]], how: str, rng: random.Random
) -> None:
    table = Table(rng, crowds)
    numbers = {key: number for number, key in enumerate(table.keys)}
    mine, theirs = ({numbers[key] for key in keys} for keys in split_keys(rng, table.keys, how))
    asking, answering = (RangeTree(table.ids, table.depths, side) for side in (mine, theirs))
    rounds = 0
    while asking.root() != answering.root():
        rounds += 1
        # A region with few ops on one side and many on the other is found by the next walk, and there are no others.
        assert rounds <= 3
        salt = bytes([rounds]) * 16
        walk, theirs_lacking = Walk(asking, salt), list[Part]()
        while (question := walk.ask()) is not None:
            reply = answer(answering, salt, decode_items(question))
            walk.take(decode_items(reply.items), reply.answered)
            theirs_lacking.extend(reply.lacking)
            assert walk.exchanges <= 40
        for tree, held, server, parts in (
            (asking, mine, answering, walk.lacking),
            (answering, theirs, asking, theirs_lacking),
        ):
            got = get_all(tree, server, salt, parts)
            assert len(set(got)) == len(got)
            assert not held & set(got)
            assert got == sorted(got, key=table.keys.__getitem__)
            for number in got:
                tree.add(number)
            held.update(got)
    assert mine == theirs == set(numbers.values())


@given(CROWDS, SPLIT, RNGS, st.sampled_from([0, 300, 40_000]))
def test_two_sessions_come_to_hold_the_same_and_no_op_is_sent_to_who_has_it(
    crowds: list[tuple[int, str]], how: str, rng: random.Random, padding: int
) -> None:
    table = Table(rng, crowds if padding < 40_000 else [(min(size, 40), shape) for size, shape in crowds])
    shelves = [TableShelf(keys, padding) for keys in split_keys(rng, table.keys, how)]
    lacking = [len(table.keys) - len(shelf) for shelf in shelves]
    ends = connect(shelves[0], shelves[1], seed=rng.randrange(2**32))
    settle(*ends)
    for end, lacked in zip(ends, lacking, strict=True):
        assert end.got == lacked
        assert not end.copies
        assert end.session.traffic.negotiated_bytes <= BUDGET_BYTES + BUDGET_OP_BYTES * sum(lacking)


@given(CROWDS, SPLIT, RNGS, st.booleans())
def test_a_connection_that_breaks_anywhere_is_gone_on_with(
    crowds: list[tuple[int, str]], how: str, rng: random.Random, is_within_page: bool
) -> None:
    table = Table(rng, crowds)
    # Pages of few ops, so that there are many places to break at.
    shelves = [TableShelf(keys, 9_000) for keys in split_keys(rng, table.keys, how)]
    lacking = [len(table.keys) - len(shelf) for shelf in shelves]
    got, breaks = [0, 0], 0
    while True:
        ends = connect(shelves[0], shelves[1], seed=breaks)
        carried = talk(*ends, frames=rng.randrange(4, 12) + breaks // 8)
        if is_within_page:
            for end in ends:
                end.stores = False
            talk(*ends, frames=rng.randrange(3))
            for end in ends:
                while end.takes:
                    end.store(most=rng.randrange(len(end.takes[0].blocks) + 1))
        breaks += 1
        for place, end in enumerate(ends):
            got[place] += end.got
            assert not end.copies
        if ends[0].root == ends[1].root:
            break
        assert carried and breaks < 400
    assert got == lacking


@given(CROWDS, SPLIT, RNGS)
def test_ops_that_come_meanwhile_are_not_lost(crowds: list[tuple[int, str]], how: str, rng: random.Random) -> None:
    table = Table(rng, crowds)
    later, keys = table.keys[::3], [key for place, key in enumerate(table.keys) if place % 3]
    shelves = [TableShelf(side, 2_000) for side in split_keys(rng, keys, how)]
    ends = connect(shelves[0], shelves[1], seed=rng.randrange(2**32))
    for key in later:
        talk(*ends, frames=rng.randrange(4))
        rng.choice(shelves).put(bytes.fromhex(key) + bytes(2_000))
    settle(*ends)
    assert set(shelves[0].blocks) == set(shelves[1].blocks)
    assert len(shelves[0]) == len(table.keys)


def test_a_question_of_regions_within_each_other_is_answered_in_one_message() -> None:
    tags = tuple(bytes([place]) * 4 for place in range(16))
    prefixes = ["0000000005"]
    prefixes += [f"0000000005{first:x}" for first in range(16)]
    prefixes += [f"0000000005{second:02x}" for second in range(256)]
    prefixes.sort()
    views = [BranchView(prefix, len(prefix) if len(prefix) > 10 else 0, 0xFFFF, tags) for prefix in prefixes]
    question = encode_items(views)
    keys = [f"{5:010x}{sha256(bytes([place >> 8, place & 255])).hexdigest()}" for place in range(2**16)]
    shelf = TableShelf(keys)
    found = answer(shelf.holdings.tree(), bytes(16), decode_items(question))
    assert len(found.items) <= 30_000 and found.answered == 1


def test_a_walk_over_full_leaves_asks_no_more_than_a_message_holds() -> None:
    # 32 ops in each of 16³ leaves, one of them missing on the other side: 256 leaves would be too much at once.
    keys = [
        f"{5:010x}{leaf:03x}{sha256(f'{leaf} {place}'.encode()).hexdigest()[3:]}"
        for leaf in range(16**3)
        for place in range(32)
    ]
    mine, theirs = TableShelf(keys), TableShelf([key for place, key in enumerate(keys) if place % 32])
    walk = Walk(mine.holdings.tree(), bytes(16))
    lacking: list[Part] = []
    while (question := walk.ask()) is not None:
        assert len(question) <= 30_000
        reply = answer(theirs.holdings.tree(), bytes(16), decode_items(question))
        assert len(reply.items) <= 30_000
        walk.take(decode_items(reply.items), reply.answered)
        lacking.extend(reply.lacking)
    wanted = len(mine) - len(theirs)
    assert len(get_all(theirs.holdings.tree(), mine.holdings.tree(), bytes(16), lacking)) == wanted < REGIONS_MAX


def test_what_equal_tags_hide_the_next_walk_finds() -> None:
    salt, seen = bytes(16), dict[bytes, str]()
    tags = Tags(salt)
    for number in range(2**20):
        digest = sha256(number.to_bytes(8, "big")).digest()
        other = seen.setdefault(tags.tag(digest), digest.hex())
        if other != digest.hex():
            break
    else:
        raise AssertionError("a million tags of four bytes are sure to collide")
    shared = [f"{5:010x}{sha256(bytes([place])).hexdigest()}" for place in range(20)]
    mine = TableShelf([*shared, f"{5:010x}{other}"])
    theirs = TableShelf([*shared, f"{5:010x}{digest.hex()}"])
    for walk_salt, is_found in ((salt, False), (bytes(15) + b"x", True)):
        walk = Walk(mine.holdings.tree(), walk_salt)
        lacking: list[Part] = []
        while (question := walk.ask()) is not None:
            reply = answer(theirs.holdings.tree(), walk_salt, decode_items(question))
            walk.take(decode_items(reply.items), reply.answered)
            lacking.extend(reply.lacking)
        assert [bool(walk.lacking), bool(lacking)] == [is_found, is_found]
