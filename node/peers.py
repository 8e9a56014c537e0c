"""All connections of a node: who is connected, who is asked for what, what is pushed to whom.

Invariants:

1. One peer at a time is asked for ops, and each op is asked of one peer at most three times; a peer that is silent for
   10 s while it is asked does not hold up the others.
2. A stored op is pushed once over one connection to each node but its source; what is dropped on the way is found by
   `probe`.

Not here: dialling (`dialer`), listening (`server.app`), what happens with ops (`runtime`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, OpId
from crdtchain.sync.messages import IDS_MAX
from crdtchain.sync.session import Session
from node.link import Link, LinkOwner, Socket

SILENCE_S: Final = 10.0
ASKS_MAX: Final = 3
ASKED_MAX: Final = 4_096
PROBE_S: Final = 10.0

log = logging.getLogger(__name__)


class Peers:
    """The connections of one node."""

    def __init__(self, owner: LinkOwner, make_session: Callable[[], Session], is_known: Callable[[OpId], bool]) -> None:
        self.links: dict[str, Link] = {}
        self.failures: dict[str, str] = {}
        """Configured address to why it is not connected."""
        self._owner = owner
        self._make_session = make_session
        self._is_known = is_known
        self._wanted: dict[Link, dict[OpId, None]] = {}
        """What each link's peer is to be asked for, in the order in which links came to want something."""
        self._asking: Link | None = None
        self._asked_s = 0.0
        self._count = 0
        self._is_closing = False

    @property
    def is_fetching(self) -> bool:
        """Whether some peer is being asked for ops."""
        return self._asking is not None

    def ready(self) -> list[Link]:
        """Return the links whose peers have said hello, the oldest first."""
        return [link for link in self.links.values() if link.is_ready]

    async def talk(self, socket: Socket, address: str, is_configured: bool) -> str:
        """Run one connection until it ends; returns the reason.

        Raises:
            PeerError: there are too many connections.
        """
        incoming = sum(not link.is_configured for link in self.links.values())
        if self._is_closing or (not is_configured and incoming >= limits.CONNECTIONS_IN_MAX):
            raise PeerError("this node has as many connections as it takes")
        self._count += 1
        link = Link(self._owner, self._make_session(), socket, f"peer-{self._count}", address, is_configured)
        self.links[link.name] = link
        try:
            return await link.run()
        finally:
            del self.links[link.name]
            self._wanted.pop(link, None)
            if self._asking is link:
                self._asking = None
            self.fetch_next()

    async def watch(self) -> None:
        """Tell peers the heads from time to time, and give up on silent ones."""
        probe_s = time.monotonic() + PROBE_S
        while True:
            await asyncio.sleep(1)
            if self._asking is not None and time.monotonic() - self._asked_s > SILENCE_S:
                self._asking = None
            self.fetch_next()
            if time.monotonic() >= probe_s:
                probe_s += PROBE_S
                for link in self.ready():
                    link.probe()

    def want(self, link: Link, ids: Sequence[OpId]) -> None:
        """Ask a peer for ops, as soon as nobody else is being asked."""
        wanted = self._wanted.setdefault(link, {})
        wanted.update(dict.fromkeys(ids[: IDS_MAX - len(wanted)]))
        self.fetch_next()

    def want_from(self, name: str, ids: Sequence[OpId]) -> None:
        """Ask the peer of a name for ops, if it is still connected."""
        if name in self.links:
            self.want(self.links[name], ids)

    def note_page(self, link: Link, is_last: bool) -> None:
        """Note that a page of a link's answer has been stored."""
        if self._asking is link:
            self._asked_s = time.monotonic()
            if is_last:
                self._asking = None
        if is_last:
            for other in self.ready():
                if missing := other.session.missing():
                    self.want(other, missing)
            self.fetch_next()

    def fetch_next(self) -> None:
        """Ask the next peer for what is still wanted of it."""
        while self._asking is None and self._wanted and not self._is_closing:
            link = next(iter(self._wanted))
            ids = self._wanted.pop(link)
            if link.session.is_fetching:
                continue
            still = [op for op in ids if not self._is_known(op) and link.asked.get(op, 0) < ASKS_MAX]
            if len(link.asked) > ASKED_MAX:
                self._forget_asked(link)
            if still:
                self._asking, self._asked_s = link, time.monotonic()
                link.fetch(still)
        for link in self.ready():
            link.is_synced = not link.session.is_fetching and not link.session.missing()

    def _forget_asked(self, link: Link) -> None:
        """Forget what came after it was asked for; a peer that names much and has nothing is dropped."""
        for op in [op for op in link.asked if self._is_known(op)]:
            del link.asked[op]
        if len(link.asked) > ASKED_MAX:
            link.drop("the peer named many ops that it does not have")

    def push(self, ops: Sequence[SignedOp], source: str) -> None:
        """Send stored ops to every node but their source, over one connection each."""
        told: set[Author] = set()
        if source in self.links:
            told.add(self.links[source].node)
        for link in self.ready():
            # The key is what the peer says; by lying it only gets, and makes another get, new ops by `probe` instead.
            if link.node in told:
                link.session.set_behind()
                continue
            told.add(link.node)
            link.push(ops)

    async def close(self, reason: str) -> None:
        """End all connections."""
        self._is_closing = True
        for link in list(self.links.values()):
            link.drop(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await asyncio.gather(*(link.ended.wait() for link in list(self.links.values())))
