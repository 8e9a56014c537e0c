"""The address book: where other nodes were, are said to be, and when each may be tried again.

Theory of operation: all rows are in memory (there are at most 1,024), and `flush` writes those that changed. A row is
*configured* while a person names it (settings, `peers.list`): such are dialled for ever and never evicted. All others
are bounded, and what strangers tell is hostile:

1. At most 64 addresses that were never reached come from one peer, and the book forgets those first when it is full.
2. An address that was told and never reached is tried at most five times, an hour and more apart, then forgotten.
3. No machine that was only told of is tried twice within an hour, under whatever names and ports it is told, and all
   such tries together are bounded: who lies makes no node hammer a victim.

Not here: dialling (`dialer`), what an address may look like (`addresses`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final

from crdtchain.adapters.address_book import AddressRow, AddressStore
from crdtchain.errors import PeerError
from crdtchain.scalars import Author
from node.addresses import IpAddress, Reach, find_reach, find_reach_of, group_of, machine_of, parse_peer_url, parse_told

ROWS_MAX: Final = 1_024
SPARE_ROWS: Final = 31
TOLD_MAX: Final = 64
"""Addresses of one teller that were never reached; also taken of one message."""
TELL_MAX: Final = 16
RECENT_MS: Final = 3_600_000
"""Addresses reached within it are told to others."""
STRANGE_TRIES_MAX: Final = 120
"""Tries within `RECENT_MS`, of addresses that were told and never reached."""
DAY_MS: Final = 86_400_000


class Source(StrEnum):
    """How an address came to be known."""

    CONFIGURED = "configured"
    REMEMBERED = "remembered"
    """Configured once, and reached."""
    TOLD = "told"
    MDNS = "mdns"
    INBOUND = "inbound"
    """Said by a node that dialled in, of its own peer port."""


_PAUSES_MS: Final[dict[Source, tuple[int, int]]] = {
    Source.CONFIGURED: (250, 30_000),
    Source.REMEMBERED: (1_000, 600_000),
    Source.TOLD: (RECENT_MS, DAY_MS),
    Source.MDNS: (1_000, 60_000),
    Source.INBOUND: (RECENT_MS, DAY_MS),
}
"""Shortest and longest pause between tries."""
_REACHED_PAUSES_MS: Final = (5_000, RECENT_MS)
"""The same for what a stranger named, once it has been reached."""
_STRANGE: Final = frozenset({Source.TOLD, Source.INBOUND})
_TRIES_MAX: Final[dict[Source, int]] = {Source.TOLD: 5, Source.MDNS: 20, Source.INBOUND: 5}
"""So often an address is tried in vain before it is forgotten, if it was never reached."""
_LOST_TRIES_MAX: Final = 30
_LOST_MS: Final = 30 * DAY_MS
"""An address that was reached is forgotten after so many vain tries, when so long has passed."""


class Book:
    """The addresses that one node knows."""

    def __init__(self, store: AddressStore | None, now_ms: Callable[[], int], rng: random.Random | None = None) -> None:
        """Without a store nothing is kept for the next run. `now_ms` is the machine's clock."""
        self.rows: dict[str, AddressRow] = {}
        self.configured: frozenset[str] = frozenset()
        self._store = store
        self.now_ms = now_ms
        self.rng = random.Random() if rng is None else rng
        self._changed: set[str] = set()
        self._gone: set[str] = set()
        self._tries: dict[str, int] = {}
        """Machines that were only told of, and when each was tried."""

    async def load(self) -> None:
        """Read what was known when the program last ran; what can't be read any more is forgotten."""
        if self._store is None:
            return
        for row in (await self._store.load())[: 2 * ROWS_MAX]:
            if row.source in _SOURCES and row.reach in _REACHES:
                self.rows[row.url] = row
            else:
                self._gone.add(row.url)
        self._make_room(0)

    async def flush(self) -> None:
        """Write what has changed."""
        if self._store is not None and (self._changed or self._gone):
            rows = [self.rows[url] for url in sorted(self._changed) if url in self.rows]
            gone, self._changed, self._gone = self._gone, set(), set()
            await self._store.save(rows, gone - {row.url for row in rows})

    # -- what is known --

    def configure(self, texts: Iterable[str]) -> None:
        """Replace the addresses that a person names; those named no more stay as what they have proven to be.

        Raises:
            UsageError: a text is no address.
        """
        wanted = {str(parse_peer_url(text)) for text in texts}
        for row in list(self.rows.values()):
            if row.source == Source.CONFIGURED and row.url not in wanted:
                if row.success_ms:
                    self._change(row, source=Source.REMEMBERED.value)
                else:
                    self.forget(row.url)
        self.configured = frozenset(wanted)
        for url in sorted(wanted):
            known = self.rows.get(url)
            if known is None:
                self._put(url, Source.CONFIGURED, reach=Reach.LOOPBACK)
            elif known.source != Source.CONFIGURED:
                values = {"source": Source.CONFIGURED.value, "reach": int(Reach.LOOPBACK), "told_by": None}
                self._change(known, next_ms=0, **values)

    def note_told(self, texts: Sequence[str], by_key: Author, by_address: str = "") -> int:
        """Take addresses that a peer tells; returns how many were taken.

        `by_address` is where the peer itself was met: an address or a bare IP address. It may tell what is as far away
        as itself or farther; a peer met nowhere may tell public addresses only.
        """
        reach, taken = find_reach_of(by_address) if by_address else Reach.PUBLIC, 0
        for text in texts[:TOLD_MAX]:
            try:
                url = str(parse_told(text, reach))
            except PeerError:
                continue
            taken += self._put(url, Source.TOLD, reach=reach, told_by=by_key) is not None
        return taken

    def note_inbound(self, text: str, key: Author) -> None:
        """Take the address that a node which dialled in says it has; its host has to be where it was seen."""
        try:
            url = str(parse_told(text, find_reach_of(text)))
        except PeerError:
            return
        self._put(url, Source.INBOUND, reach=find_reach_of(url), told_by=key)

    def note_local(self, text: str) -> None:
        """Take an address that was announced on the local network."""
        try:
            # Who announces on the link can't send this node farther than that, nor to its own services.
            url = str(parse_told(text, Reach.LOOPBACK))
        except PeerError:
            return
        self._put(url, Source.MDNS, reach=find_reach_of(url))

    def note_node(self, url: str, key: Author) -> None:
        """Note which key the node at an address has proven: it has been reached."""
        row, now_ms = self.rows.get(url), self.now_ms()
        if row is not None:
            self._change(row, node=key, seen_ms=now_ms, success_ms=now_ms, failures=0, next_ms=0)

    def note_alive(self, is_connected: Callable[[Author], bool]) -> None:
        """Note which of the addresses that were reached belong to nodes that are connected now."""
        now_ms = self.now_ms()
        for row in self.rows.values():
            is_old = row.success_ms and now_ms - row.success_ms > RECENT_MS // 4
            if is_old and row.node is not None and is_connected(row.node):
                self._change(row, seen_ms=now_ms, success_ms=now_ms, failures=0)

    def note_try(self, url: str) -> None:
        """Note that an address is being tried."""
        row = self.rows.get(url)
        if row is not None and self._is_strange(row):
            self._tries[_machine(url)] = self.now_ms()

    def note_failure(self, url: str) -> None:
        """Note that an address was tried in vain: it has to wait, or is forgotten."""
        row = self.rows.get(url)
        if row is None:
            return
        source, now_ms = Source(row.source), self.now_ms()
        failures = row.failures + 1
        if row.success_ms:
            is_lost = failures >= _LOST_TRIES_MAX and now_ms - row.success_ms > _LOST_MS and url not in self.configured
        else:
            is_lost = failures >= _TRIES_MAX.get(source, failures + 1)
        if is_lost:
            self.forget(url)
        else:
            first_ms, last_ms = self._find_pauses(row)
            pause_ms = min(first_ms << min(failures - 1, 20), last_ms)
            self._change(row, failures=failures, next_ms=now_ms + int(pause_ms * self.rng.uniform(1.0, 1.3)))

    def postpone(self, url: str, pause_ms: int) -> None:
        """Let an address wait, without its fault."""
        if url in self.rows:
            self._change(self.rows[url], next_ms=self.now_ms() + pause_ms)

    def forget(self, url: str) -> None:
        """Forget an address."""
        if self.rows.pop(url, None) is not None:
            self._changed.discard(url)
            self._gone.add(url)

    def reset_pauses(self) -> None:
        """Let all that is near or was reached be tried at once: this machine's place in the net has changed."""
        for row in self.rows.values():
            if not self._is_strange(row):
                self._change(row, next_ms=0, failures=0)

    def list_chosen(self) -> set[Author]:
        """Return the nodes that were reached at addresses which people chose, now or once."""
        sources = (Source.CONFIGURED, Source.REMEMBERED)
        return {row.node for row in self.rows.values() if row.node is not None and row.source in sources}

    # -- whom to dial --

    def due(self) -> list[AddressRow]:
        """Return the addresses that may be tried now, the configured ones first."""
        now_ms = self.now_ms()
        self._tries = {machine: ms for machine, ms in self._tries.items() if 0 <= now_ms - ms < RECENT_MS}
        rows = []
        for row in self.rows.values():
            # A clock that was set back must not make an address wait for longer than it ever would.
            if row.next_ms > now_ms + 2 * self._find_pauses(row)[1]:
                self._change(row, next_ms=now_ms)
            if row.next_ms <= now_ms and (not self._is_strange(row) or self._may_try(row)):
                rows.append(row)
        return sorted(rows, key=lambda row: row.source != Source.CONFIGURED)

    def choose(self, rows: Sequence[AddressRow], busy: Collection[str]) -> AddressRow | None:
        """Return one of some addresses to connect to; `busy` are groups of hosts (`group_of`) connected already.

        Mostly one that was reached, the more recently the likelier; else a teller is drawn before one of its
        addresses, so that telling many gains nothing. Other parts of the net go first.
        """
        fresh = [row for row in rows if _group(row.url) not in busy]
        known = [row for row in fresh or rows if row.success_ms]
        strange = [row for row in fresh or rows if not row.success_ms]
        if known and (not strange or self.rng.random() < 0.75):
            known.sort(key=lambda row: (row.failures, -row.success_ms))
            return known[min(int(self.rng.expovariate(0.5)), len(known) - 1)]
        if not strange:
            return None
        tellers: dict[tuple[str, bytes], list[AddressRow]] = {}
        for row in strange:
            tellers.setdefault((row.source, bytes(row.told_by or b"")), []).append(row)
        return self.rng.choice(tellers[self.rng.choice(sorted(tellers))])

    def may_connect(self, url: str, address: IpAddress) -> bool:
        """Whether the name in an address may lead to an IP address, which then counts as tried."""
        row = self.rows.get(url)
        if row is None or row.source == Source.CONFIGURED:
            return row is not None
        if find_reach(address) > row.reach:
            return False
        if self._is_strange(row):
            if machine_of(str(address)) in self._tries:
                return False
            self._tries[machine_of(str(address))] = self.now_ms()
        return True

    def _may_try(self, row: AddressRow) -> bool:
        return len(self._tries) < STRANGE_TRIES_MAX and _machine(row.url) not in self._tries

    def _is_strange(self, row: AddressRow) -> bool:
        """Whether nothing but a stranger's word speaks for an address."""
        return row.source in _STRANGE and not row.success_ms

    def _find_pauses(self, row: AddressRow) -> tuple[int, int]:
        source = Source(row.source)
        return _REACHED_PAUSES_MS if row.success_ms and source in _STRANGE else _PAUSES_MS[source]

    # -- rows --

    def _change(self, row: AddressRow, **values: object) -> None:
        for name, value in values.items():
            setattr(row, name, value)
        self._changed.add(row.url)

    def _put(self, url: str, source: Source, *, reach: int, told_by: Author | None = None) -> AddressRow | None:
        """Return the row of an address, made if there is room for one more of its sort."""
        now_ms, row = self.now_ms(), self.rows.get(url)
        if row is not None:
            if source is not Source.TOLD:
                self._change(row, seen_ms=now_ms)
            return row
        if source is Source.CONFIGURED:
            self._make_room(1)
        elif not self._make_room_for(source, told_by):
            return None
        row = AddressRow(url, source.value, told_by=told_by, reach=int(reach), first_ms=now_ms, seen_ms=now_ms)
        self.rows[url] = row
        self._gone.discard(url)
        self._changed.add(url)
        return row

    def _make_room_for(self, source: Source, told_by: Author | None) -> bool:
        """Whether there is room for one more row; the teller's own rows, or the least valuable ones, give way."""
        same = [
            row for row in self.rows.values()
            if row.source == source and row.told_by == told_by and not row.success_ms
        ]  # fmt: skip
        if len(same) >= TOLD_MAX:
            tried = [row for row in same if row.failures]
            if not tried:
                return False
            self.forget(max(tried, key=lambda row: (row.failures, -row.seen_ms)).url)
        return self._make_room(1)

    def _make_room(self, count: int) -> bool:
        """Evict rows until `count` more fit: what was told and never reached first, configured ones never."""
        excess = len(self.rows) + count - ROWS_MAX
        if excess <= 0:
            return True
        # A few more than needed, so that a flood of addresses does not make this the node's main work.
        excess += SPARE_ROWS
        free = [row for row in self.rows.values() if row.source != Source.CONFIGURED]
        free.sort(key=lambda row: (not self._is_strange(row), row.success_ms, -row.failures, row.seen_ms, row.url))
        for row in free[:excess]:
            self.forget(row.url)
        return len(self.rows) + count <= ROWS_MAX


def pick_addresses_to_tell(
    book: Book, to_address: str, public_url: str = "", to_key: Author | None = None
) -> list[str]:
    """Return at most 16 addresses to tell a peer: the own one, and such as were reached lately by this node itself.

    `to_address` is where the peer was met; it is told nothing that lies nearer than that.
    """
    reach, now_ms = find_reach_of(to_address), book.now_ms()
    found = [
        row.url for row in book.rows.values()
        if 0 <= now_ms - row.success_ms < RECENT_MS and row.node != to_key and not row.failures
        and _is_tellable(row.url, reach)
    ]  # fmt: skip
    book.rng.shuffle(found)
    own = [str(parse_peer_url(public_url))] if public_url else []
    return [*own, *(url for url in found if url not in own)][:TELL_MAX]


def _is_tellable(url: str, reach: Reach) -> bool:
    try:
        parse_told(url, reach)
    except PeerError:
        return False
    return True


@lru_cache(4 * ROWS_MAX)
def _group(url: str) -> str:
    return group_of(parse_peer_url(url).host or "")


@lru_cache(4 * ROWS_MAX)
def _machine(url: str) -> str:
    return machine_of(parse_peer_url(url).host or "")


_SOURCES: Final = frozenset(source.value for source in Source)
_REACHES: Final = frozenset(int(reach) for reach in Reach)
