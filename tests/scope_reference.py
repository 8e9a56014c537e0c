"""Scopes by their definition, over plain sets: slow, and without a thought for cost."""

from __future__ import annotations

from collections.abc import Set

from crdtchain.ledger.settlement import compute_digest
from crdtchain.ledger.state import Ledger
from crdtchain.ops import VALUE_KINDS, Attest, Bid, Claim, Job, Kind, Reveal, SignedOp, Stake, Transfer, Vote
from crdtchain.scalars import OpId
from crdtchain.scopes import Selector


def find_scope(selector: Selector, ops: dict[OpId, SignedOp], ledger: Ledger) -> set[OpId]:
    """Return the scope of a selector among some ops, which are in causal order; the ledger has all of them."""
    if not selector:
        return set(ops)
    pasts: dict[OpId, set[OpId]] = {}
    job_of: dict[OpId, OpId] = {}
    found: set[OpId] = set()
    genesis = next(iter(ops))
    matters: list[OpId] = []
    for op, signed in ops.items():
        links = signed.op.parents if signed.op.prev is None else (signed.op.prev, *signed.op.parents)
        pasts[op] = {op}.union(*(pasts[link] for link in links))
        body = signed.op.body
        match body:
            case Job():
                job_of[op] = op
            case Stake(job=of) | Bid(job=of) | Attest(job=of) | Reveal(bid=of) | Vote(reveal=of) | Claim(of=of):
                if OpId(bytes(of)) in job_of:
                    job_of[op] = job_of[OpId(bytes(of))]
            case _:
                pass
        is_own = signed.op.author in selector.accounts or (isinstance(body, Transfer) and body.to in selector.accounts)
        is_about = op == genesis or is_own or (op in job_of and is_selected(selector, ops[job_of[op]]))
        if (is_own and signed.op.kind in VALUE_KINDS) or (is_about and signed.op.kind is Kind.JOB):
            matters.append(op)
        if not is_about and signed.op.author in ledger.params.witnesses:
            past = pasts[op] - {op}
            is_about = any(
                matter in past and not is_closed(selector, ops, ledger, matter, past, op) for matter in matters
            )
        if is_about:
            found |= pasts[op]
    return found


def is_selected(selector: Selector, signed: SignedOp) -> bool:
    """Whether a job op is selected."""
    body = signed.op.body
    assert isinstance(body, Job)
    return (
        signed.op.id in selector.jobs
        or signed.op.author in selector.authors
        or not set(body.tags).isdisjoint(selector.tags)
    )


def is_closed(
    selector: Selector, ops: dict[OpId, SignedOp], ledger: Ledger, matter: OpId, past: Set[OpId], witness_op: OpId
) -> bool:
    """Whether a job is decided, or a value op certified, in a past."""
    if ops[matter].op.kind is Kind.JOB and is_selected(selector, ops[matter]):
        said: dict[bytes, set[bytes]] = {}
        for other in past:
            body = ops[other].op.body
            if isinstance(body, Attest) and body.job == matter:
                said.setdefault(compute_digest(body.record), set()).add(ops[other].op.author)
        return any(len(authors) >= ledger.params.quorum for authors in said.values())
    number = ledger.dag.find(witness_op)
    value = ledger.dag.find(matter)
    assert number is not None and value is not None
    return ledger.witnesses.is_certified(value, ledger.witnesses.cut(ledger.dag.links(number)))
