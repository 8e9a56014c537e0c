"""The ledger: a set of valid ops and all that follows from it.

`Ledger` puts the parts together: the graph, what witnesses say, accounts, jobs, votes, outcomes. It has one way in,
`add`, which judges an op by its own past and then applies it at a cost of O(links + new marks); and one more,
`merge`, which joins another ledger's state directly, table by table, because everything derived is a grow-only
function of the ops.

Invariants:

1. Equal op sets give equal states, whatever the order in which ops came, and so equal digests.
2. `a.merge(b)` equals the ledger of the union of the ops of a and b.
3. A valid op never becomes invalid, an invalid one never valid.

Source: protocol sections 1 and 6; docs/protocol/state.md for the digests.
"""

from __future__ import annotations

from hashlib import sha256

from crdtchain import codec
from crdtchain.codec import Link
from crdtchain.dag import NONE, Dag
from crdtchain.deadlines import Deadlines
from crdtchain.errors import RuleError
from crdtchain.ledger.accounts import Accounts
from crdtchain.ledger.jobs import Jobs
from crdtchain.ledger.rules import SPEAKING_KINDS, validate_causal, validate_header
from crdtchain.ledger.settlement import EXPIRED, Settlement, compute_digest
from crdtchain.ledger.votes import Votes
from crdtchain.ops import VALUE_KINDS, Attest, Op, Record
from crdtchain.params import compute_params
from crdtchain.scalars import Author, OpId
from crdtchain.witness import Cut, Witnesses


class Ledger:
    """The state of one network at one replica."""

    def __init__(self, genesis: Op) -> None:
        self.genesis = genesis
        self.params = compute_params(genesis)
        self.dag = Dag(self.params.witnesses)
        self.witnesses = Witnesses(self.params, self.dag)
        self.deadlines = Deadlines(self.dag, self.witnesses)
        self.accounts = Accounts(self.dag, self.witnesses)
        self.jobs = Jobs(self.dag)
        self.votes = Votes(self.dag, self.witnesses, self.deadlines, self.jobs, self.accounts)
        self.settlement = Settlement(self.dag, self.witnesses, self.deadlines, self.jobs, self.votes)
        self.records: dict[bytes, Record] = {}
        """Attested records by digest."""
        self._apply(self.dag.place(genesis, NONE, ()), genesis, 0, cover=True)

    def __len__(self) -> int:
        return len(self.dag)

    def __contains__(self, op: OpId) -> bool:
        return self.dag.find(op) is not None

    def record(self, job: int, digest: bytes) -> Record:
        """Return an attested record by its digest."""
        return self.records[digest]

    def add(self, op: Op) -> bool:
        """Judge an op by its past and add it; False when it is here already.

        All its links must be here, its form and signature checked.

        Raises:
            RuleError: it breaks a rule, for ever.
            LookupError: a link is not here.
        """
        if op.id in self:
            return False
        self._place(op, keep=True)
        return True

    def judge(self, op: Op) -> None:
        """Raise what `add` would raise, without adding."""
        if op.id not in self:
            self._place(op, keep=False)

    def _place(self, op: Op, keep: bool) -> None:
        """Judge an op as of itself: what a witness says by the op counts, so it is placed first, and taken back if
        need be.
        """
        try:
            prev, parents = self.dag.resolve(op)
        except KeyError:
            raise LookupError("an op is judged only when all that it links to is here") from None
        validate_header(self, op, prev, parents)
        number = self.dag.place(op, prev, parents)
        covered = self.witnesses.cover(number) if op.kind in SPEAKING_KINDS and self.dag.is_witness_op(number) else None
        try:
            change = validate_causal(self, op, number)
            if keep:
                self._apply(number, op, change, covered is None)
        finally:
            if number not in self.dag.heads:
                self._undo(number, covered)

    def _undo(self, number: int, covered: list[int] | None) -> None:
        if covered is not None:
            self.witnesses.undo(number, covered)
            self.deadlines.forget()
        self.dag.undo()

    def _apply(self, number: int, op: Op, change: int, cover: bool) -> None:
        self.dag.settle(number)
        self.jobs.add(number, op)
        if op.kind in VALUE_KINDS:
            self.accounts.apply(number, change)
        if isinstance(op.body, Attest):
            self._apply_attest(number, op.body)
        if cover and self.dag.is_witness_op(number):
            self.witnesses.cover(number)

    def _apply_attest(self, number: int, body: Attest) -> None:
        digest = compute_digest(body.record)
        self.records.setdefault(digest, body.record)
        cheats = [self.dag.author_number(Author(key)) for key in body.record.cheats]
        self.witnesses.attest(number, self.jobs.number(OpId(body.job)), digest, cheats)

    def merge(self, other: Ledger) -> None:
        """Join another ledger of the same network into this one, table by table.

        Raises:
            RuleError: it is another network's.
        """
        if other.params.network != self.params.network:
            raise RuleError("network", "ledgers of different networks can't be merged")
        rename = self.dag.merge(other.dag)
        rename_author = [self.dag.author_number(key) for key in other.dag.author_keys]
        self.witnesses.merge(other.witnesses, rename, rename_author)
        self.accounts.merge(other.accounts, rename)
        self.jobs.merge(other.jobs, rename, rename_author)
        for digest, record in other.records.items():
            self.records.setdefault(digest, record)

    def everything(self) -> Cut:
        """Return the cut of all that is here."""
        return self.witnesses.everything()

    def certificate(self, job: int, cut: Cut) -> Record | None:
        """Return the one certified outcome of a job as of a cut; None without one, or with two."""
        digests = self.witnesses.certificates(job, cut)
        return self.records[digests[0]] if len(digests) == 1 else None

    def right_record(self, attest: int) -> Record | None:
        """Return what a witness op that attests a job had to attest, from its own past; None: nothing."""
        job = self.jobs.job_of.get(attest)
        cut = self.witnesses.cut((attest,))
        if not self.witnesses.is_certified(job, cut):
            return None
        if self.dag.times[attest] >= self.jobs.terms(job).verdict_until + self.params.expiry_ms:
            return EXPIRED
        return self.settlement.outcome(job, cut)

    def certified_ops(self, cut: Cut) -> list[int]:
        """Return the value ops that are certified as of a cut, in causal order."""
        return sorted(op for op in self.witnesses.acknowledgements if self.witnesses.is_certified(op, cut))

    def heads_digest(self) -> bytes:
        """Return sha256 of the sorted heads' 36-byte ids."""
        return sha256(b"".join(self.dag.head_ids())).digest()

    def state_digest(self) -> bytes:
        """Return sha256 of the canonical encoding of the derived state (docs/protocol/state.md)."""
        return sha256(codec.encode(self.to_state())).digest()

    def to_state(self) -> codec.Value:
        """Return the derived state as plain values: certified set, accounts, jobs with their outcomes."""
        cut = self.everything()
        certified = [Link(op) for op in sorted(self.dag.ids[op] for op in self.certified_ops(cut))]
        return {"accounts": self._accounts_state(cut), "certified": list(certified), "jobs": self._jobs_state(cut)}

    def _accounts_state(self, cut: Cut) -> codec.Value:
        keys = sorted(set(self.params.grants) | {self.dag.author_keys[author] for author in set(self.dag.authors)})
        rows: list[codec.Value] = []
        for key in keys:
            author = self.dag.find_author(key)
            tips = [] if author is None else sorted(self.dag.ids[tip] for tip in self.dag.chains.tips(author))
            rows.append(
                {
                    "key": bytes(key),
                    "credits": self.accounts.certified_balance(key, cut),
                    "tips": [Link(tip) for tip in tips],
                    "banned": author is not None and self.witnesses.is_banned(author, cut),
                }
            )
        return rows

    def _jobs_state(self, cut: Cut) -> codec.Value:
        rows: list[codec.Value] = []
        for job in sorted(self.jobs.jobs, key=self.dag.ids.__getitem__):
            digests = self.witnesses.certificates(job, cut)
            outcome = None if digests else self.settlement.outcome(job, cut)
            rows.append(
                {
                    "id": Link(self.dag.ids[job]),
                    "certified": self.witnesses.is_certified(job, cut),
                    "certificates": list(digests),
                    "leading": None if outcome is None else compute_digest(outcome),
                }
            )
        return rows
