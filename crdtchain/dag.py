"""The grow-only set of valid ops, as a graph: numbers, columns, heads, clocks, and what lies in whose past.

Every op added gets the next number; numbers are local, and ops come after all that they link to, so ascending numbers
are a causal order. Columns are arrays: an op costs a few hundred bytes here, and its block none, for the store has
that.

Invariants:

1. Links point to lower numbers.
2. `clock(x)` is the set of those witness ops in past(x) that are on the chain of no other one there.
3. Whatever is asked depends on the set of ops alone, never on the order in which they came.

Sources: protocol sections 1, 2 and 5. Not here: rules (`ledger.rules`), marks (`witness`).
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Literal

from crdtchain.chains import Chains
from crdtchain.crdts.frontier import Clock, join_frontiers
from crdtchain.crdts.gset import GrowOnlySet
from crdtchain.crdts.heads import Heads
from crdtchain.ops import VALUE_KINDS, Kind, Op
from crdtchain.scalars import Author, OpId

NONE = -1
KINDS = tuple(Kind)
_KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_VALUE_NUMBERS = frozenset(_KIND_NUMBERS[kind] for kind in VALUE_KINDS)
_COLUMNS = ("authors", "kinds", "times", "depths", "prevs", "last_values", "_parents", "_parents_end")


class Dag:
    """The op table of one replica."""

    def __init__(self, witnesses: Sequence[Author]) -> None:
        self.chains = Chains()
        self.heads: Heads[int] = Heads()
        self._hold(GrowOnlySet())
        self.author_keys: list[Author] = list(witnesses)
        """Witnesses have the first numbers, in genesis' order."""
        self.witness_count = len(witnesses)
        self.clocks: list[Clock] = []
        self._newest_author = NONE
        """The author whose first op was placed last, or -1."""
        self._author_numbers: dict[Author, int] = {key: number for number, key in enumerate(witnesses)}
        self.authors = array("i")
        self.kinds = array("b")
        self.times = array("q")
        self.depths = array("q")
        self.prevs = array("i")
        self.last_values = array("i")
        """For each op the last value op of its chain, itself included; -1 for none."""
        self._parents = array("i")
        self._parents_end = array("q")

    def _hold(self, ops: GrowOnlySet[OpId]) -> None:
        """Take a set of ops as this graph's; its list and map are held directly too, for they are read all the time."""
        self.ops = ops
        self.ids = ops.items
        self._numbers = ops.numbers

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, op: OpId) -> int | None:
        """Return the number of an op, or None when it is not here."""
        return self._numbers.get(op)

    def kind(self, number: int) -> Kind:
        """Return what an op does."""
        return KINDS[self.kinds[number]]

    def author_key(self, number: int) -> Author:
        """Return the key of an op's author."""
        return self.author_keys[self.authors[number]]

    def author_number(self, author: Author) -> int:
        """Return the number of an author, giving it one if it is new."""
        number = self._author_numbers.get(author)
        if number is None:
            number = self._author_numbers[author] = len(self.author_keys)
            self.author_keys.append(author)
        return number

    def find_author(self, author: Author) -> int | None:
        """Return the number of an author, or None for one not seen."""
        return self._author_numbers.get(author)

    def is_witness_op(self, number: int) -> bool:
        """Whether an op is a witness's."""
        return self.authors[number] < self.witness_count

    def previous_value(self, number: int) -> int:
        """Return the last value op before an op on its chain, or -1."""
        prev = self.prevs[number]
        return NONE if prev == NONE else self.last_values[prev]

    def parents(self, number: int) -> Sequence[int]:
        """Return the numbers of an op's parents, prev not among them."""
        start = self._parents_end[number - 1] if number else 0
        return self._parents[start : self._parents_end[number]]

    def links(self, number: int) -> list[int]:
        """Return prev, if any, and the parents."""
        prev = self.prevs[number]
        parents = list(self.parents(number))
        return parents if prev == NONE else [prev, *parents]

    def missing(self, op: Op) -> list[OpId]:
        """Return those of an op's links that are not here."""
        links = op.parents if op.prev is None else (op.prev, *op.parents)
        return [link for link in links if link not in self._numbers]

    def join_clocks(self, clocks: Iterable[Clock]) -> Clock:
        """Join clocks, dropping what is on another's chain."""
        unique = list(dict.fromkeys(clocks))
        if len(unique) == 1:
            return unique[0]
        if self.chains.lowest_forked < self.witness_count:
            return join_frontiers(unique, self.authors.__getitem__, self.chains.find_maximal)
        # Without forks a witness's ops are one chain, and the later of two has the higher number.
        authors = self.authors
        tips: dict[int, int] = {}
        for clock in unique:
            for tip in clock:
                witness = authors[tip]
                if tips.get(witness, NONE) < tip:
                    tips[witness] = tip
        return tuple(sorted(tips.values()))

    def resolve(self, op: Op) -> tuple[int, list[int]]:
        """Return the numbers of an op's prev (-1: none) and parents.

        Raises:
            KeyError: one is not here.
        """
        numbers = self._numbers
        return NONE if op.prev is None else numbers[op.prev], [numbers[parent] for parent in op.parents]

    def place(self, op: Op, prev: int, parents: Sequence[int]) -> int:
        """Append an op with resolved links, which is not here yet; it must be settled or undone before the next."""
        return self._append(op.id, op.author, _KIND_NUMBERS[op.kind], op.seq, op.time, prev, parents)

    def settle(self, number: int) -> None:
        """Make the op placed last a head."""
        self.heads.add(number, self.links(number))

    def _append(
        self, op: OpId, author: Author, kind: int, seq: int, time: int, prev: int, parents: Sequence[int]
    ) -> int:
        """Append a row; the caller sees to the heads."""
        number = len(self.ids)
        links = parents if prev == NONE else [prev, *parents]
        self._newest_author = NONE if author in self._author_numbers else len(self.author_keys)
        author_number = self.author_number(author)
        self.chains.add(author_number, seq, prev)
        self.ops.add(op)
        self.authors.append(author_number)
        self.kinds.append(kind)
        self.times.append(time)
        self.prevs.append(prev)
        inherited = NONE if prev == NONE else self.last_values[prev]
        self.last_values.append(number if kind in _VALUE_NUMBERS else inherited)
        self._parents.extend(parents)
        self._parents_end.append(len(self._parents))
        depths = self.depths
        depths.append(1 + max([depths[link] for link in links], default=-1))
        clocks = [self.clocks[link] for link in links]
        if author_number < self.witness_count:
            # The op is above all of its own that its links have.
            clocks.append((number,))
        self.clocks.append(self.join_clocks(clocks))
        return number

    def undo(self) -> None:
        """Take back the op placed last, which has not been settled."""
        author = self.authors[-1]
        links_start = self._parents_end[-2] if len(self._parents_end) > 1 else 0
        del self._parents[links_start:]
        self.chains.undo(author)
        self.ops.undo()
        for column in (
            self.clocks,
            self.authors,
            self.kinds,
            self.times,
            self.depths,
            self.prevs,
            self.last_values,
            self._parents_end,
        ):
            column.pop()
        if author == self._newest_author:
            # It came with this op, so nothing else speaks of it.
            del self._author_numbers[self.author_keys.pop()]
            self.chains.undo_author(author)
            self._newest_author = NONE

    def merge(self, other: Dag) -> list[int]:
        """Add the other's ops that are not here; returns this side's number of each of the other's ops."""
        before = len(self)
        rename: list[int] = []
        for number, op in enumerate(other.ids):
            mine = self._numbers.get(op)
            if mine is None:
                prev = other.prevs[number]
                mine = self._append(
                    op,
                    other.author_key(number),
                    other.kinds[number],
                    other.chains.seq(number),
                    other.times[number],
                    NONE if prev == NONE else rename[prev],
                    [rename[parent] for parent in other.parents(number)],
                )
            rename.append(mine)
        known = set(rename)
        theirs: Heads[int] = Heads(rename[head] for head in other.heads)
        self.heads.merge(theirs, seen=lambda number: number < before, seen_by_other=known.__contains__)
        return rename

    def head_ids(self) -> list[OpId]:
        """Return the ids of the heads, sorted."""
        return sorted(self.ids[head] for head in self.heads)

    def find_foreign_heads(self, author: int, tip: int, now_ms: int | None = None) -> set[int]:
        """Return the heads that an author may link to behind its own op `tip` (-1: none): heads by others.

        Below a head that is the author's own, on another branch, or dated ahead of `now_ms`, what it links to counts.
        """
        found: set[int] = set()
        visited: set[int] = set()
        stack = list(self.heads)
        while stack:
            head = stack.pop()
            if head in visited or (tip != NONE and self.authors[head] == author and self.chains.is_on_chain(head, tip)):
                continue
            visited.add(head)
            is_ahead = now_ms is not None and self.times[head] > now_ms and self.prevs[head] != NONE
            if self.authors[head] == author or is_ahead:
                stack.extend(self.links(head))
            else:
                found.add(head)
        return found

    def is_any_reached(self, targets: Collection[int], tops: Iterable[int]) -> bool:
        """Whether one of `targets` is in the past of one of `tops`, by one walk down that stops below them all."""
        if not targets:
            return False
        lowest = min(targets)
        depth = min(self.depths[target] for target in targets)
        stack = [top for top in tops if top >= lowest]
        visited: set[int] = set()
        while stack:
            number = stack.pop()
            if number in targets:
                return True
            if number in visited or self.depths[number] <= depth:
                continue
            visited.add(number)
            stack.extend(link for link in self.links(number) if link >= lowest)
        return False

    def iterate_past(self, tops: Iterable[int]) -> Iterator[int]:
        """Yield the numbers of everything in the past of `tops`, in no order."""
        stack = list(tops)
        visited: set[int] = set()
        while stack:
            number = stack.pop()
            if number not in visited:
                visited.add(number)
                yield number
                stack.extend(self.links(number))

    def dump(self) -> dict[str, bytes]:
        """Return the table as columns that `restore` takes."""
        columns = {name: getattr(self, name).tobytes() for name in _COLUMNS}
        columns["ids"] = b"".join(self.ids)
        columns["author_keys"] = b"".join(self.author_keys)
        columns["heads"] = array("i", sorted(self.heads)).tobytes()
        columns["clocks"] = array("i", chain.from_iterable(self.clocks)).tobytes()
        columns["clocks_end"] = array("q", accumulate(map(len, self.clocks))).tobytes()
        return columns | self.chains.dump()

    def restore(self, columns: Mapping[str, bytes]) -> None:
        """Become, in place, what `dump` returned; numbers and all answers are as they were.

        Raises:
            ValueError, LookupError: the columns do not fit each other.
        """
        for name in _COLUMNS:
            column = getattr(self, name)
            del column[:]
            column.frombytes(columns[name])
        self._hold(GrowOnlySet(OpId(cid) for cid in _split(columns["ids"], 36)))
        self.author_keys = [Author(key) for key in _split(columns["author_keys"], 32)]
        self.heads = Heads(_read("i", columns["heads"]))
        values, ends = _read("i", columns["clocks"]), _read("q", columns["clocks_end"])
        shared: dict[Clock, Clock] = {}
        slices = (tuple(values[start:end]) for start, end in pairwise([0, *ends]))
        self.clocks = [shared.setdefault(clock, clock) for clock in slices]
        self._author_numbers = {key: number for number, key in enumerate(self.author_keys)}
        self.chains = Chains.load(columns, self.authors)
        rows = [len(getattr(self, name)) for name in _COLUMNS if name != "_parents"]
        totals = [*self._parents_end[-1:], *ends[-1:]]
        if {*rows, len(self.clocks), len(columns["ids"]) // 36} != {len(self.ids)} or totals != [
            len(self._parents),
            len(values),
        ]:
            raise ValueError("the columns of the op table differ in length")


def _read(kind: Literal["i", "q"], data: bytes) -> array[int]:
    column = array(kind)
    column.frombytes(data)
    return column


def _split(data: bytes, size: int) -> list[bytes]:
    if len(data) % size:
        raise ValueError(f"{len(data)} bytes are no whole number of ids or keys")
    return [data[start : start + size] for start in range(0, len(data), size)]
