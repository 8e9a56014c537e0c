"""Section 5 up to the ticks: clocks, acknowledgements, certificates, the staircase, what voids an op."""

from __future__ import annotations

from tests.oracle.model import VALUE_KINDS, Cut, Dag, OracleOp, Past, Record, remembered


def frozen(record: Record) -> tuple[object, ...]:
    """A record as something that can be compared and hashed."""
    lists = (tuple(record[name]) for name in ("cheats", "forfeits", "votes"))
    return (record["winner"], *lists, record["expired"])


def thawed(one: tuple[object, ...]) -> Record:
    """The record that `frozen` was made of."""
    winner, cheats, forfeits, votes, expired = one
    assert isinstance(cheats, tuple)
    assert isinstance(forfeits, tuple)
    assert isinstance(votes, tuple)
    return {
        "winner": winner,
        "cheats": list(cheats),
        "forfeits": list(forfeits),
        "votes": list(votes),
        "expired": expired,
    }


class Witnessing(Dag):
    """What the witnesses said, as of any cut. Names that end in `_z` take a past, the others a cut."""

    def clock(self, cut: Cut) -> dict[bytes, set[bytes]]:
        """For each witness, those of its ops in past(Z) that are on the chain of no other such op."""
        said = self.spoken(self.past(cut))
        return {
            witness: {a.id for a in ops if not any(b.id != a.id and self.on_chain_of(a.id, b.id) for b in ops)}
            for witness, ops in said.items()
        }

    # -- certified --

    @remembered
    def doubled_seqs(self, author: bytes, z: Past) -> frozenset[int]:
        """The seqs at which a past holds two different ops of the author."""
        seqs = [self.ops[one].seq for one in z if self.ops[one].author == author]
        return frozenset(seq for seq in seqs if seqs.count(seq) > 1)

    def earlier_value_ops(self, x: bytes) -> list[bytes]:
        """The value ops before x on x's chain."""
        return [one for one in self.before(x) if self.ops[one].kind in VALUE_KINDS]

    @remembered
    def acknowledges_at(self, o: bytes, x: bytes) -> bool:
        """Whether o's author acknowledges x at o, and at no other op of o's chain."""
        op, value_op, z = self.ops[o], self.ops[x], self.pasts[o]
        if op.author not in self.witnesses or x not in z or (op.prev is not None and x in self.pasts[op.prev]):
            return False
        earlier = self.earlier_value_ops(x)
        if not all(any(self.acknowledges_at(mine, y) for mine in self.chain(o)) for y in earlier):
            return False
        last = max((self.ops[y].seq for y in earlier if self.certified_z(y, z)), default=-1)
        if any(last < seq <= value_op.seq for seq in self.doubled_seqs(value_op.author, z)):
            return False
        return not self.banned_z(value_op.author, z)

    @remembered
    def acknowledged_z(self, x: bytes, z: Past) -> frozenset[bytes]:
        """The witnesses that acknowledge x by some op in a past."""
        return frozenset(w for w, said in self.spoken(z).items() if any(self.acknowledges_at(o.id, x) for o in said))

    def certified_z(self, x: bytes, z: Past) -> bool:
        """Whether q witnesses acknowledge x in a past."""
        return self.ops[x].kind in VALUE_KINDS and len(self.acknowledged_z(x, z)) >= self.q

    def acknowledged(self, x: bytes, cut: Cut) -> set[bytes]:
        """The witnesses that acknowledge x as of Z."""
        return set(self.acknowledged_z(x, self.past(cut)))

    def certified(self, x: bytes, cut: Cut) -> bool:
        """Whether the value op x is certified as of Z."""
        return self.certified_z(x, self.past(cut))

    def certified_set(self, cut: Cut) -> set[bytes]:
        """All value ops certified as of Z."""
        z = self.past(cut)
        return {op.id for op in self.ops_in(z, *VALUE_KINDS) if self.certified_z(op.id, z)}

    # -- certificates and bans --

    @remembered
    def _certificates_z(self, job: bytes, z: Past) -> tuple[tuple[object, ...], ...]:
        signers: dict[tuple[object, ...], set[bytes]] = {}
        for op in self.ops_in(z, "attest"):
            if op.body["job"] == job:
                signers.setdefault(frozen(op.body["record"]), set()).add(op.author)
        return tuple(sorted((one for one, keys in signers.items() if len(keys) >= self.q), key=repr))

    def certificates_z(self, job: bytes, z: Past) -> list[Record]:
        """The records that q witnesses attest for the job in a past."""
        return [thawed(one) for one in self._certificates_z(job, z)]

    def certificates(self, job: bytes, cut: Cut) -> list[Record]:
        """The certified outcomes of a job as of Z: at most one unless more than f witnesses lie."""
        return self.certificates_z(job, self.past(cut))

    @remembered
    def banned_z(self, author: bytes, z: Past) -> bool:
        """Whether a certificate in a past lists the author among the cheats."""
        return any(
            author in record["cheats"] for job in self.ops_in(z, "job") for record in self.certificates_z(job.id, z)
        )

    def banned(self, author: bytes, cut: Cut) -> bool:
        """Whether the author is banned as of Z."""
        return self.banned_z(author, self.past(cut))

    # -- on time --

    @remembered
    def has(self, o: bytes, x: bytes, deadline: int) -> bool:
        """Whether o's author has x for the deadline by o itself."""
        op, z = self.ops[o], self.pasts[o]
        if op.author not in self.witnesses or x not in z:
            return False
        if op.time <= deadline:
            return True
        if op.time > deadline + (self.f + 1) * self.delta:
            return False
        others = len(self._others_having(op, x, deadline))
        return any(op.time <= deadline + r * self.delta and others >= r for r in range(1, self.f + 2))

    def _others_having(self, op: OracleOp, x: bytes, deadline: int) -> frozenset[bytes]:
        said = self.spoken(self.pasts[op.id])
        return frozenset(
            w for w, ops in said.items() if w != op.author and any(self.has(o.id, x, deadline) for o in ops)
        )

    @remembered
    def closed(self, o: bytes, x: bytes, deadline: int) -> bool:
        """Whether o's author closed the deadline without x by o itself."""
        op = self.ops[o]
        if op.author not in self.witnesses or op.time <= deadline + (self.f + 1) * self.delta:
            return False
        return not any(self.has(mine, x, deadline) for mine in self.chain(o))

    @remembered
    def having(self, x: bytes, deadline: int, z: Past) -> frozenset[bytes]:
        """The witnesses that have x for the deadline by some op in a past."""
        return frozenset(w for w, said in self.spoken(z).items() if any(self.has(o.id, x, deadline) for o in said))

    @remembered
    def closing(self, x: bytes, deadline: int, z: Past) -> frozenset[bytes]:
        """The witnesses that closed the deadline without x by some op in a past."""
        return frozenset(w for w, said in self.spoken(z).items() if any(self.closed(o.id, x, deadline) for o in said))

    def has_count(self, x: bytes, deadline: int, cut: Cut) -> int:
        """How many witnesses have x for the deadline as of Z."""
        return len(self.having(x, deadline, self.past(cut)))

    @remembered
    def status_z(self, x: bytes, deadline: int, z: Past) -> str:
        """ON_TIME, LATE or OPEN in a past; ON_TIME where more than f lying witnesses made it both."""
        if len(self.having(x, deadline, z)) >= self.q:
            return "ON_TIME"
        return "LATE" if len(self.closing(x, deadline, z)) >= self.q else "OPEN"

    def status(self, x: bytes, deadline: int, cut: Cut) -> str:
        """ON_TIME, LATE or OPEN for the deadline as of Z."""
        return self.status_z(x, deadline, self.past(cut))

    def past_time_z(self, time: int, z: Past) -> bool:
        """Whether q different witnesses have an op in a past whose time is greater."""
        return sum(any(o.time > time for o in said) for said in self.spoken(z).values()) >= self.q

    # -- deadlines, ticks, conflicts --

    def job_of(self, x: bytes) -> OracleOp:
        """The job that a deadline op, a stake or an attest is about."""
        op = self.ops[x]
        if op.kind == "vote":
            return self.job_of(op.body["reveal"])
        if op.kind == "reveal":
            return self.job_of(op.body["bid"])
        return self.ops[op.body["job"]]

    def deadline_of(self, x: bytes) -> int:
        """The deadline of a bid, a reveal or a vote."""
        name = {"bid": "bid_until", "reveal": "reveal_until", "vote": "verdict_until"}[self.ops[x].kind]
        deadline: int = self.job_of(x).body[name]
        return deadline

    def conflicts(self, x: bytes, z: Past) -> list[bytes]:
        """The ops in a past of x's author, kind and job that are on another branch than x."""
        op, job = self.ops[x], self.job_of(x).id
        return [
            other.id
            for other in self.ops_in(z, op.kind)
            if other.author == op.author
            and self.job_of(other.id).id == job
            and not self.on_chain_of(other.id, x)
            and not self.on_chain_of(x, other.id)
        ]

    @remembered
    def void_z(self, x: bytes, z: Past) -> str:
        """void, undetermined or clear in a past."""
        op, deadline = self.ops[x], self.deadline_of(x)
        if op.kind in ("bid", "vote") and self.banned_z(op.author, self.pasts[self.job_of(x).id]):
            return "void"
        mine = self.status_z(x, deadline, z)
        theirs = [self.status_z(other, deadline, z) for other in self.conflicts(x, z)]
        if mine == "ON_TIME" and "ON_TIME" in theirs:
            return "void"
        if mine != "LATE" and any(their != "LATE" and "OPEN" in (mine, their) for their in theirs):
            return "undetermined"
        return "clear"

    def void_state(self, x: bytes, cut: Cut) -> str:
        """Whether a bid, reveal or vote is void, undetermined or clear as of Z."""
        return self.void_z(x, self.past(cut))

    @remembered
    def ticks_z(self, x: bytes, z: Past) -> tuple[int, int | None]:
        """The least and the greatest tick that x can still arrive at, in a past; the greatest None when unbounded.

        What a witness has changes with the deadline only at an op's time less some steps, so only the ticks around
        those are tried: the first tick ON_TIME is the greatest possible, one after the last tick LATE the least.
        """
        tried = {1}
        for said in self.spoken(z).values():
            for o in said:
                for r in range(self.f + 2):
                    around = (o.time - r * self.delta) // self.tick
                    tried |= {k for k in (around - 1, around, around + 1) if k >= 1}
        status = {k: self.status_z(x, k * self.tick, z) for k in tried}
        greatest = min((k for k in tried if status[k] == "ON_TIME"), default=None)
        least = 1 + max((k for k in tried if status[k] == "LATE"), default=0)
        return least, greatest

    def arrival_ticks(self, x: bytes, cut: Cut) -> tuple[int, int | None]:
        """The range of ticks that x can have arrived at, as of Z: determined when both ends are equal."""
        return self.ticks_z(x, self.past(cut))
