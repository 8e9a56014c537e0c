"""Who may connect: bounds on connections, of all and of one address, and who broke rules waits outside.

Theory of operation:

1. `knock` decides when the peer port accepts a socket, before a byte is read: ten thousand strangers cost a comparison
   and a reset each. When the port is full, room is made by ending a connection that is no link of a peer and older
   than a handshake may take, of the address that has most: a stranger that never reads keeps nobody out.
2. `enter` decides when a socket asks to be a link of a peer, and when this node dials. Until the peer has said hello
   (`Entry.greet`) the link is *half open*, of which there are fewer.
3. When a link ends, `Entry.end` counts why, and notes a broken rule against the address, and against the node if it
   had proved its key.

Addresses of this machine have no bounds of their own, and no score: demonstrations and proxies connect from there.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.scalars import Author
from node.counters import EVICTED, PENALIZED, REFUSED, Counters, Drop
from node.scores import Scores, address_key, node_key

Direction: TypeAlias = Literal["in", "out", "configured"]
"""Whether a peer dialled, this node did by itself, or it did because its settings say so."""

_TEXTS = {
    "stopping": "this node is stopping",
    "full": "this node has as many connections as it takes",
    "out": "this node has as many connections as it dials",
    "address": "this node has as many connections of this address as it takes",
    "half_open": "this node has as many unfinished handshakes as it takes: try again soon",
    "penalty": "this node takes no connections from there for a while, for a rule was broken",
}


class RefusedError(PeerError):
    """A connection is not wanted, or not now.

    Attributes:
        limit: which bound was met, a value of the counter's label.
        wait_s: when to try again, s.
    """

    def __init__(self, limit: str, wait_s: int) -> None:
        super().__init__(_TEXTS[limit], "stopping" if limit == "stopping" else "busy")
        self.limit = limit
        self.wait_s = wait_s


class Transport(Protocol):
    """What the gate needs of a socket."""

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""

    def abort(self) -> None:
        """Close it at once."""


class _Visit(Struct, eq=False):
    key: str | None
    since_s: float
    is_link: bool = False


class Entry:
    """One link, from before its handshake to its end; leaving the block leaves the gate."""

    def __init__(self, gate: Gate, key: str | None, direction: Direction) -> None:
        self.key = key
        self.direction = direction
        self.node: Author | None = None
        """The key that the peer has proved to have."""
        self.is_greeted = False
        self._gate = gate

    def __enter__(self) -> Entry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self)

    def greet(self, node: Author | None) -> None:
        """Note that the handshake is done; `node` is the peer's key if it was proved.

        Raises:
            RefusedError: this node broke rules lately.
        """
        if node is not None and self.direction != "configured":
            self._gate.check_node(node)
        self.is_greeted, self.node = True, node

    def end(self, reason: str, code: str = "") -> Drop:
        """Count why the link ended, and note a broken rule; returns the class of the reason."""
        return self._gate.note_end(self, reason, code)


class Gate:
    """The bounds of one node's connections."""

    def __init__(
        self,
        scores: Scores,
        counters: Counters,
        now_ms: Callable[[], int],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scores = scores
        self._counters = counters
        self._now_ms = now_ms
        self._now_s = now_s
        self._visits: dict[Transport, _Visit] = {}
        self._entries: set[Entry] = set()
        self.is_stopping = False

    @property
    def half_open_count(self) -> int:
        """Incoming links without a finished handshake."""
        return sum(entry.direction == "in" and not entry.is_greeted for entry in self._entries)

    @property
    def socket_count(self) -> int:
        """Open sockets of the peer port."""
        self._sweep()
        return len(self._visits)

    def count(self, *directions: Direction) -> int:
        """Return the number of links of some directions."""
        return sum(entry.direction in directions for entry in self._entries)

    # -- sockets --

    def knock(self, transport: Transport, address: str) -> bool:
        """Decide about a socket that was accepted; when it is refused, abort it."""
        key = address_key(address)
        if key is not None and self._scores.wait_ms([key], self._now_ms()):
            return self._refuse_socket("penalty")
        if key is not None and self._count_visits(key) >= limits.SOCKETS_ADDRESS_MAX:
            self._sweep()
            if self._count_visits(key) >= limits.SOCKETS_ADDRESS_MAX:
                return self._refuse_socket("socket_address")
        if len(self._visits) >= limits.SOCKETS_MAX:
            self._sweep()
            if len(self._visits) >= limits.SOCKETS_MAX and not self._make_room():
                return self._refuse_socket("sockets")
        self._visits[transport] = _Visit(key, self._now_s())
        return True

    def keep(self, transport: Transport | None) -> None:
        """Note that a socket has become a link of a peer: it does not make room for strangers."""
        if transport is not None and transport in self._visits:
            self._visits[transport].is_link = True

    def _refuse_socket(self, code: str) -> bool:
        self._counters.add(REFUSED, code)
        return False

    def _count_visits(self, key: str) -> int:
        return sum(visit.key == key for visit in self._visits.values())

    def _sweep(self) -> None:
        for transport in [transport for transport in self._visits if transport.is_closing()]:
            del self._visits[transport]

    def _make_room(self) -> bool:
        """End the oldest idle connection of the address that has most; returns whether there was one."""
        latest_s = self._now_s() - limits.HANDSHAKE_S
        idle = [
            (transport, visit)
            for transport, visit in self._visits.items()
            if not visit.is_link and visit.since_s <= latest_s
        ]
        if not idle:
            return False
        tally = Tally(visit.key for visit in self._visits.values() if not visit.is_link)
        transport, _ = max(idle, key=lambda pair: (tally[pair[1].key], -pair[1].since_s))
        del self._visits[transport]
        transport.abort()
        self._counters.add(EVICTED)
        return True

    # -- links --

    def enter(self, address: str, direction: Direction = "in") -> Entry:
        """Let a link in, or out; use what is returned as a context.

        Raises:
            RefusedError: it may not be, now.
        """
        key = address_key(address)
        code, wait_s = self._judge(key, direction)
        if code:
            self._counters.add(REFUSED, code)
            raise RefusedError(code, wait_s)
        entry = Entry(self, key, direction)
        self._entries.add(entry)
        return entry

    def _judge(self, key: str | None, direction: Direction) -> tuple[str, int]:
        """Return why a link may not be, or nothing, and when to try again, s."""
        if self.is_stopping:
            return "stopping", limits.HANDSHAKE_S
        if direction == "configured":
            # People's own choice: neither bounds nor scores part a node from the peers that it was given.
            return "", 0
        wait_ms = self._scores.wait_ms([key], self._now_ms())
        if wait_ms:
            return "penalty", -(-wait_ms // 1_000)
        if direction == "out":
            return ("out" if self.count("out") >= limits.CONNECTIONS_OUT_MAX else ""), limits.HANDSHAKE_S
        same = sum(entry.key == key and entry.direction == "in" for entry in self._entries)
        if key is not None and same >= limits.CONNECTIONS_ADDRESS_MAX:
            return "address", limits.HANDSHAKE_S
        if self.count("in") >= limits.CONNECTIONS_IN_MAX:
            return "full", limits.HANDSHAKE_S
        return ("half_open" if self.half_open_count >= limits.HALF_OPEN_MAX else ""), limits.HANDSHAKE_S

    def check_node(self, node: Author) -> None:
        """Ask whether a node may be connected.

        Raises:
            RefusedError: it broke rules lately.
        """
        wait_ms = self._scores.wait_ms([node_key(node)], self._now_ms())
        if wait_ms:
            self._counters.add(REFUSED, "penalty")
            raise RefusedError("penalty", -(-wait_ms // 1_000))

    def note_end(self, entry: Entry, reason: str, code: str) -> Drop:
        """Count why a link ended, and note a broken rule."""
        drop = self._counters.note_drop(reason, code)
        if drop in PENALIZED:
            keys = [entry.key, None if entry.node is None else node_key(entry.node)]
            self._scores.note(keys, self._now_ms())
        return drop

    def leave(self, entry: Entry) -> None:
        """Forget a link that has ended."""
        self._entries.discard(entry)
