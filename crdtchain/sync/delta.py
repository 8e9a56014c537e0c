"""What one replica lacks of another's past: past(want) without past(have), in an order with parents first.

Both pasts are walked down together, highest number first; numbers are a causal order, so all that links to an op has
been met before the op itself. As soon as all that is left is known to be in past(have), so is everything below it: the
walk costs the part of the graph above the oldest op that is missing, once for each request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol


class Graph(Protocol):
    """Ops by number, each above all that it links to."""

    def links(self, number: int) -> Sequence[int]:
        """Return what an op links to by prev and parents."""


def compute_delta(dag: Graph, want: Iterable[int], have: Iterable[int]) -> list[int]:
    """Return the numbers in past(want) and not in past(have), ascending: parents come first."""
    had = set(have)
    queued = had | set(want)
    heap = [-number for number in queued]
    heapify(heap)
    open_count = len(queued - had)
    found: list[int] = []
    while open_count:
        number = -heappop(heap)
        is_had = number in had
        if not is_had:
            open_count -= 1
            found.append(number)
        for link in dag.links(number):
            if link not in queued:
                queued.add(link)
                heappush(heap, -link)
                open_count += not is_had
                if is_had:
                    had.add(link)
            elif is_had and link not in had:
                had.add(link)
                open_count -= 1
    found.reverse()
    return found
