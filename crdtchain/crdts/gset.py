"""A set that only grows.

Join is union: associative, commutative, idempotent, and never less than either side (Shapiro et al., "A comprehensive
study of convergent and commutative replicated data types", 2011, section 3.3.1).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class GrowOnlySet(Generic[T]):
    """A set without removal."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items: set[T] = set(items)

    def add(self, item: T) -> bool:
        """Add an item; say whether it is new."""
        before = len(self._items)
        self._items.add(item)
        return len(self._items) > before

    def merge(self, other: GrowOnlySet[T], rename: Callable[[T], T] | None = None) -> None:
        """Join `other` into this, its items renamed where a function is given."""
        self._items.update(other._items if rename is None else map(rename, other._items))

    def join(self, other: GrowOnlySet[T]) -> GrowOnlySet[T]:
        """Return the least set above both."""
        return GrowOnlySet(self._items | other._items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowOnlySet) and self._items == other._items

    __hash__ = None  # type: ignore[assignment]
