"""Two sessions that talk in memory, and one that is lied to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.ops import Profile, SignedOp
from crdtchain.sync.live import CREDIT_STEP, LIVE_CREDIT, Urgency
from crdtchain.sync.messages import (
    PREFIX_BYTES,
    Addresses,
    Announce,
    Blob,
    BlobNone,
    Credit,
    Get,
    Graft,
    More,
    Ops,
    Probe,
    Prune,
    Tree,
    TreeReply,
    decode_frame,
)
from crdtchain.sync.outputs import SendFrame, Take, Told
from crdtchain.sync.regions import Except, LeafView, Only, Part, Whole, encode_items
from crdtchain.sync.session import PAGES_IN_FLIGHT
from tests.builders import World, bulk_history, bulk_world
from tests.sync_pair import End, LedgerShelf, TableShelf, connect, make_hello, settle, talk

SALT = bytes(16)
ALL = encode_items([Except("", ())])


def pair(
    one: Sequence[SignedOp], other: Sequence[SignedOp], names: tuple[str, str] = ("dialler", "listener")
) -> tuple[End, End]:
    """Return the ends of a new connection between replicas with these histories."""
    return connect(LedgerShelf(one), LedgerShelf(other), one[0].op.id, names)


def kinds(end: End) -> list[str]:
    """Return the names of what an end says, undelivered."""
    return [type(head).__name__ for head, _ in end.said()]


def spread(world: World, number: int, name: str = "person00") -> list[SignedOp]:
    """Return new ops of a name, which nobody has."""
    ops, before = [], world.tip(name)
    for place in range(number):
        before = world.sign(name, Profile(name=name, about=str(place)), parents=(), prev=before)
        ops.append(before)
    return ops


def say_new(end: End, signed: SignedOp, urgency: Urgency = Urgency.AS_WANTED) -> None:
    """Give an op to an end's replica, which passes it on."""
    end.shelf.put(signed.block)
    end.act(end.session.push([(signed.op.id, signed.block)], urgency))


# -- two honest sides --


def test_equal_sides_say_hello_and_nothing_else() -> None:
    history = bulk_history(jobs=1, authors=3)
    ends = pair(history, history)
    assert [len(end.out) for end in ends] == [1, 1]
    assert talk(*ends) == 4
    for end in ends:
        assert end.session.is_ready and end.session.is_in_step and not end.trips
        assert end.session.traffic.negotiated_bytes == 0
        end.act(end.session.probe())
        assert not end.out


def test_a_newcomer_gets_everything_once_parents_first() -> None:
    history = bulk_history(jobs=4, authors=5)
    full, fresh = pair(history, history[:1])
    talk(full, fresh)
    assert fresh.got == len(history) - 1 and not fresh.copies
    assert fresh.root == full.root and fresh.session.is_in_step
    takes = [output for output in fresh.outputs if isinstance(output, Take)]
    assert max(len(take.blocks) for take in takes) <= limits.BATCH_OPS_MAX
    assert [take.last for take in takes] == [False] * (len(takes) - 1) + [True]
    assert fresh.trips[0].exchanges == 2 and fresh.trips[0].ops == fresh.got
    assert fresh.session.traffic.negotiated_bytes < 600


def test_one_that_lacks_the_newest_gets_just_them() -> None:
    history = bulk_history(jobs=4, authors=5)
    for ends in (pair(history, history[:-30]), pair(history[:-30], history)):
        talk(*ends)
        assert sorted(end.got for end in ends) == [0, 30]
        assert ends[0].root == ends[1].root
        assert max(end.session.traffic.negotiated_bytes for end in ends) < 2_500


def test_two_that_went_apart_get_what_each_lacks() -> None:
    world = bulk_world(jobs=2, authors=4, seed="apart")
    mine, theirs = spread(world, 7, "person00"), spread(world, 5, "person01")
    ends = pair([*world.log, *mine], [*world.log, *theirs])
    settle(*ends)
    assert [end.got for end in ends] == [5, 7]
    assert not ends[0].copies and not ends[1].copies


_WORLD = bulk_world(jobs=1, authors=4)


@given(st.data())
def test_any_two_histories_of_one_network_become_one(data: st.DataObject) -> None:
    size, sides = len(_WORLD.log), []
    for _ in range(2):
        tops = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
        past = sorted({0, *_WORLD.ledger.dag.iterate_past(tops)})
        sides.append([_WORLD.log[op] for op in past])
    ends = pair(sides[0], sides[1])
    settle(*ends)
    ids = [{signed.op.id for signed in side} for side in sides]
    assert [end.got for end in ends] == [len(ids[1] - ids[0]), len(ids[0] - ids[1])]
    assert not ends[0].copies and not ends[1].copies


def test_only_the_side_with_fewer_ops_asks_first_and_the_other_at_the_second_sign() -> None:
    history = bulk_history(jobs=1, authors=3)
    full, fresh = pair(history, history[:-9])
    for end in (full, fresh):
        end.pulls = False
    talk(full, fresh)
    assert [end.is_found for end in (full, fresh)] == [False, True]
    full.hear(Probe(bytes(32), 3))
    assert full.is_found


def test_a_root_that_was_ours_a_moment_ago_is_no_reason_to_ask() -> None:
    history = bulk_history(jobs=1, authors=3)
    shelf, new = LedgerShelf(history[:-1]), history[-1]
    ends = connect(shelf, LedgerShelf(history[:-1]), history[0].op.id)
    talk(*ends)
    shelf.put(new.block)
    ends[0].hear(Probe(ends[1].root, len(history) - 1))
    ends[0].hear(Probe(ends[1].root, len(history) - 1))
    assert not ends[0].is_found and ends[0].session.is_in_step


# -- paging --


def test_six_pages_are_in_flight_and_another_only_after_one_is_stored() -> None:
    history = bulk_history(jobs=12, authors=6)
    full, fresh = pair(history, history[:1])
    fresh.stores = False
    talk(full, fresh)
    assert len(fresh.takes) == PAGES_IN_FLIGHT == 6 and full.session.is_serving
    for _ in range(3):
        fresh.store()
        talk(full, fresh)
        assert len(fresh.takes) == PAGES_IN_FLIGHT
    fresh.stores = True
    while fresh.takes:
        fresh.store()
        talk(full, fresh)
    assert fresh.root == full.root and not full.session.is_serving


def test_a_page_waits_for_the_blocks_and_large_blocks_make_small_pages() -> None:
    full = TableShelf([f"{place:010x}{place:064x}" for place in range(30)], padding=60_000)
    ends = connect(full, TableShelf([f"{0:074x}"], padding=60_000))
    ends[0].reads_at_once = False
    talk(*ends)
    assert len(ends[0].reads) == 1 and not ends[1].takes
    ends[0].reads_at_once = True
    ends[0].read()
    talk(*ends)
    takes = [output for output in ends[1].outputs if isinstance(output, Take)]
    assert [len(take.blocks) for take in takes] == [4] * 7 + [1]
    assert all(sum(map(len, take.blocks)) <= 2**18 for take in takes)


def met(history: Sequence[SignedOp] | None = None) -> End:
    """Return an end whose peer, played by the test, has proved its key."""
    world = World()
    ops = list(world.log) if history is None else history
    ends = connect(LedgerShelf(ops), LedgerShelf(ops), ops[0].op.id)
    talk(*ends)
    ends[0].outputs.clear()
    return ends[0]


def test_what_nobody_asked_for_is_refused() -> None:
    for head, blocks in (
        (Ops(1, False, (1,)), [b"x"]),
        (TreeReply(0, b""), []),
        (Blob(3, 3), [b"abc"]),
        (BlobNone(False), []),
        (Ops(0, True, ()), []),
    ):
        with pytest.raises(PeerError):
            met().hear(head, blocks)


def test_more_pages_than_are_paid_for_are_refused() -> None:
    end = met()
    end.stores = False
    end.act(end.session.pull())
    (tree, _) = end.said()[0]
    assert isinstance(tree, Tree) and len(tree.salt) == 16
    end.hear(TreeReply(1, encode_items([Whole("0000000001", 0xFFFF)])))
    (get, _) = end.said()[0]
    assert isinstance(get, Get)
    with pytest.raises(PeerError, match="empty page"):
        end.hear(Ops(get.request, False, ()))
    for _ in range(PAGES_IN_FLIGHT):
        end.hear(Ops(get.request, False, (1,)), [b"x"])
    with pytest.raises(PeerError, match="before the last one was acknowledged"):
        end.hear(Ops(get.request, False, (1,)), [b"x"])


def test_requests_ascend_come_one_at_a_time_and_in_key_order() -> None:
    end = met(bulk_history(jobs=6, authors=6))
    end.reads_at_once = False
    end.hear(Get(4, b"", SALT, ALL))
    with pytest.raises(PeerError, match="was not sent"):
        end.hear(More(4))
    with pytest.raises(PeerError, match="before its last answer had ended"):
        end.hear(Get(5, b"", SALT, ALL))
    end = met()
    end.hear(Get(4, b"", SALT, b""))
    assert [(head, blocks) for head, blocks in end.said()] == [(Ops(4, True, ()), [])]
    end.hear(More(3))
    with pytest.raises(PeerError, match="do not ascend"):
        end.hear(Get(4, b"", SALT, ALL))
    overlapping: list[list[Part]] = [
        [Only("ab", (b"abcd",)), Only("ab", (b"abcd",))],
        [Only("ab", (b"abcd",)), Only("abc", (b"abcd",))],
        [Except("b", ()), Whole("", 1 << 10)],
    ]
    for items in overlapping:
        with pytest.raises(PeerError, match="out of order"):
            met().hear(Get(1, b"", SALT, encode_items(items)))
    with pytest.raises(PeerError, match="a view instead"):
        met().hear(Get(1, b"", SALT, encode_items([LeafView("", ())])))


def test_single_ops_of_what_has_grown_large_are_left_to_another_walk() -> None:
    end = connect(TableShelf([f"{place:010x}{place:064x}" for place in range(600)]), TableShelf([f"{0:074x}"]))[0]
    end.hear(make_hello("listener"))
    end.act(end.session.accept())
    end.said()
    end.hear(Get(1, b"", SALT, encode_items([Only("", (b"abcd",))])))
    assert end.said() == [(Ops(1, True, ()), [])]


def test_who_asks_for_the_same_again_and_again_is_refused() -> None:
    end = connect(TableShelf([f"{place:010x}{place:064x}" for place in range(600)]), TableShelf([f"{0:074x}"]))[0]
    end.hear(make_hello("listener"))
    end.act(end.session.accept())

    def ask_again_and_again() -> None:
        for request in range(1, 40):
            end.hear(Get(request, b"", SALT, ALL))
            end.hear(More(request))

    with pytest.raises(PeerError, match="again and again"):
        ask_again_and_again()


def test_one_pull_at_a_time() -> None:
    end = met()
    end.act(end.session.pull())
    with pytest.raises(ValueError, match="one pull"):
        end.session.pull()


# -- live --


def make_pair() -> tuple[World, tuple[End, End]]:
    """Return a world, and two ends that hold all of it and have met."""
    world = bulk_world(jobs=1, authors=3)
    ends = pair(list(world.log), list(world.log))
    talk(*ends)
    return world, ends


def test_new_ops_are_pushed_once_and_to_who_does_not_have_them() -> None:
    world, ends = make_pair()
    (signed,) = spread(world, 1)
    say_new(ends[0], signed)
    talk(*ends)
    assert ends[1].got == 1 and ends[0].root == ends[1].root
    say_new(ends[0], signed)
    say_new(ends[1], signed)
    assert not ends[0].out and not ends[1].out
    for end in ends:
        end.act(end.session.probe())
    assert talk(*ends) == 2 and not ends[0].is_found and not ends[1].is_found


def test_after_a_prune_ops_are_announced_and_a_graft_fetches_what_does_not_come() -> None:
    world, ends = make_pair()
    first, second, third = spread(world, 3)
    ends[1].act(ends[1].session.prune())
    talk(*ends)
    say_new(ends[0], first)
    assert kinds(ends[0]) == []
    # The other side gets it from somebody else, before the announcement.
    ends[1].shelf.put(first.block)
    ends[0].act(ends[0].session.announce())
    assert kinds(ends[0]) == ["Announce"]
    assert not ends[0].session.announce()
    say_new(ends[0], second)
    ends[0].act(ends[0].session.announce())
    talk(*ends)
    assert ends[1].got == 1 and not ends[1].copies and ends[0].root == ends[1].root
    # The link is eager again.
    say_new(ends[0], third)
    assert kinds(ends[0]) == ["Ops"]


def test_a_prune_of_one_author_leaves_the_others_ops_as_they_were_until_a_graft() -> None:
    world, ends = make_pair()
    mine, others = spread(world, 2), spread(world, 1, "person01")
    author = mine[0].op.author
    ends[0].hear(Prune(bytes(author)))
    say_new(ends[0], mine[0])
    assert kinds(ends[0]) == []
    say_new(ends[0], others[0])
    assert kinds(ends[0]) == ["Ops"]
    ends[0].hear(Graft(mine[0].op.id[4 : 4 + PREFIX_BYTES]))
    say_new(ends[0], mine[1])
    assert "Ops" in kinds(ends[0])
    with pytest.raises(PeerError, match="ends within one"):
        ends[0].hear(Prune(bytes(33)))


def test_what_is_to_be_announced_is_announced_over_an_eager_link_too() -> None:
    world, ends = make_pair()
    (signed,) = spread(world, 1)
    say_new(ends[0], signed, Urgency.ANNOUNCED)
    ends[0].act(ends[0].session.announce())
    [(head, _)] = ends[0].said()
    assert head == Announce(signed.op.id[4 : 4 + PREFIX_BYTES])


def test_own_ops_are_sent_over_a_pruned_link_too() -> None:
    world, ends = make_pair()
    ends[0].hear(Prune())
    (signed,) = spread(world, 1)
    say_new(ends[0], signed, Urgency.OWN)
    assert kinds(ends[0]) == ["Ops"]


def test_a_graft_for_what_was_never_announced_brings_nothing() -> None:
    world, ends = make_pair()
    ends[0].hear(Graft(b"".join(signed.op.id[4 : 4 + PREFIX_BYTES] for signed in world.log)))
    assert not ends[0].out and not ends[0].reads
    for message in (Graft(b"1234567"), Announce(b"123456789")):
        with pytest.raises(PeerError, match="ends within one"):
            ends[0].hear(message)


def test_live_ops_cost_credit_that_comes_back_when_they_are_stored() -> None:
    keys = [f"{place:010x}{place:064x}" for place in range(40)]
    padding = 60_000
    one, other = TableShelf(keys[:1], padding), TableShelf(keys[:1], padding)
    ends = connect(one, other)
    talk(*ends)
    ends[1].stores = False
    for key in keys[1:]:
        block = bytes.fromhex(key) + bytes(padding)
        one.put(block)
        ends[0].act(ends[0].session.push([(one.find_id(block), block)]))
    sent = sum(len(frame) for frame in ends[0].out)
    assert LIVE_CREDIT - 2 * padding < sent < LIVE_CREDIT + 2_000
    assert ends[0].session.live.is_behind
    talk(*ends)
    while ends[1].takes:
        ends[1].store()
    assert {type(head) for head, _ in map(decode_frame, ends[1].out)} == {Credit}
    ends[1].stores = True
    # What was left out is found by the next probe.
    settle(*ends)
    assert ends[1].got == 39 and not ends[1].copies


def test_more_live_ops_than_credit_are_refused() -> None:
    end = met()
    end.stores = False
    block = bytes(limits.BLOCK_BYTES_MAX)
    for _ in range(LIVE_CREDIT // len(block)):
        end.hear(Ops(0, True, (len(block),)), [block])
    with pytest.raises(PeerError, match="more live ops than it may"):
        end.hear(Ops(0, True, (1,)), [b"x"])


def test_credit_is_told_in_steps_and_never_above_the_start() -> None:
    end = met()
    assert end.session.live.note_stored(CREDIT_STEP - 1) == 0
    assert end.session.live.note_stored(1) == CREDIT_STEP
    end.hear(Credit(limits.INT_MAX))
    assert end.session.live.spend([bytes(LIVE_CREDIT)]) and not end.session.live.spend([b"x"])


def test_what_is_new_while_a_peer_catches_up_is_found_afterwards() -> None:
    world = bulk_world(jobs=12, authors=6)
    full, fresh = pair(list(world.log), world.log[:1])
    fresh.stores = False
    talk(full, fresh)
    (signed,) = spread(world, 1)
    say_new(full, signed)
    assert not full.out
    fresh.stores = True
    while fresh.takes:
        fresh.store()
        talk(full, fresh)
    assert signed.op.id in fresh.shelf.blocks and not fresh.copies and full.root == fresh.root


def test_after_a_burst_the_roots_are_told_once_if_they_changed() -> None:
    world, ends = make_pair()
    for signed in spread(world, 5):
        say_new(ends[0], signed)
    talk(*ends)
    for end in ends:
        assert [type(output) for output in end.session.probe()] == [SendFrame]
        assert not end.session.probe()
        assert end.session.probe(is_forced=True)


def test_addresses_are_told() -> None:
    _, ends = make_pair()
    urls = tuple(f"ws://node{number}.example" for number in range(20))
    ends[0].act(ends[0].session.tell(urls))
    talk(*ends)
    assert Told(urls[:16]) in ends[1].outputs
    ends[1].hear(Addresses(()))


# -- budget --


def test_who_talks_on_without_ops_is_dropped_and_time_pays_a_little() -> None:
    end = met()
    end.pulls = False

    def probe_on() -> None:
        for number in range(2_000):
            end.hear(Probe(bytes(32), number))

    with pytest.raises(PeerError, match="without an end") as caught:
        probe_on()
    assert caught.value.code == "negotiation"
    end = met()
    end.pulls = False
    for number in range(2_000):
        end.hear(Probe(bytes(32), number))
        end.session.refill(64)


def test_a_peer_that_has_nothing_of_what_it_claims_is_dropped() -> None:
    end = met()

    def claim_more_and_more() -> None:
        for number in range(1_000):
            end.hear(Probe(number.to_bytes(32, "big"), 10**6))
            for head, _ in end.said():
                if isinstance(head, Tree):
                    end.hear(TreeReply(1, b""))

    with pytest.raises(PeerError, match="without an end"):
        claim_more_and_more()
    assert end.session.traffic.negotiated_bytes < 2**17


def test_what_others_brought_meanwhile_is_neither_asked_for_nor_charged() -> None:
    keys = [f"{place:010x}{place:064x}" for place in range(40)]
    padding = 40_000
    for when in ("during the walk", "after the request"):
        full, part = TableShelf(keys, padding), TableShelf(keys[:3], padding)
        ends = connect(full, part)
        ends[1].stores = False
        talk(*ends, frames=5 if when == "during the walk" else 100)
        for key in keys[5:]:
            part.put(bytes.fromhex(key) + bytes(padding))
        talk(*ends)
        ends[1].stores = True
        while ends[1].takes:
            ends[1].store()
            talk(*ends)
        assert ends[0].root == ends[1].root
        assert len(ends[1].copies) == (0 if when == "during the walk" else 35)


def test_what_a_peer_sends_that_is_here_since_long_is_charged() -> None:
    keys = [f"{place:010x}{place:064x}" for place in range(40)]
    end, other = connect(TableShelf(keys, 40_000), TableShelf(keys, 40_000))
    talk(end, other)
    end.is_honest = False
    end.act(end.session.pull())
    end.said()
    end.hear(TreeReply(1, encode_items([Whole("0000000001", 1)])))
    (get, _) = end.said()[0]
    assert isinstance(get, Get)
    junk = [bytes.fromhex(key) + bytes(40_000) for key in keys[:6]]
    with pytest.raises(PeerError, match="without an end"):
        end.hear(Ops(get.request, True, tuple(map(len, junk))), junk)
