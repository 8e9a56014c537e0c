"""Which blobs the open jobs of a ledger need, and what for.

A job is open until its outcome is certified, or until the time has passed after which witnesses attest nothing but
that it expired. Until then whoever takes part may need its program and data, and the models behind its bids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from crdtchain.codec import format_cid
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Job, Reveal
from crdtchain.scalars import Author, BlobId


def find_needed(
    ledger: Ledger, now_ms: int, author: Author, known_models: Mapping[bytes, tuple[BlobId, int]]
) -> dict[BlobId, str]:
    """Return the blobs that open jobs need, each with what for, for people.

    `known_models`: what the author's own bids may commit to, as for `agenda.find_reveals`.
    """
    found: dict[BlobId, str] = {}
    for job in ledger.jobs.jobs:
        if is_open(ledger, job, now_ms):
            of = f"of job {format_cid(ledger.dag.ids[job])}"
            for blob, what in _list_named(ledger, job, author, known_models):
                found.setdefault(blob, f"{what} {of}")
    return found


def is_open(ledger: Ledger, job: int, now_ms: int) -> bool:
    """Whether an outcome may still come to which a job's files matter."""
    terms, params = ledger.jobs.terms(job), ledger.params
    if now_ms > terms.verdict_until + params.expiry_ms + params.closing_ms:
        return False
    return not ledger.witnesses.certificates(job, ledger.everything())


def list_files(terms: Job) -> Iterator[tuple[BlobId, str]]:
    """Yield the files that a job's terms name, each with what it is."""
    for _, link in terms.task.code:
        yield BlobId(bytes(link)), "code"
    for _, link in (*terms.data.train, *terms.data.features):
        yield BlobId(bytes(link)), "data"
    yield BlobId(bytes(terms.data.labels)), "labels"


def _list_named(
    ledger: Ledger, job: int, author: Author, known_models: Mapping[bytes, tuple[BlobId, int]]
) -> Iterator[tuple[BlobId, str]]:
    yield from list_files(ledger.jobs.terms(job))
    for bid in ledger.jobs.bids.get(job):
        for reveal in ledger.jobs.reveals.get(bid):
            body = ledger.jobs.bodies[reveal]
            assert isinstance(body, Reveal)
            yield BlobId(bytes(body.model)), "a revealed model"
        commit = ledger.jobs.bid(bid).commit
        if ledger.dag.author_key(bid) == author and commit in known_models:
            yield known_models[commit][0], "the model of an own bid"
