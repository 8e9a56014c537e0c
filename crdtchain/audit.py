"""The audit: read a ledger from nothing but its blocks, believe nothing else, and say all that is wrong.

An `Audit` is fed with blocks, finishes, and gives a report. Bad data never raises: each fault is named, and what does
not depend on it is still judged and reported. Two audits of equal sets of blocks give equal reports, whatever the
order of the blocks.

Theory of operation:

1. Each block: its bytes against its CID, its form, its signature (by an injected verifier), its links, the rules. What
   links to something refused or missing is refused.
2. The accounts, certificates and outcomes are those of a replay. On top come the checks that validity leaves open: each
   attest against what was determined as of itself, certified outcomes against what everything here says, two
   certificates for one job, and the conservation of credits.
3. An equivocation is evidence against a key, not a fault of the ledger: it is reported on its own, with both ops.

Not here: where blocks come from (`crdtchain.adapters.auditing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Final

from msgspec import Struct

from crdtchain import codec
from crdtchain.codec import format_cid, format_did
from crdtchain.errors import InvalidOpError
from crdtchain.ledger.bank import check_conservation
from crdtchain.ledger.settlement import compute_digest
from crdtchain.ledger.state import Ledger
from crdtchain.limits import CHUNK_BYTES
from crdtchain.ops import Kind, Record, SignedOp
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op
from crdtchain.signing import Verifier
from crdtchain.verify import verify_op
from crdtchain.witness import Cut

_OP_START: Final = b"\x82"
"""Blocks of ops are arrays of two; lists of chunks are maps."""


class Fault(Struct, frozen=True):
    """One thing that is wrong."""

    op: str | None
    """The CID of the block, or None when the fault is the whole's."""
    rule: str
    """A stable word: a code of docs/protocol, or cid, missing, network, attest, certificates, outcome, credits,
    source."""
    text: str
    """One sentence."""


class JobReport(Struct, frozen=True):
    """What became of one job."""

    id: str
    title: str
    winner: str | None
    """CID of the bid."""
    winner_author: str | None
    loss: int | None
    """Announced by the winner, micros."""
    outcome: str
    """open, leading (determined, but not certified), decided, no winner, refunded, expired, conflict."""
    certified: bool
    """Whether a quorum attests the outcome."""


class Equivocation(Struct, frozen=True):
    """Two ops of one author with one seq."""

    author: str
    seq: int
    ops: tuple[str, str]


class AuditReport(Struct, frozen=True):
    """The answer of an audit; its fields are those of `crdtchain audit --json`."""

    ok: bool
    """Whether there is no fault."""
    ops: int
    """That are valid."""
    heads_digest: str | None
    """Hex; None without a genesis, like the next."""
    state_digest: str | None
    accounts: dict[str, int]
    """Spendable credits by did:key: after the last certified value op."""
    jobs: list[JobReport]
    equivocations: list[Equivocation]
    faults: list[Fault]


class Audit:
    """One audit: `add` blocks, then `finish`."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._ledger: Ledger | None = None
        self._faults: list[Fault] = []
        self._refused: set[OpId] = set()
        self._waiting: dict[OpId, SignedOp] = {}
        self._waiters: dict[OpId, list[OpId]] = {}

    def add(self, position: int, cid: bytes, block: bytes) -> None:
        """Take one block with the CID that it is said to have; `position` is where it was found."""
        if sha256(block).digest() != cid[-32:] or not (codec.is_op_id(cid) or codec.is_raw_blob_id(cid)):
            self._fault(cid, "cid", f"the block at position {position} is not the one that its id names")
        elif not codec.is_op_id(cid):
            if len(block) > CHUNK_BYTES:
                self._fault(cid, "cid", f"the blob at position {position} is larger than a raw blob may be")
        elif block[:1] == _OP_START or not _is_chunk_list(block):
            self._add_op(OpId(cid), block)

    def note(self, rule: str, text: str) -> None:
        """Report a fault that the source of the blocks found."""
        self._fault(None, rule, text)

    def _fault(self, op: bytes | None, rule: str, text: str) -> None:
        self._faults.append(Fault(None if op is None else format_cid(op), rule, text))

    def _add_op(self, op: OpId, block: bytes) -> None:
        if op in self._refused or op in self._waiting or (self._ledger is not None and op in self._ledger):
            return
        try:
            signed = decode_op(block)
        except InvalidOpError as error:
            self._refuse(op, error.code, str(error))
            return
        if signed.op.kind is Kind.GENESIS and self._ledger is None:
            self._found(signed)
        elif self._ledger is None:
            self._waiting[op] = signed
        else:
            self._settle(self._ledger, signed)

    def _found(self, signed: SignedOp) -> None:
        """Start the ledger with a genesis, and take what came before it."""
        try:
            verify_op(signed, signed.op.id, self._verifier)
        except InvalidOpError as error:
            self._refuse(signed.op.id, error.code, str(error))
            return
        self._ledger = Ledger(signed.op)
        early, self._waiting = self._waiting, {}
        for waiting in early.values():
            self._settle(self._ledger, waiting)

    def _settle(self, ledger: Ledger, signed: SignedOp) -> None:
        """Add an op, and those that waited for it; or let it wait for its links; or refuse it."""
        stack = [signed]
        while stack:
            signed = stack.pop()
            op = signed.op
            if op.id in ledger or op.id in self._refused:
                continue
            missing = ledger.dag.missing(op)
            if any(link in self._refused for link in missing):
                self._refuse(op.id, "links", "it links to an op that was refused")
                continue
            if missing:
                self._waiting[op.id] = signed
                self._waiters.setdefault(missing[0], []).append(op.id)
                continue
            self._waiting.pop(op.id, None)
            if self._judge(ledger, signed):
                # What waited for the first of its missing links may still wait for another.
                stack.extend(self._waiting[waiter] for waiter in self._waiters.pop(op.id, ()))

    def _judge(self, ledger: Ledger, signed: SignedOp) -> bool:
        try:
            verify_op(signed, ledger.params.network, self._verifier)
            ledger.add(signed.op)
        except InvalidOpError as error:
            self._refuse(signed.op.id, error.code, str(error))
            return False
        return True

    def _refuse(self, op: OpId, rule: str, text: str) -> None:
        """Refuse an op, and all that waits for it."""
        self._refused.add(op)
        self._waiting.pop(op, None)
        self._fault(op, rule, text)
        stack = [op]
        while stack:
            for waiter in self._waiters.pop(stack.pop(), ()):
                if self._waiting.pop(waiter, None) is not None:
                    self._refused.add(waiter)
                    self._fault(waiter, "links", "it links to an op that was refused")
                    stack.append(waiter)

    def finish(self) -> AuditReport:
        """Judge the whole, and return the report."""
        ledger = self._ledger
        if ledger is None:
            self.note("network", "there is no valid genesis, so nothing can be judged")
            return AuditReport(False, 0, None, None, {}, [], [], _sort(self._faults))
        self._note_missing(ledger)
        cut = ledger.everything()
        self._faults.extend(check_attests(ledger))
        self._faults.extend(check_outcomes(ledger, cut))
        self._faults.extend(Fault(None, "credits", text) for text in check_conservation(ledger, cut))
        return AuditReport(
            ok=not self._faults,
            ops=len(ledger),
            heads_digest=ledger.heads_digest().hex(),
            state_digest=ledger.state_digest().hex(),
            accounts=_list_accounts(ledger, cut),
            jobs=list_jobs(ledger, cut),
            equivocations=list_equivocations(ledger),
            faults=_sort(self._faults),
        )

    def _note_missing(self, ledger: Ledger) -> None:
        while doomed := [op for op, signed in self._waiting.items() if self._refused.intersection(_links(signed))]:
            for op in doomed:
                if op in self._waiting:
                    self._refuse(op, "links", "it links to an op that was refused")
        for op, signed in self._waiting.items():
            absent = [link for link in ledger.dag.missing(signed.op) if link not in self._waiting]
            missing = ", ".join(map(format_cid, absent)) or "what waits for others itself"
            self._fault(op, "missing", f"it links to ops that are not here: {missing}")


def _links(signed: SignedOp) -> tuple[OpId, ...]:
    op = signed.op
    return op.parents if op.prev is None else (op.prev, *op.parents)


def audit_blocks(blocks: Iterable[tuple[int, bytes, bytes]], verifier: Verifier) -> AuditReport:
    """Audit blocks given as (position, CID, block), in any order."""
    audit = Audit(verifier)
    for position, cid, block in blocks:
        audit.add(position, cid, block)
    return audit.finish()


def check_attests(ledger: Ledger) -> Iterator[Fault]:
    """Yield a fault for each attest that is not what its own past determined."""
    for (job, digest), attests in ledger.witnesses.attests.items():
        for attest in attests:
            right = ledger.right_record(attest)
            if right is not None and compute_digest(right) == digest:
                continue
            what = "nothing was determined as of it" if right is None else "its own past gives another record"
            witness, title = format_did(ledger.dag.author_key(attest)), ledger.jobs.terms(job).title
            text = f"the witness {witness} attests a wrong outcome of the job {title!r}: {what}"
            yield Fault(format_cid(ledger.dag.ids[attest]), "attest", text)


def check_outcomes(ledger: Ledger, cut: Cut) -> Iterator[Fault]:
    """Yield a fault for each job with two certified outcomes, or one that contradicts what is determined now."""
    for job in ledger.jobs.jobs:
        digests = ledger.witnesses.certificates(job, cut)
        if len(digests) > 1:
            text = f"{len(digests)} outcomes are certified: more witnesses lied than the network bears"
            yield Fault(format_cid(ledger.dag.ids[job]), "certificates", text)
        elif digests and not ledger.records[digests[0]].expired:
            outcome = ledger.settlement.outcome(job, cut)
            if outcome is not None and compute_digest(outcome) != digests[0]:
                text = "the certified outcome is not the one that follows from the ops"
                yield Fault(format_cid(ledger.dag.ids[job]), "outcome", text)


def list_jobs(ledger: Ledger, cut: Cut) -> list[JobReport]:
    """Return what became of each job, sorted by id."""
    return [_report_job(ledger, job, cut) for job in sorted(ledger.jobs.jobs, key=ledger.dag.ids.__getitem__)]


def _report_job(ledger: Ledger, job: int, cut: Cut) -> JobReport:
    digests = ledger.witnesses.certificates(job, cut)
    record: Record | None
    if len(digests) == 1:
        record = ledger.records[digests[0]]
        outcome = _name_outcome(record)
    else:
        record = None if digests else ledger.settlement.outcome(job, cut)
        outcome = "conflict" if digests else "open" if record is None else "leading"
    winner = None if record is None or record.winner is None else ledger.dag.find(OpId(bytes(record.winner)))
    return JobReport(
        id=format_cid(ledger.dag.ids[job]),
        title=ledger.jobs.terms(job).title,
        winner=None if winner is None else format_cid(ledger.dag.ids[winner]),
        winner_author=None if winner is None else format_did(ledger.dag.author_key(winner)),
        loss=None if winner is None or ledger.dag.kind(winner) is not Kind.BID else ledger.jobs.bid(winner).loss,
        outcome=outcome,
        certified=len(digests) == 1,
    )


def _name_outcome(record: Record) -> str:
    if record.expired:
        return "expired"
    if record.winner is not None:
        return "decided"
    return "refunded" if record.cheats else "no winner"


def list_equivocations(ledger: Ledger) -> list[Equivocation]:
    """Return each pair of ops of one author with one seq, sorted."""
    dag = ledger.dag
    found: set[tuple[str, int, tuple[str, str]]] = set()
    for author in dag.chains.forked:
        for op in dag.chains.ops_of(author):
            for sibling in dag.chains.siblings(author, op):
                first, second = sorted((dag.ids[op], dag.ids[sibling]))
                pair = format_cid(first), format_cid(second)
                found.add((format_did(dag.author_keys[author]), dag.chains.seq(op), pair))
    return [Equivocation(*row) for row in sorted(found)]


def _list_accounts(ledger: Ledger, cut: Cut) -> dict[str, int]:
    params = ledger.params
    authors = (ledger.dag.author_keys[number] for number in set(ledger.dag.authors))
    keys = sorted({*params.grants, *params.witnesses, *authors})
    return {format_did(key): ledger.accounts.certified_balance(key, cut) for key in keys}


def _is_chunk_list(block: bytes) -> bool:
    try:
        value = codec.decode(block)
    except InvalidOpError:
        return False
    return isinstance(value, dict) and set(value) == {"size", "chunks"}


def _sort(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: (fault.op or "", fault.rule, fault.text))
