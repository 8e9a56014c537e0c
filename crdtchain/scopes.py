"""What a partial replica keeps: some jobs, and all that is needed to judge them as a full replica judges.

A *selector* names jobs, tags, posters, accounts. The *scope* of a selector is the past of genesis and of all ops
*about* what it names, each a fact that the op's own past decides for ever:

- about a job: the job itself; stakes, bids, reveals, votes, attests and claims on it; and each op of a witness that has
  the job in its past, but no certificate of the job's outcome yet;
- about an account: all that its key signs; transfers to it; and each op of a witness that has a value op of these in
  its past, but not its certification before itself.

Theory of operation:

1. Ops are looked at once, in the order of their numbers, which is causal: whatever an op may be about is here before
   it. What is about the selected has its past added by a walk down that stops at members.
2. A *matter* is a job or value op for which witness ops are kept until it is closed. What is closed as of a witness's
   op is closed as of all later ones on its chain: so each chain carries the matters that are still open along it, and
   a matter is given up once for each chain. One open matter suffices to keep an op, hence the last one that did is
   asked first.

Invariants:

1. A scope is a downset: links of members are members. So each op in it is judged by all of its past.
2. Equal sets of ops give equal scopes; more ops give a larger scope, never a smaller one. The scope of a scope is
   itself: a ledger of its ops alone keeps all of them.

Source: docs/protocol/scopes.md. Not here: how scopes are compared (`sync`), which ops a node takes (`node.partial`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.dag import NONE
from crdtchain.errors import DecodeError, PeerError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import VALUE_KINDS, Attest, Bid, Body, Claim, Job, Kind, Op, Reveal, Stake, Transfer, Vote
from crdtchain.scalars import Author, OpId
from crdtchain.sync.tree import RangeTree
from crdtchain.witness import Cut

JOBS_MAX: Final = 96
"""Jobs that one selector names; more are selected by tag or by poster."""
KEYS_MAX: Final = 16
SELECTOR_TAGS_MAX: Final = 32
CHAINS_MAX: Final = 128
"""Chains of witnesses along which open matters are remembered; along further ones they are found again."""
SCOPES_MAX: Final = 16
"""Scopes of peers that are followed at once."""


class Selector(Struct, frozen=True):
    """What somebody wants to keep; each list sorted and without repeats. The empty one stands for everything."""

    jobs: tuple[OpId, ...] = ()
    """These jobs."""
    tags: tuple[str, ...] = ()
    """Jobs that have one of these tags."""
    authors: tuple[Author, ...] = ()
    """Jobs that these keys posted."""
    accounts: tuple[Author, ...] = ()
    """All that these keys sign, and transfers to them."""

    def __bool__(self) -> bool:
        return bool(self.jobs or self.tags or self.authors or self.accounts)

    def join(self, other: Selector) -> Selector:
        """Return what selects whatever one of both selects.

        Raises:
            UsageError: it is more than a selector holds.
        """
        return make_selector(
            (*self.jobs, *other.jobs),
            (*self.tags, *other.tags),
            (*self.authors, *other.authors),
            (*self.accounts, *other.accounts),
        )


class _Plain(Struct, frozen=True, forbid_unknown_fields=True):
    """A selector as it is encoded."""

    jobs: Annotated[list[Link], Meta(max_length=JOBS_MAX)]
    tags: Annotated[list[str], Meta(max_length=SELECTOR_TAGS_MAX)]
    authors: Annotated[list[Annotated[bytes, Meta(min_length=32, max_length=32)]], Meta(max_length=KEYS_MAX)]
    accounts: Annotated[list[Annotated[bytes, Meta(min_length=32, max_length=32)]], Meta(max_length=KEYS_MAX)]


def make_selector(
    jobs: Iterable[OpId] = (),
    tags: Iterable[str] = (),
    authors: Iterable[Author] = (),
    accounts: Iterable[Author] = (),
) -> Selector:
    """Return a selector, its lists put in order.

    Raises:
        UsageError: too many, or a text that no job can have as its tag.
    """
    selector = Selector(
        tuple(sorted(set(jobs))), tuple(sorted(set(tags))), tuple(sorted(set(authors))), tuple(sorted(set(accounts)))
    )
    for name, items, count_max in (
        ("jobs", selector.jobs, JOBS_MAX),
        ("tags", selector.tags, SELECTOR_TAGS_MAX),
        ("authors", selector.authors, KEYS_MAX),
        ("accounts", selector.accounts, KEYS_MAX),
    ):
        if len(items) > count_max:
            raise UsageError(f"a scope names at most {count_max} {name}; these are {len(items)}")
    for tag in selector.tags:
        # "surrogatepass": half of a surrogate pair has bytes too, and is no text.
        data = tag.encode("utf-8", "surrogatepass")
        if not 1 <= len(data) <= limits.TAG_BYTES_MAX or data != tag.encode("utf-8", "replace"):
            raise UsageError(f"a tag is a text of 1 to {limits.TAG_BYTES_MAX} bytes, not so {tag[:60]!r}")
    return selector


def encode_selector(selector: Selector) -> bytes:
    """Return the one encoding of a selector; that of the empty one, for everything, has no bytes."""
    if not selector:
        return b""
    return codec.encode(
        {
            "jobs": [Link(job) for job in selector.jobs],
            "tags": list(selector.tags),
            "authors": [bytes(key) for key in selector.authors],
            "accounts": [bytes(key) for key in selector.accounts],
        },
        bounded=True,
    )


def decode_selector(data: bytes) -> Selector:
    """Read what `encode_selector` made.

    Raises:
        DecodeError: it is not that, or not within the bounds.
    """
    if not data:
        return Selector()
    try:
        plain = msgspec.convert(codec.decode(data), _Plain, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise DecodeError("shape", f"not the shape of a scope: {error}") from None
    rows: Sequence[Sequence[bytes | str]] = (plain.jobs, plain.tags, plain.authors, plain.accounts)
    if not any(rows) or any(left >= right for row in rows for left, right in pairwise(row)):  # type: ignore[operator]
        raise DecodeError("shape", "the lists of a scope are sorted, without repeats, and not all empty")
    if not all(map(codec.is_op_id, plain.jobs)) or not all(
        1 <= len(tag.encode()) <= limits.TAG_BYTES_MAX for tag in plain.tags
    ):
        raise DecodeError("shape", "a scope names a job that is no op, or a tag that is too long")
    return Selector(
        tuple(OpId(bytes(job)) for job in plain.jobs),
        tuple(plain.tags),
        tuple(Author(key) for key in plain.authors),
        tuple(Author(key) for key in plain.accounts),
    )


class _Chain(Struct):
    """What is open along the chain of one witness, up to some op."""

    open: dict[int, None]
    """Matters that are not known to be closed."""
    next: int = 0
    """How many of all matters have been taken into `open`."""
    keeper: int = NONE
    """The matter for which the last op was kept."""


class ScopeIndex:
    """Which ops of a ledger belong to a scope; it follows the ledger as that grows, at a cost linear in what is new."""

    def __init__(self, ledger: Ledger, selector: Selector) -> None:
        self.selector = selector
        self._jobs: dict[int, None] = {}
        self._ledger = ledger
        self._wanted = frozenset(selector.jobs), frozenset(selector.tags), frozenset(selector.authors)
        self._accounts = frozenset(selector.accounts)
        self._matters: list[int] = []
        self._chains: dict[int, _Chain] = {}
        """For chains of witnesses, by their last op that was looked at."""
        self._is_member = bytearray()
        self._count = 0
        self._tree: RangeTree | None = None

    def __len__(self) -> int:
        self.update()
        return self._count

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._ledger) and self.holds(number)

    def holds(self, number: int) -> bool:
        """Whether an op of the ledger belongs to the scope."""
        self.update()
        return self._is_member[number] != 0

    @property
    def jobs(self) -> list[int]:
        """The selected jobs that are here, ascending."""
        self.update()
        return list(self._jobs)

    def selects(self, job: int) -> bool:
        """Whether a job is one of those selected."""
        self.update()
        return job in self._jobs

    @property
    def members(self) -> list[int]:
        """The ops that belong to the scope, ascending."""
        self.update()
        return [number for number, flag in enumerate(self._is_member) if flag]

    @property
    def tree(self) -> RangeTree:
        """The tree over the members."""
        if self._tree is None:
            members = self.members
            self._tree = RangeTree(self._ledger.dag.ids, self._ledger.dag.depths, members)
        self.update()
        return self._tree

    def update(self) -> None:
        """Take in the ops that were added to the ledger since the last call."""
        first, count = len(self._is_member), len(self._ledger)
        self._is_member.extend(bytes(count - first))
        for number in range(first, count):
            if not self.selector or number == 0 or self._is_about(number):
                self._include(number)

    def _include(self, number: int) -> None:
        """Add an op and all of its past that is not in yet."""
        flags, links, stack = self._is_member, self._ledger.dag.links, [number]
        while stack:
            op = stack.pop()
            if flags[op]:
                continue
            flags[op] = 1
            self._count += 1
            if self._tree is not None:
                self._tree.add(op)
            stack.extend(link for link in links(op) if not flags[link])

    # -- what an op is about --

    def _is_about(self, number: int) -> bool:
        """Whether an op is about what is selected; matters and chains are noted on the way."""
        dag, kind = self._ledger.dag, self._ledger.dag.kind(number)
        is_of_account = self._is_of_account(dag.author_key(number), kind, number)
        is_about_job = self._is_about_job(number, kind)
        if (is_about_job and kind is Kind.JOB) or (is_of_account and kind in VALUE_KINDS):
            self._matters.append(number)
        # A chain is followed also where its op is kept for another reason: else it would have to be found again.
        is_kept = dag.is_witness_op(number) and self._follow(number)
        return is_about_job or is_of_account or is_kept

    def _is_about_job(self, number: int, kind: Kind) -> bool:
        jobs = self._ledger.jobs
        match kind:
            case Kind.JOB:
                dag, terms = self._ledger.dag, jobs.terms(number)
                is_wanted = self.is_wanted(dag.ids[number], terms.tags, dag.author_key(number))
                if is_wanted:
                    self._jobs[number] = None
                return is_wanted
            case Kind.STAKE | Kind.BID | Kind.REVEAL | Kind.VOTE | Kind.ATTEST:
                return jobs.job_of.get(number) in self._jobs
            case Kind.CLAIM:
                body = jobs.bodies[number]
                return isinstance(body, Claim) and jobs.number(OpId(body.of)) in self._jobs
            case _:
                return False

    def is_wanted(self, job: OpId, tags: Iterable[str], poster: Author) -> bool:
        """Whether a job is one of those selected."""
        by_id, by_tag, by_poster = self._wanted
        return job in by_id or poster in by_poster or not by_tag.isdisjoint(tags)

    def _is_of_account(self, author: Author, kind: Kind, number: int) -> bool:
        if not self._accounts:
            return False
        if kind is Kind.TRANSFER and self._ledger.jobs.transfer(number).to in self._accounts:
            return True
        return author in self._accounts

    # -- which ops of witnesses are kept --

    def _follow(self, number: int) -> bool:
        """Whether an op of a witness is kept for a matter that is open as of it; its chain is moved on to it."""
        dag, is_covered_by = self._ledger.dag, self._ledger.witnesses.is_covered_by
        chain = self._chains.pop(dag.prevs[number], None) or _Chain({})
        self._chains[number] = chain
        while len(self._chains) > CHAINS_MAX:
            del self._chains[next(iter(self._chains))]
        chain.open.update(dict.fromkeys(self._matters[chain.next :]))
        chain.next = len(self._matters)
        past = _Past(self._ledger, dag.links(number))
        if chain.keeper in chain.open and not self._is_closed(chain.keeper, past):
            return True
        for matter in list(chain.open):
            if matter == number or not is_covered_by(matter, number):
                continue
            if not self._is_closed(matter, past):
                chain.keeper = matter
                return True
            del chain.open[matter]
        return False

    def _is_closed(self, matter: int, past: _Past) -> bool:
        """Whether nothing more is kept for a matter, as of the past of a witness's op.

        Only what goes before the op counts: so the op by which a value op becomes certified is still kept.
        """
        witnesses = self._ledger.witnesses
        if matter in self._jobs:
            return bool(witnesses.records.get(matter)) and bool(witnesses.certificates(matter, past.cut))
        is_answered = len(witnesses.acknowledgements.get(matter)) >= witnesses.params.quorum
        return is_answered and witnesses.is_certified(matter, past.cut)

    # -- ops that are not here --

    def expects(self, op: Op) -> bool:
        """Whether an op that is not here yet belongs to the scope, as far as what is here tells.

        Links that are not here are taken not to matter: what is kept too much does no harm, and what is passed over
        is found by the next comparison with a peer.
        """
        self.update()
        if not self.selector or op.author in self._accounts:
            return True
        return self._is_expected(op.id, op.author, op.body) or (
            op.author in self._ledger.params.witnesses and self._is_kept_for(op)
        )

    def _is_expected(self, op: OpId, author: Author, body: Body) -> bool:
        dag, job_of = self._ledger.dag, self._ledger.jobs.job_of
        match body:
            case Job():
                return self.is_wanted(op, body.tags, author)
            case Transfer():
                return body.to in self._accounts
            case Stake(job=link) | Bid(job=link) | Attest(job=link) | Claim(of=link):
                return dag.find(OpId(bytes(link))) in self._jobs
            case Reveal(bid=link) | Vote(reveal=link):
                number = dag.find(OpId(bytes(link)))
                return number is not None and job_of.find(number) in self._jobs
            case _:
                return False

    def _is_kept_for(self, op: Op) -> bool:
        """Whether a matter is open as of what an op of a witness links to."""
        dag = self._ledger.dag
        prev = None if op.prev is None else dag.find(op.prev)
        found = [prev, *map(dag.find, op.parents)]
        past = _Past(self._ledger, [link for link in found if link is not None])
        chain = None if prev is None else self._chains.get(prev)
        matters = self._matters if chain is None else [*chain.open, *self._matters[chain.next :]]
        return bool(past.links) and any(
            past.cut.contains(matter) and not self._is_closed(matter, past) for matter in matters
        )


class _Past:
    """What some ops have in their past, made when it is first asked."""

    def __init__(self, ledger: Ledger, links: list[int]) -> None:
        self.links = links
        self._ledger = ledger
        self._cut: Cut | None = None

    @property
    def cut(self) -> Cut:
        """The cut."""
        if self._cut is None:
            self._cut = self._ledger.witnesses.cut(self.links)
        return self._cut


class Scopes:
    """The scopes that peers ask for, each followed while it is among the last ones; the own one always.

    What is in use makes no room for others: else a few strangers could have all of them made anew again and again.
    """

    def __init__(self, ledger: Ledger, own: ScopeIndex | None = None) -> None:
        self._ledger = ledger
        self._found: dict[bytes, ScopeIndex] = {}
        self._own = own
        self._own_scope = b"" if own is None else encode_selector(own.selector)

    def has(self, scope: bytes) -> bool:
        """Whether an encoded scope is one of those that are followed."""
        return scope == self._own_scope or scope in self._found

    def find(self, scope: bytes, in_use: Collection[bytes] = ()) -> ScopeIndex:
        """Return the index of an encoded scope; `in_use` are those that are not given up for it.

        Raises:
            PeerError: it is none, or all that may be followed at once are in use.
        """
        if self._own is not None and scope == self._own_scope:
            return self._own
        index = self._found.pop(scope, None)
        if index is None:
            try:
                selector = decode_selector(scope)
            except DecodeError as error:
                raise PeerError(f"the peer asks for a scope that is none: {error}") from None
            if len(self._found) >= SCOPES_MAX:
                unused = next((other for other in self._found if other not in in_use), None)
                if unused is None:
                    raise PeerError("peers ask for too many scopes; ask again in a while", "busy")
                del self._found[unused]
            index = ScopeIndex(self._ledger, selector)
        self._found[scope] = index
        return index
