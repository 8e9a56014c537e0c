"""What a node tells whoever listens: typed events, to bounded queues.

A listener that does not keep up loses its oldest events and learns how many (`Missed`); it never slows the node down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from crdtchain.scalars import Author, BlobId, OpId

QUEUE_MAX: Final = 1_024


class OpAdded(Struct, frozen=True, tag="op_added"):
    """An op was added and stored."""

    op: OpId
    author: Author
    kind: str
    is_own: bool


class OpRejected(Struct, frozen=True, tag="op_rejected"):
    """An op breaks a rule for ever."""

    op: OpId
    code: str
    text: str
    source: str


class JobChanged(Struct, frozen=True, tag="job_changed"):
    """A job has come into another phase."""

    job: OpId
    phase: str


class PeerConnected(Struct, frozen=True, tag="peer_connected"):
    """A peer of this network said hello."""

    name: str
    address: str
    node: Author


class PeerDropped(Struct, frozen=True, tag="peer_dropped"):
    """A connection ended, or could not be made."""

    name: str
    address: str
    reason: str


class SyncProgress(Struct, frozen=True, tag="sync_progress"):
    """A page of a peer's answer was stored."""

    name: str
    here: int
    """Ops here now."""
    there: int
    """Ops that the peer said it has."""


class BlobProgress(Struct, frozen=True, tag="blob_progress"):
    """So much of a blob has come from peers and was checked; told a few times a second."""

    blob: BlobId
    state: str
    """`fetching`, `done` or `failed`."""
    done: int
    """Bytes that are here."""
    total: int
    """Bytes of the whole; 0: not known yet."""
    sources: int
    """Peers from which something has come."""
    rate: int
    """Bytes a second, lately."""


class Missed(Struct, frozen=True, tag="missed"):
    """The listener was too slow, and lost so many events."""

    count: int


Event: TypeAlias = (
    OpAdded | OpRejected | JobChanged | PeerConnected | PeerDropped | SyncProgress | BlobProgress | Missed
)


class Listener:
    """One bounded queue of events; an async iterator."""

    def __init__(self, capacity: int = QUEUE_MAX) -> None:
        self._events: deque[Event] = deque()
        self._capacity = capacity
        self._missed = 0
        self._stirred = asyncio.Event()
        self._is_closed = False

    def put(self, event: Event) -> None:
        """Add an event, dropping the oldest when the queue is full."""
        if len(self._events) >= self._capacity:
            self._events.popleft()
            self._missed += 1
        self._events.append(event)
        self._stirred.set()

    def close(self) -> None:
        """End the iteration, once what is queued has been taken."""
        self._is_closed = True
        self._stirred.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for event in self.with_pings(None):
            if event is not None:
                yield event

    async def with_pings(self, pause_s: float | None) -> AsyncIterator[Event | None]:
        """Yield events, and None whenever none has come for so long."""
        while True:
            if self._missed:
                missed, self._missed = self._missed, 0
                yield Missed(missed)
            while self._events:
                yield self._events.popleft()
            if self._is_closed:
                return
            self._stirred.clear()
            try:
                async with asyncio.timeout(pause_s):
                    await self._stirred.wait()
            except TimeoutError:
                yield None


class Broadcaster:
    """Hands events to all listeners."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def __len__(self) -> int:
        return len(self._listeners)

    def subscribe(self, capacity: int = QUEUE_MAX) -> Listener:
        """Add a listener; give it back to `unsubscribe`."""
        listener = Listener(capacity)
        self._listeners.add(listener)
        return listener

    def unsubscribe(self, listener: Listener) -> None:
        """Remove a listener."""
        self._listeners.discard(listener)
        listener.close()

    def publish(self, events: Sequence[Event]) -> None:
        """Hand events to everybody."""
        for listener in self._listeners:
            for event in events:
                listener.put(event)

    def close(self) -> None:
        """End all iterations."""
        for listener in list(self._listeners):
            self.unsubscribe(listener)
