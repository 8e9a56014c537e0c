"""What of a peer's unasked ops is taken now, held, or left for later: clocks and allowances.

Nothing here makes an op invalid or loses it: what is not taken now is *deferred*, and found again when the sets are
compared, which does not ask who wrote what.

Theory of operation:

1. `sort` judges the live ops of one frame, whose signatures hold (else anybody could use up another's allowance). An op
   is deferred when its claimed time is too far ahead, when its author (or all authors without credits together) has
   used its allowance up, or when what it follows on its chain was deferred. It is held when its time comes soon.
2. Whatever an op of a witness or of an author with credits needs is taken, within one frame and across them: quotas and
   clocks never part honest nodes.
3. A peer that offered deferred ops is not asked at once for what it has besides: the first time after 1 s, then, while
   it goes on, after twice as long each time, 60 s at most (`pull_wait_s`). For what an op of standing waits for it is
   asked at any time.

Why the delay is for the whole pull, and has a bound. Comparing sets would bring the deferred ops in right away, so
without a delay the allowance would mean nothing. Leaving an author's ops out of a comparison is no way: it compares
ids, which do not tell their author, and what follows the ops left out would wait for them. Slowing an author's ops
down within a pull would slow down all that comes behind them, and a delay without bound would part honest nodes from
what a peer has of others. So an author above its allowance loses the live path, where each op costs every node a frame
and a transaction; its ops come in bulk, once a minute, at the pace of flow control, and only over connections that
offered them. With a second key with credits that links to them it can have them asked for sooner: what an op of
standing needs must not wait, or a flood that honest ops link to would make those late. How much an author may write at
all is bounded by the disk's quota, not here.

Not here: the bounds of what waits for links (`crdtchain.waiting`), connections (`gate`), broken rules (`scores`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

from msgspec import Struct

from crdtchain import limits
from crdtchain.dag import NONE
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, Op, SignedOp
from crdtchain.scalars import Author, OpId
from node.counters import DEFERRED, HELD, LIVE, NEEDED, PACED, Counters
from node.hold import Hold, list_links, sort_by_links
from node.pace import Allowances, Bucket

WORK: Final = {"tree": 4, "get": 4, "probe": 2, "graft": 2, "addresses": 2, "announce": 1, "prune": 1, "blobget": 1}
"""What a request costs us, in units; other messages cost the peer as much as us, or are paced by their answers."""
CALM_S: Final = 120.0
"""A peer that offered too much starts anew after so long."""
BRANCHES_MAX: Final = 8
"""So many branches of an author, and value ops of each, are looked at for its credits."""

_HOLD: Final = "hold"


class Standing(Enum):
    """What an author's allowance depends on."""

    WITNESS = "witness"
    FUNDED = "author"
    """It has credits, or has put some into a job."""
    NEWCOMER = "newcomers"


def find_standing(ledger: Ledger, author: Author) -> Standing:
    """Return the standing of an author in a ledger.

    Who has staked or posted everything still counts as having credits; who has transferred everything does not, for a
    single credit would fund any number of keys.
    """
    dag, number = ledger.dag, ledger.dag.find_author(author)
    if number is not None and number < dag.witness_count:
        return Standing.WITNESS
    tips = [] if number is None else dag.chains.tips(number)
    if ledger.accounts.grant(author) and not tips:
        return Standing.FUNDED
    for tip in tips[:BRANCHES_MAX]:
        if ledger.accounts.balance(author, tip) > 0:
            return Standing.FUNDED
        value = dag.last_values[tip]
        for _ in range(BRANCHES_MAX):
            if value == NONE:
                break
            if dag.kind(value) in (Kind.STAKE, Kind.JOB):
                return Standing.FUNDED
            value = dag.previous_value(value)
    return Standing.NEWCOMER


def is_needed(
    op: OpId, find_waiters: Callable[[OpId], Iterable[Op]], find_standing_of: Callable[[Author], Standing]
) -> bool:
    """Whether an op is a link, directly or through others that wait, of a waiting op by an author of standing.

    `find_waiters` returns the waiting ops that lack an op. When there are too many to look at, the answer is yes.
    """
    stack, seen = [op], {op}
    while stack:
        for waiter in find_waiters(stack.pop()):
            if waiter.id in seen:
                continue
            seen.add(waiter.id)
            if len(seen) > limits.NEEDED_STEPS_MAX or find_standing_of(waiter.author) is not Standing.NEWCOMER:
                return True
            stack.append(waiter.id)
    return False


class _Delay(Struct):
    """When a peer that offered deferred ops may be asked for what it has besides."""

    level_s: float
    until_s: float
    is_due: bool = True
    """Whether it has to be asked; then `until_s` stands still."""


class Admission:
    """The allowances, clocks and deferrals of one node."""

    def __init__(
        self,
        find_standing_of: Callable[[Author], Standing],
        is_known: Callable[[OpId], bool],
        is_needed: Callable[[OpId], bool],
        counters: Counters,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_known`: whether an op is in the ledger; `is_needed`: whether one of standing waits for it."""
        self.hold = Hold()
        self._find_standing_of = find_standing_of
        self._is_known = is_known
        self._is_needed = is_needed
        self._counters = counters
        self._now_s = now_s
        self._authors = Allowances(limits.AUTHOR_OPS_S, limits.AUTHOR_OPS_BURST, limits.AUTHORS_MAX, now_s)
        self._witnesses = Allowances(limits.WITNESS_OPS_S, limits.WITNESS_OPS_BURST, limits.WITNESSES_MAX, now_s)
        self._newcomers = Bucket(limits.NEWCOMER_OPS_S, limits.NEWCOMER_OPS_BURST, now_s)
        self._deferred: dict[OpId, None] = {}
        self._charged: dict[OpId, None] = {}
        self._delays: dict[str, _Delay] = {}

    # -- ops --

    def sort(self, ops: Sequence[SignedOp], source: str, now_ms: int) -> list[SignedOp]:
        """Judge live ops of one source, parents first; returns those to take now, parents first.

        Among them may be ops that were held and are needed by these.
        """
        batch = {signed.op.id: signed for signed in ops if not self._is_known(signed.op.id)}
        fates: dict[OpId, str] = {}
        standings: dict[Author, Standing] = {}
        for op, signed in batch.items():
            author = signed.op.author
            if author not in standings:
                standings[author] = self._find_standing_of(author)
            fates[op] = self._judge(signed.op, standings[author], fates, now_ms)
            if not fates[op] and signed.op.kind is Kind.CLAIM and standings[author] is Standing.NEWCOMER:
                # What follows a newcomer's first credits is not a newcomer's.
                standings[author] = Standing.FUNDED
        recalled = self.hold.take_past(self._take_needed(batch, fates, standings))
        for op, fate in fates.items():
            self._note_fate(batch[op], fate, source)
        taken = {op: signed for op, signed in batch.items() if not fates[op]}
        self.hold.discard(taken)
        if recalled:
            taken = {signed.op.id: signed for signed in sort_by_links({s.op.id: s for s in recalled} | taken)}
        self._counters.add(LIVE, count=len(taken))
        return list(taken.values())

    def _judge(self, op: Op, standing: Standing, fates: dict[OpId, str], now_ms: int) -> str:
        """Return the limit that an op meets, or nothing."""
        if op.prev is not None and self._was_deferred(op.prev, fates):
            return "chain"
        ahead_ms = op.time - now_ms
        if ahead_ms > limits.AHEAD_HOLD_MS:
            return "ahead"
        if op.id not in self._charged and op.id not in self.hold:
            # Several peers may offer it before it is added: it is charged once.
            if fate := self._charge(op.author, standing):
                return fate
            _remember(self._charged, op.id)
        return _HOLD if ahead_ms > limits.AHEAD_TAKE_MS else ""

    def _was_deferred(self, prev: OpId, fates: dict[OpId, str]) -> bool:
        if prev in fates:
            return fates[prev] not in ("", _HOLD)
        return prev in self._deferred and not self._is_known(prev)

    def _charge(self, author: Author, standing: Standing) -> str:
        """Take one op of an author's allowance; returns the limit when it is used up."""
        is_taken: bool | None = None
        if standing is Standing.WITNESS:
            is_taken = self._witnesses.take_if(author)
        elif standing is Standing.FUNDED:
            is_taken = self._authors.take_if(author)
        if is_taken is None:
            standing, is_taken = Standing.NEWCOMER, self._newcomers.take_if(1)
        return "" if is_taken else standing.value

    def _take_needed(
        self, batch: dict[OpId, SignedOp], fates: dict[OpId, str], standings: dict[Author, Standing]
    ) -> list[OpId]:
        """Take what ops of standing need after all; returns what they link to."""
        linked: dict[OpId, None] = {}
        for op, signed in reversed(batch.items()):
            if fates[op] and (op in linked or self._is_needed(op)):
                fates[op] = ""
                self._counters.add(NEEDED)
                linked.update(dict.fromkeys((op, *list_links(signed.op))))
            elif not fates[op] and standings[signed.op.author] is not Standing.NEWCOMER:
                linked.update(dict.fromkeys(list_links(signed.op)))
        return list(linked)

    def _note_fate(self, signed: SignedOp, fate: str, source: str) -> None:
        op = signed.op.id
        if not fate:
            self._deferred.pop(op, None)
            return
        if fate == _HOLD:
            if op not in self.hold:
                self._counters.add(HELD)
                self._counters.add(DEFERRED, _HOLD, len(self.hold.add(signed, source)))
        else:
            self._counters.add(DEFERRED, fate)
            if fate != "ahead":
                _remember(self._deferred, op)
        self._note_delay(source)

    def release(self, now_ms: int) -> list[tuple[str, list[SignedOp]]]:
        """Return what was held and may be taken now: ops, parents first, with their sources."""
        return self.hold.release(now_ms)

    # -- pulls --

    def _note_delay(self, source: str) -> None:
        now_s, delay = self._now_s(), self._delays.get(source)
        first_s, most_s = limits.PULL_DELAY_S
        if delay is None or (not delay.is_due and now_s - delay.until_s > CALM_S):
            self._delays[source] = _Delay(first_s, now_s + first_s)
        elif not delay.is_due:
            level_s = min(most_s, 2 * delay.level_s)
            self._delays[source] = _Delay(level_s, now_s + level_s)

    def pull_wait_s(self, source: str) -> float:
        """Return for how long a peer is not to be asked for all that it has besides, s.

        For what a waiting op of standing needs it may be asked at any time.
        """
        delay = self._delays.get(source)
        return 0.0 if delay is None or not delay.is_due else max(0.0, delay.until_s - self._now_s())

    def note_pull(self, source: str) -> None:
        """Note that a peer is being asked for all that it has."""
        delay = self._delays.get(source)
        if delay is not None and delay.is_due:
            delay.is_due, delay.until_s = False, self._now_s()

    def forget(self, source: str) -> None:
        """Forget the delay of a connection that has ended; what it brought and is held stays."""
        self._delays.pop(source, None)


def _remember(ops: dict[OpId, None], op: OpId) -> None:
    """Put an op last among those remembered, and forget the first when they are too many."""
    ops.pop(op, None)
    ops[op] = None
    if len(ops) > limits.REMEMBERED_MAX:
        del ops[next(iter(ops))]


class LinkPace:
    """The paces of one connection: how long its reader waits before it goes on. Waiting loses nothing."""

    def __init__(self, counters: Counters, now_s: Callable[[], float] = time.monotonic) -> None:
        self._counters = counters
        self._ops = Bucket(limits.LINK_OPS_S, limits.LINK_OPS_BURST, now_s)
        self._bytes = Bucket(limits.LINK_BYTES_S, limits.LINK_BYTES_BURST, now_s)
        self._work = Bucket(limits.LINK_WORK_S, limits.LINK_WORK_BURST, now_s)

    def note_live(self, blocks: Sequence[bytes]) -> float:
        """Note a frame of live ops; returns for how long to wait, s."""
        ops_s, bytes_s = self._ops.take(len(blocks)), self._bytes.take(sum(map(len, blocks)))
        if ops_s:
            self._counters.add(PACED, "ops")
        if bytes_s:
            self._counters.add(PACED, "bytes")
        return max(ops_s, bytes_s)

    def note_work(self, kind: str) -> float:
        """Note a frame by the name of its message; returns for how long to wait, s."""
        wait_s = self._work.take(WORK.get(kind, 0))
        if wait_s:
            self._counters.add(PACED, "work")
        return wait_s
