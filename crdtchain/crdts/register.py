"""Write-once registers: a map whose values follow from their keys alone.

Two replicas that both hold a key hold the same value, because the value is a function of what the key names (the
balance after an op, say). Join is union; a disagreement would be a broken promise, so it is refused loudly instead of
being resolved quietly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class WriteOnceMap(Generic[K, V]):
    """Keys to values that never change."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[K, V] = {}

    def write(self, key: K, value: V) -> None:
        """Write a value; writing the same again changes nothing.

        Raises:
            ValueError: the key holds another value.
        """
        present = self._values.setdefault(key, value)
        if present != value:
            raise ValueError(f"{key!r} already holds {present!r}, not {value!r}")

    def get(self, key: K) -> V:
        """Return the value of a key that was written."""
        return self._values[key]

    def find(self, key: K) -> V | None:
        """Return the value of a key, or None."""
        return self._values.get(key)

    def merge(
        self,
        other: WriteOnceMap[K, V],
        rename_key: Callable[[K], K] | None = None,
        rename: Callable[[V], V] | None = None,
    ) -> None:
        """Join `other` into this, with its keys and values renamed where functions are given."""
        for key, value in other._values.items():
            self.write(key if rename_key is None else rename_key(key), value if rename is None else rename(value))

    def join(self, other: WriteOnceMap[K, V]) -> WriteOnceMap[K, V]:
        """Return the least map above both."""
        joined: WriteOnceMap[K, V] = WriteOnceMap()
        joined.merge(self)
        joined.merge(other)
        return joined

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def items(self) -> Iterator[tuple[K, V]]:
        """Yield each key with its value."""
        return iter(self._values.items())

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WriteOnceMap) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]
