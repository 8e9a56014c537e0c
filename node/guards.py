"""All limits of one node put together: what its connections ask before they take, pull, or let somebody in.

A `Guards` belongs to a runtime. Once a second it lets go of what was held for its claimed time, watches the clock
against the peers', and saves who broke rules.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from crdtchain.adapters.penalties import PenaltyRow, SqlitePenalties
from crdtchain.errors import StoreError
from crdtchain.ops import Op, SignedOp
from crdtchain.scalars import Author, OpId
from node.admission import Admission, LinkPace, Standing, find_standing, is_needed
from node.counters import Counters
from node.gate import Gate
from node.room import Room
from node.runtime import Runtime
from node.scores import Scores
from node.skew import Skew

TICK_S: Final = 1.0
SAVE_S: Final = 10.0
"""Broken rules are saved once in so long at most."""

log = logging.getLogger(__name__)


class Guards:
    """The limits of one node."""

    def __init__(
        self,
        runtime: Runtime,
        find_waiters: Callable[[OpId], Iterable[Op]],
        database: Path,
        quota_bytes: int,
        rows: Sequence[PenaltyRow] = (),
    ) -> None:
        """`find_waiters` returns the waiting ops that lack an op; `rows` are the broken rules of earlier runs."""
        self._runtime = runtime
        self._find_waiters = find_waiters
        self.counters = Counters()
        self.scores = Scores(self.counters, rows)
        self.gate = Gate(self.scores, self.counters, runtime.now_ms)
        self.room = Room(database, quota_bytes, self.counters)
        self.skew = Skew()
        self.admission = Admission(self._find_standing, self._is_known, self.is_needed, self.counters)
        self._skew_fault = ""
        self._saved_s = time.monotonic()
        for name, text, read in (
            ("crdtchain_held_ops", "Ops held until their claimed time comes.", lambda: len(self.admission.hold)),
            ("crdtchain_held_bytes", "Bytes of ops held.", lambda: self.admission.hold.size_bytes),
            ("crdtchain_half_open", "Incoming connections without a finished handshake.", self._count_half_open),
            ("crdtchain_penalties", "Nodes and addresses with broken rules.", lambda: len(self.scores)),
            ("crdtchain_ledger_bytes", "Bytes of the database on the disk.", lambda: self.room.used_bytes),
            ("crdtchain_quota_full", "1 while foreign ops are refused.", lambda: int(self.room.is_scarce())),
            ("crdtchain_clock_skew_ms", "How far the peers' clocks are ahead.", lambda: self.skew.median_ms() or 0),
        ):
            self.counters.watch(name, text, read)

    def _count_half_open(self) -> int:
        return self.gate.half_open_count

    def _find_standing(self, author: Author) -> Standing:
        return find_standing(self._runtime.ledger, author)

    def _is_known(self, op: OpId) -> bool:
        return op in self._runtime.ledger

    def is_needed(self, op: OpId) -> bool:
        """Whether an op of a witness, or of an author with credits, waits for an op."""
        return is_needed(op, self._find_waiters, self._find_standing)

    # -- what connections ask --

    def make_pace(self) -> LinkPace:
        """Return the paces of a new connection."""
        return LinkPace(self.counters)

    def admit(self, ops: Sequence[SignedOp], source: str) -> list[SignedOp]:
        """Return which of a peer's live ops are to be taken now, and of those held before what they need."""
        if ops and self.room.is_scarce():
            self.room.refuses("ops")
            return []
        return self.admission.sort(ops, source, self._runtime.now_ms())

    def may_want(self, source: str, ids: Iterable[OpId]) -> bool:
        """Whether a peer is asked at once for what its ops lack."""
        return not self.admission.pull_wait_s(source) or any(map(self.is_needed, ids))

    def may_pull(self, source: str, is_needed: bool = False) -> bool:
        """Whether a peer may be asked now for all that it has; `is_needed`: an op of standing waits for some of it."""
        if self.room.is_scarce():
            return False
        if not is_needed and self.admission.pull_wait_s(source) > 0:
            return False
        self.admission.note_pull(source)
        return True

    def note_ready(self, link: str, node: Author, peer_ms: int, is_dialler: bool) -> None:
        """Note what time it is on a node that has proved its key; `is_dialler`: this side dialled."""
        is_chosen = is_dialler or node in self._runtime.ledger.params.witnesses
        self.skew.note(link, node, peer_ms, self._runtime.now_ms(), is_chosen)

    def forget(self, link: str) -> None:
        """Forget a connection that has ended."""
        self.admission.forget(link)
        self.skew.forget(link)

    # -- what is done from time to time --

    async def run(
        self, take: Callable[[Sequence[SignedOp], str], Awaitable[object]], penalties: SqlitePenalties
    ) -> None:
        """Work until cancelled; `take` adds ops of a source."""
        while True:
            await asyncio.sleep(TICK_S)
            for source, ops in self.admission.release(self._runtime.now_ms()):
                await take(ops, source)
            self._watch_clock()
            if self.scores.is_changed and time.monotonic() - self._saved_s >= SAVE_S:
                await self.save(penalties)

    async def save(self, penalties: SqlitePenalties) -> None:
        """Save who broke rules."""
        self._saved_s = time.monotonic()
        try:
            await penalties.save(self.scores.dump(self._runtime.now_ms()))
        except StoreError as error:
            log.warning("Who broke rules was not saved: %s", error)

    def _watch_clock(self) -> None:
        """Stop a witness whose clock differs from its peers', and let it go on when it does no more."""
        runtime = self._runtime
        if runtime.replica.duty is None or runtime.duty_stopped != self._skew_fault:
            # It is no witness, or stopped for another reason.
            return
        fault = self.skew.find_fault(runtime.ledger.params.delta_ms)
        if fault and not self._skew_fault:
            log.error("This witness has stopped: %s.", fault)
        elif self._skew_fault and not fault:
            log.info("The clock agrees with the peers' again; this witness goes on.")
        self._skew_fault = runtime.duty_stopped = fault
