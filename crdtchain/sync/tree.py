"""A canonical Merkle tree over a set of ops: equal sets have equal roots, and any difference is found by walking down.

The key of an op is its depth (5 bytes, big-endian) and the digest of its id, as 74 hexadecimal digits; the depth is one
more than the largest of its links', genesis 0, and is worked out by every replica. Ascending keys are a causal order.

Theory of operation:

1. A *region* is the set of ops whose keys start with some digits. Its value is a hash that depends on these ops alone:
   of at most 32 ops, SHA-256(00 and their digests, in key order); of more, all of which are in one region a digit
   longer, that region's value; else SHA-256(01, a map of the 16 regions a digit longer that are not empty, and their
   values, in order). The map's lowest bit is that of digit 0.
2. In memory a region of more than 32 ops that parts is a `Branch`; everything below 33 ops is one sorted array of op
   numbers. An addition walks down one path and marks it; `root` hashes what is marked, so that a page of additions
   pays for its shared part once.

Invariants:

1. Root, regions and their values follow from the set of ops, never from the order of additions.
2. A branch has more than 32 ops and at least two children.

Source: docs/protocol/sync.md, section 1. Not here: what is said of regions to a peer (`reconcile`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, TypeAlias

from crdtchain.scalars import OpId

LEAF_MAX: Final = 32
KEY_DIGITS: Final = 74
_ID_PREFIX: Final = 4
_DIGITS: Final = "0123456789abcdef"
_PLACES: Final = {digit: place for place, digit in enumerate(_DIGITS)}

Leaf: TypeAlias = "array[int]"
"""At most 32 op numbers, ascending by key."""


class Branch:
    """A region of more than 32 ops, at the digits after which it parts."""

    __slots__ = ("children", "count", "leaf_values", "prefix", "value")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        """The digits that all keys here start with."""
        self.children: list[Branch | Leaf | None] = [None] * 16
        self.leaf_values: list[bytes | None] = [None] * 16
        """For each child that is a leaf its value, once it is known."""
        self.count = 0
        self.value: bytes | None = None
        """The hash, or None since something was added."""


Region: TypeAlias = "Branch | array[int]"


class RangeTree:
    """The tree over some of the ops of one table, by their numbers there."""

    def __init__(self, ids: Sequence[OpId], depths: Sequence[int], numbers: Iterable[int] = ()) -> None:
        """`ids` and `depths` are the table's columns; they may grow, and what is in them stays."""
        self._ids = ids
        self._depths = depths
        self._top: Region = array("i")
        self._top_value: bytes | None = None
        """The value of a top that is a leaf."""
        first = sorted(numbers, key=self._order)
        if first:
            self._top = self._build(first, [self.key(number) for number in first], 0, len(first))

    def __len__(self) -> int:
        return count_region(self._top)

    def key(self, number: int) -> str:
        """Return the key of an op as 74 hexadecimal digits."""
        return f"{self._depths[number]:010x}{self._ids[number][_ID_PREFIX:].hex()}"

    def digest(self, number: int) -> bytes:
        """Return the digest of an op's id: 32 bytes."""
        return self._ids[number][_ID_PREFIX:]

    def _order(self, number: int) -> tuple[int, bytes]:
        return self._depths[number], self._ids[number]

    def _build(self, numbers: list[int], keys: list[str], start: int, end: int) -> Region:
        """Make the region of a sorted slice."""
        if end - start <= LEAF_MAX:
            return array("i", numbers[start:end])
        branch = Branch(_common(keys[start], keys[end - 1]))
        branch.count = end - start
        place = len(branch.prefix)
        while start < end:
            digit = keys[start][place]
            stop = bisect_left(keys, branch.prefix + chr(ord(digit) + 1), start, end)
            branch.children[_PLACES[digit]] = self._build(numbers, keys, start, stop)
            start = stop
        return branch

    # -- additions --

    def add(self, number: int) -> None:
        """Add an op that is not here yet."""
        key, parent, place, region = self.key(number), None, 0, self._top
        while type(region) is Branch and key.startswith(region.prefix):
            region.value = None
            region.count += 1
            parent, place = region, _PLACES[key[len(region.prefix)]]
            child = region.children[place]
            region = array("i") if child is None else child
        if type(region) is Branch:
            fresh: Region = self._fork(region, key, number)
        else:
            assert isinstance(region, array)
            fresh = self._insert(region, number)
        if parent is None:
            self._top, self._top_value = fresh, None
        else:
            parent.children[place] = fresh
            parent.leaf_values[place] = None

    def _fork(self, branch: Branch, key: str, number: int) -> Branch:
        """Put a branch above one that does not hold a key."""
        fork = Branch(_common(branch.prefix, key))
        place = len(fork.prefix)
        fork.children[_PLACES[branch.prefix[place]]] = branch
        fork.children[_PLACES[key[place]]] = array("i", [number])
        fork.count = branch.count + 1
        return fork

    def _insert(self, leaf: Leaf, number: int) -> Region:
        insort(leaf, number, key=self._order)
        if len(leaf) <= LEAF_MAX:
            return leaf
        numbers = list(leaf)
        return self._build(numbers, [self.key(one) for one in numbers], 0, len(numbers))

    # -- values --

    def root(self) -> bytes:
        """Return the value of the whole: 32 bytes."""
        if type(self._top) is Branch:
            return self._hash(self._top)
        assert isinstance(self._top, array)
        if self._top_value is None:
            self._top_value = self._hash_leaf(self._top)
        return self._top_value

    def value(self, region: Region) -> bytes:
        """Return the value of a region of this tree."""
        return self._hash(region) if type(region) is Branch else self._hash_leaf(region)  # type: ignore[arg-type]

    def value_of(self, numbers: Sequence[int]) -> bytes:
        """Return the value that a region of these ops has: at most 32, ascending by key."""
        return self._hash_leaf(numbers)

    def child_values(self, branch: Branch) -> list[bytes | None]:
        """Return the values of a branch's 16 children, None for an empty one."""
        values = branch.leaf_values
        found: list[bytes | None] = []
        for place, child in enumerate(branch.children):
            if type(child) is Branch:
                found.append(child.value or self._hash(child))
            elif child is None:
                found.append(None)
            else:
                value = values[place]
                if value is None:
                    value = values[place] = self._hash_leaf(child)  # type: ignore[arg-type]
                found.append(value)
        return found

    def _hash(self, branch: Branch) -> bytes:
        if branch.value is None:
            values = self.child_values(branch)
            children = sum(1 << place for place, value in enumerate(values) if value is not None)
            parts = [value for value in values if value is not None]
            branch.value = sha256(b"\x01" + children.to_bytes(2, "big") + b"".join(parts)).digest()
        return branch.value

    def _hash_leaf(self, numbers: Iterable[int]) -> bytes:
        ids = self._ids
        return sha256(b"\x00" + b"".join([ids[number][_ID_PREFIX:] for number in numbers])).digest()

    # -- regions --

    def find(self, prefix: str) -> Region:
        """Return the region of a prefix: a branch, which may part later than the prefix, or the ops themselves.

        It may be a piece of the tree, which the next addition changes.
        """
        region, known = self._top, 0
        while type(region) is Branch:
            if region.prefix.startswith(prefix):
                return region
            if not prefix.startswith(region.prefix):
                return array("i")
            child = region.children[_PLACES[prefix[len(region.prefix)]]]
            if child is None:
                return array("i")
            known = len(region.prefix) + 1
            region = child
        assert isinstance(region, array)
        if len(prefix) <= known:
            return region
        start = bisect_left(region, prefix, key=self.key)
        # No digit is above f.
        return region[start : bisect_left(region, prefix + "g", start, key=self.key)]

    def iterate(self, prefix: str, after: str = "") -> Iterator[int]:
        """Yield the ops of a region whose keys are above `after`, in key order; nothing may be added meanwhile."""
        stack: list[Region] = [self.find(prefix)]
        while stack:
            region = stack.pop()
            if type(region) is Branch:
                start = 0
                if after:
                    if region.prefix < after[: len(region.prefix)]:
                        continue
                    if after.startswith(region.prefix) and len(after) > len(region.prefix):
                        start = _PLACES[after[len(region.prefix)]]
                stack.extend(child for child in reversed(region.children[start:]) if child is not None)
                continue
            assert isinstance(region, array)
            if not after:
                yield from region
            else:
                yield from (number for number in region if self.key(number) > after)


def count_region(region: Region) -> int:
    """Return how many ops a region has."""
    return region.count if type(region) is Branch else len(region)  # type: ignore[arg-type]


def _common(low: str, high: str) -> str:
    """Return what two different keys both start with."""
    place = 0
    for one, other in zip(low, high, strict=False):
        if one != other:
            break
        place += 1
    return low[:place]
