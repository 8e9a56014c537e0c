"""Authors with partial views of one growing history, which is judged as it grows."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tests.oracle.drafting import MakeId, MakeKey, genesis_body
from tests.oracle.model import OracleOp
from tests.oracle.rules import Oracle


class FullError(Exception):
    """The history has the length that was asked for."""


@dataclasses.dataclass
class Actor:
    """An author: what it knows, and the op that it goes on from."""

    name: str
    key: bytes
    known: set[bytes]
    tip: bytes | None = None
    lying: bool = False
    asleep: bool = False


class World:
    """Grows a history op by op: what is valid is kept, what is not is noted with the rule that it breaks."""

    def __init__(self, rng: random.Random, n: int, length: int, make_id: MakeId, make_key: MakeKey) -> None:
        self.rng = rng
        self.length = length
        self.make_id = make_id
        self.make_key = make_key
        self.now = 4000
        self.invalid: dict[bytes, str] = {}
        names = [f"w{i}" for i in range(n)]
        users = {"poster": 400, "ann": 60, "ben": 60, "cy": 60, "dave": 120}
        grants = {make_key(name): amount for name, amount in users.items()}
        body = genesis_body(
            [make_key(name) for name in names],
            grants,
            verdict_min=rng.choice([1, 1, 2]),
            expiry_ms=rng.choice([8000, 20_000]),
        )
        founder = rng.choice([make_key("founder"), make_key("w0")])
        genesis = OracleOp(make_id(founder, 0, None, (), 0, "genesis", body), founder, 0, None, (), 0, "genesis", body)
        self.genesis = genesis.id
        self.history = [genesis]
        self.oracle = Oracle(genesis)
        self.actors = {name: Actor(name, make_key(name), {genesis.id}) for name in [*names, *users]}
        self.witnesses = [self.actors[name] for name in names]
        self.workers = [self.actors[name] for name in ("ann", "ben", "cy")]
        for actor in self.witnesses:
            actor.tip = genesis.id if actor.key == founder else None
        lying = rng.choice([0, self.oracle.f, self.oracle.f, min(n, self.oracle.f + 1)])
        for actor in rng.sample(self.witnesses, lying):
            actor.lying = True

    # -- views --

    def learn(self, actor: Actor, *ids: bytes) -> None:
        """Tell an actor of some ops and of all that they reach."""
        for one in ids:
            actor.known |= self.oracle.pasts[one]

    def tell(self, actors: Iterable[Actor], *ids: bytes) -> None:
        """Tell several actors of some ops."""
        for actor in actors:
            self.learn(actor, *ids)

    def gossip(self, actors: Sequence[Actor]) -> None:
        """Let all of these know what any of them knows."""
        together = frozenset().union(*(actor.known for actor in actors)) if actors else frozenset()
        for actor in actors:
            actor.known |= together

    def learn_all(self, *actors: Actor) -> None:
        """Let these know everything."""
        for actor in actors:
            actor.known |= set(self.oracle.ops)

    def heads(self, actor: Actor, prev: bytes | None) -> tuple[bytes, ...]:
        """The known ops of others that nothing known links to and that are not in past(prev), as far as they fit."""
        oracle = self.oracle
        old = oracle.pasts[prev] if prev is not None else frozenset()
        seen = {one for one in actor.known if one in old or oracle.ops[one].author != actor.key}
        linked = {link for one in seen for link in oracle.ops[one].links()}
        found = [one for one in sorted(seen - linked - old) if oracle.ops[one].author != actor.key]
        limit = 64 if actor in self.witnesses else 16
        return tuple(sorted(self.rng.sample(found, limit))) if len(found) > limit else tuple(found)

    # -- ops --

    def draft(
        self,
        actor: Actor,
        kind: str,
        body: dict[str, Any],
        time: int | None = None,
        parents: Sequence[bytes] | None = None,
        after: bytes | str | None = "tip",
    ) -> OracleOp:
        """An op that is not added: linked to what the actor knows, at the present time or its previous op's."""
        prev = actor.tip if isinstance(after, str) else after
        seq = 0 if prev is None else self.oracle.ops[prev].seq + 1
        links = self.heads(actor, prev) if parents is None else tuple(sorted(set(parents)))
        if prev is None and not links:
            links = (self.genesis,)
        at = self.now if time is None else time
        if prev is not None:
            at = max(at, self.oracle.ops[prev].time)
        return OracleOp(
            self.make_id(actor.key, seq, prev, links, at, kind, body), actor.key, seq, prev, links, at, kind, body
        )

    def keep(self, actor: Actor | None, op: OracleOp) -> bytes | None:
        """Add an op to the history; its id when it is valid. Raises FullError at the length asked for."""
        if op.id in self.oracle.ops or op.id in self.invalid:
            return op.id if op.id in self.oracle.ops else None
        if len(self.history) >= self.length:
            raise FullError
        self.history.append(op)
        try:
            self.oracle.add(op)
        except ValueError as error:
            self.invalid[op.id] = str(error)
            return None
        if actor is not None:
            actor.tip = op.id
            self.learn(actor, op.id)
        return op.id

    def emit(
        self,
        actor: Actor,
        kind: str,
        body: dict[str, Any],
        time: int | None = None,
        parents: Sequence[bytes] | None = None,
        after: bytes | str | None = "tip",
    ) -> bytes | None:
        """Make an op and add it."""
        return self.keep(actor, self.draft(actor, kind, body, time, parents, after))

    def beat(self, actor: Actor, time: int | None = None) -> None:
        """A beat that covers all that the witness knows, when it is awake."""
        if not actor.asleep:
            self.emit(actor, "beat", {}, time)

    def beats(self, time: int | None = None) -> None:
        """A beat of every witness that is awake; they do not see each other's."""
        drafts = [(actor, self.draft(actor, "beat", {}, time)) for actor in self.witnesses if not actor.asleep]
        for actor, op in drafts:
            self.keep(actor, op)

    def chance(self, share: float) -> bool:
        """True in this share of the calls."""
        return self.rng.random() < share

    def ids(self, *kinds: str) -> list[bytes]:
        """All valid ops of these kinds, in the order they were added."""
        return [op.id for op in self.history if op.kind in kinds and op.id in self.oracle.ops]

    def actor_of(self, op_id: bytes) -> Actor:
        """The author of an op, as an actor."""
        key = self.oracle.ops[op_id].author
        return next(actor for actor in self.actors.values() if actor.key == key)

    def codes(self) -> Counter[str]:
        """How often each rule was broken."""
        return Counter(self.invalid.values())
