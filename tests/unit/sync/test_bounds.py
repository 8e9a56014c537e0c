"""What a peer may not say about regions, and the bounds of what is remembered of what it says."""

from __future__ import annotations

import pytest

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.scalars import Author, OpId
from crdtchain.sync.live import ANNOUNCED_MAX, PRUNED_MAX, Live, Urgency
from crdtchain.sync.messages import PREFIX_BYTES, Addresses, Tree, TreeReply
from crdtchain.sync.pull import LACKING_BYTES_MAX, Pull
from crdtchain.sync.reconcile import COMPARED_MAX, REGIONS_MAX, VIEWS_MAX, Selection, Tags, Walk, answer, weigh
from crdtchain.sync.regions import (
    TAGS_MAX,
    BranchView,
    Except,
    Item,
    LeafView,
    Only,
    Part,
    Whole,
    decode_items,
    encode_items,
)
from crdtchain.sync.session import BUDGET_BYTES
from crdtchain.sync.tree import KEY_DIGITS
from tests.sync_pair import OP_PREFIX, TableShelf, connect, make_hello, talk

SALT = bytes(16)
TAG = b"abcd"
KEYS = [f"{place:010x}{place:064x}" for place in range(100)]


def make_ids(count: int) -> list[OpId]:
    """Return ids that differ in the bytes by which they are announced."""
    return [OpId(OP_PREFIX + place.to_bytes(8, "big") + bytes(24)) for place in range(count)]


@pytest.mark.parametrize(
    "data",
    [
        # The second item repeats a digit of the first one's prefix.
        encode_items([Whole("ab", 1)]) + b"\x01\x01\xb0" + b"\x40\x00\x01",
        # A half that no digit needs is not 0.
        b"\x00\x01\xa1" + b"\x40\x00\x01",
        b"\x01\x00" + b"\x40\x00\x01",
        encode_items([Only("a", (TAG,) * (TAGS_MAX + 1))]),
        encode_items([Except("a", (TAG,) * (TAGS_MAX + 1))]),
        encode_items([Only("a", ())]),
        encode_items([Whole("a", 0)]),
        encode_items([BranchView("a", 0, 1 << 5, (TAG,))]),
        encode_items([BranchView("a", 2, 3, (TAG, TAG))]),
        encode_items([LeafView("a", (TAG,) * 33)]),
        encode_items([Whole("a" * KEY_DIGITS, 1)]),
        encode_items([LeafView("a", (TAG,))])[:-1],
    ],
)
def test_items_out_of_bounds_or_in_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_items(data)


def ask() -> Walk:
    """Return a walk that waits for its first answer."""
    walk = Walk(TableShelf(KEYS).holdings.tree(), SALT)
    assert walk.ask()
    return walk


@pytest.mark.parametrize("views", [[LeafView("fff", ())], [LeafView("", ()), LeafView("", ())]])
def test_an_answer_is_about_what_was_asked_and_about_each_region_once(views: list[Item]) -> None:
    with pytest.raises(PeerError, match="was not asked about"):
        ask().take(views, 1)


@pytest.mark.parametrize("answered", [0, 2])
def test_an_answer_deals_with_some_of_the_question_and_with_no_more(answered: int) -> None:
    with pytest.raises(PeerError, match="nothing of what was"):
        ask().take([], answered)


def test_a_question_describes_each_region_once_and_not_too_many() -> None:
    tree = TableShelf(KEYS).holdings.tree()
    with pytest.raises(PeerError, match="twice"):
        answer(tree, SALT, [LeafView("a", ()), LeafView("a", (TAG,))])
    most: list[Item] = [LeafView(f"{place:05x}", ()) for place in range(VIEWS_MAX + KEY_DIGITS)]
    assert answer(tree, SALT, most).answered == len(most)
    with pytest.raises(PeerError, match="too many regions"):
        answer(tree, SALT, [*most, LeafView("fffff", ())])


def test_parts_name_no_more_regions_than_are_looked_at() -> None:
    tree = TableShelf(KEYS).holdings.tree()
    parts: list[Part] = [Whole(f"{place:05x}", 0xFFFF) for place in range(REGIONS_MAX // 16)]
    assert not Selection(tree, SALT, parts).is_done
    with pytest.raises(PeerError, match="too many regions"):
        Selection(tree, SALT, [*parts, Whole("fffff", 1)])


def test_single_ops_are_looked_for_among_a_few_alone() -> None:
    for count, expected in ((2 * COMPARED_MAX, [3]), (2 * COMPARED_MAX + 1, [])):
        tree = TableShelf(f"{place:010x}{place:064x}" for place in range(count)).holdings.tree()
        wanted = Only("", (Tags(SALT).tag(tree.digest(3)),))
        assert Selection(tree, SALT, [wanted]).take(limits.BATCH_OPS_MAX) == expected


def test_a_reply_counts_only_while_a_question_is_open() -> None:
    end = connect(TableShelf(KEYS), TableShelf(KEYS[:1]))[0]
    end.hear(make_hello("listener"))
    end.act(end.session.accept())
    with pytest.raises(PeerError, match="what was not asked"):
        end.hear(TreeReply(1, b""))
    end.act(end.session.pull())
    end.hear(TreeReply(1, encode_items([Whole("0000000001", 0xFFFF)])))
    # Now pages are waited for.
    with pytest.raises(PeerError, match="what was not asked"):
        end.hear(TreeReply(1, b""))


def test_each_walk_has_a_salt_of_its_own_that_nobody_foresees() -> None:
    tree, salts = TableShelf(KEYS).holdings.tree(), set[bytes]()
    for seed in (bytes(32), bytes(31) + b"x"):
        pull = Pull(seed)
        for _ in range(2):
            question = pull.start(tree, b"")
            assert isinstance(question, Tree)
            salts.add(question.salt)
            assert pull.take_reply(1, b"") is None
    assert len(salts) == 4


def test_what_other_walks_find_is_of_the_last_one_and_bounded() -> None:
    tree, pull = TableShelf(KEYS).holdings.tree(), Pull(bytes(32))
    parts: list[Part] = [Only(f"{place:05x}", (TAG,) * 100) for place in range(20)]
    for _ in range(100):
        pull.note_found(SALT, parts)
    assert LACKING_BYTES_MAX <= weigh(pull._found) <= LACKING_BYTES_MAX + weigh(parts)
    pull.note_found(bytes(15) + b"x", [Only("f", (TAG,))])
    request = pull.start(tree, b"")
    assert request is not None and not isinstance(request, Tree)
    assert pull._salt == bytes(15) + b"x" and not pull._parts


def test_of_who_is_pruned_and_what_is_announced_the_oldest_is_forgotten() -> None:
    live, author = Live(), Author(bytes(32))
    live.take_prune([author])
    ids = make_ids(ANNOUNCED_MAX + 10)
    assert not live.push([(op, b"x") for op in ids], lambda op: author)
    assert len(live.take_announcement()) == ANNOUNCED_MAX * PREFIX_BYTES
    prefixes = [op[4 : 4 + PREFIX_BYTES] for op in (ids[0], ids[-1])]
    assert live.take_graft(prefixes, lambda op: author) == [ids[-1]]
    live.take_prune([author])
    live.take_prune([Author(place.to_bytes(32, "big")) for place in range(1, PRUNED_MAX + 1)])
    fresh = OpId(OP_PREFIX + b"\xff" * 32)
    assert live.push([(fresh, b"x")], lambda op: author, Urgency.AS_WANTED) == [b"x"]


def test_a_graft_makes_the_link_eager_for_the_authors_of_what_it_asks_for() -> None:
    live, ids = Live(), make_ids(4)
    authors = [Author(bytes(31) + bytes([place % 2])) for place in range(4)]
    author_of = dict(zip(ids, authors, strict=True)).__getitem__
    live.take_prune(authors[:2])
    assert live.push([(op, b"x") for op in ids[:2]], author_of) == []
    assert live.take_graft([ids[0][4 : 4 + PREFIX_BYTES]], author_of) == [ids[0]]
    assert live.push([(ids[2], b"y"), (ids[3], b"z")], author_of) == [b"y"]


def test_time_pays_for_no_more_negotiation_than_a_session_starts_with() -> None:
    end = connect(TableShelf(KEYS), TableShelf(KEYS))[0]
    end.hear(make_hello("listener"))
    end.act(end.session.accept())
    end.session.refill(10**9)

    def talk_on() -> None:
        for _ in range(BUDGET_BYTES // 100):
            end.hear(Addresses(("http://node.example/" + "x" * 100,)))

    with pytest.raises(PeerError, match="without an end"):
        talk_on()


def test_one_walk_serves_both_sides() -> None:
    both = [*KEYS, *(f"{place:010x}{place:064x}" for place in range(100, 400))]
    ends = connect(TableShelf([*both, f"{500:074x}"]), TableShelf([*both, f"{600:074x}"]))
    talk(*ends)
    assert ends[0].root == ends[1].root
    # The side that did not ask gets what was found for it, without a question of its own.
    assert (
        min(trip.exchanges for end in ends for trip in end.trips)
        == 1
        < max(trip.exchanges for end in ends for trip in end.trips)
    )
