"""Chains of authors: seq, prev, forks, and the evidence of an equivocation.

Ops are numbered in the order in which a replica added them. An author's ops form a tree by `prev`; it is cut into
*lanes*, runs of ops that follow each other. A chain is a lane and the part of its ancestors' lanes below the forks.
Almost every author has one lane for ever, and then every question here is one comparison.

Invariants:

1. Every lane has at least one op of its own, and its ops have consecutive seqs.
2. An author has more than one lane exactly when two of its ops have one seq.
3. Which lane is a parent's and which a child's depends on the order of arrival and is nobody's business outside:
   answers do not.

Source: protocol section 4.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

NONE = -1
NO_AUTHOR = 2**31
"""Above the number of any author."""
_COLUMNS = ("lanes", "seqs", "lane_parent", "fork_seq")
"""What a dump holds: the rest follows."""


class Chains:
    """The trees of all authors' ops; authors and ops are numbers."""

    __slots__ = (
        "_author_lanes",
        "_by_seq",
        "_fork_seq",
        "_lane_ops",
        "_lane_parent",
        "_lanes",
        "_seqs",
        "forked",
        "lowest_forked",
    )

    def __init__(self) -> None:
        self._lanes = array("i")
        self._seqs = array("q")
        self._lane_parent = array("i")
        self._fork_seq = array("q")
        self._lane_ops: list[array[int]] = []
        self._author_lanes: list[list[int]] = []
        self._by_seq: dict[tuple[int, int], list[int]] = {}
        """Of forked authors, (author, seq) to ops."""
        self.forked: set[int] = set()
        """Authors of whom two known ops have one seq."""
        self.lowest_forked = NO_AUTHOR
        """The lowest number among them; witnesses have the lowest numbers of all."""

    def add(self, author: int, seq: int, prev: int) -> int:
        """Append an op (its number is the count so far); `prev` is -1 at seq 0. Returns its lane."""
        while author >= len(self._author_lanes):
            self._author_lanes.append([])
        number = len(self._lanes)
        lane = self._lanes[prev] if prev != NONE else NONE
        if lane == NONE or self._lane_ops[lane][-1] != prev:
            lane = self._open_lane(author, lane, seq - 1)
        self._lane_ops[lane].append(number)
        self._lanes.append(lane)
        self._seqs.append(seq)
        if author in self.forked:
            self._by_seq.setdefault((author, seq), []).append(number)
        return lane

    def _open_lane(self, author: int, parent: int, fork_seq: int) -> int:
        self._lane_parent.append(parent)
        self._fork_seq.append(fork_seq)
        self._lane_ops.append(array("i"))
        lane = len(self._lane_ops) - 1
        self._author_lanes[author].append(lane)
        if len(self._author_lanes[author]) == 2:
            self._note_forked(author)
        return lane

    def _note_forked(self, author: int) -> None:
        self.forked.add(author)
        self.lowest_forked = min(self.lowest_forked, author)
        for op in self.ops_of(author):
            self._by_seq.setdefault((author, self._seqs[op]), []).append(op)

    def undo(self, author: int) -> None:
        """Take back the op added last, which was this author's."""
        lane, seq = self._lanes.pop(), self._seqs.pop()
        self._lane_ops[lane].pop()
        if author in self.forked:
            self._by_seq[author, seq].pop()
            if not self._by_seq[author, seq]:
                del self._by_seq[author, seq]
        if self._lane_ops[lane]:
            return
        for column in (self._lane_ops, self._lane_parent, self._fork_seq, self._author_lanes[author]):
            column.pop()
        if len(self._author_lanes[author]) == 1:
            self.forked.discard(author)
            self.lowest_forked = min(self.forked, default=NO_AUTHOR)
            for op in self.ops_of(author):
                self._by_seq.pop((author, self._seqs[op]), None)

    def undo_author(self, author: int) -> None:
        """Forget an author without ops, the one with the highest number."""
        del self._author_lanes[author:]

    def seq(self, op: int) -> int:
        """Return an op's seq."""
        return self._seqs[op]

    def is_on_chain(self, op: int, tip: int) -> bool:
        """Whether `op` is `tip` or reached from it by prev alone."""
        lane, target, seq = self._lanes[tip], self._lanes[op], self._seqs[op]
        if lane == target:
            return seq <= self._seqs[tip]
        if seq >= self._seqs[tip]:
            return False
        while lane != target:
            cap = self._fork_seq[lane]
            lane = self._lane_parent[lane]
            if lane == NONE or seq > cap:
                return False
        return True

    def is_forked(self, author: int) -> bool:
        """Whether two known ops of the author have one seq."""
        return author in self.forked

    def tips(self, author: int) -> list[int]:
        """Return the last op of each of the author's branches; none for an author without ops."""
        if author >= len(self._author_lanes):
            return []
        return [self._lane_ops[lane][-1] for lane in self._author_lanes[author]]

    def siblings(self, author: int, op: int) -> Iterator[int]:
        """Yield the author's other ops with the op's seq."""
        for other in self._by_seq.get((author, self._seqs[op]), ()):
            if other != op:
                yield other

    def compute_reach(self, tips: Iterable[int]) -> dict[int, int]:
        """Return for each lane the highest seq of it that is on the chain of one of `tips`.

        Costs the lanes that are passed, each once: with many tips far less than asking for each.
        """
        reach: dict[int, int] = {}
        for tip in tips:
            lane, seq = self._lanes[tip], self._seqs[tip]
            while lane != NONE and reach.get(lane, NONE) < seq:
                reach[lane] = seq
                seq, lane = self._fork_seq[lane], self._lane_parent[lane]
        return reach

    def is_in_reach(self, op: int, reach: Mapping[int, int]) -> bool:
        """Whether an op is on the chain of one of the tips that a reach was computed for."""
        return reach.get(self._lanes[op], NONE) >= self._seqs[op]

    def find_maximal(self, ops: Iterable[int]) -> list[int]:
        """Return those of one author's ops that are on the chain of no other of them."""
        highest: dict[int, int] = {}
        for op in ops:
            lane = self._lanes[op]
            if lane not in highest or self._seqs[highest[lane]] < self._seqs[op]:
                highest[lane] = op
        below: dict[int, int] = {}
        for lane in highest:
            seq, parent = self._fork_seq[lane], self._lane_parent[lane]
            while parent != NONE and below.get(parent, NONE) < seq:
                below[parent] = seq
                seq, parent = self._fork_seq[parent], self._lane_parent[parent]
        return [op for lane, op in highest.items() if below.get(lane, NONE) < self._seqs[op]]

    def find_descendants(self, author: int, starts: Mapping[int, int]) -> Iterator[array[int]]:
        """Yield, lane by lane, the author's ops from given starts on: lane to the least seq, on it and what forks off
        above.
        """
        least = dict(starts)
        for lane in self._author_lanes[author]:
            parent, fork_seq = self._lane_parent[lane], self._fork_seq[lane]
            if parent in least and least[parent] <= fork_seq:
                least[lane] = fork_seq + 1
            if lane in least:
                yield self._lane_ops[lane][least[lane] - fork_seq - 1 :]

    def lane(self, op: int) -> int:
        """Return the lane of an op."""
        return self._lanes[op]

    def path(self, tip: int) -> Iterator[tuple[int, int]]:
        """Yield the lanes of a chain, from its tip down, each with the highest seq of it on the chain."""
        lane, seq = self._lanes[tip], self._seqs[tip]
        while lane != NONE:
            yield lane, seq
            seq, lane = self._fork_seq[lane], self._lane_parent[lane]

    def ops_of(self, author: int) -> Iterator[int]:
        """Yield all ops of an author, lane by lane, each lane by seq."""
        for lane in self._author_lanes[author] if author < len(self._author_lanes) else ():
            yield from self._lane_ops[lane]

    def lanes_of(self, author: int) -> list[array[int]]:
        """Return the ops of each of an author's lanes, by seq: not to be changed."""
        return [self._lane_ops[lane] for lane in self._author_lanes[author]] if author < len(self._author_lanes) else []

    def find_equivocation(self, author: int) -> tuple[int, int] | None:
        """Return two ops of the author with one seq, the lowest such seq, or None."""
        if not self.is_forked(author):
            return None
        pairs = [(self._seqs[op], op, sibling) for op in self.ops_of(author) for sibling in self.siblings(author, op)]
        _, op, sibling = min(pairs)
        return op, sibling

    def dump(self) -> dict[str, bytes]:
        """Return the trees as columns that `load` takes."""
        return {name: getattr(self, f"_{name}").tobytes() for name in _COLUMNS}

    @classmethod
    def load(cls, columns: Mapping[str, bytes], authors: Sequence[int]) -> Chains:
        """Rebuild what `dump` returned; `authors` has the author of each op.

        Raises:
            ValueError, LookupError: the columns do not fit each other.
        """
        chains = cls()
        for name in _COLUMNS:
            getattr(chains, f"_{name}").frombytes(columns[name])
        if not len(chains._lanes) == len(chains._seqs) == len(authors):
            raise ValueError("the columns of the chains differ in length")
        chains._lane_ops = [array("i") for _ in zip(chains._lane_parent, chains._fork_seq, strict=True)]
        for number, lane in enumerate(chains._lanes):
            chains._lane_ops[lane].append(number)
        for lane, ops in enumerate(chains._lane_ops):
            author = authors[ops[0]]
            chains._author_lanes.extend([] for _ in range(author + 1 - len(chains._author_lanes)))
            chains._author_lanes[author].append(lane)
        chains.forked = {author for author, lanes in enumerate(chains._author_lanes) if len(lanes) > 1}
        for author in list(chains.forked):
            chains._note_forked(author)
        return chains
