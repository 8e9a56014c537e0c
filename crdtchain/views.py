"""The state as plain JSON: what page, API and command line show.

Every function is pure: a ledger (and, where windows matter to people, the time) in, plain values out. Ids are full
CIDs, authors did:key, amounts integers: credits, micros, ms. `status` of an op is a word of protocol section 9:

    local, seen, certified, on time, leading, decided, claimed, late, open, unrevealed, void, rejected

Not here: anything that a node knows beyond its ledger (peers, blobs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from crdtchain.agenda import find_tip
from crdtchain.codec import Link, format_cid, format_did
from crdtchain.deadlines import Timeliness
from crdtchain.ledger.state import Ledger
from crdtchain.ledger.votes import Standing, Verdict
from crdtchain.ops import DEADLINE_KINDS, VALUE_KINDS, Body, Claim, Job, Kind, Op, Record
from crdtchain.scalars import Author, OpId
from crdtchain.witness import Cut

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

DID_FIELDS = frozenset({"to", "editors", "witnesses", "cheats", "forfeits"})
"""Fields of bodies that hold keys."""


def body_to_json(body: Body) -> dict[str, Json]:
    """Return a body with ids as CIDs, keys as did:key, digests as hex."""
    return {name: _to_json(name, getattr(body, name)) for name in body.__struct_fields__}


def _to_json(name: str, value: object) -> Json:
    if isinstance(value, Link):
        return format_cid(value)
    if isinstance(value, bytes):
        return format_did(Author(value)) if name in DID_FIELDS else value.hex()
    if isinstance(value, Body):
        return body_to_json(value)
    if name == "grants" and isinstance(value, tuple):
        return {format_did(Author(key)): amount for key, amount in value}
    if isinstance(value, (tuple, list)):
        return [_to_json(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_json(str(key), item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"no JSON for {type(value).__name__}")


# -- ops --


def op_to_json(op: Op) -> dict[str, Json]:
    """Return an op as it stands in its block."""
    return {
        "id": format_cid(op.id),
        "author": format_did(op.author),
        "seq": op.seq,
        "prev": None if op.prev is None else format_cid(op.prev),
        "parents": [format_cid(parent) for parent in op.parents],
        "time": op.time,
        "kind": op.kind.value,
        "body": body_to_json(op.body),
        "size": op.size,
    }


def row_to_json(ledger: Ledger, number: int, cut: Cut) -> dict[str, Json]:
    """Return what the ledger itself keeps of an op, with its status: for lists, where no block is read."""
    dag = ledger.dag
    body = ledger.jobs.bodies.get(number)
    return {
        "id": format_cid(dag.ids[number]),
        "author": format_did(dag.author_key(number)),
        "seq": dag.chains.seq(number),
        "time": dag.times[number],
        "kind": dag.kind(number).value,
        "body": None if body is None or isinstance(body, Job) else body_to_json(body),
        **find_status(ledger, number, cut),
    }


def find_status(ledger: Ledger, number: int, cut: Cut) -> dict[str, Json]:
    """Return the status of an op, how many witnesses have it, and, for one that is void, why."""
    count = len(ledger.params.witnesses)
    seen = ledger.witnesses.seen_by(number, cut)
    kind = ledger.dag.kind(number)
    status, reason = ("local" if seen == 0 else "seen"), ""
    if kind in VALUE_KINDS:
        status = _value_status(ledger, number, kind, cut) or status
    elif kind in DEADLINE_KINDS:
        found, reason = _deadline_status(ledger, number, kind, cut)
        status = found or status
    return {"status": status, "reason": reason, "seen": seen, "witnesses": count}


def _value_status(ledger: Ledger, number: int, kind: Kind, cut: Cut) -> str:
    if not ledger.witnesses.is_certified(number, cut):
        return ""
    if kind is Kind.TRANSFER:
        receiver = ledger.dag.find_author(ledger.jobs.transfer(number).to)  # type: ignore[arg-type]
        return "claimed" if receiver is not None and ledger.jobs.claims.get((receiver, number)) else "certified"
    if kind in (Kind.JOB, Kind.STAKE):
        job = number if kind is Kind.JOB else ledger.jobs.job_of.get(number)
        record = ledger.certificate(job, cut)
        if record is not None:
            winner = None if record.winner is None else ledger.dag.find(OpId(bytes(record.winner)))
            taker = winner if kind is Kind.JOB and winner is not None else number
            return "claimed" if ledger.jobs.claims.get((ledger.dag.authors[taker], job)) else "decided"
    return "certified"


def _deadline_status(ledger: Ledger, number: int, kind: Kind, cut: Cut) -> tuple[str, str]:
    """Return the status of a bid, reveal or vote, and the reason of one that is void."""
    if ledger.votes.is_void(number, cut):
        job = ledger.jobs.job_of.get(number)
        is_banned = kind is not Kind.REVEAL and ledger.votes.is_banned_for(ledger.dag.authors[number], job)
        return "void", "its author is banned" if is_banned else "its author said something else at the same place"
    timeliness = ledger.deadlines.timeliness(number, ledger.jobs.deadline(number), cut)
    if timeliness is Timeliness.LATE:
        return "late", ""
    if timeliness is Timeliness.OPEN:
        closing = ledger.jobs.deadline(number) + ledger.params.closing_ms
        return ("open", "") if ledger.witnesses.count_past(closing, cut) >= ledger.params.quorum else ("", "")
    return _bid_status(ledger, number, cut) if kind is Kind.BID else "on time", ""


def _bid_status(ledger: Ledger, bid: int, cut: Cut) -> str:
    """Return the status of a bid that is on time and not void."""
    job = ledger.jobs.job_of.get(bid)
    record = ledger.certificate(job, cut)
    if record is not None:
        if record.winner == bytes(ledger.dag.ids[bid]):
            author = ledger.dag.authors[bid]
            return "claimed" if ledger.jobs.claims.get((author, job)) else "decided"
        is_forfeit = ledger.dag.author_key(bid) in record.forfeits and ledger.dag.author_key(bid) not in record.cheats
        return "unrevealed" if is_forfeit and not ledger.jobs.reveals.get(bid) else "on time"
    return "leading" if find_leader(ledger, job, cut) == bid else "on time"


def find_leader(ledger: Ledger, job: int, cut: Cut) -> int | None:
    """Return the bid that would win by what is here: the winner of an outcome, else the lowest loss that is not out."""
    if not ledger.witnesses.is_certified(job, cut):
        return None
    outcome = ledger.settlement.search(job, cut) if ledger.settlement.is_closed(job, cut) else None
    if outcome is not None:
        return None if outcome.winner is None else ledger.dag.find(OpId(bytes(outcome.winner)))
    max_loss = ledger.jobs.terms(job).max_loss
    best: tuple[int, int] | None = None
    for bid in ledger.jobs.bids.get(job):
        loss = ledger.jobs.bid(bid).loss
        if (max_loss is not None and loss > max_loss) or ledger.votes.standing(bid, cut) is not Standing.COUNTS:
            continue
        if best is None or (loss, bid) < best:
            best = loss, bid
    return None if best is None else best[1]


# -- jobs --


def find_phases(ledger: Ledger, now_ms: int) -> dict[int, str]:
    """Return the phase of every job; see `find_phase`."""
    cut = ledger.everything()
    return {job: find_phase(ledger, job, cut, now_ms) for job in ledger.jobs.jobs}


def find_phase(ledger: Ledger, job: int, cut: Cut, now_ms: int) -> str:
    """Return where a job is.

    One of: posted, bidding, revealing, judging, deciding, decided, no winner, refunded, expired, conflict.
    Windows are shown by the clock of who asks; what counts is what the witnesses saw.
    """
    digests = ledger.witnesses.certificates(job, cut)
    if len(digests) > 1:
        return "conflict"
    if digests:
        return _decided_phase(ledger.records[digests[0]])
    terms = ledger.jobs.terms(job)
    if not ledger.witnesses.is_certified(job, cut):
        return "posted"
    if now_ms <= terms.bid_until:
        return "bidding"
    if now_ms <= terms.reveal_until:
        return "revealing"
    return "judging" if now_ms <= terms.verdict_until else "deciding"


def _decided_phase(record: Record) -> str:
    if record.expired:
        return "expired"
    if record.winner is not None:
        return "decided"
    return "refunded" if record.cheats else "no winner"


def job_summary(ledger: Ledger, job: int, cut: Cut, now_ms: int) -> dict[str, Json]:
    """Return a job as a row of a list."""
    dag, terms = ledger.dag, ledger.jobs.terms(job)
    leader = find_leader(ledger, job, cut)
    return {
        "id": format_cid(dag.ids[job]),
        "title": terms.title,
        "tags": list(terms.tags),
        "poster": format_did(dag.author_key(job)),
        "time": dag.times[job],
        "metric": terms.metric,
        "runtime": terms.task.runtime,
        "bounty": terms.bounty,
        "stake": terms.stake,
        "pool": terms.pool,
        "bid_until": terms.bid_until,
        "reveal_until": terms.reveal_until,
        "verdict_until": terms.verdict_until,
        "phase": find_phase(ledger, job, cut, now_ms),
        "bids": len(ledger.jobs.bids.get(job)),
        "leading": None if leader is None else _bid_summary(ledger, leader),
        **find_status(ledger, job, cut),
        "certified": ledger.witnesses.is_certified(job, cut),
    }


def _bid_summary(ledger: Ledger, bid: int) -> Json:
    return {
        "bid": format_cid(ledger.dag.ids[bid]),
        "author": format_did(ledger.dag.author_key(bid)),
        "loss": ledger.jobs.bid(bid).loss,
    }


def job_to_json(ledger: Ledger, job: int, cut: Cut, now_ms: int) -> dict[str, Json]:
    """Return all about a job: its terms, the leaderboard, the outcome."""
    record = ledger.certificate(job, cut)
    return {
        **job_summary(ledger, job, cut, now_ms),
        "terms": body_to_json(ledger.jobs.terms(job)),
        "leaderboard": leaderboard(ledger, job, cut),
        "outcome": None if record is None else outcome_to_json(ledger, job, record),
    }


def leaderboard(ledger: Ledger, job: int, cut: Cut) -> list[Json]:
    """Return all bids of a job, the lowest loss first, each with its status, its reveals and their votes."""
    bids = sorted(ledger.jobs.bids.get(job), key=lambda bid: (ledger.jobs.bid(bid).loss, ledger.dag.ids[bid]))
    return [
        {
            "id": format_cid(ledger.dag.ids[bid]),
            "author": format_did(ledger.dag.author_key(bid)),
            "name": find_name(ledger, ledger.dag.authors[bid]),
            "loss": ledger.jobs.bid(bid).loss,
            "time": ledger.dag.times[bid],
            "commit": ledger.jobs.bid(bid).commit.hex(),
            **find_status(ledger, bid, cut),
            "reveals": [_reveal_to_json(ledger, reveal, cut) for reveal in ledger.jobs.reveals.get(bid)],
        }
        for bid in bids
    ]


def _reveal_to_json(ledger: Ledger, reveal: int, cut: Cut) -> Json:
    verdict, _ = ledger.votes.verdict(reveal, cut)
    return {
        "id": format_cid(ledger.dag.ids[reveal]),
        **{name: value for name, value in body_to_json(ledger.jobs.bodies[reveal]).items() if name != "bid"},
        **find_status(ledger, reveal, cut),
        "verdict": None if verdict is Verdict.UNDETERMINED else verdict.value,
        "votes": [
            {
                "id": format_cid(ledger.dag.ids[vote]),
                "author": format_did(ledger.dag.author_key(vote)),
                "verdict": ledger.jobs.vote(vote).verdict,
                "loss": ledger.jobs.vote(vote).loss,
                **find_status(ledger, vote, cut),
            }
            for vote in ledger.jobs.votes.get(reveal)
        ],
    }


def outcome_to_json(ledger: Ledger, job: int, record: Record) -> dict[str, Json]:
    """Return a certified outcome, with the winner's author, loss and model."""
    shown: dict[str, Json] = body_to_json(record)
    winner = None if record.winner is None else ledger.dag.find(OpId(bytes(record.winner)))
    shown["winner_author"] = None if winner is None else format_did(ledger.dag.author_key(winner))
    shown["loss"] = None if winner is None else ledger.jobs.bid(winner).loss
    reveals = () if winner is None else ledger.jobs.reveals.get(winner)
    shown["model"] = body_to_json(ledger.jobs.bodies[reveals[0]])["model"] if reveals else None
    shown["phase"] = _decided_phase(record)
    return shown


# -- accounts --


def find_name(ledger: Ledger, author: int) -> str | None:
    """Return what an author calls itself, by its last profile."""
    profiles = ledger.jobs.profiles.get(author)
    if not profiles:
        return None
    last = max(profiles, key=lambda number: (ledger.dag.chains.seq(number), ledger.dag.ids[number]))
    name = getattr(ledger.jobs.bodies[last], "name", None)
    return name if isinstance(name, str) else None


def account_keys(ledger: Ledger) -> list[Author]:
    """Return the keys of all accounts: granted, or with ops, or with a transfer to them; sorted."""
    authors = (ledger.dag.author_keys[number] for number in set(ledger.dag.authors))
    receivers = (key for key, _ in ledger.jobs.transfers.items())
    return sorted({*ledger.params.grants, *ledger.params.witnesses, *authors, *receivers})


def account_summary(ledger: Ledger, key: Author, cut: Cut) -> dict[str, Json]:
    """Return an account as a row of a list."""
    number = ledger.dag.find_author(key)
    return {
        "did": format_did(key),
        "name": None if number is None else find_name(ledger, number),
        "balance": ledger.accounts.balance(key, find_tip(ledger, key)),
        "certified_balance": ledger.accounts.certified_balance(key, cut),
        "is_witness": key in ledger.params.witnesses,
        "banned": number is not None and ledger.witnesses.is_banned(number, cut),
        "equivocated": number is not None and ledger.dag.chains.is_forked(number),
        "ops": 0 if number is None else sum(len(lane) for lane in ledger.dag.chains.lanes_of(number)),
    }


def account_to_json(ledger: Ledger, key: Author, cut: Cut) -> dict[str, Json]:
    """Return an account with its history, and what it may still claim."""
    number = ledger.dag.find_author(key)
    history: list[Json] = [
        {
            **row_to_json(ledger, op, cut),
            "change": ledger.accounts.changes.get(op),
            "balance": ledger.accounts.balances.get(op),
            "of": _claimed(ledger, op),
        }
        for op in ([] if number is None else ledger.dag.chains.ops_of(number))
        if ledger.dag.kind(op) in VALUE_KINDS
    ]
    waiting: Sequence[int] = [
        transfer
        for transfer in ledger.jobs.transfers.get(key)
        if number is None or not ledger.jobs.claims.get((number, transfer))
    ]
    return {
        **account_summary(ledger, key, cut),
        "grant": ledger.accounts.grant(key),
        "history": history,
        "incoming": [row_to_json(ledger, transfer, cut) for transfer in waiting],
    }


def _claimed(ledger: Ledger, op: int) -> Json:
    body = ledger.jobs.bodies[op]
    return format_cid(body.of) if isinstance(body, Claim) else None


# -- all --


def ledger_status(ledger: Ledger, state_digest: bytes) -> dict[str, Json]:
    """Return what identifies a ledger's contents; the state digest is costly, so the caller may keep it."""
    params = ledger.params
    return {
        "network": format_cid(params.network),
        "name": params.name,
        "ops": len(ledger),
        "heads": [format_cid(head) for head in ledger.dag.head_ids()],
        "sample": [format_cid(op) for op in sample_ops(ledger)],
        "heads_digest": ledger.heads_digest().hex(),
        "state_digest": state_digest.hex(),
        "jobs": len(ledger.jobs.jobs),
        "witnesses": [format_did(key) for key in params.witnesses],
        "quorum": params.quorum,
        "equivocations": sum(ledger.dag.chains.is_forked(author) for author in range(len(ledger.dag.author_keys))),
    }


def sample_ops(ledger: Ledger) -> list[OpId]:
    """Return ops from ever longer ago: where heads are unknown to another side, one of these tells it what is here."""
    ids, distance, found = ledger.dag.ids, 1, list[OpId]()
    while distance < len(ids):
        found.append(ids[len(ids) - distance])
        distance *= 2
    return [*found, ids[0]]


def params_to_json(ledger: Ledger) -> dict[str, Json]:
    """Return a network's constants."""
    body = body_to_json(ledger.genesis.body)
    return {"network": format_cid(ledger.params.network), "founder": format_did(ledger.params.founder), **body}


def own_balance(ledger: Ledger, key: Author) -> int:
    """Return what a key can spend behind its own last op, credits."""
    return ledger.accounts.balance(key, find_tip(ledger, key))
