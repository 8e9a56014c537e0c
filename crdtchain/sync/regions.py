"""What is said about regions of a set: as bytes, a few for each, in key order.

A list of items, each:

    shared    1 byte: how many digits of the prefix are the same as in the item before, as many as are
    more      1 byte: how many digits follow
    digits    the further digits, two to a byte, the last low half 0 when they are odd
    sort      1 byte: 00 to 20 a `LeafView` of so many ops, 80 + digits of its region a `BranchView`, 40 `Whole`,
              41 `Only`, 42 `Except`
    rest      LeafView: tags. BranchView: map, tags. Whole: map. Only and Except: count (2 bytes), tags

A *tag* is four bytes, SHA-256(salt, value)[:4], of the value of a region, or of the digest of an op's id; a map's
lowest bit stands for digit 0. An item's tags are those of the map's regions in order, or of ops.

Invariants:

1. `decode_items(encode_items(items)) == items` for items with known sorts and bounds, and there is one encoding of
   them: anything else is a `PeerError`.
2. Decoding is linear, and what it makes is at most some 100 times as large as the bytes.

Source: docs/protocol/sync.md, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from msgspec import Struct

from crdtchain.errors import PeerError
from crdtchain.sync.tree import KEY_DIGITS, LEAF_MAX

TAG_BYTES: Final = 4
TAGS_MAX: Final = 512
"""Tags of one `Only` or `Except`."""
_BRANCH: Final = 0x80
_WHOLE: Final = 0x40
_ONLY: Final = 0x41
_EXCEPT: Final = 0x42


class LeafView(Struct, frozen=True):
    """All ops of a region: at most 32."""

    prefix: str
    tags: tuple[bytes, ...]


class BranchView(Struct, frozen=True):
    """A region of more ops, all of them under `prefix`, where they part."""

    prefix: str
    base: int
    """The region's own digits: so many of the prefix."""
    children: int
    """The map of the regions a digit longer than the prefix that are not empty."""
    tags: tuple[bytes, ...]


class Whole(Struct, frozen=True):
    """All ops of some regions a digit longer than the prefix."""

    prefix: str
    children: int


class Only(Struct, frozen=True):
    """Some ops of a region."""

    prefix: str
    tags: tuple[bytes, ...]


class Except(Struct, frozen=True):
    """All ops of a region but some; when it is offered: but those of the other side."""

    prefix: str
    tags: tuple[bytes, ...]


View: TypeAlias = LeafView | BranchView
Part: TypeAlias = Whole | Only | Except
Item: TypeAlias = View | Part


def region_of(view: View) -> str:
    """Return the prefix of the region that a view is of."""
    return view.prefix[: view.base] if isinstance(view, BranchView) else view.prefix


def list_children(prefix: str, children: int) -> list[str]:
    """Return the prefixes of a map's regions, ascending."""
    return [f"{prefix}{place:x}" for place in range(16) if children >> place & 1]


def encode_items(items: Iterable[Item]) -> bytes:
    """Encode items in their order."""
    out, before = bytearray(), ""
    for item in items:
        out += _encode_prefix(before, item.prefix)
        before = item.prefix
        match item:
            case LeafView():
                out.append(len(item.tags))
                out += b"".join(item.tags)
            case BranchView():
                out.append(_BRANCH | item.base)
                out += item.children.to_bytes(2, "big") + b"".join(item.tags)
            case Whole():
                out.append(_WHOLE)
                out += item.children.to_bytes(2, "big")
            case Only() | Except():
                out.append(_ONLY if isinstance(item, Only) else _EXCEPT)
                out += len(item.tags).to_bytes(2, "big") + b"".join(item.tags)
    return bytes(out)


def _encode_prefix(before: str, prefix: str) -> bytes:
    shared = count_shared(before, prefix)
    digits = prefix[shared:]
    return bytes((shared, len(digits))) + bytes.fromhex(digits + "0" * (len(digits) % 2))


def count_shared(one: str, other: str) -> int:
    """Return how many first digits are the same."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def measure_item(item: Item) -> int:
    """Return how many bytes an item takes at most, whatever comes before it."""
    size = 3 + (len(item.prefix) + 1) // 2
    match item:
        case LeafView():
            return size + TAG_BYTES * len(item.tags)
        case Whole():
            return size + 2
        case BranchView() | Only() | Except():
            return size + 2 + TAG_BYTES * len(item.tags)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) != size:
            raise PeerError("the peer sent a list of regions that ends within one")
        self.at += size
        return part

    def take_tags(self, count: int) -> tuple[bytes, ...]:
        data = self.take(count * TAG_BYTES)
        return tuple(data[start : start + TAG_BYTES] for start in range(0, len(data), TAG_BYTES))

    def take_prefix(self, before: str) -> str:
        shared, count = self.take(2)
        digits = self.take((count + 1) // 2).hex()
        if shared > len(before) or shared + count > KEY_DIGITS or (count % 2 and digits[-1] != "0"):
            raise PeerError("the peer sent a region with a malformed prefix")
        if count and before[shared : shared + 1] == digits[0]:
            raise PeerError("the peer sent a region whose prefix could be shorter")
        return before[:shared] + digits[:count]


def decode_items(data: bytes) -> list[Item]:
    """Decode items.

    Raises:
        PeerError: the bytes are no list of items.
    """
    reader, items, before = _Reader(data), list[Item](), ""
    while reader.at < len(data):
        before = reader.take_prefix(before)
        items.append(_decode_item(reader, before))
    return items


def _decode_item(reader: _Reader, prefix: str) -> Item:
    (sort,) = reader.take(1)
    if sort <= LEAF_MAX:
        return LeafView(prefix, reader.take_tags(sort))
    if sort >= _BRANCH:
        base, children = sort - _BRANCH, _take_map(reader, prefix)
        if base > len(prefix) or children & (children - 1) == 0:
            raise PeerError("the peer sent a region that does not part where it says")
        return BranchView(prefix, base, children, reader.take_tags(children.bit_count()))
    if sort == _WHOLE:
        return Whole(prefix, _take_map(reader, prefix))
    if sort in (_ONLY, _EXCEPT):
        count = int.from_bytes(reader.take(2), "big")
        if count > TAGS_MAX or (sort == _ONLY and not count):
            raise PeerError("the peer sent a part of a region with too many ops, or none")
        return (Only if sort == _ONLY else Except)(prefix, reader.take_tags(count))
    raise PeerError("the peer sent a region of an unknown sort")


def _take_map(reader: _Reader, prefix: str) -> int:
    children = int.from_bytes(reader.take(2), "big")
    if not children or len(prefix) >= KEY_DIGITS:
        raise PeerError("the peer sent a region without parts")
    return children
