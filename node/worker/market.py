"""What a worker sees of the ledger and can do in it: small structs, one Protocol, and the view of a ledger.

The worker knows no node: it works against a `Market`, which is the runtime of its own process or a node elsewhere. A
view is a snapshot in plain values, taken as of everything that is known; it says what holds, never what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from crdtchain.dag import NONE
from crdtchain.deadlines import Timeliness
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Job, Kind, Reveal
from crdtchain.scalars import Author, BlobId, Credits, Micros, OpId
from crdtchain.witness import Cut

Verdict = Literal["valid", "cheat", "missing"]
_NOTHING = Credits(0)


@dataclass(frozen=True, slots=True)
class BidView:
    """One bid.

    Attributes:
        late: it came too late for certain.
        on_time: a quorum of witnesses had it in time.
        revealed: its author has revealed it.
    """

    id: OpId
    author: Author
    loss: Micros
    commit: bytes
    on_time: bool = False
    late: bool = False
    revealed: bool = False


@dataclass(frozen=True, slots=True)
class RevealView:
    """One revealed model; `voted`: by the worker's own key."""

    id: OpId
    author: Author
    bid: OpId
    loss: Micros
    model: BlobId
    size: int
    late: bool = False
    voted: bool = False


@dataclass(frozen=True, slots=True)
class JobView:
    """One job, as one key sees it.

    Attributes:
        certified: stakes and bids on it are allowed.
        decided: its outcome is certified.
        bidding_closed: a quorum of witnesses is past the last moment of bidding, so bids may be revealed.
        elector: the own key may vote on its reveals.
        staked: the own key has put down the stake; `stake_certified`: bids may follow.
        due: what the own key may claim, credits.
    """

    id: OpId
    poster: Author
    terms: Job
    certified: bool = False
    decided: bool = False
    bidding_closed: bool = False
    elector: bool = False
    staked: bool = False
    stake_certified: bool = False
    due: Credits = _NOTHING
    bids: tuple[BidView, ...] = ()
    reveals: tuple[RevealView, ...] = ()

    def bids_of(self, author: Author) -> list[BidView]:
        """Return an author's bids, the lowest loss first."""
        return sorted((bid for bid in self.bids if bid.author == author), key=lambda bid: bid.loss)


class Market(Protocol):
    """A node, as a worker uses it; every op is signed with the node's own key.

    What the ledger refuses is an `InvalidOpError`, a node that does not answer a `PeerError`.
    """

    @property
    def me(self) -> Author:
        """The key that signs."""
        ...

    @property
    def delta_ms(self) -> int:
        """Δ of the network."""
        ...

    def now_ms(self) -> int:
        """The time now, ms since the Unix epoch."""
        ...

    async def balance(self) -> Credits:
        """Return the spendable credits."""
        ...

    async def jobs(self) -> list[JobView]:
        """Return a snapshot of all jobs."""
        ...

    async def wait(self, timeout_s: float) -> None:
        """Wait until something in the ledger has changed since the last call, or a time has passed."""
        ...

    async def get_blob(self, blob: BlobId) -> bytes | None:
        """Return a blob's bytes, fetched from peers if need be; None when nobody has it now."""
        ...

    async def put_blob(self, data: bytes) -> BlobId:
        """Keep a blob and offer it to others."""
        ...

    async def stake(self, job: OpId) -> OpId:
        """Put down a job's stake."""
        ...

    async def bid(self, job: OpId, loss: Micros, model: BlobId, data: bytes) -> OpId:
        """Announce a loss and commit to a model, whose bytes are given to a node elsewhere and to nobody else."""
        ...

    async def reveal(self, bid: OpId, model: BlobId, size: int) -> OpId:
        """Show the model behind a bid."""
        ...

    async def vote(self, reveal: OpId, verdict: Verdict, loss: Micros | None) -> OpId:
        """Say what a revealed model is worth."""
        ...

    async def claim(self, of: OpId) -> OpId:
        """Take what a job's outcome or a transfer gives."""
        ...


def view_jobs(ledger: Ledger, me: Author) -> list[JobView]:
    """Return what one key sees of all jobs, as of everything that is here."""
    cut = ledger.everything()
    return [view_job(ledger, job, me, cut) for job in ledger.jobs.jobs]


def view_job(ledger: Ledger, job: int, me: Author, cut: Cut) -> JobView:
    """Return what one key sees of one job."""
    dag, params, terms = ledger.dag, ledger.params, ledger.jobs.terms(job)
    own = dag.find_author(me)
    stakes = [] if own is None else list(ledger.jobs.parts.get((own, Kind.STAKE.value, job)))
    bids = tuple(_view_bid(ledger, bid, cut) for bid in ledger.jobs.bids.get(job))
    return JobView(
        id=dag.ids[job],
        poster=dag.author_key(job),
        terms=terms,
        certified=ledger.witnesses.is_certified(job, cut),
        decided=bool(ledger.witnesses.certificates(job, cut)),
        bidding_closed=ledger.witnesses.count_past(terms.bid_until + params.closing_ms, cut) >= params.quorum,
        elector=ledger.votes.is_elector(me, job),
        staked=bool(stakes),
        stake_certified=any(ledger.witnesses.is_certified(stake, cut) for stake in stakes),
        due=_find_due(ledger, job, own, cut),
        bids=bids,
        reveals=tuple(
            _view_reveal(ledger, reveal, own, cut)
            for bid in ledger.jobs.bids.get(job)
            for reveal in ledger.jobs.reveals.get(bid)
        ),
    )


def _view_bid(ledger: Ledger, bid: int, cut: Cut) -> BidView:
    body = ledger.jobs.bid(bid)
    timeliness = ledger.deadlines.timeliness(bid, ledger.jobs.deadline(bid), cut)
    return BidView(
        id=ledger.dag.ids[bid],
        author=ledger.dag.author_key(bid),
        loss=Micros(body.loss),
        commit=body.commit,
        on_time=timeliness is Timeliness.ON_TIME,
        late=timeliness is Timeliness.LATE,
        revealed=bool(ledger.jobs.reveals.get(bid)),
    )


def _view_reveal(ledger: Ledger, reveal: int, own: int | None, cut: Cut) -> RevealView:
    body = ledger.jobs.bodies[reveal]
    assert isinstance(body, Reveal)
    return RevealView(
        id=ledger.dag.ids[reveal],
        author=ledger.dag.author_key(reveal),
        bid=OpId(body.bid),
        loss=Micros(ledger.jobs.bid(ledger.jobs.reveal_bid(reveal)).loss),
        model=BlobId(body.model),
        size=body.size,
        late=ledger.deadlines.timeliness(reveal, ledger.jobs.deadline(reveal), cut) is Timeliness.LATE,
        voted=any(ledger.dag.authors[vote] == own for vote in ledger.jobs.votes.get(reveal)),
    )


def _find_due(ledger: Ledger, job: int, own: int | None, cut: Cut) -> Credits:
    """Return what a key may still claim of a decided job; 0 before, and after."""
    record = ledger.certificate(job, cut)
    if own is None or record is None or ledger.jobs.claims.get((own, job)):
        return _NOTHING
    tips = ledger.dag.chains.tips(own)
    tip = max(tips, key=ledger.dag.chains.seq) if tips else NONE
    return Credits(ledger.settlement.due(job, record, own, tip, cut))


def compute_balance(ledger: Ledger, me: Author) -> Credits:
    """Return the balance at the end of a key's chain, credits."""
    own = ledger.dag.find_author(me)
    tips = [] if own is None else ledger.dag.chains.tips(own)
    tip = max(tips, key=ledger.dag.chains.seq) if tips else NONE
    return Credits(ledger.accounts.balance(me, tip))
