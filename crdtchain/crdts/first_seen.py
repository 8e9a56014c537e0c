"""First-seen marks: for each item, the events at which one observer first had it.

An observer is a chain of events; it first has an item at exactly one of them, so the mark is a register that is
written once. An observer that forked has a tree of events and may first have an item once on each branch; the mark is
then a grow-only set. Which events those are follows from the events alone, so two replicas never disagree on a mark,
and join is union.

Items are small integers and marks are stored densely, 4 bytes an item; the rare second mark of a forked observer lies
beside them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

NONE = -1


class FirstSeen:
    """Item number to the number of the event that first had it."""

    __slots__ = ("_first", "_more")

    def __init__(self) -> None:
        self._first = array("i")
        self._more: dict[int, list[int]] = {}

    def add(self, item: int, event: int) -> None:
        """Mark that the item was first had at the event; adding a mark again changes nothing."""
        first = self._first
        if item >= len(first):
            first.extend([NONE] * (item + 1 - len(first)))
        present = first[item]
        if present == NONE:
            first[item] = event
        elif present != event and event not in self._more.get(item, ()):
            self._more.setdefault(item, []).append(event)

    def append_new(self, item: int, event: int) -> None:
        """Add a mark that is known to be new, without looking for it."""
        if self.first(item) == NONE:
            self.add(item, event)
        else:
            self._more.setdefault(item, []).append(event)

    def undo(self, item: int, event: int) -> None:
        """Take back the last mark made: for events that turn out never to have happened."""
        if self._first[item] == event:
            self._first[item] = NONE
            return
        events = self._more[item]
        events.remove(event)
        if not events:
            del self._more[item]

    def first(self, item: int) -> int:
        """Return one mark of the item, or -1: all there is for an observer that never forked."""
        return self._first[item] if item < len(self._first) else NONE

    def get(self, item: int) -> Sequence[int]:
        """Return all marks of the item."""
        first = self.first(item)
        if first == NONE:
            return ()
        return (first, *self._more[item]) if item in self._more else (first,)

    def dense(self, count: int) -> array[int]:
        """Return the first marks as an array with room for `count` items, -1 for none.

        An observer that never forked may write to it directly: that is the fast way to mark many items.
        """
        if count > len(self._first):
            self._first.extend([NONE] * (count - len(self._first)))
        return self._first

    def merge(self, other: FirstSeen, rename: Sequence[int]) -> None:
        """Join `other` into this; `rename` gives this side's number of each of the other's items and events."""
        for item, event in enumerate(other._first):
            if event != NONE:
                self.add(rename[item], rename[event])
        for item, events in other._more.items():
            for event in events:
                self.add(rename[item], rename[event])

    def to_sets(self) -> dict[int, frozenset[int]]:
        """Return the marks as plain sets, for comparisons."""
        return {item: frozenset(self.get(item)) for item in range(len(self._first)) if self._first[item] != NONE}

    def dump(self) -> tuple[bytes, dict[int, list[int]]]:
        """Return the marks in a form that `load` takes."""
        return self._first.tobytes(), self._more

    @classmethod
    def load(cls, first: bytes, more: dict[int, list[int]]) -> FirstSeen:
        """Rebuild what `dump` returned."""
        marks = cls()
        marks._first.frombytes(first)
        marks._more = more
        return marks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FirstSeen) and self.to_sets() == other.to_sets()

    __hash__ = None  # type: ignore[assignment]
