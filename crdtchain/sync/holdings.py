"""What one replica holds, as trees: of everything, and of the parts of it that partial replicas keep.

The tree of everything takes in what the op table got since it was last asked. Some of the roots that it had are
remembered: a peer that names one of them lacks what came since, and has nothing that is not here.

Not here: which ops belong to a part (`crdtchain.scopes`, which is injected).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from crdtchain.dag import Dag
from crdtchain.scalars import OpId
from crdtchain.sync.messages import PREFIX_BYTES
from crdtchain.sync.tree import RangeTree

EVERYTHING: Final = b""
ROOTS_MAX: Final = 1_024
PREFIXES_MAX: Final = 16_384
_ID_PREFIX: Final = 4


class PartIndex(Protocol):
    """The ops of one scope among those that are here, kept up to date by itself."""

    @property
    def tree(self) -> RangeTree:
        """The tree over them."""

    def holds(self, number: int) -> bool:
        """Whether an op belongs to the scope."""


class Holdings:
    """The ops of one replica as its peers see them."""

    def __init__(
        self, dag: Dag, scope: bytes = EVERYTHING, find_part: Callable[[bytes], PartIndex] | None = None
    ) -> None:
        """`scope` is what this replica keeps; `find_part` reads a scope, with `PeerError` for one that is none."""
        self.dag = dag
        self.scope = scope
        self._find_part = find_part
        self._tree = RangeTree(dag.ids, dag.depths, range(len(dag)))
        self._roots: dict[bytes, None] = {}
        self._prefixes: dict[bytes, None] = {}
        """Of the digests of the ops that came last."""
        self._named = max(0, len(dag) - PREFIXES_MAX)

    def tree(self, scope: bytes = EVERYTHING) -> RangeTree:
        """Return the tree over what is here of a scope."""
        if scope != EVERYTHING and self._find_part is not None:
            return self._find_part(scope).tree
        tree = self._tree
        for number in range(len(tree), len(self.dag)):
            tree.add(number)
        return tree

    def is_within(self, scope: bytes, op: OpId) -> bool:
        """Whether an op that is here belongs to a scope."""
        if scope == EVERYTHING or self._find_part is None:
            return True
        number = self.dag.find(op)
        return number is not None and self._find_part(scope).holds(number)

    def find_missing(self, prefixes: Sequence[bytes]) -> list[bytes]:
        """Return those prefixes of digests that are of no op that came lately."""
        if not prefixes:
            return []
        ids, known = self.dag.ids, self._prefixes
        for number in range(max(self._named, len(ids) - PREFIXES_MAX), len(ids)):
            known[ids[number][_ID_PREFIX : _ID_PREFIX + PREFIX_BYTES]] = None
        self._named = len(ids)
        while len(known) > PREFIXES_MAX:
            del known[next(iter(known))]
        return [prefix for prefix in prefixes if prefix not in known]

    def note_root(self) -> bytes:
        """Remember the root of now, and return it."""
        root = self.tree().root()
        self._roots.pop(root, None)
        self._roots[root] = None
        while len(self._roots) > ROOTS_MAX:
            del self._roots[next(iter(self._roots))]
        return root

    def was_root(self, root: bytes) -> bool:
        """Whether a root is one that this replica had lately."""
        return root in self._roots
