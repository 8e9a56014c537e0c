"""A witness's duty and the replica's door, where random histories rarely go: ticks, late looks, own forks, crowds."""

from __future__ import annotations

import pytest
from nacl.bindings import crypto_sign

from crdtchain.codec import Link
from crdtchain.errors import CrdtchainError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Beat, Bid, Claim, Profile, SignedOp
from crdtchain.replica import Draft, Replica, Send
from crdtchain.waiting import Waiting
from tests.builders import World
from tests.simulation.network import DELTA, START, Node, Voter, Worker
from tests.simulation.test_jobs import certificate, make_network, node, verdict_below


def test_a_bid_around_a_tick_is_soon_in_one_tick() -> None:
    """Every message takes at most a quarter of Δ, all witnesses are honest: two equal losses have to be told apart.

    Bob's bid is early in a tick. Alice's, at its end, reaches two witnesses before it and two after it. Nothing else
    happens near, so unless witnesses climb the staircase of ticks, two have it for the tick and two closed it without.
    """
    network, honest = make_network(1, 4)
    late = {("alice", "w2"), ("alice", "w3")}
    apart = {frozenset(pair) for pair in (("w0", "w2"), ("w0", "w3"), ("w1", "w2"), ("w1", "w3"), ("w2", "w3"))}

    def delay(sender: Node, receiver: Node) -> int:
        if (sender.name, receiver.name) in late:
            return 120
        return DELTA // 4 if frozenset((sender.name, receiver.name)) in apart else 20

    network.delay = delay
    network.run(START + 500)
    bid_until, tick = START + 20 * DELTA, START + 10 * DELTA
    job = node(network, "poster").say(network.terms(bid_until))
    assert job is not None
    network.run(START + 2 * DELTA)
    Worker(node(network, "bob"), job, [(tick - 700, 5)])
    Worker(node(network, "alice"), job, [(tick - 100, 5)])
    for voter in honest:
        Voter(voter, job, verdict_below(0))
    network.run(network.terms(bid_until).verdict_until + 8 * DELTA)
    ledger = node(network, "poster").replica.ledger
    number = ledger.dag.find(job)
    assert number is not None
    cut = ledger.everything()
    ranges = [ledger.deadlines.find_ticks(bid, bid_until // DELTA, cut) for bid in ledger.jobs.bids.get(number)]
    assert all(low == high for low, high in ranges), ranges
    record = certificate(ledger, job)
    assert record is not None
    assert not record.expired


def test_what_came_after_a_deadline_is_never_said_to_have_been_there() -> None:
    """A full disk, or a hold on signing, delays the statement for D: what comes meanwhile must not get into it."""
    world = World(witnesses=4)
    job = world.post("alice", stake=0, on_cheat="next")
    deadline = world.job_terms(job).bid_until
    replica = Replica(Ledger(world.genesis.op), world.key("w1"))
    replica.receive(world.log[1:], "peer", world.now)
    while (draft := replica.due(world.now)) is not None:
        world.add(commit(world, replica, draft, "w1"))
        world.advance(200)
    draft = replica.due(deadline + 1)
    assert draft is not None, "the statement for the deadline is due"
    replica.abandon()
    body = Bid(job=Link(job), loss=3, commit=bytes(32))
    bid = world.say("bob", body, time=deadline - 5, parents=sorted(world.witness_tips("bob")))
    replica.receive([bid], "peer", deadline + 100)
    while (draft := replica.due(deadline + 101)) is not None:
        commit(world, replica, draft, "w1")
    number = replica.ledger.dag.find(bid.op.id)
    assert number is not None
    assert replica.ledger.deadlines.find_holders(number, deadline) == []


def commit(world: World, replica: Replica, draft: Draft, name: str) -> SignedOp:
    signature = crypto_sign(draft.message, world._keys[name][1])[:64]
    return replica.commit(draft, signature, world.now)[0]


def test_a_draft_is_void_when_the_own_chain_grew_meanwhile() -> None:
    """A restored backup: the tip arrives from a peer between draft and signature; committing would equivocate."""
    world = World(witnesses=4)
    world.certify()
    replica = Replica(Ledger(world.genesis.op), world.key("bob"))
    replica.receive(world.log[1:], "peer", world.now)
    draft = replica.draft(Profile(name="from the backup", about=""), world.now)
    elsewhere = world.say("bob", Profile(name="from elsewhere", about=""))
    replica.receive([elsewhere], "peer", world.now)
    with pytest.raises(CrdtchainError):
        commit(world, replica, draft, "bob")
    number = replica.ledger.dag.find_author(world.key("bob"))
    assert number is not None
    assert not replica.ledger.dag.chains.is_forked(number)


def test_a_witness_whose_own_chain_forked_does_not_talk_without_end() -> None:
    """Holders that only the own other branch covers can't be brought along, so climbing for them never succeeds."""
    world = World(witnesses=4, seed="fork")
    job = world.post("alice", stake=0, on_cheat="next")
    deadline, delta = world.job_terms(job).bid_until, world.ledger.params.delta_ms
    base = world.tip("w3")
    body = Bid(job=Link(job), loss=3, commit=bytes(32))
    bid = world.say("bob", body, parents=sorted(world.witness_tips("bob")))
    first = world.say("w0", Beat(), time=deadline, parents=[bid.op.id])
    # One branch of w3 covers what w0 has, in the second step, where one other witness is not enough.
    world.add(world.sign("w3", Beat(), deadline + delta + 10, [first.op.id], base))
    longer = world.add(world.sign("w3", Profile(name="", about=""), deadline - 10, (), base))
    world.add(world.sign("w3", Profile(name="", about="again"), deadline - 9, (), longer))
    world.say("w1", Beat(), time=deadline, parents=[bid.op.id])
    replica = Replica(Ledger(world.genesis.op), world.key("w3"))
    world.now = deadline + delta + 20
    replica.receive(world.log[1:], "peer", world.now)
    for _ in range(20):
        draft = replica.due(world.now)
        if draft is None:
            break
        commit(world, replica, draft, "w3")
    else:
        raise AssertionError("the duty never ends")


def test_an_own_op_links_to_what_its_body_names_however_many_heads_there_are() -> None:
    """A liar's branches fill all parents of everybody else: nobody could claim, vote or stake any more."""
    world = World(witnesses=4)
    transfer = world.transfer("alice", "bob", 10)
    world.certify()
    base = world.tip("w3")
    replica = Replica(Ledger(world.genesis.op), world.key("bob"))
    for number in range(40):
        world.add(world.sign("w3", Beat(), world.now + number, (), base))
    world.advance(1_000)
    replica.receive(world.log[1:], "peer", world.now)
    draft = replica.draft(Claim(of=Link(transfer)), world.now)
    assert draft.seq == 0


def test_a_peer_cannot_make_us_drop_what_another_peer_sent() -> None:
    """A liar sends an honest op before its link is here, then crowds its own share: the honest copy has to stay."""
    world = World(witnesses=1, grants={"alice": 10, "mallory": 10})
    first = world.say("alice", Profile(name="first", about=""))
    second = world.say("alice", Profile(name="second", about=""))
    noise = [world.say("mallory", Profile(name=str(number), about="")) for number in range(70)]
    waiting = Waiting()
    waiting.hold(second, [first.op.id], "liar", 0)
    waiting.hold(second, [first.op.id], "honest", 1)
    for one in noise[1:]:
        waiting.hold(one, [noise[0].op.id], "liar", 2)
    assert second.op.id in waiting


def test_an_op_that_waited_is_offered_to_whoever_brought_what_it_waited_for() -> None:
    """A relay between two peers: the child came from one, its parent from the other, who still lacks the child."""
    world = World(witnesses=1)
    parent = world.say("alice", Profile(name="parent", about=""))
    child = world.say("alice", Profile(name="child", about=""))
    replica = Replica(Ledger(world.genesis.op))
    replica.receive([child], "has the child", world.now)
    effects = replica.receive([parent], "has the parent", world.now)
    offered = {signed.op.id: effect.source for effect in effects if isinstance(effect, Send) for signed in effect.ops}
    assert offered == {parent.op.id: "has the parent", child.op.id: "has the child"}
