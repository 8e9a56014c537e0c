"""What a node keeps, when that is not everything; and the parts of the ledger that its peers keep.

Theory of operation:

1. The scope is what settings name and what was added at run time; it is noted in the store, so it never gets smaller by
   a restart. A partial replica always keeps its own account: else it could not know from where its key signs next.
2. Of ops that come live, those of the scope are taken. The others are laid aside for a while, within bounds, for
   witnesses may soon link to them: then they are needed after all, and need not be fetched. What is lost is found when
   scopes are compared with a peer. Ops that were asked for are taken as they come.

Not here: which ops belong to a scope (`crdtchain.scopes`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from crdtchain.adapters.store import Store
from crdtchain.codec import format_cid, format_did, is_op_id, parse_cid
from crdtchain.errors import DecodeError, PeerError, StoreError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, OpId
from crdtchain.scopes import ScopeIndex, Scopes, Selector, decode_selector, encode_selector, make_selector
from crdtchain.views import Json
from node.config import Settings
from node.hold import list_links, sort_by_links
from node.pace import Bucket

EVERYTHING: Final = Selector()
NOTE: Final = "scope"
ASIDE_OPS_MAX: Final = 4_096
ASIDE_BYTES_MAX: Final = 4 * 2**20
NEW_SCOPES: Final = (0.1, 16.0)
"""Scopes of peers that are looked up for the first time, which costs a look at every op: a second, and in a burst."""
LIMITS: Final = (
    "the end of other jobs",
    "what others own by now: their balances are as of the last op that is kept",
    "whether somebody signed two ops for one place elsewhere",
)
"""What a partial replica can't judge."""


async def load_selector(store: Store) -> Selector:
    """Return what the store says that is kept; the empty selector for everything.

    Raises:
        StoreError: the note can't be read.
    """
    try:
        return decode_selector(await store.get_meta(NOTE) or b"")
    except DecodeError as error:
        raise StoreError(f"the note of what is kept is damaged: {error}") from error


def choose_selector(settings: Settings, own: Author, noted: Selector) -> Selector:
    """Return what a node keeps: what its settings name, and what was added before.

    Raises:
        UsageError: a setting names what is no job or no tag, or too many; or the node is a witness.
    """
    jobs = [OpId(parse_cid(text)) for text in settings.jobs]
    if not all(map(is_op_id, jobs)):
        raise UsageError("the setting jobs names what is no id of a job")
    named = make_selector(jobs, settings.job_tags, [own] if settings.own_jobs else [])
    if settings.witness and (named or noted):
        raise UsageError("a witness keeps everything: leave out jobs, job_tags, own_jobs, or run `crdtchain scope all`")
    return noted.join(named) if named else noted


def selector_to_json(selector: Selector) -> dict[str, Json]:
    """Return a selector with ids as CIDs and keys as did:key."""
    return {
        "jobs": [format_cid(job) for job in selector.jobs],
        "tags": list(selector.tags),
        "authors": [format_did(key) for key in selector.authors],
        "accounts": [format_did(key) for key in selector.accounts],
    }


class Partial:
    """The scope of one node, and those of its peers."""

    def __init__(self, ledger: Ledger, own: Author, selector: Selector) -> None:
        """An empty selector: everything is kept."""
        self._ledger = ledger
        self._own = own
        self._aside: dict[OpId, SignedOp] = {}
        self._aside_bytes = 0
        self._jobs_known = 0
        self._new_scopes = Bucket(*NEW_SCOPES)
        self.find_used: Callable[[], Collection[bytes]] = tuple
        """Returns the scopes of the peers that are connected."""
        self._set(selector.join(make_selector(accounts=[own])) if selector else selector)

    def _set(self, selector: Selector) -> None:
        self.scope = encode_selector(selector)
        """What peers are told."""
        self.selector = selector
        self.index = ScopeIndex(self._ledger, selector) if selector else None
        self._scopes = Scopes(self._ledger, self.index)

    def find_part(self, scope: bytes) -> ScopeIndex:
        """Return the index of a scope that a peer asks for.

        Raises:
            PeerError: it is none, or peers ask for too many of them.
        """
        if not self._scopes.has(scope) and not self._new_scopes.take_if(1):
            raise PeerError("peers ask for too many scopes; ask again in a while", "busy")
        return self._scopes.find(scope, self.find_used())

    def widen(self, more: Selector) -> bool:
        """Keep more; returns whether that is a change.

        Raises:
            UsageError: everything is kept already, or it would be more than a selector holds.
        """
        if not self.selector:
            raise UsageError("this node keeps everything already")
        joined = self.selector.join(more)
        if joined == self.selector:
            return False
        self._set(joined)
        return True

    def widen_to_all(self) -> bool:
        """Keep everything; returns whether that is a change."""
        is_partial = bool(self.selector)
        self._set(Selector())
        return is_partial

    async def save(self, store: Store) -> None:
        """Note in the store what is kept."""
        await store.set_meta(NOTE, self.scope)

    # -- live ops --

    def admit(self, ops: Sequence[SignedOp]) -> list[SignedOp]:
        """Return those of some live ops that are to be taken, and what they need of those laid aside, parents first."""
        index = self.index
        if index is None:
            return list(ops)
        offered = list(ops)
        if len(index.jobs) != self._jobs_known:
            # An op may have been laid aside before it was known what it is about.
            self._jobs_known = len(index.jobs)
            offered = [*self._aside.values(), *ops]
        taken: dict[OpId, SignedOp] = {}
        for signed in offered:
            if signed.op.id in taken:
                continue
            if index.expects(signed.op) or self._follows(signed, taken):
                for one in [*self._recall(list_links(signed.op)), signed]:
                    taken[one.op.id] = one
            else:
                self._lay_aside(signed)
        for op in taken:
            self._drop(op)
        return list(taken.values())

    def _follows(self, signed: SignedOp, taken: dict[OpId, SignedOp]) -> bool:
        """Whether an op of a witness covers one that is being taken, and so may be kept for it."""
        is_witness = signed.op.author in self._ledger.params.witnesses
        return is_witness and any(link in taken for link in list_links(signed.op))

    def _recall(self, links: Iterable[OpId]) -> list[SignedOp]:
        """Take up what was laid aside of some ops and their past, parents first."""
        found: dict[OpId, SignedOp] = {}
        stack = [link for link in links if link in self._aside]
        while stack:
            op = stack.pop()
            if op not in found:
                found[op] = self._aside[op]
                stack.extend(link for link in list_links(found[op].op) if link in self._aside)
        for op in found:
            self._drop(op)
        return sort_by_links(found)

    def _lay_aside(self, signed: SignedOp) -> None:
        if signed.op.id in self._aside:
            return
        self._aside[signed.op.id] = signed
        self._aside_bytes += len(signed.block)
        while len(self._aside) > ASIDE_OPS_MAX or self._aside_bytes > ASIDE_BYTES_MAX:
            self._drop(next(iter(self._aside)))

    def _drop(self, op: OpId) -> None:
        signed = self._aside.pop(op, None)
        if signed is not None:
            self._aside_bytes -= len(signed.block)

    # -- for people --

    def is_whole(self, job: int) -> bool:
        """Whether all about a job is kept."""
        return self.index is None or self.index.selects(job)

    def is_own(self, account: Author) -> bool:
        """Whether all of an account is kept."""
        return not self.selector or account in self.selector.accounts

    def to_json(self) -> dict[str, Json] | None:
        """Return what is kept; None for everything."""
        if self.index is None:
            return None
        ids = self._ledger.dag.ids
        return {
            **selector_to_json(self.selector),
            "ops": len(self.index),
            "found": [format_cid(ids[job]) for job in self.index.jobs],
            "cannot_judge": list(LIMITS),
        }
