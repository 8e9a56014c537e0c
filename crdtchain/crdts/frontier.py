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
    clocks: Iterable[Clock], observer: Callable[[int], int], is_below: Callable[[int, int], bool]
) -> Clock:
    """Return the least frontier above all `clocks`.

    `is_below(a, b)` says whether a is below or equal to b, for elements of one observer.
    """
    unique = list(dict.fromkeys(clocks))
    if not unique:
        return ()
    if len(unique) == 1:
        return unique[0]
    tips: dict[int, list[int]] = {}
    for clock in unique:
        for element in clock:
            _insert(tips.setdefault(observer(element), []), element, is_below)
    return tuple(sorted(element for elements in tips.values() for element in elements))


def _insert(tips: list[int], element: int, is_below: Callable[[int, int], bool]) -> None:
    if any(is_below(element, tip) for tip in tips):
        return
    tips[:] = [tip for tip in tips if not is_below(tip, element)]
    tips.append(element)
