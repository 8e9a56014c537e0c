"""Sessions between replicas that keep different parts, without sockets."""

from __future__ import annotations

from collections import deque

import pytest

from crdtchain.errors import PeerError
from crdtchain.ledger.state import Ledger
from crdtchain.scalars import OpId
from crdtchain.scopes import ScopeIndex, Scopes, Selector, encode_selector, make_selector
from crdtchain.sync.holdings import Holdings
from crdtchain.sync.messages import PROTOCOL_VERSION, Get, Hello, Tree, encode_frame
from crdtchain.sync.outputs import Check, Found, Output, Prove, Read, SendFrame, Take
from crdtchain.sync.session import Session
from tests.builders import World


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    for number in range(4):
        world.play_job("alice", {"bob": [90], "carol": [80]}, tags=(f"tag{number}",))
    return world


class Side:
    """A replica and its session."""

    def __init__(self, world: World, selector: Selector, count: int, is_dialler: bool) -> None:
        self.world = world
        self.ledger = Ledger(world.genesis.op)
        for signed in world.log[1:count]:
            self.ledger.add(signed.op)
        index = ScopeIndex(self.ledger, selector) if selector else None
        self.holdings = Holdings(self.ledger.dag, encode_selector(selector), Scopes(self.ledger, index).find)
        hello = Hello(
            version=PROTOCOL_VERSION, network=bytes(world.network), node=bytes([is_dialler]) * 32,
            nonce=bytes([is_dialler]) * 32, root=bytes(32), count=0, scope=b"", time_ms=0, blobs="",
        )  # fmt: skip
        self.session = Session(self.holdings, hello, is_dialler, bytes(32))
        self.outbox: deque[bytes] = deque()

    def perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendFrame():
                    self.outbox.append(output.frame)
                case Prove():
                    self.perform(self.session.prove(bytes(64)))
                case Check():
                    self.perform(self.session.accept())
                case Found():
                    if not self.session.is_pulling:
                        self.perform(self.session.pull())
                case Read():
                    blocks = [self.world.find(op).block for op in output.ids]
                    self.perform(self.session.supply(output, blocks))
                case Take():
                    self.perform(self.session.stored(output, self.take(output.blocks), 0))
                case _:
                    pass

    def take(self, blocks: list[bytes]) -> int:
        by_block = {signed.block: signed for signed in self.world.log}
        return sum(self.ledger.add(by_block[block].op) for block in blocks)


def talk(left: Side, right: Side) -> None:
    """Let two sides talk until both are silent, with probes in between."""
    for side in (left, right):
        side.perform(side.session.start())
    for _ in range(4):
        while left.outbox or right.outbox:
            for side, other in ((left, right), (right, left)):
                while side.outbox:
                    other.perform(other.session.receive(side.outbox.popleft()))
        for side in (left, right):
            side.perform(side.session.probe(is_forced=True))


def ids(ledger: Ledger) -> set[OpId]:
    return set(ledger.dag.ids)


def scope_of(world: World, selector: Selector) -> set[OpId]:
    return {world.log[number].op.id for number in ScopeIndex(world.ledger, selector).members}


@pytest.mark.parametrize("is_dialler", [True, False])
@pytest.mark.parametrize("tag", ["tag0", "tag1", "tag3", "none"])
def test_a_partial_replica_gets_its_scope_from_a_full_one_and_no_more(world: World, tag: str, is_dialler: bool) -> None:
    selector = make_selector(tags=[tag])
    full = Side(world, Selector(), len(world.log), not is_dialler)
    partial = Side(world, selector, 1, is_dialler)
    talk(full, partial)
    assert ids(partial.ledger) == scope_of(world, selector)
    assert full.session.is_in_step and partial.session.is_in_step
    assert len(full.ledger) == len(world.log)


def test_a_full_replica_gets_from_a_partial_one_what_that_keeps(world: World) -> None:
    selector = make_selector(tags=["tag1"])
    fresh, giver = Side(world, Selector(), 1, False), Side(world, selector, len(world.log), True)
    talk(fresh, giver)
    # What the giver holds besides is none of this connection's business.
    assert ids(fresh.ledger) == scope_of(world, selector)


def test_two_partial_replicas_give_each_other_what_they_have_of_the_others_scope(world: World) -> None:
    small, large = make_selector(tags=["tag0"]), make_selector(tags=["tag2"])
    some = Side(world, large, 1, True)
    talk(Side(world, Selector(), len(world.log), False), some)
    held = ids(some.ledger)
    again = Side(world, large, 1, True)
    for signed in world.log[1:]:
        if signed.op.id in held:
            again.ledger.add(signed.op)
    other = Side(world, small, 1, False)
    talk(again, other)
    assert ids(again.ledger) == held
    assert ids(other.ledger) <= scope_of(world, small)
    part = Ledger(world.genesis.op)
    for signed in world.log[1:]:
        if signed.op.id in held:
            part.add(signed.op)
    assert ids(other.ledger) == {part.dag.ids[number] for number in ScopeIndex(part, small).members}


def test_a_connection_is_about_one_scope(world: World) -> None:
    full, partial = Side(world, Selector(), len(world.log), True), Side(world, make_selector(tags=["tag0"]), 1, False)
    talk(full, partial)
    other = encode_selector(make_selector(tags=["another"]))
    for place, scope in enumerate((other, b"")):
        for message in (Tree(scope, bytes(16), b""), Get(1_000 + place, scope, bytes(16), b"")):
            with pytest.raises(PeerError, match="another scope"):
                full.session.receive(encode_frame(message))


def test_a_scope_that_is_none_ends_the_session_at_once(world: World) -> None:
    full = Side(world, Selector(), 5, True)
    full.perform(full.session.start())
    with pytest.raises(PeerError, match="a scope that is none"):
        full.session.receive(encode_frame(Hello(
            version=PROTOCOL_VERSION, network=bytes(world.network), node=bytes(32), nonce=bytes(32), root=bytes(32),
            count=0, scope=b"\x00", time_ms=0, blobs="",
        )))  # fmt: skip
