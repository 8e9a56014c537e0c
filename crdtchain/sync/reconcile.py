"""How two sets that differ find by how much: one side walks down both trees at once, the other answers and forgets.

Theory of operation:

1. The asking side describes its tree along the path to its newest op: branches by the tags of their children, the last
   leaf by the tags of its ops. The answering side compares each region with its own. It leaves out what is equal,
   offers what the asker has nothing of, and describes its own side of what differs. The asker compares in the same way
   and asks about what still differs, two levels of the tree a round trip, until nothing is open.
2. What the asking side lacks it gathers as parts to `get`; what the other side lacks it offers with its next question.
   So one walk serves both, and no op goes to a side that has it.
3. Regions of which one side has few ops and the other many are not walked: who has few asks for all but those.
4. Tags are salted by the asker, so nobody can prepare ops whose tags collide; a difference that a collision hides is
   there again in the next walk, with another salt, for the roots still differ.

Invariants:

1. A walk ends: each region is asked about once, and an answer may only be about regions that were asked about.
2. Without collisions, and while neither set changes, the parts that both sides are left with are exactly what each
   lacks, as far as it was examined; what was left is examined by the next walk.

Source: docs/protocol/sync.md, section 3. Not here: messages, paging (`session`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

from msgspec import Struct, field

from crdtchain.errors import PeerError
from crdtchain.sync.regions import (
    TAG_BYTES,
    BranchView,
    Except,
    Item,
    LeafView,
    Only,
    Part,
    View,
    Whole,
    count_shared,
    encode_items,
    list_children,
    measure_item,
    region_of,
)
from crdtchain.sync.tree import KEY_DIGITS, Branch, RangeTree, Region, count_region

COMPARED_MAX: Final = 256
"""Regions of so many ops are compared op by op with a leaf of the other side."""
TAGGED_MAX: Final = 65_536
"""Ops whose tags are worked out for one message, 0.1 s; what is left over is found by the next walk."""
TAGGED_STEP: Final = 8_192
"""Ops whose tags are worked out for a request before others have their turn."""
ITEMS_BYTES_MAX: Final = 30_000
"""Bytes of the items of one message."""
VIEWS_MAX: Final = 256
"""Regions that one question describes."""
REGIONS_MAX: Final = 16_384
"""Regions of the parts that are asked for at once; a few bytes can name many."""


class Tags:
    """The tags of one salt."""

    def __init__(self, salt: bytes) -> None:
        self.salt = salt
        self._start = sha256(salt)

    def tag(self, value: bytes) -> bytes:
        """Return the tag of a value, or of an op's digest."""
        state = self._start.copy()
        state.update(value)
        return state.digest()[:TAG_BYTES]

    def tag_ops(self, tree: RangeTree, numbers: Iterable[int]) -> dict[bytes, int]:
        """Return the tags of some ops, in the order given."""
        return {self.tag(tree.digest(number)): number for number in numbers}


class Outcome(Struct):
    """What a comparison came to."""

    lacking: list[Part] = field(default_factory=list)
    """What this side has to get."""
    offers: list[Part] = field(default_factory=list)
    """What the other side has to get."""
    open: list[str] = field(default_factory=list)
    """Regions that differ and of which this side's view has to be told."""


class Answer(Struct, frozen=True):
    """What the other side's question came to."""

    items: bytes
    """The answer, encoded."""
    answered: int
    """How many of the question's views outside of others were dealt with; the others have to be asked about again."""
    lacking: list[Part]
    """What this side has to get."""


def describe(tree: RangeTree, tags: Tags, prefix: str) -> View:
    """Return this side's view of a region."""
    region = tree.find(prefix)
    if isinstance(region, Branch):
        children, found = 0, list[bytes]()
        for place, value in enumerate(tree.child_values(region)):
            if value is not None:
                children |= 1 << place
                found.append(tags.tag(value))
        return BranchView(region.prefix, len(prefix), children, tuple(found))
    return LeafView(prefix, tuple(tags.tag(tree.digest(number)) for number in region))


def describe_newest(tree: RangeTree, tags: Tags) -> list[View]:
    """Return the views along the path to the newest op."""
    views = [describe(tree, tags, "")]
    while isinstance(view := views[-1], BranchView):
        views.append(describe(tree, tags, list_children(view.prefix, view.children)[-1]))
    return views


class _Comparison:
    """Compares the other side's views with a tree."""

    def __init__(self, tree: RangeTree, tags: Tags, views: Mapping[str, View]) -> None:
        self._tree = tree
        self._tags = tags
        self._views = views
        self._tagged = 0
        self.outcome = Outcome()

    def compare(self, view: View) -> None:
        """Compare one region; views of regions within it that are there are compared as well."""
        if isinstance(view, LeafView):
            self._compare_leaf(view)
            return
        region = self._tree.find(region_of(view))
        # Go down on this side to where the other side's region parts.
        while isinstance(region, Branch) and region.prefix != view.prefix and view.prefix.startswith(region.prefix):
            place = len(region.prefix)
            others = _map_of(region) & ~(1 << int(view.prefix[place], 16))
            self._offer_whole(region.prefix, others)
            region = self._tree.find(view.prefix[: place + 1])
        if isinstance(region, Branch) and not region.prefix.startswith(view.prefix):
            self._offer_whole(region.prefix, _map_of(region))
        elif not isinstance(region, Branch):
            self._offer_outside(region, view.prefix)
        self._compare_children(view)

    def _compare_children(self, view: BranchView) -> None:
        mine = self._tree.find(view.prefix)
        values = self._values(mine, view.prefix)
        theirs = dict(zip(list_children(view.prefix, view.children), view.tags, strict=True))
        lacking = extra = 0
        for place, value in enumerate(values):
            child = f"{view.prefix}{place:x}"
            tag = theirs.get(child)
            if tag is None:
                extra |= (value is not None) << place
            elif value is None:
                lacking |= 1 << place
            elif self._tags.tag(value) != tag:
                nested = self._views.get(child)
                if nested is None:
                    self.outcome.open.append(child)
                else:
                    self.compare(nested)
        if lacking:
            self.outcome.lacking.append(Whole(view.prefix, lacking))
        self._offer_whole(view.prefix, extra)

    def _values(self, mine: Region, prefix: str) -> list[bytes | None]:
        """Return the values of the 16 regions a digit longer than a prefix."""
        tree, place = self._tree, len(prefix)
        if isinstance(mine, Branch):
            if len(mine.prefix) == place:
                return tree.child_values(mine)
            found: list[bytes | None] = [None] * 16
            found[int(mine.prefix[place], 16)] = tree.value(mine)
            return found
        groups: list[list[int]] = [[] for _ in range(16)]
        for number in mine:
            groups[int(tree.key(number)[place], 16)].append(number)
        return [tree.value_of(group) if group else None for group in groups]

    def _compare_leaf(self, view: LeafView) -> None:
        region = self._tree.find(view.prefix)
        if count_region(region) > COMPARED_MAX:
            # What of theirs is not here is found when they have got the rest.
            self.outcome.offers.append(Except(view.prefix, ()))
            return
        self._tagged += count_region(region)
        if self._tagged > TAGGED_MAX:
            return
        mine = self._tags.tag_ops(self._tree, self._tree.iterate(view.prefix))
        theirs = set(view.tags)
        if lacked := tuple(tag for tag in view.tags if tag not in mine):
            self.outcome.lacking.append(Only(view.prefix, lacked))
        self._offer_only(view.prefix, [number for tag, number in mine.items() if tag not in theirs])

    def _offer_whole(self, prefix: str, children: int) -> None:
        if children:
            self.outcome.offers.append(Whole(prefix, children))

    def _offer_outside(self, numbers: Iterable[int], prefix: str) -> None:
        """Offer those of some ops that are not under a prefix: the other side has nothing next to it."""
        maps: dict[int, int] = {}
        for number in numbers:
            key = self._tree.key(number)
            if not key.startswith(prefix):
                place = count_shared(prefix, key)
                maps[place] = maps.get(place, 0) | 1 << int(key[place], 16)
        for place, children in maps.items():
            self._offer_whole(prefix[:place], children)

    def _offer_only(self, prefix: str, numbers: Sequence[int]) -> None:
        if numbers:
            self.outcome.offers.append(Only(prefix, tuple(self._tags.tag_ops(self._tree, numbers))))


def _map_of(branch: Branch) -> int:
    return sum(1 << place for place, child in enumerate(branch.children) if child is not None)


def answer(tree: RangeTree, salt: bytes, items: Sequence[Item]) -> Answer:
    """Answer a question of the other side.

    Raises:
        PeerError: the question is not one.
    """
    tags, views, tops, offered = Tags(salt), dict[str, View](), list[View](), list[Part]()
    inner: set[str] = set()
    for item in items:
        if not isinstance(item, LeafView | BranchView):
            offered.append(item)
            continue
        region = region_of(item)
        if region in views:
            raise PeerError("the peer described a region twice")
        views[region] = item
        if region not in inner:
            tops.append(item)
        if isinstance(item, BranchView):
            inner.update(list_children(item.prefix, item.children))
    if len(views) > VIEWS_MAX + KEY_DIGITS:
        raise PeerError("the peer asked about too many regions at once")
    comparison = _Comparison(tree, tags, views)
    answered, place, told, size = 0, 0, list[Item](), 0
    for top in tops:
        comparison.compare(top)
        outcome = comparison.outcome
        for prefix in outcome.open[place:]:
            view = describe(tree, tags, prefix)
            size += measure_item(view)
            # Views and offers that a message does not hold are found by the next walk.
            if size > ITEMS_BYTES_MAX:
                break
            told.append(view)
        place = len(outcome.open)
        answered += 1
        if size > ITEMS_BYTES_MAX // 2:
            break
    offers = comparison.outcome.offers
    data = encode_items([*told, *offers[: count_fitting(offers, ITEMS_BYTES_MAX - size)]])
    return Answer(data, answered, [*comparison.outcome.lacking, *offered])


def count_fitting(items: Iterable[Item], limit: int) -> int:
    """Return how many of the first items surely take no more than so many bytes."""
    count = 0
    for item in items:
        limit -= measure_item(item)
        if limit < 0:
            break
        count += 1
    return count


class Walk:
    """The asking side of one walk; `ask` and `take` take turns until `ask` returns None."""

    def __init__(self, tree: RangeTree, salt: bytes) -> None:
        self._tree = tree
        self._tags = Tags(salt)
        self.salt = salt
        self.lacking: list[Part] = []
        """What this side has to get, as far as the walk has come."""
        self.exchanges = 0
        """Questions that were answered."""
        self._offers: list[Part] = []
        self._open: list[str] = []
        self._asked: list[str] = []
        """The regions that the question is about, in its order."""
        self._expected: set[str] = set()
        """Regions that the answer may describe."""

    def gather(self) -> list[Part]:
        """Return what was found lacking since the last call, as it is to be asked for."""
        lacking, self.lacking = self.lacking, []
        return prepare_parts(self._tree, self._tags, lacking)

    @property
    def is_open(self) -> bool:
        """Whether something is left to ask."""
        return not self.exchanges or bool(self._open or self._offers)

    def ask(self, views_max: int = VIEWS_MAX) -> bytes | None:
        """Return the items of the next question, or None when there is none."""
        if not self.exchanges:
            views = describe_newest(self._tree, self._tags)
            self._asked = [""]
        else:
            views = [describe(self._tree, self._tags, prefix) for prefix in self._open[:views_max]]
            views = views[: count_fitting(views, ITEMS_BYTES_MAX)]
            self._asked, self._open = self._open[: len(views)], self._open[len(views) :]
        self._expected = {region_of(view) for view in views}
        for view in views:
            if isinstance(view, BranchView):
                self._expected.update(list_children(view.prefix, view.children))
        if not views and not self._offers:
            return None
        count = count_fitting(self._offers, ITEMS_BYTES_MAX - sum(map(measure_item, views)))
        offers, self._offers = self._offers[:count], self._offers[count:]
        return encode_items([*views, *offers])

    def take(self, items: Sequence[Item], answered: int) -> None:
        """Take the answer to the last question.

        Raises:
            PeerError: it is not one.
        """
        self.exchanges += 1
        if answered > len(self._asked) or (self._asked and not answered):
            raise PeerError("the peer answered what was not asked, or nothing of what was")
        views = {region_of(item): item for item in items if isinstance(item, LeafView | BranchView)}
        if not views.keys() <= self._expected or len(views) != sum(
            isinstance(item, LeafView | BranchView) for item in items
        ):
            raise PeerError("the peer described a region that it was not asked about")
        comparison = _Comparison(self._tree, self._tags, {})
        for view in views.values():
            comparison.compare(view)
        outcome = comparison.outcome
        lacking = [*outcome.lacking, *(item for item in items if not isinstance(item, LeafView | BranchView))]
        self.lacking.extend(lacking)
        self._offers.extend(outcome.offers)
        # What was just opened goes first, so that the first ops are found before all has been looked at.
        self._open = [*outcome.open, *self._asked[answered:], *self._open]
        self._expected = set()


def weigh(parts: Iterable[Part]) -> int:
    """Return about how many bytes parts take."""
    return sum(map(_weigh, parts))


def _weigh(part: Part) -> int:
    return 8 if isinstance(part, Whole) else 8 + TAG_BYTES * len(part.tags)


def prepare_parts(tree: RangeTree, tags: Tags, parts: Iterable[Part]) -> list[Part]:
    """Return parts as they are to be asked for: in key order, none within another, without what is here by now."""
    regions: list[tuple[str, Part]] = []
    for part in parts:
        inner = list_children(part.prefix, part.children) if isinstance(part, Whole) else [part.prefix]
        regions.extend((prefix, part) for prefix in inner)
        if len(regions) > REGIONS_MAX:
            break
    regions = regions[:REGIONS_MAX]
    regions.sort(key=lambda region: region[0])
    found: list[Part] = []
    last: str | None = None
    tagged = 0
    for prefix, part in regions:
        if last is not None and prefix.startswith(last):
            # Only a peer that does not keep to the protocol says both; what is left of it is found by the next walk.
            continue
        last = prefix
        count = count_region(tree.find(prefix))
        is_tagged = count <= COMPARED_MAX and tagged + count <= TAGGED_MAX
        if is_tagged:
            tagged += count
        if isinstance(part, Only):
            mine = tags.tag_ops(tree, tree.iterate(prefix)) if is_tagged else {}
            if still := tuple(tag for tag in part.tags if tag not in mine):
                found.append(Only(prefix, still))
        elif count and not is_tagged:
            # Too much to say what of it is here.
            continue
        elif isinstance(part, Except) or count:
            found.append(Except(prefix, tuple(tags.tag_ops(tree, tree.iterate(prefix)))))
        else:
            before = found[-1] if found else None
            children = 1 << int(prefix[-1], 16)
            if isinstance(before, Whole) and before.prefix == part.prefix:
                found[-1] = Whole(part.prefix, before.children | children)
            else:
                found.append(Whole(part.prefix, children))
    return found


def split_parts(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """Cut off as many parts as one message holds."""
    count = count_fitting(parts, ITEMS_BYTES_MAX)
    return list(parts[:count]), list(parts[count:])


class Selection:
    """The ops of some parts, page by page, in the parts' order; the tree may grow between pages."""

    def __init__(self, tree: RangeTree, salt: bytes, parts: Sequence[Item]) -> None:
        """Take what a peer asks for.

        Raises:
            PeerError: it is no list of parts.
        """
        self._tree = tree
        self._tags = Tags(salt)
        self._parts: list[tuple[str, frozenset[bytes], bool]] = []
        """Prefix, tags, and whether they are those wanted instead of those not wanted."""
        last: str | None = None
        for part in parts:
            match part:
                case Whole():
                    regions, wanted = list_children(part.prefix, part.children), frozenset[bytes]()
                case Only() | Except():
                    regions, wanted = [part.prefix], frozenset(part.tags)
                case _:
                    raise PeerError("the peer asked for a view instead of a part")
            for prefix in regions:
                if last is not None and (prefix < last or prefix.startswith(last)):
                    raise PeerError("the peer asked for parts out of order, or for one twice")
                last = prefix
                self._parts.append((prefix, wanted, isinstance(part, Only)))
            if len(self._parts) > REGIONS_MAX:
                raise PeerError("the peer asked for too many regions at once")
        self._place = 0
        self._after = ""
        self.passed = 0
        """Ops that were looked at and not wanted."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return self._place >= len(self._parts)

    def take(self, limit: int) -> list[int]:
        """Return the next op numbers; none at the end, or when many were looked at in vain."""
        found: list[int] = []
        tagged = 0
        while not self.is_done and len(found) < limit:
            prefix, tags, is_only = self._parts[self._place]
            if is_only and count_region(self._tree.find(prefix)) > 2 * COMPARED_MAX:
                # It has grown since the walk, and single ops would have to be looked for: another walk finds them.
                self._place, self._after = self._place + 1, ""
                continue
            for number in self._tree.iterate(prefix, self._after):
                tagged += bool(tags)
                if not tags or (self._tags.tag(self._tree.digest(number)) in tags) == is_only:
                    found.append(number)
                else:
                    self.passed += 1
                if len(found) == limit or tagged == TAGGED_STEP:
                    self._after = self._tree.key(number)
                    return found
            self._place, self._after = self._place + 1, ""
        return found
