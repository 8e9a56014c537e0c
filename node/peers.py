"""All connections of a node: who is connected, who is asked, what goes to whom.

Invariants:

1. One peer at a time is asked for what is missing; one that is silent while it is asked, or brings next to nothing,
   does not hold up the others: its turn ends, and what it brings later is taken as well.
2. To one node there is one connection: of two the one that the node with the lower key dialled is kept, or else the
   newer one.
3. A stored op is sent or announced over each connection but the one that it came by; what is lost on the way is found
   by `probe`.

Not here: dialling (`dialer`), listening (`server.app`), what happens with ops (`runtime`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Final

from msgspec import Struct

from crdtchain.errors import PeerError
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author
from crdtchain.sync.live import Urgency, remember
from crdtchain.sync.session import BUDGET_OP_BYTES, Session
from node.dialer import ALREADY_CONNECTED
from node.gate import Direction, Entry, Gate
from node.link import Link, LinkOwner, Socket
from node.scores import address_key

SILENCE_S: Final = 10.0
SILENCE_OTHERS_S: Final = 3.0
"""So long a peer may be silent while others wait for their turn."""
SILENCE_VAIN_S: Final = 2.0
"""So long a peer may be silent that was asked in vain before."""
TURN_S: Final = 5.0
"""After it a turn goes on as long as the peer brings `TURN_OPS_S` ops a second."""
TURN_OPS_S: Final = 20
VAIN_MAX: Final = 6
TALK_OP_BYTES: Final = 256
"""What negotiation may grow by for each op that is stored: announcements and probes."""
PROBE_S: Final = 30.0
"""So often peers are told what is here, though nothing has changed."""
QUIET_S: Final = 0.5
"""After a burst of live ops peers are told what is here when nothing more has come for so long."""
GRACE_S: Final = 0.3
"""What a peer holds may be on its way: so long it is waited for before the peer is asked."""
BUSY_S: Final = 2.0
"""The same, where live ops keep coming: the roots of two replicas differ nearly always then."""
GRAFT_S: Final = 0.15
"""So long an announced op may take to come from somebody else."""
REGRAFT_S: Final = 0.5
"""So long it may take to come from whom it was asked for; then the next one that announced it is asked."""
ANNOUNCE_S: Final = 0.03
AWAITED_MAX: Final = 4_096
PULL_PAUSE_S: Final = 0.25
"""One peer is asked again after so long, if the last time brought nothing."""
ANNOUNCED_PULL_MAX: Final = 1_000
ENDED_MAX: Final = 64
USELESS_S: Final = 600.0
"""An incoming connection that brought nothing new for so long makes room for another when all places are taken."""

log = logging.getLogger(__name__)


class Ended(Struct, frozen=True):
    """A connection that ended."""

    address: str
    node: Author
    """Empty when the other side did not prove a key."""
    reason: str
    time_ms: int


def find_host(socket: Socket) -> str:
    """Return the IP address on the other side of a connection."""
    peername = socket.get_extra_info("peername")
    return str(peername[0]) if isinstance(peername, tuple) and peername else ""


class Peers:
    """The connections of one node."""

    def __init__(
        self,
        owner: LinkOwner,
        own: Author,
        make_session: Callable[[bool], Session],
        find_missing: Callable[[Sequence[bytes]], list[bytes]],
        gate: Gate,
        may_pull: Callable[[str, bool], bool],
    ) -> None:
        """`make_session` is told whether this side dialled; `find_missing` returns those prefixes that are not here."""
        self.links: dict[str, Link] = {}
        self.failures: dict[str, str] = {}
        """Configured address to why it is not connected."""
        self.ended: deque[Ended] = deque(maxlen=ENDED_MAX)
        """Connections that ended lately, the last one at the end."""
        self._owner = owner
        self._own = own
        self._make_session = make_session
        self._find_missing = find_missing
        self._gate = gate
        self._may_pull = may_pull
        self.entries: dict[str, Entry] = {}
        """Name of a link to its place among the connections that are counted."""
        self._wanted: dict[Link, float] = {}
        """Whose peers are to be asked, and when at the earliest, in the order in which they came."""
        self._missed: set[Link] = set()
        """Of those, whose peers sent what links to something missing."""
        self._awaited: dict[bytes, tuple[float, list[Link]]] = {}
        """Announced prefixes: until when they may come from others, and who announced them."""
        self._asking: Link | None = None
        self._turn_s = 0.0
        """When the turn of the peer that is asked began."""
        self._heard_s = 0.0
        """When it last brought something new, in this turn."""
        self._brought = 0
        """Ops that it has brought in this pull."""
        self._count = 0
        self._is_closing = False
        self._stirred = asyncio.Event()

    @property
    def is_fetching(self) -> bool:
        """Whether some peer is being asked for ops."""
        return self._asking is not None

    def ready(self) -> list[Link]:
        """Return the links whose peers have proved their keys, the oldest first."""
        return [link for link in self.links.values() if link.is_ready]

    def is_connected(self, node: Author, is_chosen: bool = False) -> bool:
        """Whether there is a connection to a node; `is_chosen`: not one that was dialled at a stranger's word."""
        return any(
            link.node == node and (link.is_configured or not is_chosen or not link.is_dialler) for link in self.ready()
        )

    async def talk(
        self,
        socket: Socket,
        address: str,
        is_configured: bool,
        is_dialler: bool = True,
        entry: Entry | None = None,
    ) -> str:
        """Run one connection until it ends; returns the reason.

        Raises:
            PeerError: the node is stopping, or has as many connections as it takes.
        """
        if entry is None:
            where: Direction = "configured" if is_configured else "out" if is_dialler else "in"
            entry = self._gate.enter(find_host(socket), where)
        with entry:
            return await self._talk(socket, address, is_configured, is_dialler, entry)

    async def _talk(self, socket: Socket, address: str, is_configured: bool, is_dialler: bool, entry: Entry) -> str:
        if self._is_closing:
            raise PeerError("this node is stopping", "stopping")
        self._count += 1
        name = f"peer-{self._count}"
        link = Link(self._owner, self._make_session(is_dialler), socket, name, address, is_configured, is_dialler)
        self.links[link.name], self.entries[link.name] = link, entry
        try:
            return await link.run()
        finally:
            del self.entries[link.name]
            entry.end(link.close_reason, link.close_code)
            self.ended.append(Ended(address, link.node, link.close_reason, time.time_ns() // 1_000_000))
            del self.links[link.name]
            self._wanted.pop(link, None)
            self._missed.discard(link)
            if self._asking is link:
                self._asking = None
            self._stirred.set()

    def is_second(self, link: Link) -> bool:
        """Whether this side dialled a node that is connected, and people did not choose the address before the other.

        An address that a stranger told may lead to somebody who carries all on to that node: were the key proved to
        both, the straight connection would give way to one that the stranger can break, delay or read.
        """
        peer = link.session.peer
        if peer is None or not link.is_dialler:
            return False
        others = [other for other in self.ready() if other is not link and other.node == peer.node]
        return any(other.is_configured or not link.is_configured for other in others)

    def choose(self, link: Link) -> None:
        """Keep one of two connections to one node.

        Raises:
            PeerError: it is the other one.
        """
        self.entries[link.name].greet(link.node)
        is_ours = self._own < link.node
        for other in self.ready():
            if other is not link and other.node == link.node:
                # Of two that the same side dialled the older one may be dead already.
                if link.is_dialler != is_ours and other.is_dialler == is_ours:
                    raise PeerError(ALREADY_CONNECTED, "duplicate")
                other.drop(ALREADY_CONNECTED)

    def make_room(self) -> bool:
        """End one incoming connection that has brought nothing new for long, of the address that has most of them.

        Places are for whoever uses them: else whoever comes first, with many keys, keeps all others out for good.
        """
        now_s = time.monotonic()
        idle = [link for link in self.ready() if not link.is_dialler and now_s - link.useful_s > USELESS_S]
        if not idle:
            return False
        tally = Counter(address_key(link.address) for link in idle)
        max(idle, key=lambda link: (tally[address_key(link.address)], -link.useful_s)).drop(
            "this node makes room for another peer", "busy"
        )
        return True

    # -- who is asked --

    async def watch(self) -> None:
        """Ask, graft, announce and probe when it is time."""
        probe_s = time.monotonic() + PROBE_S
        while True:
            self._stirred.clear()
            now_s = time.monotonic()
            self._end_turn(now_s)
            self._ask_next(now_s)
            self._graft(now_s)
            is_due = now_s >= probe_s
            if is_due:
                probe_s = now_s + PROBE_S
            for link in self.ready():
                link.act(link.session.announce)
                if is_due:
                    link.session.refill(BUDGET_OP_BYTES)
                if is_due or now_s - link.pushed_s > QUIET_S:
                    link.probe(is_due)
            try:
                async with asyncio.timeout(self._pause_s(now_s)):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    def _end_turn(self, now_s: float) -> None:
        """End the turn of a peer that is silent, or too slow to keep others waiting."""
        link = self._asking
        if link is None:
            return
        is_awaited = any(other is not link and not other.vain for other in self._wanted)
        patience_s = SILENCE_VAIN_S if link.vain else SILENCE_OTHERS_S if is_awaited else SILENCE_S
        turn_s = now_s - self._turn_s
        if now_s - self._heard_s > patience_s or (turn_s > TURN_S and self._brought < TURN_OPS_S * turn_s):
            log.info("%s is silent or slow; another peer is asked.", link.address)
            link.vain = min(link.vain + 1, VAIN_MAX)
            self._asking = None

    def _pause_s(self, now_s: float) -> float:
        """Return how long nothing has to be done."""
        if any(link.session.live.has_news for link in self.ready()):
            return ANNOUNCE_S
        times = [] if self._asking is not None else [at_s for at_s in map(self._at_s, self._wanted) if at_s > now_s]
        times.extend(at_s for at_s, _ in self._awaited.values())
        return max(0.02, min([1.0, *(at_s - now_s for at_s in times)]))

    def want(self, link: Link, is_sure: bool, is_missed: bool = False) -> None:
        """Ask a peer for what is missing, as soon as nobody else is being asked; `is_missed`: whatever its root is."""
        if is_missed:
            self._missed.add(link)
        now_s = time.monotonic()
        grace_s = 0.0 if is_sure else GRACE_S if is_missed or now_s - link.live_s > BUSY_S else BUSY_S
        at_s = now_s + grace_s
        self._wanted[link] = min(at_s, self._wanted.get(link, at_s))
        self._ask_next(now_s)
        self._stirred.set()

    def want_from(self, name: str) -> None:
        """Ask the peer of a name, if it is still connected: it sent what links to something missing."""
        if name in self.links and self.links[name].is_ready:
            self.want(self.links[name], is_sure=False, is_missed=True)

    def note_page(self, link: Link) -> None:
        """Note that a page of a link's answer has been stored."""
        ops = link.session.pulling.trip.ops
        if self._asking is link and ops > self._brought:
            self._heard_s, self._brought = time.monotonic(), ops

    def note_pulled(self, link: Link) -> None:
        """Note that all that was asked of a peer has come: the next one may be asked."""
        trip = link.session.pulling.trip
        if not trip.ops:
            link.vain = min(link.vain + 1, VAIN_MAX)
        elif self._asking is link:
            link.vain = 0
        if self._asking is link:
            self._asking = None
        link.pulled_s = time.monotonic()
        self._ask_next(time.monotonic())
        # Others have heard of a few ops already, and hear of many now.
        for other in self.ready() if trip.ops > ANNOUNCED_PULL_MAX else [link] if trip.ops else []:
            other.probe()
        self._stirred.set()

    def _at_s(self, link: Link) -> float:
        """Return when a link's peer is asked at the earliest."""
        pause_s: float = PULL_PAUSE_S * 2**link.vain
        return max(self._wanted[link], link.pulled_s + pause_s)

    def _ask_next(self, now_s: float) -> None:
        # Who was asked in vain comes behind the others, and later each time; strangers behind those dialled.
        for link in sorted(self._wanted, key=lambda link: (link.vain, not link.is_dialler)):
            if self._asking is not None or self._is_closing:
                return
            # A pull that ends at once comes back to here.
            if link not in self._wanted or self._at_s(link) > now_s:
                continue
            session, is_missed = link.session, link in self._missed
            is_due = not session.is_pulling and (is_missed or session.pulling.has_found or not session.is_in_step)
            if is_due and not self._may_pull(link.name, is_missed):
                continue
            del self._wanted[link]
            self._missed.discard(link)
            if is_due:
                self._asking, self._brought = link, 0
                self._turn_s = self._heard_s = now_s
                link.pull()

    # -- live --

    def push(self, ops: Sequence[SignedOp], source: str) -> None:
        """Send stored ops to every node but their source; what was asked for is announced, or, if much, left to probes.

        Others may have it already, and it is not new to them.
        """
        origin = self.links.get(source)
        is_pulled = origin is not None and origin.session.is_pulling
        urgency = Urgency.OWN if origin is None else Urgency.ANNOUNCED if is_pulled else Urgency.AS_WANTED
        is_much = origin is not None and is_pulled and origin.session.pulling.trip.ops > ANNOUNCED_PULL_MAX
        for link in self.ready():
            # What is said of an op to a peer, and by it, is paid for by the op, whoever brought it.
            link.session.refill(TALK_OP_BYTES * len(ops))
            if link.name != source and not is_much:
                link.push(ops, urgency)
        self._stirred.set()

    def note_copies(self, link: Link, authors: Collection[Author]) -> None:
        """Note whose live ops were here already: the peer is to announce those, as long as somebody else may send."""
        fresh = [author for author in authors if author not in link.pruned]
        if fresh and any(other is not link for other in self.ready()):
            remember(link.pruned, fresh)
            link.act(lambda: link.session.prune(fresh))

    def note_announced(self, link: Link, prefixes: Sequence[bytes]) -> None:
        """Note what a peer holds: what does not come soon is asked for."""
        until_s = time.monotonic() + GRAFT_S
        for prefix in self._find_missing(prefixes):
            if prefix in self._awaited:
                if link not in self._awaited[prefix][1]:
                    self._awaited[prefix][1].append(link)
            elif len(self._awaited) < AWAITED_MAX:
                self._awaited[prefix] = until_s, [link]
        self._stirred.set()

    def _graft(self, now_s: float) -> None:
        due = [prefix for prefix, (until_s, _) in self._awaited.items() if until_s <= now_s]
        missing = set(self._find_missing(due))
        asked: dict[Link, list[bytes]] = {}
        for prefix in due:
            links = [link for link in self._awaited.pop(prefix)[1] if link.name in self.links]
            if prefix in missing and links:
                asked.setdefault(links[0], []).append(prefix)
                if len(links) > 1:
                    # Who announced it first may not have it.
                    self._awaited[prefix] = now_s + REGRAFT_S, links[1:]
        for link, prefixes in asked.items():
            wanted = prefixes
            link.act(lambda link=link, wanted=wanted: link.session.graft(wanted))  # type: ignore[misc]

    async def close(self, reason: str) -> None:
        """End all connections."""
        self._is_closing = True
        for link in list(self.links.values()):
            link.drop(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await asyncio.gather(*(link.ended.wait() for link in list(self.links.values())))
