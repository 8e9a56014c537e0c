"""Bounds on connections, by sockets and by links; broken rules keep somebody out; everything is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.scalars import Author
from node.counters import DROPS, EVICTED, PENALTIES, REFUSED, Counters, Drop
from node.gate import Direction, Entry, Gate, RefusedError
from node.scores import Scores

NOW_MS = 1_800_000_000_000


class Times:
    """Two clocks that a test moves."""

    def __init__(self) -> None:
        self.s = 100.0

    def ms(self) -> int:
        return NOW_MS + round(self.s * 1_000)


def make_gate(times: Times) -> tuple[Gate, Counters]:
    counters = Counters()
    return Gate(Scores(counters), counters, times.ms, lambda: times.s), counters


def enter_many(gate: Gate, count: int, address: Callable[[int], str], direction: Direction = "in") -> None:
    for number in range(count):
        gate.enter(address(number), direction).greet(None)


def refusal(gate: Gate, address: str, direction: Direction = "in") -> str:
    with pytest.raises(RefusedError) as caught:
        gate.enter(address, direction)
    assert caught.value.wait_s > 0 and str(caught.value).startswith("this node")
    return caught.value.limit


def test_links_are_bounded_in_all_and_by_address_but_not_on_this_machine() -> None:
    gate, counters = make_gate(Times())
    enter_many(gate, limits.CONNECTIONS_ADDRESS_MAX, lambda number: "203.0.113.1")
    assert refusal(gate, "203.0.113.1") == "address"
    assert refusal(gate, "::ffff:203.0.113.1") == "address"
    enter_many(gate, limits.CONNECTIONS_IN_MAX - limits.CONNECTIONS_ADDRESS_MAX, lambda number: "127.0.0.1")
    assert refusal(gate, "203.0.113.2") == refusal(gate, "127.0.0.1") == "full"
    enter_many(gate, limits.CONNECTIONS_OUT_MAX, lambda number: "203.0.113.1", "out")
    assert refusal(gate, "203.0.113.3", "out") == "out"
    # What people chose is bounded by nothing.
    enter_many(gate, 20, lambda number: "203.0.113.1", "configured")
    gate.is_stopping = True
    assert refusal(gate, "203.0.113.1", "configured") == "stopping"
    assert [counters.get(REFUSED, code) for code in ("address", "full", "out", "stopping")] == [2, 2, 1, 1]


def test_a_link_that_has_ended_makes_room_and_handshakes_under_way_have_a_bound_of_their_own() -> None:
    gate, _ = make_gate(Times())
    half_open = [gate.enter(f"198.51.100.{number}") for number in range(limits.HALF_OPEN_MAX)]
    assert gate.half_open_count == limits.HALF_OPEN_MAX
    assert refusal(gate, "203.0.113.1") == "half_open"
    half_open[0].greet(None)
    with gate.enter("203.0.113.1") as entry:
        assert refusal(gate, "203.0.113.2") == "half_open"
        assert entry.direction == "in"
    with gate.enter("203.0.113.2"):
        pass
    assert gate.count("in") == limits.HALF_OPEN_MAX


def test_who_breaks_rules_is_kept_out_by_address_and_by_key_and_only_for_a_while() -> None:
    times = Times()
    gate, counters = make_gate(times)
    node = Author(b"n" * 32)
    for _ in range(2):
        with gate.enter("203.0.113.1") as entry:
            entry.greet(node)
            assert entry.end("the peer sent an op that breaks a rule (time)") is Drop.INVALID_OP
    assert refusal(gate, "203.0.113.1") == "penalty"
    with gate.enter("203.0.113.2") as entry, pytest.raises(RefusedError):
        entry.greet(node)
    gate.enter("203.0.113.1", "configured").greet(node)
    assert counters.get(PENALTIES, "address") == counters.get(PENALTIES, "node") == 2
    times.s += 3_600
    gate.enter("203.0.113.1").greet(node)
    assert counters.get(DROPS, "invalid_op") == 2


@pytest.mark.parametrize(
    "reason",
    [
        "the connection broke",
        "the peer closed: the peer sent a frame that",
        "already connected",
        "the peer reads too slowly",
        "",
        "what?",
    ],
)
def test_what_an_honest_peer_may_do_is_no_broken_rule(reason: str) -> None:
    gate, counters = make_gate(Times())
    for _ in range(50):
        with gate.enter("203.0.113.1") as entry:
            entry.end(reason)
    assert counters.get(PENALTIES, "address") == 0
    gate.enter("203.0.113.1")


@given(st.lists(st.tuples(st.sampled_from(["in", "out", "configured", "leave", "greet"]), st.integers(0, 40))))
def test_bounds_of_links_hold_whatever_comes(steps: list[tuple[str, int]]) -> None:
    gate, _ = make_gate(Times())
    entries: list[Entry] = []
    for step, number in steps * 4:
        try:
            if step == "leave" and entries:
                gate.leave(entries.pop(number % len(entries)))
            elif step == "greet" and entries:
                entries[number % len(entries)].greet(None)
            elif step in ("in", "out", "configured"):
                entries.append(gate.enter(f"203.0.113.{number}", step))  # type: ignore[arg-type]
        except RefusedError:
            pass
        assert gate.count("in") <= limits.CONNECTIONS_IN_MAX
        assert gate.count("out") <= limits.CONNECTIONS_OUT_MAX
        assert gate.half_open_count <= limits.HALF_OPEN_MAX
        keys = [entry.key for entry in entries if entry.direction == "in"]
        assert all(keys.count(key) <= limits.CONNECTIONS_ADDRESS_MAX for key in keys)
        assert len(entries) == gate.count("in", "out", "configured")


class Door(asyncio.Protocol):
    """Asks the gate about each socket, as the peer port does; what is let in stays open."""

    def __init__(self, gate: Gate, find_address: Callable[[], str], made: list[asyncio.Transport]) -> None:
        self._gate = gate
        self._find_address = find_address
        self._made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._gate.knock(transport, self._find_address()):
            self._made.append(transport)
            transport.write(b"in")
        else:
            transport.abort()


class Port:
    """A listening port behind a gate, and the connections that tests made to it."""

    def __init__(self, where: tuple[str, int], made: list[asyncio.Transport]) -> None:
        self._where = where
        self.made = made
        """The sockets that were let in, on the side of the port."""
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> bool:
        """Connect, and stay; returns whether the gate let it in."""
        reader, writer = await asyncio.open_connection(*self._where)
        try:
            if await reader.read(2) == b"in":
                self.writers.append(writer)
                return True
        except ConnectionResetError:
            pass
        writer.close()
        return False


@asynccontextmanager
async def open_port(gate: Gate, find_address: Callable[[], str]) -> AsyncIterator[Port]:
    loop, made = asyncio.get_running_loop(), list[asyncio.Transport]()
    server = await loop.create_server(lambda: Door(gate, find_address, made), "127.0.0.1", 0)
    port = Port(server.sockets[0].getsockname()[:2], made)
    try:
        yield port
    finally:
        server.close()
        for transport in [*made, *(writer.transport for writer in port.writers)]:
            transport.abort()
        await server.wait_closed()


@pytest.mark.asyncio
async def test_ten_thousand_strangers_do_not_fill_the_port() -> None:
    times = Times()
    gate, counters = make_gate(times)
    addresses = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(20_000))
    async with open_port(gate, lambda: next(addresses)) as port:
        answers = [await port.connect() for _ in range(10_000)]
        assert sum(answers) == gate.socket_count == limits.SOCKETS_MAX
        assert counters.get(REFUSED, "sockets") == 10_000 - limits.SOCKETS_MAX
        # Those that asked for nothing in time make room for the next ones; a peer's link never does.
        for transport in port.made[:4]:
            gate.keep(transport)
        times.s += limits.HANDSHAKE_S
        assert all([await port.connect() for _ in range(limits.SOCKETS_MAX - 4)])
        assert not await port.connect()
        assert counters.get(EVICTED) == limits.SOCKETS_MAX - 4
        assert not any(transport.is_closing() for transport in port.made[:4])


@pytest.mark.asyncio
async def test_one_address_has_a_share_of_the_sockets_and_a_closed_one_makes_room() -> None:
    gate, counters = make_gate(Times())
    async with open_port(gate, lambda: "2001:db8::1") as port:
        answers = [await port.connect() for _ in range(limits.SOCKETS_ADDRESS_MAX + 1)]
        assert answers == [True] * limits.SOCKETS_ADDRESS_MAX + [False]
        assert counters.get(REFUSED, "socket_address") == 1
        port.writers[0].close()
        while not port.made[0].is_closing():
            await asyncio.sleep(0.01)
        assert await port.connect()
    assert gate.socket_count == 0


@pytest.mark.asyncio
async def test_the_address_that_has_most_makes_room_first() -> None:
    times = Times()
    gate, _ = make_gate(times)
    addresses = iter(["203.0.113.1"] * 3 + ["203.0.113.2"] * 16 + [f"198.51.100.{number}" for number in range(200)])
    async with open_port(gate, lambda: next(addresses)) as port:
        for _ in range(limits.SOCKETS_MAX):
            assert await port.connect()
        times.s += 60
        for _ in range(10):
            assert await port.connect()
        assert not any(transport.is_closing() for transport in port.made[:3])
        assert sum(transport.is_closing() for transport in port.made[3:19]) == 10


@pytest.mark.asyncio
async def test_a_socket_from_an_address_that_broke_rules_is_refused_before_it_says_anything() -> None:
    times = Times()
    gate, counters = make_gate(times)
    for _ in range(2):
        with gate.enter("203.0.113.1") as entry:
            entry.end("the peer sent a frame that ends within its head")
    async with open_port(gate, lambda: "203.0.113.1") as port:
        assert not await port.connect()
        assert counters.get(REFUSED, "penalty") == 1
        times.s += 60
        assert await port.connect()
