"""What goes wrong between the steps of a job: forks, double spends, lying clocks, and ops that break one rule each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tests.oracle.drafting import blob, job_body
from tests.oracle.model import OracleOp
from tests.oracle.world import Actor, World

# -- valid, but adversarial or merely untidy --


def stir(world: World) -> None:
    """One thing that honest authors would rather not see, though most of these ops are valid."""
    chosen = world.rng.choice(STIRRERS)
    chosen(world)


def _users(world: World) -> list[Actor]:
    return [actor for actor in world.actors.values() if actor not in world.witnesses]


def _transfer(world: World, actor: Actor, to: bytes, amount: int, after: bytes | str | None = "tip") -> bytes | None:
    return world.emit(actor, "transfer", {"to": to, "amount": amount, "memo": None}, after=after)


def _rogue(world: World) -> Actor:
    """The worker that forks: mostly the same one, so that the others' credits stay alive."""
    return world.workers[2] if world.chance(0.7) else world.rng.choice(world.workers)


def _new_actor(world: World) -> Actor:
    name = f"new{len(world.actors)}"
    actor = Actor(name, world.make_key(name), {world.genesis})
    world.actors[name] = actor
    return actor


def _pay(world: World) -> None:
    giver, taker = world.rng.sample(_users(world), 2)
    paid = _transfer(world, giver, taker.key, world.rng.randint(1, 15))
    if paid is not None:
        world.tell(world.witnesses, paid)


def _pay_new_key(world: World) -> None:
    giver = world.rng.choice([world.actors["poster"], *world.workers])
    paid = _transfer(world, giver, _new_actor(world).key, world.rng.randint(1, 10))
    if paid is not None:
        world.tell(world.witnesses, paid)


def _spend_twice(world: World) -> None:
    giver = _rogue(world)
    before = giver.tip
    one = _transfer(world, giver, _new_actor(world).key, 10)
    two = _transfer(world, giver, _new_actor(world).key, 9, before)
    for witness in world.witnesses:
        for paid in (one, two):
            if paid is not None and world.chance(0.6):
                world.learn(witness, paid)


def _fork_user(world: World) -> None:
    actor = _rogue(world) if world.chance(0.8) else world.rng.choice(_users(world))
    if actor.tip is None or actor.name.startswith("new"):
        return
    earlier = world.rng.choice([None, *world.oracle.chain(actor.tip)])
    tip = actor.tip
    made = world.emit(actor, "profile", {"name": actor.name, "about": str(world.now)}, after=earlier)
    if world.chance(0.7):
        actor.tip = tip
    if made is not None:
        world.tell(world.rng.sample(world.witnesses, world.rng.randint(1, world.oracle.n)), made)


def _lying(world: World) -> Actor | None:
    lying = [actor for actor in world.witnesses if actor.lying]
    return world.rng.choice(lying) if lying else None


def _fork_witness(world: World) -> None:
    """A second tongue: from an earlier op of the chain, with other knowledge."""
    actor = _lying(world)
    if actor is None or actor.tip is None:
        return
    earlier = world.rng.choice(world.oracle.chain(actor.tip)[-5:])
    tip = actor.tip
    if world.chance(0.5):
        world.learn_all(actor)
    world.emit(actor, "beat", {}, after=earlier)
    if world.chance(0.5):
        actor.tip = tip


def _two_tongues(world: World) -> None:
    """A user spends twice, and a lying witness acknowledges each of the two on a tongue of its own."""
    actor = _lying(world)
    giver = _rogue(world)
    before = giver.tip
    one = _transfer(world, giver, world.actors["poster"].key, 2)
    two = _transfer(world, giver, world.actors["poster"].key, 3, before)
    if actor is None or one is None or two is None:
        return
    base = actor.tip
    world.emit(actor, "beat", {}, parents=[one])
    world.emit(actor, "beat", {}, parents=[two], after=base)


def _backdate(world: World) -> None:
    """An op that covers everything at the time of an earlier op of the chain."""
    actor = _lying(world)
    if actor is None or actor.tip is None:
        return
    earlier = world.rng.choice(world.oracle.chain(actor.tip)[-6:])
    world.learn_all(actor)
    world.emit(actor, "beat", {}, world.oracle.ops[earlier].time, after=earlier)


def _close_early(world: World) -> None:
    actor = _lying(world)
    if actor is not None:
        world.emit(actor, "beat", {}, world.now + world.rng.choice([3000, 9000]))


def _sleep(world: World) -> None:
    actor = _lying(world)
    if actor is not None:
        actor.asleep = True


def _whisper(world: World) -> None:
    one, two = world.rng.sample(list(world.actors.values()), 2)
    one.known |= two.known


def _banned_author_goes_on(world: World) -> None:
    for actor in _users(world):
        if world.oracle.banned(actor.key, None):
            world.learn_all(actor)
            made = _transfer(world, actor, world.actors["poster"].key, 1)
            if made is not None:
                world.tell(world.witnesses, made)
                return


def _fork_founder(world: World) -> None:
    """The founder starts another chain beside genesis."""
    founder = Actor("founder", world.oracle.genesis.author, {world.genesis})
    others = [one for one in world.oracle.ops if world.oracle.ops[one].author != founder.key]
    if others:
        world.emit(founder, "profile", {"name": "founder", "about": ""}, parents=[world.rng.choice(others)], after=None)


STIRRERS: list[Callable[[World], None]] = [
    *(_pay, _pay_new_key, _spend_twice, _spend_twice, _fork_user, _fork_witness, _fork_witness, _backdate),
    *(_close_early, _sleep, _whisper, _banned_author_goes_on, _fork_founder, _two_tongues, _two_tongues),
]

# -- invalid on purpose --


def break_a_rule(world: World) -> None:
    """Add one op that is invalid by its making; nothing will link to it. Fails when the oracle lets it pass."""
    op = world.rng.choice(BREAKERS)(world)
    if op is None or op.id in world.oracle.ops:
        return
    assert world.oracle.judge(op) is not None, op
    world.keep(None, op)


def _changed(world: World, op: OracleOp, **changes: Any) -> OracleOp:
    op = dataclasses.replace(op, **changes)
    made = world.make_id(op.author, op.seq, op.prev, op.parents, op.time, op.kind, op.body)
    return dataclasses.replace(op, id=made)


def _profile(world: World, actor: Actor, **changes: Any) -> OracleOp:
    return _changed(world, world.draft(actor, "profile", {"name": actor.name, "about": "x"}), **changes)


def _started(world: World) -> list[Actor]:
    return [actor for actor in world.actors.values() if actor.tip is not None]


def _any_started(world: World) -> Actor | None:
    started = _started(world)
    return world.rng.choice(started) if started else None


def _bad_seq(world: World) -> OracleOp | None:
    actor = _any_started(world)
    return None if actor is None else _profile(world, actor, seq=world.rng.choice([0, 1000]))


def _no_links(world: World) -> OracleOp | None:
    return _profile(world, world.actors["cy"], seq=0, prev=None, parents=())


def _foreign_prev(world: World) -> OracleOp | None:
    actor = _any_started(world)
    if actor is None or actor.tip is None:
        return None
    other = world.rng.choice([one for one in world.actors.values() if one is not actor])
    return _profile(world, other, prev=actor.tip, seq=world.oracle.ops[actor.tip].seq + 1, parents=())


def _bad_parents(world: World) -> OracleOp | None:
    actor = _any_started(world)
    if actor is None or actor.tip is None:
        return None
    others = sorted(one for one in actor.known if world.oracle.ops[one].author != actor.key)
    if len(others) < 2:
        return None
    wrong = world.rng.choice([(actor.tip,), (others[0], others[0]), (others[1], others[0])])
    return _profile(world, actor, parents=wrong)


def _back_in_time(world: World) -> OracleOp | None:
    actor = _any_started(world)
    if actor is None or actor.tip is None or world.oracle.ops[actor.tip].time == 0:
        return None
    return _profile(world, actor, time=world.oracle.ops[actor.tip].time - 1)


def _stranger(world: World) -> OracleOp | None:
    name = "stranger"
    actor = Actor(name, world.make_key(name), set(world.oracle.ops))
    if world.chance(0.5):
        return world.draft(actor, "beat", {})
    return world.draft(actor, "profile", {"name": name, "about": ""})


def _overspend(world: World) -> OracleOp | None:
    actor, other = world.rng.sample(_users(world), 2)
    body = {"to": other.key, "amount": world.rng.choice([100_000, 2**53 - 1, 0]), "memo": None}
    return world.draft(actor, "transfer", body)


def _to_oneself(world: World) -> OracleOp | None:
    actor = world.actors["poster"]
    return world.draft(actor, "transfer", {"to": actor.key, "amount": 1, "memo": None})


def _bad_terms(world: World) -> OracleOp | None:
    bid_until = (world.now // 1000 + 5) * 1000
    good = job_body(bid_until, world.oracle.f)
    later = ("bid_until", "reveal_until", "verdict_until")
    wrong: list[dict[str, Any]] = [
        {"bounty": 0},
        {"bounty": 1_000_000},
        {"stake": 0},
        {"bid_until": good["bid_until"] + 1000},
        {"reveal_until": good["reveal_until"] - 1000},
        {"reveal_until": good["reveal_until"] + 1000},
        {"verdict_until": good["verdict_until"] - 1000},
        {name: good[name] + 1 for name in later},
        {"bid_until": good["bid_until"] - 500},
        {name: good[name] - 20_000_000 for name in later} if world.now > 20_010_000 else {"bounty": 0},
    ]
    return world.draft(world.actors["poster"], "job", good | world.rng.choice(wrong), world.now)


def _old_job(world: World) -> OracleOp | None:
    bid_until = world.now // 1000 * 1000
    return world.draft(world.actors["poster"], "job", job_body(bid_until, world.oracle.f), world.now)


def _again(world: World) -> OracleOp | None:
    """The body of one's own op once more, on the same chain."""
    ids = world.ids("stake", "bid", "reveal", "vote", "attest", "claim")
    if not ids:
        return None
    one = world.rng.choice(ids)
    actor = world.actor_of(one)
    if actor.tip is None or not world.oracle.on_chain_of(one, actor.tip):
        return None
    op = world.oracle.ops[one]
    return world.draft(actor, op.kind, op.body)


def _unknown_name(world: World) -> OracleOp | None:
    """A body that names an op outside the past."""
    ids = world.ids("stake", "bid", "reveal", "vote", "attest", "claim")
    if not ids:
        return None
    op = world.oracle.ops[world.rng.choice(ids)]
    return world.draft(world.actor_of(op.id), op.kind, op.body, parents=[world.genesis], after=None)


def _wrong_name(world: World) -> OracleOp | None:
    """A body that names an op of another kind."""
    actor = world.rng.choice(world.witnesses)
    choices: list[tuple[str, str, dict[str, Any]]] = [
        ("stake", "job", {}),
        ("bid", "job", {"loss": 1, "commit": bytes(32)}),
        ("vote", "reveal", {"verdict": "valid", "loss": None}),
        ("claim", "of", {}),
    ]
    kind, field, rest = world.rng.choice(choices)
    named = world.oracle.genesis.id
    return world.draft(actor, kind, {field: named, **rest})


def _own_job(world: World) -> OracleOp | None:
    jobs = world.ids("job")
    if not jobs:
        return None
    job = world.rng.choice(jobs)
    actor = world.actor_of(job)
    if world.chance(0.5):
        return world.draft(actor, "stake", {"job": job})
    return world.draft(actor, "bid", {"job": job, "loss": 1, "commit": bytes(32)})


def _no_stake(world: World) -> OracleOp | None:
    jobs = [job for job in world.ids("job") if world.oracle.ops[job].body["stake"] > 0]
    if not jobs:
        return None
    actor = world.actors["dave"]
    job = world.rng.choice(jobs)
    world.learn(actor, job)
    return world.draft(actor, "bid", {"job": job, "loss": 1, "commit": bytes(32)})


def _bad_commit(world: World) -> OracleOp | None:
    bids = world.ids("bid")
    if not bids:
        return None
    bid = world.rng.choice(bids)
    return world.draft(world.actor_of(bid), "reveal", {"bid": bid, "model": blob("other"), "size": 8})


def _foreign_bid(world: World) -> OracleOp | None:
    bids = world.ids("bid")
    if not bids:
        return None
    bid = world.rng.choice(bids)
    actor = world.actor_of(bid)
    other = world.rng.choice([one for one in world.workers if one is not actor])
    world.learn(other, bid)
    body = {"bid": bid, "model": blob(f"{actor.name}-{world.oracle.ops[bid].body['loss']}"), "size": 8}
    return world.draft(other, "reveal", body)


def _early_reveal(world: World) -> OracleOp | None:
    bids = world.ids("bid")
    if not bids:
        return None
    bid = bids[-1]
    actor = world.actor_of(bid)
    end = world.oracle.deadline_of(bid) + (world.oracle.f + 1) * 1000
    ops = world.oracle.ops.values()
    if actor in world.witnesses or any(op.time > end and op.author in world.oracle.witnesses for op in ops):
        return None
    body = {"bid": bid, "model": blob(f"{actor.name}-{world.oracle.ops[bid].body['loss']}"), "size": 8}
    return world.draft(actor, "reveal", body)


def _poor_vote(world: World) -> OracleOp | None:
    """A vote of somebody with too little, or of the poster."""
    reveals = world.ids("reveal")
    if not reveals:
        return None
    reveal = world.rng.choice(reveals)
    body = {"reveal": reveal, "verdict": "cheat", "loss": None}
    actor = world.rng.choice([*world.workers, world.actor_of(world.oracle.job_of(reveal).id)])
    world.learn(actor, reveal)
    op = world.draft(actor, "vote", body)
    return op if world.oracle.judge(op) is not None else None


def _false_witness(world: World) -> OracleOp | None:
    actor = world.rng.choice([world.actors["poster"], *world.workers])
    jobs = [job for job in world.ids("job") if job in actor.known]
    if not jobs or world.chance(0.5):
        return world.draft(actor, "beat", {})
    record: dict[str, Any] = {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": True}
    return world.draft(actor, "attest", {"job": world.rng.choice(jobs), "record": record})


def _bad_record(world: World) -> OracleOp | None:
    actor = world.rng.choice(world.witnesses)
    jobs = [job for job in world.ids("job") if job in actor.known]
    if not jobs:
        return None
    one, two = sorted([world.actors["ann"].key, world.actors["ben"].key])
    record: dict[str, Any] = {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": False}
    wrong: list[dict[str, Any]] = [
        {"expired": True, "forfeits": [one]},
        {"expired": True, "winner": jobs[0]},
        {"cheats": [one]},
        {"forfeits": [two, one]},
        {"forfeits": [one, one], "cheats": [one]},
    ]
    return world.draft(actor, "attest", {"job": world.rng.choice(jobs), "record": record | world.rng.choice(wrong)})


def _undue_claim(world: World) -> OracleOp | None:
    """A claim of a transfer to somebody else, or of a job without a certificate."""
    actor = world.rng.choice(world.workers)
    ops = [world.oracle.ops[one] for one in world.ids("transfer", "job")]
    undue = [
        op.id
        for op in ops
        if (op.kind == "transfer" and op.body["to"] != actor.key)
        or (op.kind == "job" and not world.oracle.certificates(op.id, None))
    ]
    if not undue:
        return None
    of = world.rng.choice(undue)
    world.learn(actor, of)
    return world.draft(actor, "claim", {"of": of})


def _second_genesis(world: World) -> OracleOp | None:
    genesis = world.oracle.genesis
    return _changed(world, genesis, body=genesis.body | {"name": "other"})


def _late_stake(world: World) -> OracleOp | None:
    """A stake on a job whose outcome is certified, or that is not certified yet."""
    jobs = [job for job in world.ids("job") if world.oracle.certificates(job, None)]
    actor = world.actors["dave"]
    if not jobs or world.actor_of(jobs[0]) is actor:
        return None
    world.learn_all(actor)
    return world.draft(actor, "stake", {"job": jobs[0]})


def _uncertified_stake(world: World) -> OracleOp | None:
    jobs = [job for job in world.ids("job") if not world.oracle.certified(job, None)]
    if not jobs:
        return None
    actor = world.rng.choice(world.workers)
    if world.actor_of(jobs[0]) is actor:
        return None
    world.learn(actor, jobs[0])
    return world.draft(actor, "stake", {"job": jobs[0]}, parents=[jobs[0]])


def _bidder_votes(world: World) -> OracleOp | None:
    """A vote of an elector that bid on the job, on another branch."""
    found = [
        (bid, reveal)
        for bid in world.ids("bid")
        for reveal in world.ids("reveal")
        if world.oracle.job_of(bid).id == world.oracle.job_of(reveal).id
    ]
    if not found:
        return None
    bid, reveal = world.rng.choice(found)
    actor = world.actor_of(bid)
    world.learn(actor, reveal)
    return world.draft(actor, "vote", {"reveal": reveal, "verdict": "valid", "loss": None})


BREAKERS: list[Callable[[World], OracleOp | None]] = [
    *(_bad_seq, _no_links, _foreign_prev, _bad_parents, _back_in_time, _stranger, _overspend, _to_oneself),
    *(_bad_terms, _bad_terms, _old_job, _again, _again, _again, _unknown_name, _wrong_name, _own_job, _no_stake),
    *(_bad_commit, _foreign_bid, _early_reveal, _poor_vote, _poor_vote, _false_witness, _bad_record, _undue_claim),
    *(_second_genesis, _late_stake, _uncertified_stake, _bidder_votes),
]
