"""A peer that lies: an honest session neither loops nor fails, spends no more than its budget, and loses nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given

from crdtchain.errors import PeerError
from crdtchain.sync.messages import (
    Announce,
    Get,
    Graft,
    Head,
    More,
    Ops,
    Probe,
    Tree,
    TreeReply,
    decode_frame,
    encode_frame,
)
from crdtchain.sync.reconcile import Tags, describe
from crdtchain.sync.regions import (
    BranchView,
    Except,
    Item,
    LeafView,
    Only,
    Whole,
    decode_items,
    encode_items,
    list_children,
    region_of,
)
from crdtchain.sync.session import BUDGET_BYTES, BUDGET_OP_BYTES
from tests.property.test_sync_reconcile import SPLIT, split_keys
from tests.property.test_sync_tree import CROWDS, RNGS, Table
from tests.sync_pair import End, TableShelf, connect, make_hello, settle

FRAMES_MAX = 5_000
"""Far above what a budget allows."""
Lie = Callable[[random.Random, Head, list[bytes]], list[tuple[Head, list[bytes]]]]
"""Gets what a liar would honestly say, and returns what it says."""


def draw_prefix(rng: random.Random) -> str:
    return "".join(rng.choice("0000012f") for _ in range(rng.randrange(13)))


def draw_item(rng: random.Random, prefix: str) -> Item:
    """Return any item about a region."""
    match rng.randrange(5):
        case 0:
            return LeafView(prefix, tuple(rng.randbytes(4) for _ in range(rng.randrange(33))))
        case 1:
            deeper = prefix + rng.choice(("", "0", "00", "7"))
            children = rng.choice((0xFFFF, 0x8001, 3))
            tags = tuple(rng.randbytes(4) for _ in range(children.bit_count()))
            return BranchView(deeper, len(prefix), children, tags)
        case 2:
            return Whole(prefix, rng.randrange(1, 2**16))
        case 3:
            return Only(prefix, tuple(rng.randbytes(4) for _ in range(rng.randrange(1, 40))))
        case _:
            return Except(prefix, tuple(rng.randbytes(4) for _ in range(rng.randrange(40))))


def replace_items(head: Head, items: list[Item], answered: int | None = None) -> Head:
    match head:
        case TreeReply():
            return TreeReply(head.answered if answered is None else answered, encode_items(items))
        case Tree():
            return Tree(head.scope, head.salt, encode_items(items))
        case Get():
            return Get(head.request, head.scope, head.salt, encode_items(items))
    return head


def answer_at_random(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    if isinstance(head, Tree | TreeReply | Get):
        items = [draw_item(rng, draw_prefix(rng)) for _ in range(rng.randrange(8))]
        return [(replace_items(head, items, rng.randrange(3)), [])]
    return [(head, blocks)]


def offer_what_is_not_there(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    if isinstance(head, Tree | TreeReply):
        views = [item for item in decode_items(head.items) if isinstance(item, LeafView | BranchView)]
        offers = [Whole(f"{rng.randrange(2**40):010x}", 0xFFFF) for _ in range(rng.choice((1, 50, 500)))]
        return [(replace_items(head, [*views, *offers]), blocks)]
    return [(head, [])] if isinstance(head, Ops) and not blocks else [(head, blocks)]


def describe_what_was_not_asked(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    if isinstance(head, TreeReply):
        items = [draw_item(rng, region_of(item)) for item in decode_items(head.items) if isinstance(item, BranchView)]
        return [(replace_items(head, [*items, LeafView(draw_prefix(rng), ())]), blocks)]
    return [(head, blocks)]


def deny_everything(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    match head:
        case TreeReply():
            return [(TreeReply(head.answered, b""), [])]
        case Ops() if head.request:
            return [(Ops(head.request, True, ()), [])]
    return [(head, blocks)]


def always_differ(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    """Describe every region that may be described as one with 16 others."""
    if isinstance(head, TreeReply):
        regions = {region_of(item) for item in decode_items(head.items) if isinstance(item, LeafView | BranchView)}
        tags = [tuple(rng.randbytes(4) for _ in range(16)) for _ in regions]
        items = [
            BranchView(prefix, len(prefix), 0xFFFF, tag) for prefix, tag in zip(sorted(regions), tags, strict=True)
        ]
        return [(replace_items(head, list(items)), blocks)]
    return [(head, blocks)]


def stop_answering(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    return [] if isinstance(head, TreeReply | Ops) and rng.random() < 0.5 else [(head, blocks)]


def say_twice(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    return [(head, blocks)] * rng.choice((1, 1, 2, 3))


def chatter(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    """Say other things in between."""
    nonsense: list[Head] = [
        Probe(rng.randbytes(32), rng.randrange(2**30)),
        Announce(rng.randbytes(8 * rng.randrange(200))),
        Graft(rng.randbytes(8 * rng.randrange(200))),
        More(rng.randrange(1, 9)),
        Get(rng.randrange(1, 2**32), b"", bytes(16), encode_items([Except("", ())])),
    ]
    return [(head, blocks), (rng.choice(nonsense), [])]


def damage_bytes(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    frame = bytearray(encode_frame(head, blocks))
    for _ in range(rng.choice((0, 1, 1, 4))):
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
    return [decode_frame(bytes(frame))]


def send_junk(rng: random.Random, head: Head, blocks: list[bytes]) -> list[tuple[Head, list[bytes]]]:
    """Send ops, but such as the honest side has."""
    if isinstance(head, Ops) and head.request and blocks:
        junk = [blocks[0]] * min(len(blocks) + 20, 200)
        return [(Ops(head.request, head.last, tuple(map(len, junk))), junk)]
    return [(head, blocks)]


LIES: list[Lie] = [
    answer_at_random,
    offer_what_is_not_there,
    describe_what_was_not_asked,
    deny_everything,
    always_differ,
    stop_answering,
    say_twice,
    chatter,
    damage_bytes,
    send_junk,
]


def be_lied_to(rng: random.Random, honest: End, liar: End, lie: Lie) -> int:
    """Let an honest end talk to a liar until it ends the connection or nothing is said; returns how many frames."""
    frames = quiet = 0
    while quiet < 4:
        quiet += 1
        while honest.out or liar.out:
            while liar.out:
                frame = liar.out.popleft()
                try:
                    said = lie(rng, *decode_frame(frame)) if honest.session.is_ready else [decode_frame(frame)]
                except PeerError:
                    said = []
                for head, blocks in said:
                    frames += 1
                    assert frames < FRAMES_MAX
                    try:
                        honest.hear(head, blocks)
                    except PeerError as error:
                        assert str(error)
                        return frames
            while honest.out:
                try:
                    liar.receive(honest.out.popleft())
                except PeerError:
                    # The liar's own session may be confused by its lies; it talks on.
                    liar.session.refill(2**16)
        for end in (honest, liar):
            try:
                end.act(end.session.probe(is_forced=True))
            except PeerError:
                return frames
    return frames


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@given(CROWDS, SPLIT, RNGS)
def test_a_liar_costs_its_budget_and_an_honest_third_still_brings_everything(
    lie: Lie, crowds: list[tuple[int, str]], how: str, rng: random.Random
) -> None:
    table = Table(rng, crowds)
    mine, theirs = split_keys(rng, table.keys, how)
    shelf, third = TableShelf(mine), TableShelf(theirs)
    shelf.valid = frozenset(table.keys)
    # Two liars tell the same lie, and hold some of the same ops.
    for number in range(2):
        ends = connect(shelf, TableShelf(theirs[number::2]), seed=number)
        ends[0].is_honest = ends[1].is_honest = False
        be_lied_to(rng, ends[0], ends[1], lie)
        traffic = ends[0].session.traffic
        ops = ends[0].got + traffic.sent_ops
        # The message that breaks the budget counts as well.
        assert traffic.negotiated_bytes <= BUDGET_BYTES + BUDGET_OP_BYTES * ops + 40_000
    settle(*connect(shelf, third, seed=9))
    assert set(shelf.blocks) == set(third.blocks)
    assert len(shelf) == len(table.keys)


@given(CROWDS, RNGS)
def test_whoever_answers_every_region_with_views_ends_the_walk(
    crowds: list[tuple[int, str]], rng: random.Random
) -> None:
    table = Table(rng, [*crowds, (257, "crowd")])
    honest = connect(TableShelf(table.keys), TableShelf())[0]
    tree = honest.shelf.holdings.tree()
    honest.hear(make_hello("listener"))
    honest.act(honest.session.accept())
    honest.said()
    honest.act(honest.session.pull())
    with_end, exchanges = False, 0
    while not with_end:
        frames = honest.said()
        if not frames:
            break
        (head, _) = frames[0]
        try:
            if isinstance(head, Tree):
                exchanges += 1
                items = decode_items(head.items)
                views = [item for item in items if isinstance(item, BranchView)]
                told: list[Item] = []
                for view in views:
                    for child in list_children(view.prefix, view.children):
                        mine = describe(tree, Tags(head.salt), child)
                        tags = tuple(rng.randbytes(4) for _ in mine.tags)
                        told.append(
                            BranchView(mine.prefix, mine.base, mine.children, tags)
                            if isinstance(mine, BranchView)
                            else LeafView(mine.prefix, tags)
                        )
                count = sum(isinstance(item, LeafView | BranchView) for item in items)
                honest.hear(TreeReply(max(1, count) if exchanges > 1 else 1, encode_items(told[:200])))
            elif isinstance(head, Get):
                honest.hear(Ops(head.request, True, ()))
        except PeerError:
            with_end = True
        assert exchanges < 500
    assert honest.session.traffic.negotiated_bytes <= BUDGET_BYTES + 40_000
