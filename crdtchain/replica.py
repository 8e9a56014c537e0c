"""The one door of the core: inputs in, effects out.

A replica holds a ledger, the ops that wait for their links, and, where it has a key, the place from which that key
signs next. It does nothing itself: what has to be stored or sent comes back as effects, which the caller performs in
order. The caller brings verified signatures, the time, and its own signatures.

Theory of operation:

1. `receive` takes ops whose signatures hold. Each is added, held until its links come, or rejected for ever.
2. `draft` makes what the key has to sign next; `commit` takes the signature. Between the two nothing else may be
   drafted, so a seq is never signed twice. *Persist comes before Send* among the effects, and own ops are to be
   durable.
3. `due` is the duty of a witness, as drafts: the caller asks it *before* every `receive` and at the times of
   `next_wake_ms`.

Not here: sync sessions (`sync`), any I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeAlias

from msgspec import Struct

from crdtchain import limits, signing
from crdtchain.dag import NONE
from crdtchain.duty import QUIET_KINDS, Duty
from crdtchain.errors import InvalidOpError, RuleError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Body, Kind, SignedOp
from crdtchain.scalars import Author, OpId
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.waiting import Waiting


class Persist(Struct, frozen=True):
    """Store ops, in this order, in one transaction; `durable`: on the disk before anything else happens."""

    ops: tuple[SignedOp, ...]
    durable: bool


class Send(Struct, frozen=True):
    """Offer ops, now stored, to every peer but their source."""

    ops: tuple[SignedOp, ...]
    source: str


class Want(Struct, frozen=True):
    """Ask the source for ops that others here link to."""

    ids: tuple[OpId, ...]
    source: str


class Rejected(Struct, frozen=True):
    """An op broke a rule: tell people, and whoever sent it."""

    op: OpId
    error: InvalidOpError
    source: str


Effect: TypeAlias = Persist | Send | Want | Rejected


class Draft(Struct, frozen=True):
    """What the key has to sign: `message`; `payload` is the part of it that goes into the block."""

    payload: bytes
    message: bytes
    seq: int
    prev: OpId | None


class Replica:
    """One copy of one network's ledger."""

    def __init__(self, ledger: Ledger, author: Author | None = None, debounce_ms: int = 100) -> None:
        self.ledger = ledger
        self.author = author
        self.waiting = Waiting()
        self.duty: Duty | None = None
        self._draft: Draft | None = None
        if author is not None and author in ledger.params.witnesses:
            self.duty = Duty(ledger, author, debounce_ms)

    def receive(self, ops: Sequence[SignedOp], source: str, now_ms: int) -> list[Effect]:
        """Take ops from a peer or a file; their signatures have been verified."""
        added: list[tuple[SignedOp, str]] = []
        effects: list[Effect] = []
        wanted: dict[OpId, None] = {}
        if self.duty is not None:
            self.duty.pass_time(now_ms)
        queue = [(signed, source) for signed in reversed(ops)]
        while queue:
            signed, origin = queue.pop()
            missing = self.ledger.dag.missing(signed.op)
            if missing:
                self.waiting.hold(signed, missing, origin, now_ms)
                wanted.update(dict.fromkeys(missing))
                continue
            try:
                if not self.ledger.add(signed.op):
                    continue
            except InvalidOpError as error:
                effects.extend(self._reject(signed.op.id, error, origin))
                continue
            added.append((signed, origin))
            self._note(signed, now_ms)
            queue.extend(reversed(self.waiting.arrived(signed.op.id)))
        stored: list[Effect] = []
        for origin, group in groupby(added, key=lambda pair: pair[1]):
            ops_of_one = tuple(signed for signed, _ in group)
            # Who brought an op need not get it back; who brought only what it waited for does not have it.
            stored += [Persist(ops_of_one, durable=False), Send(ops_of_one, origin)]
        effects = [*stored, *effects]
        still = tuple(link for link in wanted if link not in self.ledger and link not in self.waiting)
        return [*effects, Want(still, source)] if still else effects

    def _reject(self, op: OpId, error: InvalidOpError, source: str) -> list[Effect]:
        effects: list[Effect] = [Rejected(op, error, source)]
        for follower in self.waiting.rejected(op):
            text = "it links to an op that was rejected"
            effects.append(Rejected(follower, RuleError("links", text), source))
        return effects

    def _note(self, signed: SignedOp, now_ms: int) -> None:
        if self.duty is not None:
            self.duty.note_added(len(self.ledger) - 1, now_ms)

    def tip(self) -> int:
        """Return the number of the own last op, or -1."""
        author = None if self.author is None else self.ledger.dag.find_author(self.author)
        tips = [] if author is None else self.ledger.dag.chains.tips(author)
        return max(tips, key=self.ledger.dag.chains.seq) if tips else NONE

    def draft(self, body: Body, now_ms: int, parents: Sequence[int] | None = None) -> Draft:
        """Make what the own key has to sign next; judged as valid before anything is signed.

        `parents` are op numbers; by default the heads that may be linked to.

        Raises:
            UsageError: there is no key, or another draft is waiting for its signature.
            InvalidOpError: the op would break a rule.
        """
        if self.author is None:
            raise UsageError("this replica has no key, so it can't sign")
        if self._draft is not None:
            raise UsageError("another op is being signed")
        dag, tip = self.ledger.dag, self.tip()
        time_ms = now_ms if tip == NONE else max(now_ms, dag.times[tip])
        links = self._parents(now_ms) if parents is None else list(parents)
        payload = encode_payload(
            author=self.author,
            seq=0 if tip == NONE else dag.chains.seq(tip) + 1,
            prev=None if tip == NONE else dag.ids[tip],
            parents=[dag.ids[link] for link in links],
            time=time_ms,
            body=body,
        )
        # The rules are checked on a block with an empty signature: they do not look at it.
        self.ledger.judge(decode_op(join_block(payload, bytes(64))).op)
        message = signing.signing_bytes(self.ledger.params.network, payload)
        prev = None if tip == NONE else dag.ids[tip]
        self._draft = Draft(payload, message, 0 if tip == NONE else dag.chains.seq(tip) + 1, prev)
        return self._draft

    def abandon(self) -> None:
        """Give the draft up; nothing was signed."""
        self._draft = None

    def commit(self, draft: Draft, signature: bytes, now_ms: int) -> tuple[SignedOp, list[Effect]]:
        """Take the signature of a draft: the op is added, and has to be stored durably before it is sent.

        Raises:
            UsageError: it is not the draft that is waiting, or the own chain has grown since it was made.
        """
        if draft is not self._draft:
            raise UsageError("this draft is not the one being signed")
        self._draft = None
        tip = self.tip()
        if draft.prev != (None if tip == NONE else self.ledger.dag.ids[tip]):
            # Another copy of this key has signed meanwhile, and its op came from a peer: this seq is taken.
            raise UsageError("the own chain has grown while this op was being signed: draft it again")
        signed = decode_op(join_block(draft.payload, signature))
        self.ledger.add(signed.op)
        self._note(signed, now_ms)
        effects: list[Effect] = [Persist((signed,), durable=True), Send((signed,), "")]
        for follower, source in self.waiting.arrived(signed.op.id):
            effects.extend(self.receive([follower], source, now_ms))
        return signed, effects

    def due(self, now_ms: int) -> Draft | None:
        """Return the next thing that a witness has to sign now, or None."""
        if self.duty is None or self._draft is not None:
            return None
        statement = self.duty.next_statement(now_ms)
        if statement is None:
            return None
        return self.draft(statement.body, statement.time_ms, statement.parents)

    def next_wake_ms(self, now_ms: int) -> int | None:
        """Return when `due` should be asked again though nothing came, or None."""
        return None if self.duty is None else self.duty.next_wake_ms(now_ms)

    def _parents(self, now_ms: int) -> list[int]:
        """Return what an own op links to: heads, or below heads dated ahead of the clock what they link to.

        One head of each author comes before the second of any: a crowd of branches keeps nobody's word out.
        """
        dag, tip = self.ledger.dag, self.tip()
        author = None if self.author is None else dag.find_author(self.author)
        found = dag.find_foreign_heads(NONE if author is None else author, tip, now_ms)
        counts: dict[int, int] = {}
        order = []
        for head in sorted(found, key=self._rank):
            place = counts[dag.authors[head]] = counts.get(dag.authors[head], 0) + 1
            order.append((place, head))
        order.sort(key=lambda pair: pair[0])
        parents_max = limits.WITNESS_PARENTS_MAX if self.duty is not None else limits.PARENTS_MAX
        return [head for _, head in order[:parents_max]]

    def _rank(self, head: int) -> tuple[int, int]:
        """Order parents by what they bring along: witnesses' ops, value and deadline ops, the rest; late ones first."""
        dag = self.ledger.dag
        kind = dag.kind(head)
        if dag.is_witness_op(head):
            return 0, -head
        return (2 if kind in QUIET_KINDS or kind is Kind.PROFILE else 1), -head
