"""A frontier: the greatest known elements of a partial order, one for each observer, or several where it forked.

It is a vector clock that bears equivocation. Join is union without what lies below something else. The order comes
from outside (for witnesses: "is on the chain of"); an element's observer comes along, because only elements of one
observer are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

Clock: TypeAlias = tuple[int, ...]
"""Elements in ascending order, none below another."""


def join_frontiers(
    clocks: Iterable[Clock], observer: Callable[[int], int], find_maximal: Callable[[Iterable[int]], Iterable[int]]
) -> Clock:
    """Return the least frontier above all `clocks`.

    `find_maximal` returns those of one observer's elements that are below no other of them.
    """
    unique = list(dict.fromkeys(clocks))
    if not unique:
        return ()
    if len(unique) == 1:
        return unique[0]
    elements: dict[int, set[int]] = {}
    for clock in unique:
        for element in clock:
            elements.setdefault(observer(element), set()).add(element)
    return tuple(sorted(element for group in elements.values() for element in find_maximal(group)))
