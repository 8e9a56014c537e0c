"""What an author's node does by itself: claims what is due, reveals what was bid.

Pure decisions over a ledger; a caller signs the bodies one after the other and asks again. A body found here is valid
when the op links to what is here; one that is refused all the same may be tried again later.

Source: protocol sections 6 and 7. Not here: bids and votes (the worker's policy), a witness's duty (`duty`).
"""

from __future__ import annotations

from collections.abc import Mapping

from crdtchain.codec import Link
from crdtchain.dag import NONE
from crdtchain.ledger.state import Ledger
from crdtchain.ledger.votes import Standing
from crdtchain.ops import Body, Claim, Kind, Reveal
from crdtchain.scalars import Author, BlobId
from crdtchain.witness import Cut


def find_tip(ledger: Ledger, author: Author) -> int:
    """Return the last op on an author's longest branch, or -1."""
    number = ledger.dag.find_author(author)
    tips = [] if number is None else ledger.dag.chains.tips(number)
    return max(tips, key=ledger.dag.chains.seq) if tips else NONE


def find_claims(ledger: Ledger, author: Author) -> list[Body]:
    """Return claims of all that is due to an author and not yet claimed on its chain: transfers first, then jobs."""
    tip = find_tip(ledger, author)
    cut = ledger.everything()
    found: list[int] = [
        transfer
        for transfer in ledger.jobs.transfers.get(author)
        if not _has_claimed(ledger, author, transfer, tip) and ledger.witnesses.is_certified(transfer, cut)
    ]
    if tip != NONE:
        found.extend(job for job in ledger.jobs.jobs if _is_job_due(ledger, author, job, tip, cut))
    return [Claim(of=Link(ledger.dag.ids[number])) for number in found]


def _has_claimed(ledger: Ledger, author: Author, of: int, tip: int) -> bool:
    number = ledger.dag.find_author(author)
    return number is not None and bool(ledger.jobs.on_chain(ledger.jobs.claims.get((number, of)), tip))


def _is_job_due(ledger: Ledger, author: Author, job: int, tip: int, cut: Cut) -> bool:
    if job not in ledger.witnesses.records or _has_claimed(ledger, author, job, tip):
        return False
    record = ledger.certificate(job, cut)
    number = ledger.dag.authors[tip]
    return record is not None and ledger.settlement.due(job, record, number, tip, cut) > 0


def find_reveals(ledger: Ledger, author: Author, known_models: Mapping[bytes, tuple[BlobId, int]]) -> list[Body]:
    """Return reveals of an author's bids that are due: bidding is closed, revealing is not, and the model is known.

    `known_models`: commitment to the model's blob and its size in bytes.
    """
    tip = find_tip(ledger, author)
    if tip == NONE:
        return []
    cut = ledger.everything()
    found: list[Body] = []
    for job in ledger.jobs.jobs:
        own = ledger.jobs.part_on_chain(ledger.dag.authors[tip], Kind.BID, job, tip)
        if own and _is_revealing(ledger, job, cut):
            found.extend(
                _reveal(ledger, bid, known_models) for bid in _bids_to_reveal(ledger, job, own, tip, cut, known_models)
            )
    return found


def _is_revealing(ledger: Ledger, job: int, cut: Cut) -> bool:
    """Whether q witnesses say that bidding is over, and not yet that revealing is."""
    terms, params = ledger.jobs.terms(job), ledger.params
    if ledger.witnesses.certificates(job, cut):
        return False
    opened = ledger.witnesses.count_past(terms.bid_until + params.closing_ms, cut)
    closed = ledger.witnesses.count_past(terms.reveal_until + params.closing_ms, cut)
    return closed < params.quorum <= opened


def _bids_to_reveal(
    ledger: Ledger, job: int, own: list[int], tip: int, cut: Cut, known_models: Mapping[bytes, tuple[BlobId, int]]
) -> list[int]:
    """Return the bids that may be examined: from the lowest loss up to the first that certainly counts."""
    found: list[int] = []
    max_loss = ledger.jobs.terms(job).max_loss
    for bid in sorted(own, key=lambda number: ledger.jobs.bid(number).loss):
        body = ledger.jobs.bid(bid)
        standing = ledger.votes.standing(bid, cut)
        if standing is Standing.OUT or (max_loss is not None and body.loss > max_loss):
            continue
        is_revealed = bool(ledger.jobs.on_chain(ledger.jobs.reveals.get(bid), tip))
        if not is_revealed and body.commit in known_models:
            found.append(bid)
        if standing is Standing.COUNTS:
            break
    return found


def _reveal(ledger: Ledger, bid: int, known_models: Mapping[bytes, tuple[BlobId, int]]) -> Body:
    model, size = known_models[ledger.jobs.bid(bid).commit]
    return Reveal(bid=Link(ledger.dag.ids[bid]), model=Link(model), size=size)
