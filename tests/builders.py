"""Signed histories for tests: networks with real keys, and whole lives of jobs, made in a few lines.

A `World` founds a network, holds a ledger with everything that was ever said in it, and signs for everybody by name
("alice", "bob", the witnesses "w0", "w1", …). Keys follow from names and a seed, times from the world's own clock, so a
history is the same in every run, byte for byte. What is said has to be valid, unless `sign` alone is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from msgspec import Struct
from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from crdtchain import limits
from crdtchain.codec import Link, compute_blob_id
from crdtchain.ledger.rules import compute_commitment
from crdtchain.ledger.state import Ledger
from crdtchain.ops import (
    Attest,
    Beat,
    Bid,
    Body,
    Claim,
    Data,
    Genesis,
    Job,
    Kind,
    ModelSpec,
    Resources,
    Reveal,
    SignedOp,
    Stake,
    Task,
    Transfer,
    Vote,
)
from crdtchain.replica import Replica
from crdtchain.scalars import Author, OpId
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.signing import GENESIS_NETWORK, signing_bytes

START_MS: Final = 1_800_000_000_000
"""The clock of a new world."""
CREDITS: Final = 1_000
"""What genesis grants a name by default."""
PEOPLE: Final = ("alice", "bob", "carol", "dave")


class Played(Struct):
    """The ops of one job that was played."""

    job: OpId
    stakes: dict[str, OpId]
    bids: dict[str, OpId]
    """By author: the last bid."""
    reveals: dict[str, OpId]
    votes: list[OpId]
    attests: list[OpId]
    claims: dict[str, OpId]


def make_blob_link(text: str) -> Link:
    """Return the link to a small blob that holds the text."""
    return Link(compute_blob_id(text.encode()))


class World:
    """A network, everything said in it, and everybody's keys."""

    def __init__(
        self, witnesses: int = 4, grants: Mapping[str, int] | None = None, seed: str = "world", **settings: Any
    ) -> None:
        """Found a network; `w0` is the founder. `settings` replace fields of the genesis body."""
        self.seed = seed
        self.now = START_MS
        self.witnesses = [f"w{number}" for number in range(witnesses)]
        self._names: dict[Author, str] = {}
        self._keys: dict[str, tuple[Author, bytes]] = {}
        self._replicas: dict[str, tuple[Replica, int]] = {}
        self.models: dict[OpId, Link] = {}
        """Bid to the model that it commits to."""
        granted = dict.fromkeys(PEOPLE, CREDITS) if grants is None else dict(grants)
        fields: dict[str, Any] = {
            "name": "a world",
            "witnesses": tuple(bytes(self.key(name)) for name in self.witnesses),
            "grants": tuple(sorted((bytes(self.key(name)), amount) for name, amount in granted.items())),
            "elector_min": 50,
            "verdict_min": 2,
            "bounty_min": 1,
            "delta_ms": 200,
            "tick_ms": 1_000,
            "expiry_ms": 60_000,
        }
        body = Genesis(**(fields | settings))
        self.genesis = self.sign("w0", body, prev=None, parents=(), network=GENESIS_NETWORK)
        self.log: list[SignedOp] = [self.genesis]
        """Everything said, in a causal order, genesis first."""
        self.ledger = Ledger(self.genesis.op)

    # -- keys and clocks --

    def key(self, name: str) -> Author:
        """Return the key of a name, making it when it is new."""
        if name not in self._keys:
            public, secret = crypto_sign_seed_keypair(sha256(f"{self.seed}/{name}".encode()).digest())
            self._keys[name] = Author(public), secret
            self._names[Author(public)] = name
        return self._keys[name][0]

    def name(self, author: Author) -> str:
        """Return the name of a key that this world made."""
        return self._names[author]

    @property
    def network(self) -> OpId:
        """The id of genesis."""
        return self.genesis.op.id

    def advance(self, ms: int) -> int:
        """Let time pass; returns the time."""
        self.now += ms
        return self.now

    def advance_to(self, time: int) -> int:
        """Let time pass until `time`, if that is ahead; returns the time."""
        self.now = max(self.now, time)
        return self.now

    # -- saying things --

    def tip(self, name: str) -> SignedOp | None:
        """Return the last op on a name's longest branch."""
        dag = self.ledger.dag
        author = dag.find_author(self.key(name))
        tips = [] if author is None else dag.chains.tips(author)
        return self.log[max(tips, key=dag.chains.seq)] if tips else None

    def find(self, op: OpId) -> SignedOp:
        """Return an op that was said."""
        number = self.ledger.dag.find(op)
        assert number is not None
        return self.log[number]

    def heads(self, name: str) -> list[OpId]:
        """Return what a new op of a name links to by default: the heads of others, as many as it may."""
        dag = self.ledger.dag
        author = self.key(name)
        others = sorted(head for head in dag.heads if dag.author_key(head) != author)
        most = limits.WITNESS_PARENTS_MAX if name in self.witnesses else limits.PARENTS_MAX
        return [dag.ids[head] for head in others[-most:]]

    def witness_tips(self, name: str) -> list[OpId]:
        """Return the last ops of all witnesses but the name itself: a common, lighter choice of parents."""
        tips = [self.tip(witness) for witness in self.witnesses if witness != name]
        return [tip.op.id for tip in tips if tip is not None]

    def sign(
        self,
        name: str,
        body: Body,
        time: int | None = None,
        parents: Sequence[OpId] | None = None,
        prev: SignedOp | str | None = "tip",
        network: bytes | None = None,
    ) -> SignedOp:
        """Sign an op without adding it, so it may break causal rules.

        `prev` is the author's tip by default; another op of the author forks its chain, None starts a second one.
        """
        before = self.tip(name) if isinstance(prev, str) else prev
        at = self.now if time is None else time
        if before is not None and time is None:
            at = max(at, before.op.time)
        payload = encode_payload(
            author=self.key(name),
            seq=0 if before is None else before.op.seq + 1,
            prev=None if before is None else before.op.id,
            parents=self.heads(name) if parents is None else parents,
            time=at,
            body=body,
        )
        message = signing_bytes(self.network if network is None else network, payload)
        signature = crypto_sign(message, self._keys[name][1])[:64]
        return decode_op(join_block(payload, signature))

    def add(self, signed: SignedOp) -> SignedOp:
        """Add an op to the ledger and the log.

        Raises:
            RuleError: it is not valid.
        """
        if self.ledger.add(signed.op):
            self.log.append(signed)
        return signed

    def say(
        self,
        name: str,
        body: Body,
        time: int | None = None,
        parents: Sequence[OpId] | None = None,
        prev: SignedOp | str | None = "tip",
    ) -> SignedOp:
        """Sign an op and add it; `time` is the world's by default, `parents` the heads, `prev` as for `sign`."""
        return self.add(self.sign(name, body, time, parents, prev))

    def beat_all(self, time: int | None = None, names: Sequence[str] | None = None) -> list[SignedOp]:
        """Let the witnesses beat at once: each covers what was there before the round, none the others' new beats."""
        speakers = self.witnesses if names is None else names
        beats = [self.sign(name, Beat(), time, self.heads(name)) for name in speakers]
        return [self.add(beat) for beat in beats]

    def replica(self, name: str) -> Replica:
        """Return the replica of a name, given all that was said so far."""
        replica, seen = self._replicas.get(name, (None, 1))
        if replica is None:
            replica = Replica(Ledger(self.genesis.op), self.key(name))
        replica.receive(self.log[seen:], "world", self.now)
        self._replicas[name] = replica, len(self.log)
        return replica

    # -- the steps of a job --

    def terms(self, bid_for_ms: int = 10_000, **changes: Any) -> Job:
        """Return a job's terms with deadlines from now on; `changes` replace fields."""
        params = self.ledger.params
        tick, window = params.tick_ms, (params.faulty_max + 4) * params.delta_ms
        bid_until = -(-(self.now + bid_for_ms) // tick) * tick
        reveal_until = -(-(bid_until + window) // tick) * tick + tick
        verdict_until = -(-(reveal_until + window + 2_000) // tick) * tick
        fields: dict[str, Any] = {
            "title": "Handwritten digits",
            "tags": ("small", "vision"),
            "metric": "log_loss",
            "tolerance": 1,
            "max_loss": None,
            "bounty": 20,
            "stake": 5,
            "pool": 4,
            "on_cheat": "refund",
            "bid_until": bid_until,
            "reveal_until": reveal_until,
            "verdict_until": verdict_until,
            "editors": (),
            "task": Task(
                runtime="docker",
                image="sha256:" + "ab" * 32,
                code=(("predict.py", make_blob_link("predict")), ("train.py", make_blob_link("train"))),
                train=("python", "train.py"),
                predict=("python", "predict.py"),
                params={"epochs": 40},
                resources=Resources(cpus=1, memory_mib=64, disk_mib=16, seconds=1, gpus=0),
            ),
            "data": Data(
                train=(("train.npz", make_blob_link("data")),),
                features=(("x.npy", make_blob_link("features")),),
                labels=make_blob_link("labels"),
            ),
            "model": ModelSpec(format="npz", arrays=(("bias", "float64", (10,)), ("weights", "float64", (64, 10)))),
        }
        return Job(**(fields | changes))

    def job_terms(self, job: OpId) -> Job:
        """Return the terms of a job that was posted."""
        body = self.find(job).op.body
        assert isinstance(body, Job)
        return body

    def post(self, poster: str, bid_for_ms: int = 10_000, **changes: Any) -> OpId:
        """Post a job and have it certified."""
        job = self.say(poster, self.terms(bid_for_ms, **changes)).op.id
        self.certify()
        return job

    def certify(self) -> None:
        """Let some time pass and every witness beat, so that all value ops are certified."""
        self.advance(10)
        self.beat_all()
        self.advance(10)

    def stake(self, worker: str, job: OpId) -> OpId:
        """Stake on a job; bids need it certified."""
        return self.say(worker, Stake(job=Link(job)), parents=self.witness_tips(worker)).op.id

    def bid(self, worker: str, job: OpId, loss: int, model: str | None = None) -> OpId:
        """Bid a loss with a model (its content follows from worker and loss by default)."""
        link = make_blob_link(f"{worker}/{loss}" if model is None else model)
        body = Bid(job=Link(job), loss=loss, commit=compute_commitment(self.key(worker), link))  # type: ignore[arg-type]
        bid = self.say(worker, body, parents=self.witness_tips(worker)).op.id
        self.models[bid] = link
        return bid

    def close(self, deadline: int) -> None:
        """Let every witness beat at a deadline, and again when its last step is past."""
        closing = deadline + self.ledger.params.closing_ms + 1
        self.beat_all(deadline)
        self.advance_to(closing)
        self.beat_all(closing)

    def reveal(self, worker: str, bid: OpId) -> OpId:
        """Reveal the model of a bid."""
        body = Reveal(bid=Link(bid), model=self.models[bid], size=100)
        return self.say(worker, body, parents=self.witness_tips(worker)).op.id

    def vote(self, voter: str, reveal: OpId, verdict: str = "valid", loss: int | None = None) -> OpId:
        """Vote on a reveal."""
        body = Vote(reveal=Link(reveal), verdict=verdict, loss=loss)  # type: ignore[arg-type]
        return self.say(voter, body, parents=[*self.witness_tips(voter), reveal]).op.id

    def attest_all(self, job: OpId, names: Sequence[str] | None = None) -> list[OpId]:
        """Let the witnesses attest what is right for a job, each covering what was there before."""
        number = self.ledger.dag.find(job)
        assert number is not None
        record = self.ledger.settlement.outcome(number, self.ledger.everything())
        assert record is not None
        body = Attest(job=Link(job), record=record)
        signed = [self.sign(name, body, None, self.heads(name)) for name in names or self.witnesses]
        return [self.add(one).op.id for one in signed]

    def claim(self, name: str, of: OpId) -> OpId:
        """Claim what a job or transfer has for a name."""
        return self.say(name, Claim(of=Link(of))).op.id

    def transfer(self, name: str, to: str, amount: int, memo: str | None = None) -> OpId:
        """Transfer credits."""
        return self.say(name, Transfer(to=self.key(to), amount=amount, memo=memo)).op.id

    def claim_all(self, job: OpId) -> dict[str, OpId]:
        """Let everybody claim who gets something from a decided job, and certify the claims."""
        ledger = self.ledger
        number = ledger.dag.find(job)
        assert number is not None
        cut = ledger.everything()
        record = ledger.certificate(number, cut)
        assert record is not None
        claims = {}
        for author in sorted(ledger.dag.author_keys):
            row = ledger.dag.find_author(author)
            tips = [] if row is None else ledger.dag.chains.tips(row)
            if row is not None and tips and ledger.settlement.due(number, record, row, tips[0], cut):
                claims[self.name(author)] = self.claim(self.name(author), job)
        self.certify()
        return claims

    def play_job(
        self,
        poster: str,
        bids: Mapping[str, Sequence[int]],
        verdicts: Mapping[str, str] | None = None,
        silent: Sequence[str] = (),
        **changes: Any,
    ) -> Played:
        """Play one job from posting to claims.

        `bids` are each worker's losses, falling; `verdicts` what all witnesses find about a worker's model
        ("valid" by default); `silent` workers do not reveal.
        """
        job = self.post(poster, **changes)
        terms = self.job_terms(job)
        staked = terms.stake > 0
        stakes = {worker: self.stake(worker, job) for worker in bids} if staked else {}
        self.certify()
        last = {}
        for step in range(max(map(len, bids.values()))):
            for worker, losses in bids.items():
                if step < len(losses):
                    last[worker] = self.bid(worker, job, losses[step])
            self.certify()
        self.advance_to(terms.bid_until)
        self.close(terms.bid_until)
        reveals = {worker: self.reveal(worker, bid) for worker, bid in last.items() if worker not in silent}
        self.certify()
        self.advance_to(terms.reveal_until)
        self.close(terms.reveal_until)
        votes: list[OpId] = []
        for worker, reveal in reveals.items():
            verdict = (verdicts or {}).get(worker, "valid")
            votes.extend(self.vote(witness, reveal, verdict, bids[worker][-1]) for witness in self.witnesses)
        self.certify()
        self.advance_to(terms.verdict_until)
        self.close(terms.verdict_until)
        self.advance(10)
        attests = self.attest_all(job)
        self.certify()
        return Played(job, stakes, last, reveals, votes, attests, self.claim_all(job))


def bulk_world(jobs: int = 80, authors: int = 10, seed: str = "bulk") -> World:
    """Return a world after a long, plain history with 4 witnesses: by default about 20,000 ops in a few seconds.

    Each job has one poster; all others stake, bid several times, reveal; witnesses vote, attest and beat all along;
    everybody claims.
    """
    people = [f"person{number:02}" for number in range(authors)]
    world = World(witnesses=4, grants=dict.fromkeys(people, 1_000_000), seed=seed)
    for number in range(jobs):
        poster = people[number % authors]
        workers = [name for name in people if name != poster]
        bids = {name: [100_000 - 1_000 * step - place for step in range(12)] for place, name in enumerate(workers)}
        verdicts = {workers[0]: "missing"} if number % 7 == 3 else {}
        world.play_job(poster, bids, verdicts, silent=workers[-1:], on_cheat="next", title=f"Job {number}")
        world.advance(1_000)
    return world


def bulk_history(jobs: int = 80, authors: int = 10, seed: str = "bulk") -> list[SignedOp]:
    """Return the ops of `bulk_world`, genesis first, in a causal order."""
    return bulk_world(jobs, authors, seed).log


def kinds_of(log: Sequence[SignedOp]) -> dict[Kind, int]:
    """Count the ops of each kind."""
    counts: dict[Kind, int] = {}
    for signed in log:
        counts[signed.op.kind] = counts.get(signed.op.kind, 0) + 1
    return counts
