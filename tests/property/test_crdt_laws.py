"""Each data type of `crdtchain.crdts` is a join-semilattice: join is associative, commutative, idempotent, and never
loses anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.crdts.first_seen import FirstSeen
from crdtchain.crdts.frontier import Clock, join_frontiers
from crdtchain.crdts.gset import GrowOnlySet
from crdtchain.crdts.heads import Heads
from crdtchain.crdts.multimap import GrowOnlyMultiMap
from crdtchain.crdts.register import WriteOnceMap

small = st.integers(0, 12)
pairs = st.lists(st.tuples(small, small), max_size=20)


def make_set(items: list[tuple[int, int]]) -> GrowOnlySet[Any]:
    return GrowOnlySet(items)


def make_multimap(items: list[tuple[int, int]]) -> GrowOnlyMultiMap[int, int]:
    built: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
    for key, value in items:
        built.add(key, value)
    return built


def make_register(items: list[tuple[int, int]]) -> WriteOnceMap[int, int]:
    built: WriteOnceMap[int, int] = WriteOnceMap()
    for key, _ in items:
        built.write(key, key * key)
    return built


def make_marks(items: list[tuple[int, int]]) -> FirstSeen:
    built = FirstSeen()
    for item, event in items:
        built.add(item, event)
    return built


def join_marks(left: FirstSeen, right: FirstSeen) -> FirstSeen:
    joined = FirstSeen()
    joined.merge(left, range(20))
    joined.merge(right, range(20))
    return joined


JOINS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "gset": (make_set, GrowOnlySet.join),
    "multimap": (make_multimap, GrowOnlyMultiMap.join),
    "register": (make_register, WriteOnceMap.join),
    "first_seen": (make_marks, join_marks),
}


@pytest.mark.parametrize("name", JOINS)
@given(a=pairs, b=pairs, c=pairs)
def test_join_is_a_semilattice_and_equals_the_union(name: str, a: Any, b: Any, c: Any) -> None:
    make, join = JOINS[name]
    assert join(make(a), make(b)) == join(make(b), make(a))
    assert join(join(make(a), make(b)), make(c)) == join(make(a), join(make(b), make(c)))
    assert join(make(a), make(a)) == make(a)
    assert join(make(a), make(b)) == make([*a, *b])


@given(a=pairs, b=pairs)
def test_a_multimap_and_marks_can_be_renamed_while_they_are_joined(a: Any, b: Any) -> None:
    joined = make_multimap(a)
    joined.merge(make_multimap(b), lambda key: key + 100, lambda value: value + 200)
    assert joined == make_multimap([*a, *((key + 100, value + 200) for key, value in b)])
    marks = make_marks(a)
    marks.merge(make_marks(b), range(30, 60))
    assert marks == make_marks([*a, *((item + 30, event + 30) for item, event in b)])


@given(a=pairs, item=small, event=st.integers(100, 200))
def test_undo_takes_back_exactly_the_last_mark(a: Any, item: int, event: int) -> None:
    marks = make_marks([*a, (item, event)])
    marks.undo(item, event)
    assert marks == make_marks(a)
    values = make_multimap([*a, (item, event)])
    values.undo(item, event)
    assert values == make_multimap(a)


def test_a_register_refuses_a_second_value() -> None:
    register: WriteOnceMap[str, int] = WriteOnceMap()
    register.write("a", 1)
    register.write("a", 1)
    with pytest.raises(ValueError, match="already holds"):
        register.write("a", 2)


graphs = st.lists(st.lists(st.integers(0, 30), max_size=3), min_size=1, max_size=12)


def heads_of(graph: list[list[int]], nodes: set[int]) -> Heads[int]:
    heads: Heads[int] = Heads()
    for node in sorted(nodes):
        heads.add(node, graph[node])
    return heads


def closed(graph: list[list[int]], tops: set[int]) -> set[int]:
    nodes: set[int] = set()
    stack = list(tops)
    while stack:
        node = stack.pop()
        if node not in nodes:
            nodes.add(node)
            stack.extend(graph[node])
    return nodes


@given(raw=graphs, a=st.sets(small), b=st.sets(small), c=st.sets(small))
def test_joined_heads_are_the_heads_of_the_union(raw: Any, a: set[int], b: set[int], c: set[int]) -> None:
    graph = [[link % node for link in links] if node else [] for node, links in enumerate(raw)]
    sides = [closed(graph, {node % len(graph) for node in side}) for side in (a, b, c)]

    def join(left: set[int], right: set[int]) -> Heads[int]:
        heads = heads_of(graph, left)
        heads.merge(heads_of(graph, right), seen=left.__contains__, seen_by_other=right.__contains__)
        return heads

    one, two, three = sides
    assert join(one, two) == join(two, one) == heads_of(graph, one | two)
    assert join(one, one) == heads_of(graph, one)
    left = join(one, two)
    left.merge(heads_of(graph, three), seen=(one | two).__contains__, seen_by_other=three.__contains__)
    assert left == heads_of(graph, one | two | three)


OBSERVERS = 3


def observer(element: int) -> int:
    return element % OBSERVERS


def is_below(low: int, high: int) -> bool:
    """A tree for each observer: element e has the parent e // 2 rounded to the observer's residue class."""
    while high > low:
        parent = high // 2
        high = parent - (parent - observer(high)) % OBSERVERS
        if high < 0:
            return False
    return high == low


def find_maximal(elements: Iterable[int]) -> list[int]:
    group = set(elements)
    return [low for low in group if not any(low != high and is_below(low, high) for high in group)]


clocks = st.lists(st.integers(0, 60), max_size=8).map(
    lambda elements: join_frontiers([(element,) for element in elements], observer, find_maximal)
)


@given(a=clocks, b=clocks, c=clocks)
def test_frontiers_join_as_a_semilattice_of_antichains(a: Clock, b: Clock, c: Clock) -> None:
    def join(*sides: Clock) -> Clock:
        return join_frontiers(sides, observer, find_maximal)

    assert join(a, b) == join(b, a)
    assert join(join(a, b), c) == join(a, join(b, c))
    assert join(a, a) == a
    joined = join(a, b)
    for low in joined:
        assert not any(low != high and observer(low) == observer(high) and is_below(low, high) for high in joined)
    for element in (*a, *b):
        assert any(observer(element) == observer(high) and is_below(element, high) for high in joined)


@given(items=pairs)
def test_sets_and_maps_answer_like_the_plain_ones(items: list[tuple[int, int]]) -> None:
    values = make_set(items)
    assert set(values) == set(items)
    assert len(values) == len(set(items))
    assert not items or items[0] in values
    assert [values.add(item) for item in items] == [False] * len(items)
    assert [values.items[number] for number in values.merge(make_set(items[::-1]))] == list(make_set(items[::-1]))
    assert values.add((99, 99))
    values.undo()
    assert values == make_set(items)
    assert (99, 99) not in values
    mapping = make_multimap(items)
    assert {key: set(found) for key, found in mapping.items()} == {
        key: {value for name, value in items if name == key} for key, _ in items
    }
    assert mapping.get(99) == ()
    assert 99 not in mapping
