"""What witnesses say by linking: marks, acknowledgements, certificates, bans, as of any cut.

Every op of a witness speaks about its whole past. When one is added, the ops that it newly covers are visited once
and marked; that is all the work there ever is, for what held at an op of a witness holds for ever, and "as of Z" is a
comparison with Z's clock.

Theory of operation:

1. A *mark* of witness w on x is an op o of w with x in past(o) and not in past(o.prev). w has one for x, or one on
   each of several branches.
2. A fact stated by w at o (an acknowledgement, an attest, knowledge of an equivocation) is stored as the pair of the
   fact and o. It is a function of past(o), so all replicas that hold o hold the same pair: the tables are grow-only
   maps.
3. A fact holds as of a cut when q different witnesses have stated it at ops that the cut sees.

Source: protocol section 5. Not here: deadlines (`deadlines`), outcomes (`ledger.settlement`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from crdtchain.crdts.first_seen import FirstSeen
from crdtchain.crdts.frontier import Clock
from crdtchain.crdts.multimap import GrowOnlyMultiMap
from crdtchain.dag import NONE, Dag
from crdtchain.params import Params

CertificateKey: TypeAlias = tuple[int, bytes]
"""A job's number and the digest of a record."""


class Cut:
    """A causally closed part of the ledger: everything here, or the past of some ops ("as of Z")."""

    __slots__ = ("_dag", "_marks", "_reach", "_tips", "answers", "clock", "tops")

    def __init__(self, dag: Dag, marks: Sequence[FirstSeen], clock: Clock, tops: tuple[int, ...] | None) -> None:
        self.clock = clock
        self.tops = tops
        self._dag = dag
        self._marks = marks
        self.answers: dict[tuple[int, str, int], tuple[list[int], list[int]]] = {}
        """For `ledger.votes`: what it found out of this cut; a cut is asked only while the ledger does not grow."""
        self._reach: dict[int, dict[int, int]] = {}
        self._tips: dict[int, list[int]] = {}
        for tip in clock:
            self._tips.setdefault(dag.authors[tip], []).append(tip)

    def tips(self, witness: int) -> Sequence[int]:
        """Return the last ops of a witness in the cut, one for each of its branches."""
        return self._tips.get(witness, ())

    def sees(self, op: int) -> bool:
        """Whether an op of a witness is in the cut."""
        witness = self._dag.authors[op]
        tips = self._tips.get(witness)
        if tips is None:
            return False
        if witness not in self._dag.chains.forked:
            return op <= tips[0]
        reach = self._reach.get(witness)
        if reach is None:
            reach = self._reach[witness] = self._dag.chains.compute_reach(tips)
        return self._dag.chains.is_in_reach(op, reach)

    def contains(self, op: int) -> bool:
        """Whether any op is in the cut."""
        return self.contains_any((op,))

    def contains_any(self, ops: Sequence[int]) -> bool:
        """Whether one of some ops is in the cut."""
        if self.tops is None:
            return bool(ops)
        unknown: set[int] = set()
        for op in ops:
            if self._dag.is_witness_op(op):
                if self.sees(op):
                    return True
            elif self._is_covered(op):
                return True
            else:
                unknown.add(op)
        # Not covered by any witness of the cut, so the way down, if there is one, leads through ops that no witness
        # covers either: few, unless the witnesses sleep.
        return self._dag.is_any_reached(unknown, self.tops)

    def _is_covered(self, op: int) -> bool:
        """Whether a witness has the op, as of the cut."""
        forked = self._dag.chains.forked
        for witness, tips in self._tips.items():
            marks = self._marks[witness]
            first = marks.first(op)
            if first == NONE:
                continue
            if first <= tips[0] if witness not in forked else any(self.sees(mark) for mark in marks.get(op)):
                return True
        return False

    def count_witnesses(self, ops: Iterable[int]) -> int:
        """Count the different witnesses among those of the given witness ops that are in the cut."""
        found: set[int] = set()
        for op in ops:
            witness = self._dag.authors[op]
            if witness not in found and self.sees(op):
                found.add(witness)
        return len(found)


class Witnesses:
    """The marks and statements of all witnesses of a network."""

    def __init__(self, params: Params, dag: Dag) -> None:
        self.params = params
        self.dag = dag
        self.marks = [FirstSeen() for _ in params.witnesses]
        self.acknowledgements: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Value op to the witness ops that acknowledge it."""
        self.attests: GrowOnlyMultiMap[CertificateKey, int] = GrowOnlyMultiMap()
        """(job, record) to the witness ops that attest it."""
        self.records: GrowOnlyMultiMap[int, bytes] = GrowOnlyMultiMap()
        """Job to the digests of the records that somebody attests."""
        self.accused: GrowOnlyMultiMap[int, CertificateKey] = GrowOnlyMultiMap()
        """Author to the attested records that list it among the cheats."""
        self.known_equivocations: GrowOnlyMultiMap[tuple[int, int], int] = GrowOnlyMultiMap()
        """(author, seq) to the witness ops at which a witness first had two ops of the author with that seq."""
        self.equivocated_seqs: GrowOnlyMultiMap[int, int] = GrowOnlyMultiMap()
        """Author to the seqs among the keys of `known_equivocations`."""
        self._last_reach: tuple[int, dict[int, int]] = (NONE, {})
        self._marks_by_lane: dict[tuple[int, int], dict[int, int]] = {}
        """Of forked witnesses, (witness, op) to lane to the least seq of a mark: made from the marks when asked for."""

    def cut(self, tops: Iterable[int]) -> Cut:
        """Return the past of some ops as a cut."""
        numbers = tuple(tops)
        clocks = self.dag.clocks
        clock = clocks[numbers[0]] if len(numbers) == 1 else self.dag.join_clocks(clocks[top] for top in numbers)
        return Cut(self.dag, self.marks, clock, numbers)

    def everything(self) -> Cut:
        """Return all that is here as a cut."""
        tips = [tip for witness in range(len(self.marks)) for tip in self.dag.chains.tips(witness)]
        return Cut(self.dag, self.marks, self.dag.join_clocks((tip,) for tip in tips), None)

    def is_covered_by(self, op: int, tip: int) -> bool:
        """Whether `op` is in the past of `tip`, an op of a witness."""
        witness = self.dag.authors[tip]
        first = self.marks[witness].first(op)
        if first == NONE:
            return False
        if witness not in self.dag.chains.forked:
            return first <= tip
        return self._is_marked(op, witness, self._reach_of(tip))

    def _reach_of(self, tip: int) -> dict[int, int]:
        """Return the reach of one tip; the last one is kept, for it is asked for many ops in a row."""
        if self._last_reach[0] != tip:
            self._last_reach = tip, self.dag.chains.compute_reach((tip,))
        return self._last_reach[1]

    def _is_marked(self, op: int, witness: int, reach: dict[int, int]) -> bool:
        """Whether a forked witness has a mark of `op` in a reach."""
        # A crowd of branches has a crowd of marks, but a chain passes few lanes: so marks are looked up by lane.
        by_lane = self._marks_by_lane.get((witness, op))
        if by_lane is None:
            by_lane = self._marks_by_lane[witness, op] = {}
            for mark in self.marks[witness].get(op):
                self._note_lane(by_lane, mark)
        if len(by_lane) < len(reach):
            return any(reach.get(lane, NONE) >= seq for lane, seq in by_lane.items())
        return any(by_lane.get(lane, seq + 1) <= seq for lane, seq in reach.items())

    def _note_lane(self, by_lane: dict[int, int], mark: int) -> None:
        lane, seq = self.dag.chains.lane(mark), self.dag.chains.seq(mark)
        by_lane[lane] = min(seq, by_lane.get(lane, seq))

    def seen_by(self, op: int, cut: Cut) -> int:
        """Count the witnesses that have an op in their past, as of a cut."""
        return sum(any(cut.sees(mark) for mark in marks.get(op)) for marks in self.marks)

    def cover(self, tip: int) -> list[int]:
        """Mark all that a just added op of a witness newly covers, and acknowledge its value ops.

        Returns the newly covered ops, in causal order. Costs O(new marks and their links).
        """
        covered = self._mark(tip)
        dag, forked, last_values = self.dag, self.dag.chains.forked, self.dag.last_values
        if forked:
            for op in covered:
                if dag.authors[op] in forked:
                    self._note_equivocation(op, tip)
        for op in covered:
            if last_values[op] == op and self._may_acknowledge(op, tip):
                self.acknowledgements.append_new(op, tip)
        return covered

    def undo(self, tip: int, covered: Iterable[int]) -> None:
        """Take back what `cover` did for an op that turned out not to be valid."""
        marks = self.marks[self.dag.authors[tip]]
        self._last_reach = (NONE, {})
        self._marks_by_lane.clear()
        for op in covered:
            author, seq = self.dag.authors[op], self.dag.chains.seq(op)
            marks.undo(op, tip)
            self.acknowledgements.undo(op, tip)
            self.known_equivocations.undo((author, seq), tip)
            if (author, seq) not in self.known_equivocations:
                self.equivocated_seqs.undo(author, seq)

    def _mark(self, tip: int) -> list[int]:
        dag = self.dag
        witness = dag.authors[tip]
        marks = self.marks[witness]
        # prev needs no visit: it was marked when it was added, and so was all that it covers.
        if witness in dag.chains.forked:
            covered = self._mark_branch(marks, tip)
        else:
            first, prevs = marks.dense(tip + 1), dag.prevs
            first[tip] = tip
            covered = [tip]
            stack = list(dag.parents(tip))
            while stack:
                op = stack.pop()
                if first[op] != NONE:
                    continue
                first[op] = tip
                covered.append(op)
                if prevs[op] != NONE:
                    stack.append(prevs[op])
                stack.extend(dag.parents(op))
        covered.sort()
        return covered

    def _mark_branch(self, marks: FirstSeen, tip: int) -> list[int]:
        """Mark what an op on one of several branches newly covers: the other branches' marks do not count."""
        dag = self.dag
        witness = dag.authors[tip]
        marks.append_new(tip, tip)
        covered = [tip]
        stack = list(dag.parents(tip))
        while stack:
            op = stack.pop()
            if not self.is_covered_by(op, tip):
                marks.append_new(op, tip)
                if (witness, op) in self._marks_by_lane:
                    self._note_lane(self._marks_by_lane[witness, op], tip)
                covered.append(op)
                stack.extend(dag.links(op))
        return covered

    def _note_equivocation(self, op: int, tip: int) -> None:
        dag = self.dag
        author, seq = dag.authors[op], dag.chains.seq(op)
        if self._knows_equivocation(author, seq, tip):
            return
        if any(self.is_covered_by(sibling, tip) for sibling in dag.chains.siblings(author, op)):
            self.known_equivocations.append_new((author, seq), tip)
            self.equivocated_seqs.add(author, seq)

    def _knows_equivocation(self, author: int, seq: int, tip: int) -> bool:
        """Whether the chain of `tip` had two ops of an author with one seq."""
        witness, reach = self.dag.authors[tip], self._reach_of(tip)
        return any(
            self.dag.authors[o] == witness and self.dag.chains.is_in_reach(o, reach)
            for o in self.known_equivocations.get((author, seq))
        )

    def _may_acknowledge(self, op: int, tip: int) -> bool:
        dag = self.dag
        witness, is_on_chain = dag.authors[tip], dag.chains.is_on_chain
        previous = dag.previous_value(op)
        if previous != NONE:
            for o in self.acknowledgements.get(previous):
                if dag.authors[o] == witness and is_on_chain(o, tip):
                    break
            else:
                return False
        author = dag.authors[op]
        if author not in dag.chains.forked and author not in self.accused:
            return True
        cut = self.cut((tip,))
        if self._has_open_equivocation(op, tip, cut):
            return False
        return not self.is_banned(author, cut)

    def _has_open_equivocation(self, op: int, tip: int, cut: Cut) -> bool:
        """Whether past(tip) holds an equivocation of the author up to `op` and above its last certified value op
        before it.
        """
        dag, author, last = self.dag, self.dag.authors[op], self.dag.chains.seq(op)
        seqs = [
            seq
            for seq in self.equivocated_seqs.get(author)
            if seq <= last and self._knows_equivocation(author, seq, tip)
        ]
        if not seqs:
            return False
        certified = dag.previous_value(op)
        while certified != NONE and not self.is_certified(certified, cut):
            certified = dag.previous_value(certified)
        floor = NONE if certified == NONE else dag.chains.seq(certified)
        return max(seqs) > floor

    def is_certified(self, op: int, cut: Cut) -> bool:
        """Whether q witnesses acknowledge a value op as of a cut."""
        ops = self.acknowledgements.get(op)
        return len(ops) >= self.params.quorum and cut.count_witnesses(ops) >= self.params.quorum

    def attest(self, tip: int, job: int, digest: bytes, cheats: Iterable[int]) -> None:
        """Note that the witness op `tip` attests a record of a job; `cheats` are the authors that it bans."""
        key = (job, digest)
        self.attests.append_new(key, tip)
        self.records.add(job, digest)
        for author in cheats:
            self.accused.add(author, key)

    def certificates(self, job: int, cut: Cut) -> list[bytes]:
        """Return the digests of the records of a job that are certified as of a cut, sorted."""
        return sorted(digest for digest in self.records.get(job) if self._has_quorum((job, digest), cut))

    def is_banned(self, author: int, cut: Cut) -> bool:
        """Whether a certificate in the cut lists the author among the cheats."""
        return any(self._has_quorum(key, cut) for key in self.accused.get(author))

    def _has_quorum(self, key: CertificateKey, cut: Cut) -> bool:
        ops = self.attests.get(key)
        return len(ops) >= self.params.quorum and cut.count_witnesses(ops) >= self.params.quorum

    def count_past(self, time: int, cut: Cut) -> int:
        """Count the witnesses that have an op in the cut with a time above `time`."""
        times = self.dag.times
        return sum(any(times[tip] > time for tip in cut.tips(witness)) for witness in range(len(self.params.witnesses)))

    def merge(self, other: Witnesses, rename: Sequence[int], rename_author: Sequence[int]) -> None:
        """Join the other's marks and statements into these, ops and authors renamed."""
        for mine, theirs in zip(self.marks, other.marks, strict=True):
            mine.merge(theirs, rename)
        number = rename.__getitem__
        self.acknowledgements.merge(other.acknowledgements, number, number)
        self.attests.merge(other.attests, lambda key: (rename[key[0]], key[1]), number)
        self.records.merge(other.records, number)
        self.accused.merge(other.accused, rename_author.__getitem__, lambda key: (rename[key[0]], key[1]))
        self.known_equivocations.merge(other.known_equivocations, lambda key: (rename_author[key[0]], key[1]), number)
        self.equivocated_seqs.merge(other.equivocated_seqs, rename_author.__getitem__)
        self._marks_by_lane.clear()
