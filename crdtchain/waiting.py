"""Ops whose links are not here yet: held for a while, within bounds, and let go in causal order.

Invariants:

1. An op is here at most once, under each of its missing links.
2. Counts and bytes stay within their bounds; when a bound is met, the heaviest source loses its oldest op, never a
   lighter one. An op that several sources sent is held until each of them has lost it.
3. Waiting is never a fault: nothing here is evidence against anybody.

Source: the limits of `crdtchain.limits`; times come in as arguments.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from crdtchain import limits
from crdtchain.ops import Op, SignedOp
from crdtchain.scalars import OpId


class _Held(Struct):
    signed: SignedOp
    sources: list[str]
    """Who sent it, the first one first: each has its share charged, and it stays while one of them has room."""
    since_ms: int
    missing: set[OpId]


class Waiting:
    """The ops of one replica that wait for links."""

    def __init__(self) -> None:
        self._held: dict[OpId, _Held] = {}
        self._by_link: dict[OpId, set[OpId]] = {}
        self._shares: dict[str, dict[OpId, int]] = {}
        """Source to what it sent and is held, oldest first, with the size in bytes."""
        self._bytes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, op: OpId) -> bool:
        return op in self._held

    @property
    def size_bytes(self) -> int:
        """Bytes of all blocks held, each counted for each of its sources."""
        return sum(self._bytes.values())

    def missing(self) -> list[OpId]:
        """Return what is waited for and is not held itself, sorted."""
        return sorted(link for link in self._by_link if link not in self._held)

    def hold(self, signed: SignedOp, missing: Iterable[OpId], source: str, now_ms: int) -> None:
        """Hold an op until its missing links have come."""
        self.expire(now_ms)
        held = self._held.get(signed.op.id)
        if held is None:
            self._held[signed.op.id] = held = _Held(signed, [], now_ms, set(missing))
            for link in held.missing:
                self._by_link.setdefault(link, set()).add(signed.op.id)
        if source in held.sources:
            return
        held.sources.append(source)
        self._shares.setdefault(source, {})[signed.op.id] = len(held.signed.block)
        self._bytes[source] = self._bytes.get(source, 0) + len(held.signed.block)
        self._trim(source)

    def _trim(self, source: str) -> None:
        while (
            len(self._shares.get(source, ())) > limits.WAITING_PEER_OPS_MAX
            or self._bytes.get(source, 0) > limits.WAITING_PEER_BYTES_MAX
        ):
            self._drop_oldest(source)
        while len(self._held) > limits.WAITING_OPS_MAX or self.size_bytes > limits.WAITING_BYTES_MAX:
            self._drop_oldest(max(self._bytes, key=self._bytes.__getitem__))

    def _drop_oldest(self, source: str) -> None:
        op = next(iter(self._shares[source]))
        held = self._held[op]
        held.sources.remove(source)
        self._discharge(source, op)
        if not held.sources:
            self._remove(op)

    def _discharge(self, source: str, op: OpId) -> None:
        share = self._shares[source]
        self._bytes[source] -= share.pop(op)
        if not share:
            del self._shares[source], self._bytes[source]

    def _remove(self, op: OpId) -> _Held:
        held = self._held.pop(op)
        for link in held.missing:
            waiters = self._by_link[link]
            waiters.discard(op)
            if not waiters:
                del self._by_link[link]
        for source in held.sources:
            self._discharge(source, op)
        return held

    def find_waiters(self, op: OpId) -> list[Op]:
        """Return the ops held that lack an op."""
        return [self._held[waiter].signed.op for waiter in sorted(self._by_link.get(op, ()))]

    def arrived(self, op: OpId) -> list[tuple[SignedOp, str]]:
        """Say that an op has been added; return those that lack nothing any more, with their sources."""
        ready = []
        for waiter in sorted(self._by_link.pop(op, ())):
            held = self._held[waiter]
            held.missing.discard(op)
            if not held.missing:
                self._remove(waiter)
                ready.append((held.signed, held.sources[0]))
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
