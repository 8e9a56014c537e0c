"""A set that only grows, and numbers its items as they come.

Join is union: associative, commutative, idempotent, and never less than either side (Shapiro et al., "A comprehensive
study of convergent and commutative replicated data types", 2011, section 3.3.1). Numbers are local: they save space and
say in which order items came here, and equality ignores them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class GrowOnlySet(Generic[T]):
    """A set without removal; `items` and `numbers` may be read directly, and are changed here alone."""

    __slots__ = ("items", "numbers")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self.items: list[T] = list(dict.fromkeys(items))
        """The items by number."""
        self.numbers: dict[T, int] = {item: number for number, item in enumerate(self.items)}
        """Item to number."""

    def add(self, item: T) -> bool:
        """Add an item; say whether it is new."""
        if item in self.numbers:
            return False
        self.numbers[item] = len(self.items)
        self.items.append(item)
        return True

    def undo(self) -> None:
        """Take back the item added last: for additions that turn out never to have happened."""
        del self.numbers[self.items.pop()]

    def merge(self, other: GrowOnlySet[T]) -> list[int]:
        """Join `other` into this; returns this side's number of each of the other's items."""
        for item in other.items:
            self.add(item)
        return [self.numbers[item] for item in other.items]

    def join(self, other: GrowOnlySet[T]) -> GrowOnlySet[T]:
        """Return the least set above both."""
        return GrowOnlySet([*self.items, *other.items])

    def __contains__(self, item: object) -> bool:
        return item in self.numbers

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowOnlySet) and self.numbers.keys() == other.numbers.keys()

    __hash__ = None  # type: ignore[assignment]
