"""Validity: whether an op may join the ledger, from its own past alone.

Every function takes the op and its `Past`, the cut that it ends. What is refused here is refused at every
replica and for ever; so nothing here looks at anything outside that past.

Source: protocol sections 2, 3 and 7, "causal rules"; docs/protocol/readings.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final, Protocol

from crdtchain import limits
from crdtchain.dag import NONE, Dag
from crdtchain.errors import RuleError
from crdtchain.ledger.accounts import Accounts
from crdtchain.ledger.jobs import Jobs
from crdtchain.ledger.settlement import Settlement
from crdtchain.ledger.votes import Votes
from crdtchain.ops import Attest, Bid, Claim, Job, Kind, Op, Record, Reveal, Stake, Transfer, Vote
from crdtchain.params import Params
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.witness import Cut, Witnesses

BID_PREFIX: Final = b"crdtchain/bid:"


def compute_commitment(author: Author, model: BlobId) -> bytes:
    """Return what a bid commits to: 32 bytes that bind author and model."""
    return sha256(BID_PREFIX + author + model).digest()


class Context(Protocol):
    """What the rules read: the parts of a ledger."""

    params: Params
    dag: Dag
    witnesses: Witnesses
    accounts: Accounts
    jobs: Jobs
    votes: Votes
    settlement: Settlement

    def record(self, job: int, digest: bytes) -> Record:
        """Return an attested record by its digest."""
        ...


class Past:
    """The past of an op that is being judged; the op itself has been placed, and is part of it."""

    __slots__ = ("_context", "_cut", "_number", "author", "op", "prev")

    def __init__(self, context: Context, op: Op, number: int) -> None:
        self.op = op
        self.author: int = context.dag.authors[number]
        self.prev: int = context.dag.prevs[number]
        self._context = context
        self._number = number
        self._cut: Cut | None = None

    @property
    def cut(self) -> Cut:
        """The op's past; made when a rule first asks, for most ops need none."""
        if self._cut is None:
            self._cut = self._context.witnesses.cut((self._number,))
        return self._cut


SPEAKING_KINDS: Final = frozenset({Kind.STAKE, Kind.BID, Kind.REVEAL, Kind.CLAIM})
"""Kinds whose rules ask what witnesses say as of the op: when a witness is its author, the op says it too."""


def validate_header(context: Context, op: Op, prev: int, parents: Sequence[int]) -> None:
    """Check seq, prev, parents and time of an op against what it links to, here as numbers.

    Raises:
        RuleError: the rule that it breaks.
    """
    if op.kind is Kind.GENESIS:
        raise RuleError("genesis", "a genesis is valid only as its own network's first op")
    dag, author = context.dag, context.dag.find_author(op.author)
    is_witness = author is not None and author < dag.witness_count
    parents_max = limits.WITNESS_PARENTS_MAX if is_witness else limits.PARENTS_MAX
    if len(parents) > parents_max:
        raise RuleError("links", f"{len(parents)} parents; at most {parents_max} are allowed")
    authors = dag.authors
    for parent in parents:
        if authors[parent] == author:
            raise RuleError("links", "parents must be ops of other authors")
    if prev == NONE:
        _check_first(context, op)
        return
    if dag.authors[prev] != author:
        raise RuleError("prev", "prev must be an op of the same author")
    if op.seq != dag.chains.seq(prev) + 1:
        raise RuleError("seq", f"seq is {op.seq}; prev's is {dag.chains.seq(prev)}")
    if op.time < dag.times[prev]:
        raise RuleError("time", "time is below prev's")


def validate_causal(context: Context, op: Op, number: int) -> int:
    """Check all that an op's past decides; it has been placed under `number`, its form and header checked.

    Returns:
        What the op adds to its chain's balance, credits (negative for what it takes).

    Raises:
        RuleError: the rule that it breaks.
    """
    check = _CHECKS.get(op.kind)
    return 0 if check is None else check(context, op, Past(context, op, number))


def _check_first(context: Context, op: Op) -> None:
    if context.params.is_named(op.author):
        return
    if isinstance(op.body, Claim):
        number = context.dag.find(OpId(op.body.of))
        is_transfer = number is not None and context.dag.kind(number) is Kind.TRANSFER
        if number is not None and is_transfer and context.jobs.transfer(number).to == op.author:
            return
    raise RuleError("first_op", "a key that genesis does not name starts with a claim of a transfer to it")


def _find(context: Context, link: bytes, kind: Kind, past: Past) -> int:
    """Return the number of an op of a kind in the past.

    Raises:
        RuleError: it is of another kind, or not in the past.
    """
    number = context.dag.find(OpId(link))
    if number is None or context.dag.kind(number) is not kind or not past.cut.contains(number):
        raise RuleError("reference", f"the {kind.value} that it names is not in its past")
    return number


def _pay(context: Context, op: Op, past: Past, amount: int) -> int:
    balance = context.accounts.balance(op.author, past.prev)
    if balance < amount:
        raise RuleError("balance", f"it takes {amount} credits; the balance is {balance}")
    return -amount


def _own(context: Context, past: Past, kind: Kind, job: int) -> list[int]:
    """Return the author's earlier ops of a kind for a job, on its own chain."""
    return context.jobs.part_on_chain(past.author, kind, job, past.prev)


def _check_transfer(context: Context, op: Op, past: Past) -> int:
    assert isinstance(op.body, Transfer)
    return _pay(context, op, past, op.body.amount)


def _check_job(context: Context, op: Op, past: Past) -> int:
    terms, params = op.body, context.params
    assert isinstance(terms, Job)
    if terms.bounty < params.bounty_min:
        raise RuleError("terms", f"the bounty is {terms.bounty}; the least is {params.bounty_min}")
    if any(at % params.tick_ms for at in (terms.bid_until, terms.reveal_until, terms.verdict_until)):
        raise RuleError("terms", f"deadlines must be multiples of {params.tick_ms} ms")
    window = (params.faulty_max + 4) * params.delta_ms
    if op.time >= terms.bid_until:
        raise RuleError("terms", "bid_until must be after the job's own time")
    if terms.reveal_until < terms.bid_until + window:
        raise RuleError("terms", f"reveal_until must be at least {window} ms after bid_until")
    window += 2 * terms.task.resources.seconds * 1_000
    if terms.verdict_until < terms.reveal_until + window:
        raise RuleError("terms", f"verdict_until must be at least {window} ms after reveal_until")
    return _pay(context, op, past, terms.bounty + terms.pool)


def _check_stake(context: Context, op: Op, past: Past) -> int:
    assert isinstance(op.body, Stake)
    job = _find(context, op.body.job, Kind.JOB, past)
    if not context.witnesses.is_certified(job, past.cut):
        raise RuleError("not_certified", "the job is not certified in its past")
    if context.witnesses.certificates(job, past.cut):
        raise RuleError("decided", "the job is decided already")
    if context.dag.authors[job] == past.author:
        raise RuleError("own_job", "a poster can't stake on its own job")
    if _own(context, past, Kind.STAKE, job):
        raise RuleError("once", "it has staked on this job before")
    return _pay(context, op, past, context.jobs.terms(job).stake)


def _check_bid(context: Context, op: Op, past: Past) -> int:
    assert isinstance(op.body, Bid)
    job = _find(context, op.body.job, Kind.JOB, past)
    if context.dag.authors[job] == past.author:
        raise RuleError("own_job", "a poster can't bid on its own job")
    if context.jobs.terms(job).stake > 0:
        stakes = _own(context, past, Kind.STAKE, job)
        if not any(context.witnesses.is_certified(stake, past.cut) for stake in stakes):
            raise RuleError("stake", "its stake on the job is not certified in its past")
    earlier = _own(context, past, Kind.BID, job)
    if len(earlier) >= limits.BIDS_MAX:
        raise RuleError("bids", f"at most {limits.BIDS_MAX} bids of one author on a job")
    if any(op.body.loss >= context.jobs.bid(bid).loss for bid in earlier):
        raise RuleError("loss", "the loss must be below those of its earlier bids on the job")
    return 0


def _check_reveal(context: Context, op: Op, past: Past) -> int:
    body, params = op.body, context.params
    assert isinstance(body, Reveal)
    bid = context.dag.find(OpId(body.bid))
    if (
        bid is None
        or past.prev == NONE
        or context.dag.kind(bid) is not Kind.BID
        or not context.dag.chains.is_on_chain(bid, past.prev)
    ):
        raise RuleError("reference", "it must reveal a bid on its own chain")
    if context.jobs.bid(bid).commit != compute_commitment(op.author, BlobId(body.model)):
        raise RuleError("commit", "the model is not the one that the bid commits to")
    if context.jobs.on_chain(context.jobs.reveals.get(bid), past.prev):
        raise RuleError("once", "it has revealed this bid before")
    closing = context.jobs.terms(context.jobs.job_of.get(bid)).bid_until + params.closing_ms
    if context.witnesses.count_past(closing, past.cut) < params.quorum:
        raise RuleError("early", "bidding is not closed by a quorum in its past")
    return 0


def _check_vote(context: Context, op: Op, past: Past) -> int:
    assert isinstance(op.body, Vote)
    reveal = _find(context, op.body.reveal, Kind.REVEAL, past)
    job = context.jobs.job_of.get(reveal)
    if context.dag.authors[job] == past.author and len(context.params.witnesses) > 1:
        raise RuleError("own_job", "a poster can't vote on its own job")
    if not context.votes.is_elector(op.author, job):
        raise RuleError("elector", "it is no elector of the job")
    if past.cut.contains_any(context.jobs.parts.get((past.author, Kind.BID.value, job))):
        raise RuleError("bidder", "it has bid on the job")
    own_votes = _own(context, past, Kind.VOTE, job)
    if any(context.jobs.vote(vote).reveal == op.body.reveal for vote in own_votes):
        raise RuleError("once", "it has voted on this reveal before")
    return 0


def _check_beat(context: Context, op: Op, past: Past) -> int:
    if op.author not in context.params.witnesses:
        raise RuleError("witness", "only witnesses beat")
    return 0


def _check_attest(context: Context, op: Op, past: Past) -> int:
    assert isinstance(op.body, Attest)
    if op.author not in context.params.witnesses:
        raise RuleError("witness", "only witnesses attest")
    job = _find(context, op.body.job, Kind.JOB, past)
    if _own(context, past, Kind.ATTEST, job):
        raise RuleError("once", "it has attested this job before")
    return 0


def _check_claim(context: Context, op: Op, past: Past) -> int:
    assert isinstance(op.body, Claim)
    number = context.dag.find(OpId(op.body.of))
    if number is None or context.dag.kind(number) not in (Kind.JOB, Kind.TRANSFER) or not past.cut.contains(number):
        raise RuleError("reference", "what it claims is not in its past")
    if context.jobs.on_chain(context.jobs.claims.get((past.author, number)), past.prev):
        raise RuleError("once", "it has claimed this before")
    if context.dag.kind(number) is Kind.TRANSFER:
        amount = _claim_transfer(context, op, past, number)
    else:
        amount = _claim_job(context, op, past, number)
    if context.accounts.balance(op.author, past.prev) + amount > limits.INT_MAX:
        raise RuleError("balance", "the balance would exceed 2^53 - 1")
    return amount


def _claim_transfer(context: Context, op: Op, past: Past, transfer: int) -> int:
    body = context.jobs.transfer(transfer)
    if body.to != op.author:
        raise RuleError("receiver", "the transfer is to another key")
    if not context.witnesses.is_certified(transfer, past.cut):
        raise RuleError("not_certified", "the transfer is not certified in its past")
    return body.amount


def _claim_job(context: Context, op: Op, past: Past, job: int) -> int:
    digests = context.witnesses.certificates(job, past.cut)
    if len(digests) != 1:
        raise RuleError("not_certified", f"the job has {len(digests)} certified outcomes in its past; one is needed")
    record = context.record(job, digests[0])
    amount = context.settlement.due(job, record, past.author, past.prev, past.cut)
    if amount == 0:
        raise RuleError("nothing_due", "the outcome gives its author nothing")
    return amount


_CHECKS: Final[dict[Kind, Callable[[Context, Op, Past], int]]] = {
    Kind.TRANSFER: _check_transfer,
    Kind.JOB: _check_job,
    Kind.STAKE: _check_stake,
    Kind.BID: _check_bid,
    Kind.REVEAL: _check_reveal,
    Kind.VOTE: _check_vote,
    Kind.BEAT: _check_beat,
    Kind.ATTEST: _check_attest,
    Kind.CLAIM: _check_claim,
}
