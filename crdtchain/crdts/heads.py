"""The heads of a growing graph: nodes that nothing known links to.

The state is a pair of grow-only sets, the nodes seen and those linked to; the heads are their difference. Only the
heads are kept here: whoever joins says what each side has seen (the op set knows), so a node that one side lacks
among its heads although it has seen it is known to be linked to. That makes join: common heads, and heads that the
other side has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Heads(Generic[T]):
    """The maximal nodes of a graph whose nodes arrive after all that they link to."""

    __slots__ = ("_heads",)

    def __init__(self, heads: Iterable[T] = ()) -> None:
        self._heads: set[T] = set(heads)

    def add(self, node: T, links: Iterable[T]) -> None:
        """Add a new node, whose links are all known."""
        self._heads.difference_update(links)
        self._heads.add(node)

    def merge(self, other: Heads[T], seen: Callable[[T], bool], seen_by_other: Callable[[T], bool]) -> None:
        """Join `other` into this; the functions say which nodes each side had seen before the join."""
        kept = {head for head in self._heads if head in other._heads or not seen_by_other(head)}
        fresh = {head for head in other._heads if not seen(head)}
        self._heads = kept | fresh

    def __contains__(self, node: object) -> bool:
        return node in self._heads

    def __iter__(self) -> Iterator[T]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Heads) and self._heads == other._heads

    __hash__ = None  # type: ignore[assignment]
