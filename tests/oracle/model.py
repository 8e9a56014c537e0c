"""The plain op, and the graph of ops with explicit pasts and chains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

VALUE_KINDS = frozenset({"job", "stake", "transfer", "claim"})
DEADLINE_KINDS = frozenset({"bid", "reveal", "vote"})

Past = frozenset[bytes]
Cut = frozenset[bytes] | None
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OracleOp:
    """One op. Links are 36 bytes, keys 32 bytes, an absent optional value None, time in ms."""

    id: bytes
    author: bytes
    seq: int
    prev: bytes | None
    parents: tuple[bytes, ...]
    time: int
    kind: str
    body: dict[str, Any]

    def links(self) -> tuple[bytes, ...]:
        """Everything the op links to."""
        return self.parents if self.prev is None else (self.prev, *self.parents)


class Dag:
    """The ops, with the past of each as a set and the chain of each as a tuple, first op first."""

    def __init__(self, genesis: OracleOp) -> None:
        body = genesis.body
        self.genesis = genesis
        self.witnesses: tuple[bytes, ...] = tuple(body["witnesses"])
        self.grants: dict[bytes, int] = dict(body["grants"])
        self.n = len(self.witnesses)
        self.f = (self.n - 1) // 3
        self.q = -(-(self.n + self.f + 1) // 2)
        self.delta: int = body["delta_ms"]
        self.tick: int = body["tick_ms"]
        self.ops: dict[bytes, OracleOp] = {}
        self.pasts: dict[bytes, Past] = {}
        self.chains: dict[bytes, tuple[bytes, ...]] = {}
        self.memo: dict[tuple[Any, ...], Any] = {}
        self._interned: dict[Past, Past] = {}
        self.insert(genesis)

    def insert(self, op: OracleOp) -> None:
        """Keep an op whose links are all known, without judging it."""
        assert op.id not in self.ops, "inserted twice"
        reached: set[bytes] = {op.id}
        for link in op.links():
            reached |= self.pasts[link]
        self.ops[op.id] = op
        self.pasts[op.id] = self._intern(frozenset(reached))
        self.chains[op.id] = (*(self.chains[op.prev] if op.prev is not None else ()), op.id)

    def forget(self, op_id: bytes) -> None:
        """Undo an insert of an op that nothing links to, together with all that was worked out meanwhile."""
        del self.ops[op_id], self.pasts[op_id], self.chains[op_id]

    def _intern(self, past: Past) -> Past:
        return self._interned.setdefault(past, past)

    def past(self, cut: Cut) -> Past:
        """past(Z): the union of the pasts of the ops of the cut; everything for None."""
        if cut is None:
            return self._intern(frozenset(self.ops))
        return self._intern(frozenset().union(*(self.pasts[one] for one in cut)))

    def chain(self, op_id: bytes) -> tuple[bytes, ...]:
        """The op's own chain, first op first, the op itself last."""
        return self.chains[op_id]

    def before(self, op_id: bytes) -> tuple[bytes, ...]:
        """The op's own chain without the op itself."""
        return self.chains[op_id][:-1]

    def on_chain_of(self, earlier: bytes, later: bytes) -> bool:
        """Whether `earlier` is `later` or one of the ops it reaches by prev."""
        return earlier in self.chains[later]

    def ops_in(self, z: Past, *kinds: str) -> list[OracleOp]:
        """The ops of these kinds in a past, by id."""
        return list(_ops_in(self, z, frozenset(kinds)))

    def spoken(self, z: Past) -> dict[bytes, list[OracleOp]]:
        """For each witness, its ops in a past."""
        return _spoken(self, z)


P = ParamSpec("P")
D = TypeVar("D", bound=Dag)
R = TypeVar("R")


def remembered(rule: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """Work a rule out once for the same arguments. All arguments are positional and hashable."""
    name = rule.__qualname__

    @functools.wraps(rule)
    def wrapper(self: D, /, *args: P.args, **kwargs: P.kwargs) -> R:
        key = (name, *args)
        if key not in self.memo:
            self.memo[key] = rule(self, *args, **kwargs)
        found: R = self.memo[key]
        return found

    return wrapper


@remembered
def _ops_in(dag: Dag, z: Past, kinds: frozenset[str]) -> tuple[OracleOp, ...]:
    return tuple(dag.ops[one] for one in sorted(z) if dag.ops[one].kind in kinds)


@remembered
def _spoken(dag: Dag, z: Past) -> dict[bytes, list[OracleOp]]:
    said: dict[bytes, list[OracleOp]] = {witness: [] for witness in dag.witnesses}
    for one in sorted(z):
        op = dag.ops[one]
        if op.author in said:
            said[op.author].append(op)
    return {witness: sorted(ops, key=lambda op: (op.seq, op.id)) for witness, ops in said.items()}
