"""Ops whose links are not here yet: held for a while, within bounds, and let go in causal order.

Invariants:

1. An op is here at most once, under each of its missing links.
2. Counts and bytes stay within their bounds; when a bound is met, the heaviest source loses its oldest op, never a
   lighter one.
3. Waiting is never a fault: nothing here is evidence against anybody.

Source: the limits of `crdtchain.limits`; times come in as arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from crdtchain import limits
from crdtchain.ops import SignedOp
from crdtchain.scalars import OpId


class _Held(Struct):
    signed: SignedOp
    source: str
    since_ms: int
    missing: set[OpId]


class Waiting:
    """The ops of one replica that wait for links."""

    def __init__(self) -> None:
        self._held: dict[OpId, _Held] = {}
        self._by_link: dict[OpId, set[OpId]] = {}
        self._loads: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, op: OpId) -> bool:
        return op in self._held

    @property
    def size_bytes(self) -> int:
        """Bytes of all blocks held."""
        return sum(load[1] for load in self._loads.values())

    def missing(self) -> list[OpId]:
        """Return what is waited for and is not held itself, sorted."""
        return sorted(link for link in self._by_link if link not in self._held)

    def hold(self, signed: SignedOp, missing: Iterable[OpId], source: str, now_ms: int) -> None:
        """Hold an op until its missing links have come."""
        if signed.op.id in self._held:
            return
        self.expire(now_ms)
        self._held[signed.op.id] = held = _Held(signed, source, now_ms, set(missing))
        for link in held.missing:
            self._by_link.setdefault(link, set()).add(signed.op.id)
        load = self._loads.setdefault(source, [0, 0])
        load[0] += 1
        load[1] += len(signed.block)
        self._trim(source)

    def _trim(self, source: str) -> None:
        load = self._loads[source]
        while load[0] > limits.WAITING_PEER_OPS_MAX or load[1] > limits.WAITING_PEER_BYTES_MAX:
            self._drop_oldest(source)
        while len(self._held) > limits.WAITING_OPS_MAX or self.size_bytes > limits.WAITING_BYTES_MAX:
            self._drop_oldest(max(self._loads, key=lambda name: self._loads[name][1]))

    def _drop_oldest(self, source: str) -> None:
        self._remove(next(op for op, held in self._held.items() if held.source == source))

    def _remove(self, op: OpId) -> _Held:
        held = self._held.pop(op)
        for link in held.missing:
            waiters = self._by_link[link]
            waiters.discard(op)
            if not waiters:
                del self._by_link[link]
        load = self._loads[held.source]
        load[0] -= 1
        load[1] -= len(held.signed.block)
        if not load[0]:
            del self._loads[held.source]
        return held

    def arrived(self, op: OpId) -> list[tuple[SignedOp, str]]:
        """Say that an op has been added; return those that lack nothing any more, with their sources."""
        ready = []
        for waiter in sorted(self._by_link.pop(op, ())):
            held = self._held[waiter]
            held.missing.discard(op)
            if not held.missing:
                self._remove(waiter)
                ready.append((held.signed, held.source))
        return ready

    def rejected(self, op: OpId) -> list[OpId]:
        """Say that an op is refused for ever; drop and return all that links to it, directly or not."""
        dropped = []
        stack = [op]
        while stack:
            for waiter in sorted(self._by_link.get(stack.pop(), ())):
                if waiter in self._held:
                    self._remove(waiter)
                    dropped.append(waiter)
                    stack.append(waiter)
        return dropped

    def expire(self, now_ms: int) -> None:
        """Forget what has waited too long."""
        for op in [op for op, held in self._held.items() if now_ms - held.since_ms > limits.WAITING_MS_MAX]:
            self._remove(op)
