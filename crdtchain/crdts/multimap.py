"""A map from keys to sets that only grow: votes by reveal, bids by job, acknowledgements by op.

Join is the union key by key; a key that one side lacks stands there for the empty set. Values keep the order in which
they came, which is local and means nothing: equality, and everything that leaves a replica, ignores it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)
_LARGE = 16
"""From so many values on a key has a set of them beside the list."""


class GrowOnlyMultiMap(Generic[K, V]):
    """Keys to grow-only sets of values."""

    __slots__ = ("_large", "_sets")

    def __init__(self) -> None:
        self._sets: dict[K, list[V]] = {}
        self._large: dict[K, set[V]] = {}
        """The values of keys that have many, for looking them up."""

    def add(self, key: K, value: V) -> bool:
        """Add one value under a key; say whether it is new."""
        values = self._sets.setdefault(key, [])
        if len(values) < _LARGE:
            if value in values:
                return False
        else:
            known = self._large.get(key)
            if known is None or len(known) != len(values):
                known = self._large[key] = set(values)
            if value in known:
                return False
            known.add(value)
        values.append(value)
        return True

    def append_new(self, key: K, value: V) -> None:
        """Add a value that is known to be new under the key, without looking for it."""
        self._sets.setdefault(key, []).append(value)

    def undo(self, key: K, value: V) -> None:
        """Take back a value just added: for additions that turn out never to have happened."""
        values = self._sets.get(key, [])
        self._large.pop(key, None)
        if value in values:
            values.remove(value)
            if not values:
                del self._sets[key]

    def get(self, key: K) -> Sequence[V]:
        """Return the values under a key, in the order they came."""
        return self._sets.get(key, ())

    def merge(
        self,
        other: GrowOnlyMultiMap[K, V],
        rename_key: Callable[[K], K] | None = None,
        rename: Callable[[V], V] | None = None,
    ) -> None:
        """Join `other` into this, with its keys and values renamed where functions are given."""
        for key, values in other._sets.items():
            mine = self._sets.setdefault(key if rename_key is None else rename_key(key), [])
            present = set(mine)
            for value in values:
                named = value if rename is None else rename(value)
                if named not in present:
                    mine.append(named)
                    present.add(named)

    def join(self, other: GrowOnlyMultiMap[K, V]) -> GrowOnlyMultiMap[K, V]:
        """Return the least map above both."""
        joined: GrowOnlyMultiMap[K, V] = GrowOnlyMultiMap()
        joined.merge(self)
        joined.merge(other)
        return joined

    def items(self) -> Iterator[tuple[K, Sequence[V]]]:
        """Yield each key with its values."""
        return iter(self._sets.items())

    def __contains__(self, key: object) -> bool:
        return key in self._sets

    def __iter__(self) -> Iterator[K]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrowOnlyMultiMap) and _as_sets(self) == _as_sets(other)

    __hash__ = None  # type: ignore[assignment]


def _as_sets(mapping: GrowOnlyMultiMap[K, V]) -> dict[K, frozenset[V]]:
    return {key: frozenset(values) for key, values in mapping.items()}
