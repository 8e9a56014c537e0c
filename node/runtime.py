"""The one owner of the replica: performs its effects in order, signs, keeps a witness's hours, and claims what is due.

Theory of operation:

1. Whatever changes the replica happens under one lock, the *turn*. Foreign ops are added first and stored by the
   writer right after, in the order in which they were added; they are sent on when they are stored.
2. An own op is drafted, signed and stored durably *before* the replica takes it and anybody else gets it. When the
   disk is full the draft is given up, its seq with it, and nothing has left.
3. Before every addition, and when the replica asks to be woken, the duty of a witness comes first: it says what it
   held, then takes more.
4. After a start nothing is signed until one configured peer has given what it knows, own ops included, or some seconds
   are over: a restored backup would else sign a seq twice.

Not here: connections (`peers`, `link`), HTTP (`server`), jobs' programs (`worker`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from crdtchain import agenda, codec, views
from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.store import Store
from crdtchain.errors import InvalidOpError, StoreError, StoreFullError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Body, SignedOp
from crdtchain.replica import Draft, Effect, Persist, Rejected, Replica, Send, Want
from crdtchain.scalars import BlobId, OpId
from crdtchain.shapes import decode_op, join_block
from node.clock import Clock
from node.events import Broadcaster, Event, JobChanged, OpAdded, OpRejected
from node.writer import Writer

AGENDA_MS: Final = 50
CATCHING_UP_S: Final = 15.0
"""So long what is due may wait for the end of catching up: a peer could make that endless."""
PHASE_S: Final = 1.0
"""How often jobs are looked at for listeners though no op has come."""
WAKE_MS: Final = (5, 60_000)
"""Shortest and longest sleep of the duty's timer."""
SNAPSHOT_OPS: Final = 10_000
STORE_RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class Runtime:
    """The replica of one node and all that happens around it."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        key: SigningKey,
        is_witness: bool = False,
        clock: Clock | None = None,
        debounce_ms: int = 100,
    ) -> None:
        """`is_witness`: do a witness's duty, if genesis names the key."""
        self.replica = Replica(ledger, key.author, debounce_ms)
        if not is_witness:
            self.replica.duty = None
        self.store = store
        self.clock = Clock() if clock is None else clock
        self.events = Broadcaster()
        self.writer = Writer(store)
        self.duty_stopped = ""
        """Why a witness has stopped its duty; empty while it has not."""
        self.waits_for_tip = ""
        """What signing still waits for after a start; empty when it may go on."""
        self.on_stored: Callable[[Sequence[SignedOp], str], None] = lambda ops, source: None
        """Called with stored ops and the name of their source: the peers push them."""
        self.on_wanted: Callable[[str, Sequence[OpId]], None] = lambda name, ids: None
        """Called with the name of a source, and ids that it linked to and that are not here."""
        self.find_models: Callable[[], Mapping[bytes, tuple[BlobId, int]]] = dict
        """Returns the models that may be revealed: commitment to blob and size."""
        self.is_catching_up: Callable[[], bool] = lambda: False
        """Returns whether a peer is being asked for ops: what is due is looked for afterwards."""
        self.save_snapshot: Callable[[], Awaitable[None]] | None = None
        self.rejected: dict[OpId, str] = {}
        """Ops that broke a rule here, the last ones, with the reason."""
        self._key = key
        self._turn = asyncio.Lock()
        self._may_sign = asyncio.Event()
        self._may_sign.set()
        self._stirred = asyncio.Event()
        self._agenda_stirred = asyncio.Event()
        self._signing: set[asyncio.Task[Any]] = set()
        """What must not be cut short."""
        self._is_stopping = False
        self._phases: dict[int, str] = {}
        self._snapshot_at = len(ledger)
        self._digest = (0, b"")
        if self.replica.duty is not None:
            self.replica.duty.restore(self.clock.now_ms())

    @property
    def ledger(self) -> Ledger:
        """All that is known."""
        return self.replica.ledger

    # -- life --

    async def run(self) -> None:
        """Work until cancelled, or until the store fails; own ops under way are finished first."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.writer.run())
            group.create_task(self._keep_hours())
            group.create_task(self._keep_agenda())

    async def stop(self) -> None:
        """Finish what is being signed and stored; nothing is signed afterwards."""
        self._is_stopping = True
        while self._signing:
            await asyncio.gather(*self._signing, return_exceptions=True)
        self.writer.close()
        self.events.close()

    def hold_signing(self, reason: str) -> None:
        """Sign nothing until `allow_signing`."""
        self.waits_for_tip = reason
        self._may_sign.clear()

    def allow_signing(self) -> None:
        """Let signing go on."""
        if self.waits_for_tip:
            self.waits_for_tip = ""
            self._may_sign.set()
            self._stir()
            self.stir_agenda()

    async def wait_to_sign(self, seconds: float) -> None:
        """Return when signing is allowed.

        Raises:
            UsageError: it is not allowed within so many seconds; nothing was signed.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._may_sign.wait()
        except TimeoutError:
            raise UsageError(f"nothing was signed: signing waits for {self.waits_for_tip}") from None

    @property
    def unsaved_count(self) -> int:
        """Ops that came after the last snapshot, or after the start."""
        return len(self.ledger) - self._snapshot_at

    def note_snapshot(self, count: int) -> None:
        """Note that a snapshot of so many ops has been saved; 0 for none worth having."""
        self._snapshot_at = count

    def now_ms(self) -> int:
        """Return the time, ms since the Unix epoch."""
        return self.clock.now_ms()

    def stir_agenda(self) -> None:
        """Look soon for what is due."""
        self._agenda_stirred.set()

    def state_digest(self) -> bytes:
        """Return the digest of the derived state; computed once for each count of ops."""
        if self._digest[0] != len(self.ledger):
            self._digest = len(self.ledger), self.ledger.state_digest()
        return self._digest[1]

    # -- foreign ops --

    async def take(self, ops: Sequence[SignedOp], source: str) -> tuple[list[Rejected], asyncio.Future[None]]:
        """Add ops whose signatures hold.

        Returns those that broke a rule, and a future that is done when the others are stored.
        """
        # The turn may sign first. A caller that goes away, as a connection's does with it, must not give up an op that
        # is being stored: its seq would be signed a second time.
        task = asyncio.create_task(self._take(ops, source))
        self._signing.add(task)
        task.add_done_callback(self._signing.discard)
        return await asyncio.shield(task)

    async def _take(self, ops: Sequence[SignedOp], source: str) -> tuple[list[Rejected], asyncio.Future[None]]:
        async with self._turn:
            await self._do_duty()
            effects = self.replica.receive(ops, source, self.now_ms())
            stored = self._perform(effects)
        self._stir()
        if stored is None:
            stored = asyncio.get_running_loop().create_future()
            stored.set_result(None)
        return [effect for effect in effects if isinstance(effect, Rejected)], stored

    def _perform(self, effects: Sequence[Effect], is_stored: bool = False) -> asyncio.Future[None] | None:
        """Perform effects in order; with `is_stored` the first Persist has been performed."""
        future: asyncio.Future[None] | None = None
        persist: Persist | None = None
        for effect in effects:
            match effect:
                case Persist():
                    persist = effect
                case Send():
                    if persist is None:
                        raise AssertionError("Persist comes before Send")
                    if is_stored:
                        is_stored = False
                        self._announce(effect.ops, effect.source)
                    else:
                        announce = partial(self._announce, effect.ops, effect.source)
                        future = self.writer.put(persist.ops, persist.durable, announce)
                        # Whoever does not wait for it learns of a failing store by the end of the writer.
                        future.add_done_callback(lambda done: done.cancelled() or done.exception())
                    persist = None
                case Want():
                    self.on_wanted(effect.source, effect.ids)
                case Rejected():
                    self._note_rejected(effect)
        return future

    def _note_rejected(self, effect: Rejected) -> None:
        self.rejected[effect.op] = effect.error.code
        while len(self.rejected) > 1_000:
            del self.rejected[next(iter(self.rejected))]
        log.warning("An op of %s was rejected: %s: %s", effect.source, effect.error.code, effect.error)
        self.events.publish([OpRejected(effect.op, effect.error.code, str(effect.error), effect.source)])

    def _announce(self, ops: Sequence[SignedOp], source: str) -> None:
        """Send stored ops on, and tell whoever listens."""
        self.on_stored(ops, source)
        self._agenda_stirred.set()
        if len(self.events):
            own, added = self._key.author, [signed.op for signed in ops]
            self.events.publish([OpAdded(op.id, op.author, op.kind.value, op.author == own) for op in added])

    # -- own ops --

    async def submit(self, body: Body) -> SignedOp:
        """Sign a body as an own op; returns when it is stored, and on its way to the peers.

        Raises:
            InvalidOpError: it would break a rule; nothing was signed.
            StoreFullError: the disk is full; nothing was signed, and the seq is free.
            UsageError: the node is stopping.
        """
        await self._may_sign.wait()
        if self._is_stopping:
            raise UsageError("the node is stopping, so it signs nothing more")
        # A caller that goes away must not leave an op half signed: the task is the runtime's own.
        task = asyncio.create_task(self._sign_body(body))
        self._signing.add(task)
        task.add_done_callback(self._signing.discard)
        return await asyncio.shield(task)

    async def _sign_body(self, body: Body) -> SignedOp:
        async with self._turn:
            await self._do_duty()
            signed = await self._sign(self.replica.draft(body, self.now_ms()))
        self._stir()
        return signed

    async def _sign(self, draft: Draft) -> SignedOp:
        """Sign a draft, store it durably, then add and send it; the turn is held."""
        signature = self._key.sign(draft.message)
        try:
            signed = decode_op(join_block(draft.payload, signature))
            await self.writer.put([signed], durable=True, may_refuse=True)
        except BaseException:
            self.replica.abandon()
            raise
        signed, effects = self.replica.commit(draft, signature, self.now_ms())
        self._perform(effects, is_stored=True)
        return signed

    # -- a witness's duty --

    async def _do_duty(self) -> None:
        """Sign all that a witness has to say now; the turn is held."""
        if self.replica.duty is None or self.duty_stopped or not self._may_sign.is_set() or self._is_stopping:
            return
        jump_ms = self.clock.jump_ms()
        if jump_ms:
            self.duty_stopped = f"the clock jumped by {round(jump_ms / 1_000)} s; set it right and restart the node"
            log.error("This witness has stopped: %s.", self.duty_stopped)
            return
        try:
            while (draft := self.replica.due(self.now_ms())) is not None:
                await self._sign(draft)
        except StoreFullError:
            log.error("This witness is silent, because the disk is full.")
        except InvalidOpError as error:
            log.error("A statement of this witness would break a rule: %s: %s", error.code, error)

    async def _keep_hours(self) -> None:
        """Do the duty at the times at which it falls due without anything new coming."""
        if self.replica.duty is None:
            return
        while True:
            # What stirs from here on is seen by the wait below.
            self._stirred.clear()
            before = len(self.ledger)
            await self._signed_duty()
            wake_ms = self.replica.next_wake_ms(self.now_ms())
            sleep_ms = WAKE_MS[1] if wake_ms is None else wake_ms - self.now_ms()
            shortest = WAKE_MS[0] if len(self.ledger) > before or sleep_ms > 0 else 100
            try:
                async with asyncio.timeout(max(shortest, min(sleep_ms, WAKE_MS[1])) / 1_000):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    async def _signed_duty(self) -> None:
        # Signing must not be cut short by the end of this task.
        task = asyncio.create_task(self._duty_turn())
        self._signing.add(task)
        task.add_done_callback(self._signing.discard)
        await asyncio.shield(task)

    async def _duty_turn(self) -> None:
        async with self._turn:
            await self._do_duty()

    def _stir(self) -> None:
        self._stirred.set()

    # -- what an author's node does by itself --

    async def _keep_agenda(self) -> None:
        """Claim and reveal what is due, after something has come; tell of jobs that changed; save snapshots."""
        done_s = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(PHASE_S):
                    await self._agenda_stirred.wait()
            except TimeoutError:
                self._note_phases()
                continue
            if self.is_catching_up() and time.monotonic() - done_s < CATCHING_UP_S:
                await asyncio.sleep(AGENDA_MS / 1_000)
                continue
            self._agenda_stirred.clear()
            started_s = done_s = time.monotonic()
            try:
                await self._do_agenda()
                await self._maybe_snapshot()
            except StoreError as error:
                log.error("%s", error)
                await asyncio.sleep(STORE_RETRY_S)
                self._agenda_stirred.set()
            # Looking costs time that grows with the ledger: it gets a small share of it.
            await asyncio.sleep(max(AGENDA_MS / 1_000, 20 * (time.monotonic() - started_s)))

    async def _do_agenda(self) -> None:
        self._note_phases()
        if not self._may_sign.is_set():
            return
        author = self._key.author
        bodies = [
            *agenda.find_claims(self.ledger, author),
            *agenda.find_reveals(self.ledger, author, self.find_models()),
        ]
        for body in bodies:
            try:
                signed = await self.submit(body)
                log.info("By itself: a %s, %s.", signed.op.kind.value, codec.format_cid(signed.op.id))
            except InvalidOpError as error:
                log.debug("What was due is refused for now: %s", error)
            except UsageError:
                return

    def _note_phases(self) -> None:
        if not len(self.events):
            return
        events: list[Event] = []
        for job, phase in views.find_phases(self.ledger, self.now_ms()).items():
            if self._phases.get(job) != phase:
                self._phases[job] = phase
                events.append(JobChanged(self.ledger.dag.ids[job], phase))
        self.events.publish(events)

    async def _maybe_snapshot(self) -> None:
        # The cost grows with the ledger, so the pauses do as well.
        if self.save_snapshot is not None and self.unsaved_count >= max(SNAPSHOT_OPS, len(self.ledger) // 4):
            await self.save_snapshot()
