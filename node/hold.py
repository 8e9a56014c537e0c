"""Ops dated ahead of our clock: held, within bounds, until their claimed time has come.

Invariants:

1. Counts and bytes stay within their bounds; when one is met, the heaviest source loses its newest op, never a lighter
   one's. What is lost here is found later, like all that was not taken.
2. Ops are let go parents first.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from crdtchain import limits
from crdtchain.ops import Op, SignedOp
from crdtchain.scalars import OpId


class _Held(Struct):
    signed: SignedOp
    source: str


def list_links(op: Op) -> tuple[OpId, ...]:
    """Return prev, if any, and the parents of an op."""
    return op.parents if op.prev is None else (op.prev, *op.parents)


class Hold:
    """The ops of one node whose time has not come."""

    def __init__(self) -> None:
        self._held: dict[OpId, _Held] = {}
        self._shares: dict[str, dict[OpId, None]] = {}
        self._bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, op: OpId) -> bool:
        return op in self._held

    @property
    def size_bytes(self) -> int:
        """Bytes of all blocks held."""
        return sum(self._bytes.values())

    def add(self, signed: SignedOp, source: str) -> list[SignedOp]:
        """Hold an op; returns what had to go for it, itself perhaps. Who sends it again changes nothing."""
        if signed.op.id in self._held:
            return []
        self._held[signed.op.id] = _Held(signed, source)
        self._shares.setdefault(source, {})[signed.op.id] = None
        self._bytes[source] = self._bytes.get(source, 0) + len(signed.block)
        lost = []
        while (
            len(self._shares.get(source, ())) > limits.HELD_PEER_OPS_MAX
            or self._bytes.get(source, 0) > limits.HELD_PEER_BYTES_MAX
        ):
            lost.append(self._drop_newest(source))
        while len(self._held) > limits.HELD_OPS_MAX or self.size_bytes > limits.HELD_BYTES_MAX:
            lost.append(self._drop_newest(max(self._bytes, key=self._bytes.__getitem__)))
        return lost

    def _drop_newest(self, source: str) -> SignedOp:
        # The newest ones link to older ones, and not the other way round.
        return self._remove(next(reversed(self._shares[source])))

    def _remove(self, op: OpId) -> SignedOp:
        held = self._held.pop(op)
        share = self._shares[held.source]
        del share[op]
        self._bytes[held.source] -= len(held.signed.block)
        if not share:
            del self._shares[held.source], self._bytes[held.source]
        return held.signed

    def take_past(self, ops: Iterable[OpId]) -> list[SignedOp]:
        """Let go, parents first, those of some ops that are held, and what they link to that is held."""
        stack = [op for op in ops if op in self._held]
        found: dict[OpId, SignedOp] = {}
        while stack:
            op = stack.pop()
            if op in self._held:
                found[op] = self._remove(op)
                stack.extend(list_links(found[op].op))
        return sort_by_links(found)

    def discard(self, ops: Iterable[OpId]) -> None:
        """Let go of those of some ops that are held."""
        for op in ops:
            if op in self._held:
                self._remove(op)

    def release(self, now_ms: int) -> list[tuple[str, list[SignedOp]]]:
        """Let go of what may be taken by now: ops, parents first, with their sources."""
        due = {op: held for op, held in self._held.items() if held.signed.op.time <= now_ms + limits.AHEAD_TAKE_MS}
        released: list[tuple[str, list[SignedOp]]] = []
        for signed in sort_by_links({op: held.signed for op, held in due.items()}):
            source = due[signed.op.id].source
            if not released or released[-1][0] != source:
                released.append((source, []))
            released[-1][1].append(self._remove(signed.op.id))
        return released

    def next_release_ms(self) -> int | None:
        """Return when something is to be let go next, or None."""
        times = [held.signed.op.time for held in self._held.values()]
        return min(times) - limits.AHEAD_TAKE_MS if times else None


def sort_by_links(ops: dict[OpId, SignedOp]) -> list[SignedOp]:
    """Return ops so that each comes after those of them that it links to, else by claimed time."""
    done: dict[OpId, None] = {}
    for first in sorted(ops.values(), key=lambda signed: signed.op.time):
        stack = [first.op.id]
        while stack:
            op = stack[-1]
            open_links = [link for link in list_links(ops[op].op) if link in ops and link not in done]
            if op in done or not open_links:
                stack.pop()
                done[op] = None
            else:
                stack.extend(open_links)
    return [ops[op] for op in done]
