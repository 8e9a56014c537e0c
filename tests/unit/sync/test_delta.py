"""What one replica lacks of another's past."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtchain.dag import Dag
from crdtchain.ops import Beat, Kind, Op
from crdtchain.scalars import Author, OpId
from crdtchain.sync.delta import compute_delta
from tests.builders import World, bulk_world

PREFIX = b"\x01\x71\x12\x20"


def make_id(number: int) -> OpId:
    return OpId(PREFIX + number.to_bytes(32, "big"))


@st.composite
def dags(draw: st.DrawFn) -> Dag:
    """Return a graph of ops of single authors, so that every link is a parent."""
    dag = Dag([Author(bytes(32))])
    for number in range(draw(st.integers(1, 30))):
        links = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        author = Author(bytes([1]) + number.to_bytes(31, "big"))
        parents = tuple(make_id(link) for link in sorted(links))
        op = Op(make_id(number), author, 0, None, parents, 0, Kind.BEAT, Beat(), 1)
        dag.settle(dag.place(op, *dag.resolve(op)))
    return dag


@given(dags(), st.data())
def test_delta_is_one_past_without_the_other_parents_first(dag: Dag, data: st.DataObject) -> None:
    some = st.sets(st.integers(0, len(dag) - 1), max_size=4)
    want, have = data.draw(some), data.draw(some)
    found = compute_delta(dag, want, have)
    assert set(found) == set(dag.iterate_past(want)) - set(dag.iterate_past(have))
    assert found == sorted(set(found))


def test_nothing_is_lacked_by_who_has_it_and_all_by_who_has_nothing() -> None:
    world = World()
    world.transfer("alice", "bob", 1)
    world.certify()
    dag = world.ledger.dag
    assert compute_delta(dag, dag.heads, dag.heads) == []
    assert compute_delta(dag, dag.heads, []) == list(range(len(dag)))
    assert compute_delta(dag, [], []) == []


def test_the_walk_stays_above_what_both_have() -> None:
    world = bulk_world(jobs=3, authors=4)
    dag = world.ledger.dag
    before, visited = set(dag.heads), list[int]()
    for _ in range(3):
        world.beat_all(world.advance(100))
    links = dag.links

    def count(number: int) -> list[int]:
        visited.append(number)
        return links(number)

    dag.links = count  # type: ignore[method-assign]
    assert len(compute_delta(dag, dag.heads, before)) == 12
    assert len(visited) < 40 < len(dag)
