"""A simulated network: real replicas and duties, a clock that jumps from event to event, messages with random delays.

Everything is drawn from one seed, which is in every failure. Signatures are not checked here, so they are random
bytes. A Byzantine witness is a key with two replicas, each on its own side: both do their duty and so the key speaks
with two tongues.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from hashlib import sha256

from crdtchain.codec import Link
from crdtchain.errors import InvalidOpError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.ledger.state import Ledger
from crdtchain.ops import (
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
    Vote,
)
from crdtchain.replica import Persist, Replica, Send, Want
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.shapes import decode_op, encode_payload, join_block

DELTA = 1_000
START = 10_000_000


def make_key(name: str) -> Author:
    """Return 32 bytes that pass the key rule, for a name."""
    digest = bytearray(sha256(b"simulated " + name.encode()).digest())
    digest[31] &= 0x3F
    return Author(bytes(digest))


def make_blob(name: str) -> Link:
    """Return a blob's link, for a name."""
    return Link(b"\x01\x55\x12\x20" + sha256(name.encode()).digest())


class Node:
    """One replica in the simulation."""

    def __init__(self, network: Network, name: str, key: str, side: int | None = None) -> None:
        self.network = network
        self.name = name
        self.side = side
        self.replica = Replica(Ledger(network.genesis.op), make_key(key), debounce_ms=50)
        self.up = True
        self.wake_ms: int | None = None

    def now(self) -> int:
        return self.network.now

    def run_duty(self) -> None:
        """Say all that is due."""
        for _ in range(200):
            draft = self.replica.due(self.now())
            if draft is None:
                break
            _, effects = self.replica.commit(draft, self.network.signature(), self.now())
            self.network.spread(self, effects)
        else:
            raise AssertionError(f"duty never ends at {self.name}, seed {self.network.seed}")
        wake = self.replica.next_wake_ms(self.now())
        if wake is not None:
            wake = max(wake, self.now() + 1)
            if self.wake_ms is None or wake < self.wake_ms or self.wake_ms <= self.now():
                self.wake_ms = wake
                self.network.at(wake, self.on_wake)

    def on_wake(self) -> None:
        if self.up:
            self.run_duty()

    def receive(self, ops: Sequence[SignedOp], source: Node) -> None:
        if not self.up:
            return
        self.run_duty()
        effects = self.replica.receive(ops, source.name, self.now())
        self.network.spread(self, effects)
        for effect in effects:
            if isinstance(effect, Want):
                wanted = [self.network.blocks[op] for op in effect.ids]
                self.network.at(self.now() + 20, lambda wanted=wanted: self.receive(wanted, source))  # type: ignore[misc]
        self.run_duty()

    def say(self, body: Body) -> OpId | None:
        """Sign a body if the rules allow it now."""
        self.run_duty()
        try:
            draft = self.replica.draft(body, self.now())
        except InvalidOpError:
            return None
        signed, effects = self.replica.commit(draft, self.network.signature(), self.now())
        self.network.spread(self, effects)
        self.run_duty()
        return signed.op.id


class Network:
    """Nodes, an event queue, and a rule for delays."""

    def __init__(self, seed: int, witnesses: Sequence[str], grants: dict[str, int]) -> None:
        self.seed = seed
        self.rng = random.Random(f"network {seed}")
        self.now = START
        self.nodes: list[Node] = []
        self.blocks: dict[OpId, SignedOp] = {}
        self.blocked: Callable[[Node, Node], bool] = lambda sender, receiver: False
        self.delay: Callable[[Node, Node], int] = lambda sender, receiver: self.rng.randrange(1, DELTA // 3)
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        body = Genesis(
            name="simulated",
            witnesses=tuple(make_key(name) for name in witnesses),
            grants=tuple(sorted((make_key(name), amount) for name, amount in grants.items())),
            elector_min=500,
            verdict_min=1,
            bounty_min=1,
            delta_ms=DELTA,
            tick_ms=DELTA,
            expiry_ms=60_000,
        )
        payload = encode_payload(make_key("founder"), 0, None, (), START - 1_000, body)
        self.genesis = decode_op(join_block(payload, self.signature()))

    def signature(self) -> bytes:
        return self.rng.randbytes(64)

    def add(self, name: str, key: str | None = None, side: int | None = None) -> Node:
        node = Node(self, name, key or name, side)
        self.nodes.append(node)
        return node

    def at(self, time: int, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(time, self.now), next(self._order), action))

    def spread(self, sender: Node, effects: Sequence[object]) -> None:
        """Deliver what a node sends; a Persist has come before, or the node would lose what others know."""
        stored: set[OpId] = set()
        for effect in effects:
            if isinstance(effect, Persist):
                stored.update(signed.op.id for signed in effect.ops)
                self.blocks.update((signed.op.id, signed) for signed in effect.ops)
            elif isinstance(effect, Send):
                assert {signed.op.id for signed in effect.ops} <= stored
                if not effect.source:
                    for receiver in self.nodes:
                        if receiver is not sender:
                            self.send(sender, receiver, effect.ops)

    def send(self, sender: Node, receiver: Node, ops: Sequence[SignedOp]) -> None:
        if sender.side is not None and receiver.side is not None and sender.side != receiver.side:
            return
        if self.blocked(sender, receiver):
            self.at(self.now + 400, lambda: self.send(sender, receiver, ops))
            return
        self.at(self.now + self.delay(sender, receiver), lambda: receiver.receive(ops, sender))

    def run(self, until: int) -> None:
        """Play all events up to a time."""
        for node in self.nodes:
            node.run_duty()
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def terms(self, bid_until: int, **changes: object) -> Job:
        """Return terms with the tightest deadlines behind a bid deadline."""
        f = (len(self.nodes[0].replica.ledger.params.witnesses) - 1) // 3
        reveal_until = bid_until + (f + 4) * DELTA
        values: dict[str, object] = {
            "title": "simulated",
            "tags": (),
            "metric": "mse",
            "tolerance": 0,
            "max_loss": None,
            "bounty": 100,
            "stake": 10,
            "pool": 7,
            "on_cheat": "refund",
            "bid_until": bid_until,
            "reveal_until": reveal_until,
            "verdict_until": reveal_until + (f + 4) * DELTA + 2_000,
            "editors": (),
            "task": Task(
                runtime="wasm",
                image="m.wasm",
                code=(("m.wasm", make_blob("m")),),
                train=(),
                predict=(),
                params={},
                resources=Resources(cpus=1, memory_mib=16, disk_mib=1, seconds=1, gpus=0),
            ),
            "data": Data(
                train=(("x.npy", make_blob("x")),), features=(("y.npy", make_blob("y")),), labels=make_blob("l")
            ),
            "model": ModelSpec(format="raw", arrays=(("w", "float64", (1,)),)),
        }
        return Job(**{**values, **changes})  # type: ignore[arg-type]


class Worker:
    """A bidder: stakes when the job is certified, bids at given times, reveals its lowest bid after the close."""

    def __init__(self, node: Node, job: OpId, bids: Sequence[tuple[int, int]], reveals: bool = True) -> None:
        self.node, self.job, self.reveals = node, job, reveals
        self.lowest: tuple[OpId, str] | None = None
        self.staked = self.revealed = False
        for time, loss in bids:
            node.network.at(time, lambda loss=loss: self.bid(loss))  # type: ignore[misc]
        self.poll()

    def poll(self) -> None:
        if self.node.up and not self.staked:
            self.staked = self.node.say(Stake(job=Link(self.job))) is not None
        if self.node.up and self.lowest is not None and self.reveals and not self.revealed:
            bid, model = self.lowest
            body = Reveal(bid=Link(bid), model=make_blob(model), size=1)
            self.revealed = self.node.say(body) is not None
        self.node.network.at(self.node.now() + 150, self.poll)

    def bid(self, loss: int) -> None:
        if not self.node.up:
            return
        author = self.node.replica.author
        assert author is not None
        model = f"{self.node.name} {loss}"
        commit = compute_commitment(author, BlobId(make_blob(model)))
        op = self.node.say(Bid(job=Link(self.job), loss=loss, commit=commit))
        if op is not None:
            self.lowest = (op, model)


class Voter:
    """An elector that votes on each reveal it sees."""

    def __init__(self, node: Node, job: OpId, verdict: Callable[[int], str]) -> None:
        self.node, self.job, self.verdict = node, job, verdict
        self.done: set[int] = set()
        self.poll()

    def poll(self) -> None:
        ledger = self.node.replica.ledger
        job = ledger.dag.find(self.job)
        if job is not None and self.node.up:
            for bid in ledger.jobs.bids.get(job):
                for reveal in ledger.jobs.reveals.get(bid):
                    if reveal not in self.done:
                        self.done.add(reveal)
                        verdict = self.verdict(ledger.jobs.bid(bid).loss)
                        self.node.say(Vote(reveal=Link(ledger.dag.ids[reveal]), verdict=verdict, loss=None))  # type: ignore[arg-type]
        self.node.network.at(self.node.now() + 100, self.poll)


def claim_all(node: Node) -> None:
    """Claim whatever the rules give a node's key."""
    ledger = node.replica.ledger
    for job in list(ledger.jobs.jobs):
        node.say(Claim(of=Link(ledger.dag.ids[job])))


def assert_equal_ledgers(network: Network) -> None:
    """All replicas hold the same ops and derive the same state."""
    digests = {node.name: node.replica.ledger.state_digest() for node in network.nodes}
    heads = {node.replica.ledger.heads_digest() for node in network.nodes}
    assert len(set(digests.values())) == 1, (network.seed, {name: value.hex()[:8] for name, value in digests.items()})
    assert len(heads) == 1, network.seed


def assert_attests_right(ledger: Ledger, but: Sequence[Author] = ()) -> None:
    """Every attest of an honest witness follows from its own past."""
    for op in range(len(ledger.dag)):
        if ledger.dag.kind(op) is Kind.ATTEST and ledger.dag.author_key(op) not in but:
            right = ledger.right_record(op)
            assert right is not None
