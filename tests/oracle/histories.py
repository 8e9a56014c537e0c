"""Random adversarial histories: jobs played to their end by honest and lying authors, with rules broken on the way."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from tests.oracle.drafting import MakeId, MakeKey, blob, commitment, default_id, default_key, job_body
from tests.oracle.mischief import break_a_rule, stir
from tests.oracle.model import OracleOp
from tests.oracle.rules import Oracle
from tests.oracle.settling import expired_record
from tests.oracle.world import Actor, FullError, World

Draft = OracleOp


@dataclasses.dataclass
class History:
    """The ops in the order they were made, genesis first; the invalid ones among them, with the rule that each breaks.

    No op links to an invalid one. `oracle` holds the valid ones.
    """

    drafts: list[Draft]
    invalid: dict[bytes, str]
    oracle: Oracle


def random_history(
    rng: random.Random, n: int, length: int, make_id: MakeId = default_id, make_key: MakeKey = default_key
) -> list[Draft]:
    """At most `length` ops of a network with n witnesses, in an order in which links come first."""
    return build_history(rng, n, length, make_id, make_key).drafts


def build_history(
    rng: random.Random, n: int, length: int, make_id: MakeId = default_id, make_key: MakeKey = default_key
) -> History:
    """The same, with what the oracle knows of it.

    `make_id` gets author, seq, prev, parents, time, kind and body and returns 36 bytes; `make_key` turns a name into
    32 bytes. With real keys and signatures behind both, the ops can be given to real replicas.
    """
    play = Play(rng, n, length, make_id, make_key)
    try:
        while True:
            play.wave()
    except FullError:
        pass
    return History(play.history, play.invalid, play.oracle)


class Play(World):
    """Waves of jobs, each from its posting to the last claim."""

    tie = False

    def wave(self) -> None:
        """One or two jobs with the same deadlines, and mischief between the steps."""
        for actor in self.witnesses:
            actor.asleep = False
        if self.chance(0.3):
            for actor in self.rng.sample(self.witnesses, self.oracle.n - self.oracle.q):
                actor.asleep = self.chance(0.7)
        jobs = self.post(2 if self.oracle.n <= 3 and self.chance(0.4) else 1)
        if not jobs:
            return
        terms = self.oracle.ops[jobs[0]].body
        self.stakes(jobs)
        self.disturb()
        self.deadline(terms["bid_until"], self.bids(jobs, terms["bid_until"]))
        self.disturb()
        self.deadline(terms["reveal_until"], self.reveals(jobs))
        self.disturb()
        self.deadline(terms["verdict_until"], self.votes(jobs))
        self.disturb()
        for actor in self.witnesses:
            actor.asleep = actor.asleep and self.chance(0.5)
        self.settle(jobs, terms["verdict_until"])
        self.disturb()

    def disturb(self) -> None:
        """Some mischief, valid or not."""
        if self.chance(0.6):
            stir(self)
        for _ in range(self.rng.choice([0, 0, 1, 2])):
            break_a_rule(self)

    # -- the steps of a job --

    def post(self, many: int) -> list[bytes]:
        """Post jobs and have them certified, mostly."""
        rng = self.rng
        bid_until = (self.now // 1000 + rng.randint(4, 6) + self.oracle.f) * 1000
        jobs = []
        for _ in range(many):
            author = self.actors[rng.choice(["poster", "poster", "poster", "dave", "ann"])]
            self.learn_all(author)
            stake = rng.choice([0, 5, 10])
            body = job_body(
                bid_until,
                self.oracle.f,
                bounty=rng.choice([10, 20]),
                pool=rng.choice([0, 7]),
                stake=stake,
                on_cheat="next" if stake == 0 else rng.choice(["refund", "next"]),
                max_loss=rng.choice([None, None, 8]),
            )
            job = self.emit(author, "job", body)
            if job is not None:
                jobs.append(job)
        self.tell(self.witnesses, *jobs)
        self.cover()
        return jobs

    def cover(self) -> None:
        """Witnesses beat at once, mostly all of those awake."""
        self.now += self.rng.randint(1, 150)
        if self.chance(0.8):
            self.beats()
        else:
            for actor in self.rng.sample(self.witnesses, self.rng.randint(1, len(self.witnesses))):
                self.beat(actor)

    def stakes(self, jobs: list[bytes]) -> None:
        """Workers stake; a witness now and then."""
        made = []
        for job in jobs:
            if self.oracle.ops[job].body["stake"] == 0:
                continue
            for worker in self.workers:
                own = self.oracle.ops[job].author == worker.key
                if self.chance(0.1 if own else 0.85):
                    self.see_witnesses(worker)
                    made.append(self.emit(worker, "stake", {"job": job}))
        if made:
            self.tell(self.witnesses, *(one for one in made if one is not None))
            self.cover()

    def see_witnesses(self, actor: Actor) -> None:
        """Mostly everything that the witnesses know, sometimes only some of it."""
        some = self.witnesses if self.chance(0.85) else self.rng.sample(self.witnesses, max(1, self.oracle.q - 1))
        for witness in some:
            actor.known |= witness.known

    def bids(self, jobs: list[bytes], bid_until: int) -> list[bytes]:
        """Bids in two waves, with a tick between them; equal losses often. Those of the second wave come back."""
        self.tie = self.chance(0.4)
        bidders = [
            *self.workers,
            *([self.rng.choice([self.actors["dave"], *self.witnesses])] if self.chance(0.2) else []),
        ]
        first = [bid for job in jobs for worker in bidders if self.chance(0.5) for bid in self.bid(worker, job)]
        if first and self.chance(0.7):
            self.tick(first, bid_until)
            first = []
        second = [bid for job in jobs for worker in bidders if self.chance(0.6) for bid in self.bid(worker, job)]
        return first + second

    def tick(self, bids: list[bytes], bid_until: int) -> None:
        """Beats at a tick of the window, by witnesses that saw some of the bids, or that stay split until it closed."""
        at = min(-(-self.now // 1000) * 1000, bid_until - 1000)
        groups = [self.witnesses]
        if self.tie and self.chance(0.5) and at + 1000 * (self.oracle.f + 1) + 400 < bid_until:
            half = self.rng.choice([self.oracle.n // 2, self.oracle.q - 1])
            groups = [self.witnesses[:half], self.witnesses[half:]]
            self.tell(groups[0], *bids)
        else:
            self.tell(self.rng.sample(self.witnesses, self.rng.randint(1, self.oracle.n)), *bids)
            if self.chance(0.6):
                self.tell(self.witnesses, *bids)
        self.now = at
        self.beats(at)
        if len(groups) > 1:
            self.close(at, groups)
        self.tell(self.witnesses, *bids)

    def bid(self, worker: Actor, job: bytes) -> list[bytes]:
        """One or two bids of a worker, or two on a fork."""
        self.see_witnesses(worker)
        before = worker.tip
        many = 1 if self.tie else self.rng.choice([1, 1, 2])
        made = [self.one_bid(worker, job, "tip") for _ in range(many)]
        if before is not None and self.chance(0.07):
            made.append(self.one_bid(worker, job, before))
        return [one for one in made if one is not None]

    def on_chain(self, actor: Actor, kind: str, job: bytes) -> list[bytes]:
        """An actor's own ops of a kind on a job, on the branch that it goes on from."""
        chain = self.oracle.chain(actor.tip) if actor.tip is not None else ()
        return [one for one in chain if self.oracle.ops[one].kind == kind and self.oracle.ops[one].body["job"] == job]

    def ready(self, worker: Actor, job: bytes) -> bool:
        """Whether a bid would be valid: it is not the worker's own job, and its stake is certified where one is due."""
        op = self.oracle.ops[job]
        stakes = self.on_chain(worker, "stake", job)
        known = frozenset(worker.known)
        staked = any(self.oracle.certified_z(one, known) for one in stakes)
        return op.author != worker.key and (op.body["stake"] == 0 or staked)

    def one_bid(self, worker: Actor, job: bytes, after: bytes | str) -> bytes | None:
        if not self.ready(worker, job) and self.chance(0.9):
            return None
        losses = [5] if self.tie else [9, 7, 7, 5, 5, 5, 5, 3]
        earlier = [self.oracle.ops[one].body["loss"] for one in self.on_chain(worker, "bid", job)]
        if earlier and self.chance(0.85):
            losses = [loss for loss in losses if loss < min(earlier)] or [min(earlier) - 1]
        loss = max(0, self.rng.choice(losses))
        commit = commitment(worker.key, blob(f"{worker.name}-{loss}"))
        return self.emit(worker, "bid", {"job": job, "loss": loss, "commit": commit}, after=after)

    def reveals(self, jobs: list[bytes]) -> list[bytes]:
        """Workers reveal their lowest bids, mostly; sometimes another one, twice on a fork, or nothing."""
        made = []
        for job in jobs:
            for worker in [*self.workers, self.actors["dave"], *self.witnesses]:
                if not self.on_chain(worker, "bid", job):
                    continue
                self.see_witnesses(worker)
                mine = self.on_chain(worker, "bid", job)
                if self.chance(0.15):
                    continue
                before = worker.tip
                bid = mine[-1] if self.chance(0.9) else self.rng.choice(mine)
                made.append(self.one_reveal(worker, bid, "tip"))
                if before is not None and self.chance(0.05):
                    made.append(self.one_reveal(worker, bid, before))
        return [one for one in made if one is not None]

    def one_reveal(self, worker: Actor, bid: bytes, after: bytes | str) -> bytes | None:
        """The reveal of a bid; the second one, on a fork, claims another size."""
        model = blob(f"{worker.name}-{self.oracle.ops[bid].body['loss']}")
        return self.emit(
            worker, "reveal", {"bid": bid, "model": model, "size": 8 if after == "tip" else 9}, after=after
        )

    def votes(self, jobs: list[bytes]) -> list[bytes]:
        """Electors vote: what each reveal deserves is drawn first, then some disagree."""
        made = []
        for reveal in self.ids("reveal"):
            if self.oracle.job_of(reveal).id not in jobs:
                continue
            deserved = self.rng.choice(["valid", "valid", "valid", "cheat", "cheat", "cheat", "missing"])
            voters = self.rng.sample(
                self.witnesses, min(self.oracle.n, self.oracle.f + self.rng.choice([0, 1, 1, 1, 2, 2]))
            )
            for voter in [*voters, *([self.actors["dave"]] if self.chance(0.4) else [])]:
                if voter.asleep:
                    continue
                verdict = deserved if self.chance(0.9) else self.rng.choice(["valid", "cheat", "missing"])
                self.learn(voter, reveal)
                before = voter.tip
                body = {"reveal": reveal, "verdict": verdict, "loss": self.rng.choice([None, 5])}
                made.append(self.emit(voter, "vote", body))
                if before is not None and self.chance(0.04):
                    made.append(self.emit(voter, "vote", body | {"loss": 6}, after=before))
        return [one for one in made if one is not None and one in self.oracle.ops]

    # -- deadlines --

    def deadline(self, at: int, ops: list[bytes]) -> None:
        """Witnesses see the ops before the deadline, by the staircase, on one side of a split, or too late."""
        ops = [one for one in ops if one in self.oracle.ops]
        special = self.rng.choice(ops) if ops else None
        for one in ops:
            if one != special:
                self.tell(self.witnesses, one)
        mode = self.rng.choices(["plain", "stairs", "split", "late"], [5, 4, 2, 1])[0] if special else "plain"
        awake = [actor for actor in self.witnesses if not actor.asleep]
        self.rng.shuffle(awake)
        groups = [awake]
        if mode == "split" and special is not None:
            half = self.rng.choice([len(awake) // 2, self.oracle.q - 1])
            groups = [awake[:half], awake[half:]]
            self.tell(groups[0], special)
        elif mode == "plain" and special is not None:
            self.tell(awake, special)
        elif mode == "stairs" and special is not None:
            self.climb(at, special, awake)
        if mode != "stairs":
            self.now = at
            self.beats(at)
        self.close(at, groups)
        for actor in self.witnesses:
            if not actor.asleep:
                self.learn(actor, *ops)
        if self.chance(0.9):
            self.gossip(awake)

    def climb(self, at: int, special: bytes, awake: list[Actor]) -> None:
        """One witness after the other sees the op, each Δ later; the rest at the last step."""
        steps = awake[: self.oracle.f + 1]
        last = special
        for i, actor in enumerate(steps):
            self.now = at + 1000 * i
            self.learn(actor, last)
            self.beat(actor, self.now + (1 if self.chance(0.05) else 0))
            last = actor.tip if actor.tip is not None else last
        rest = awake[self.oracle.f + 1 :]
        self.now = at + 1000 * (self.oracle.f + 1)
        for actor in rest:
            self.learn(actor, last)
        for actor in rest:
            self.beat(actor, self.now + (1 if self.chance(0.1) else 0))

    def close(self, at: int, groups: list[list[Actor]]) -> None:
        """Everybody awake beats after the window, each side of a split knowing its own side only."""
        self.now = at + 1000 * (self.oracle.f + 1) + self.rng.choice([1, 1, 50, 400])
        for group in groups:
            if self.chance(0.5):
                self.gossip(group)
        self.beats(self.now)

    # -- settling --

    def settle(self, jobs: list[bytes], verdict_until: int) -> None:
        """Attests, claims, and what is left when the job expires."""
        for job in jobs:
            if self.chance(0.9):
                self.attests(job)
            if not self.oracle.certificates(job, None) and self.chance(0.7):
                self.now = max(self.now, verdict_until + self.oracle.genesis.body["expiry_ms"])
                self.attests(job)
        self.claims(jobs)
        for transfer in self.ids("transfer"):
            receiver = self.oracle.ops[transfer].body["to"]
            for actor in list(self.actors.values()):
                if actor.key == receiver and self.chance(0.6):
                    self.learn_all(actor)
                    op = self.draft(actor, "claim", {"of": transfer})
                    if self.chance(0.05) or self.oracle.judge(op) is None:
                        self.keep(actor, op)
        self.learn_all(*(actor for actor in self.witnesses if not actor.asleep))
        self.cover()

    def attests(self, job: bytes) -> None:
        """Each witness awake attests what is determined as of its own op; a lying one sometimes something else."""
        for actor in self.witnesses:
            if actor.asleep or (actor.tip is not None and self.attested(actor.tip, job)):
                continue
            if self.chance(0.8):
                self.learn_all(actor)
            record = self.seen_by(actor, job)
            before = actor.tip
            if actor.lying and record is not None and before is not None and self.chance(0.3):
                self.emit(actor, "attest", {"job": job, "record": expired_record()}, after=before)
                actor.tip = before
            if actor.lying and self.chance(0.3):
                record = self.rng.choice([expired_record(), expired_record() | {"expired": False}])
            if record is not None:
                self.emit(actor, "attest", {"job": job, "record": record})

    def attested(self, tip: bytes, job: bytes) -> bool:
        """Whether an attest of the job is on a chain."""
        ops = (self.oracle.ops[one] for one in self.oracle.chain(tip))
        return any(op.kind == "attest" and op.body["job"] == job for op in ops)

    def seen_by(self, actor: Actor, job: bytes) -> dict[str, Any] | None:
        """What an honest witness attests now, as of the attest itself; None when nothing is determined."""
        op = self.draft(actor, "attest", {"job": job, "record": expired_record()})
        if op.id in self.oracle.ops or self.oracle.judge(op) is not None:
            return None
        worked_out = len(self.oracle.memo)
        self.oracle.insert(op)
        try:
            if not self.oracle.certified(job, frozenset([op.id])):
                return None
            if op.time >= self.oracle.ops[job].body["verdict_until"] + self.oracle.genesis.body["expiry_ms"]:
                return expired_record()
            return self.oracle.outcome(job, frozenset([op.id]))
        finally:
            self.oracle.drop(op, worked_out)

    def claims(self, jobs: list[bytes]) -> None:
        """Everybody to whom something is due claims it, and somebody to whom nothing is."""
        for job in jobs:
            if not self.oracle.certificates(job, None) and self.chance(0.9):
                continue
            for actor in list(self.actors.values()):
                if actor.asleep:
                    continue
                self.learn_all(actor)
                op = self.draft(actor, "claim", {"of": job})
                if self.chance(0.05) or self.oracle.judge(op) is None:
                    self.keep(actor, op)
