"""Which blobs stay: the decision what goes when there is no room.

What an open job needs, what was put here, and what is pinned stays. Of all others, parts that nobody goes on with go
first, then whole blobs, those that were used the longest time ago before the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from msgspec import Struct

from crdtchain.adapters.blob_index import FETCHED, PINNED, WHOLE
from crdtchain.scalars import BlobId

REASONS: Final[Mapping[str, str]] = {WHOLE: "put here", PINNED: "pinned", FETCHED: ""}
"""State in the index to why a blob stays."""


class Item(Struct):
    """One blob, or part of one, that takes room."""

    size: int
    """Bytes."""
    state: str
    """A state of the index, or `PART`."""
    used_ms: int
    """When it was put, fetched or served last, ms since the Unix epoch."""


PART: Final = "part"


def find_reason(blob: BlobId, item: Item, needed: Mapping[BlobId, str]) -> str:
    """Return why a blob stays, or an empty text: it may go when there is no room."""
    return needed.get(blob) or REASONS.get(item.state, "")


def choose_victims(
    items: Iterable[tuple[BlobId, Item]], needed: Collection[BlobId], space: int
) -> list[tuple[BlobId, Item]] | None:
    """Return what has to go for some space, bytes; None when all that may go is not enough."""
    free = [
        (blob, item) for blob, item in items if item.state == PART or (item.state == FETCHED and blob not in needed)
    ]
    free.sort(key=lambda row: (row[1].state != PART, row[1].used_ms, row[0]))
    found = list[tuple[BlobId, Item]]()
    for row in free:
        if space <= 0:
            break
        found.append(row)
        space -= row[1].size
    return found if space <= 0 else None
