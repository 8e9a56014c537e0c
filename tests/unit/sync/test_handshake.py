"""Who a session talks to, and about which scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from crdtchain import codec
from crdtchain.errors import PeerError
from crdtchain.scalars import OpId
from crdtchain.sync.messages import (
    Auth,
    BlobGet,
    Get,
    Hello,
    Probe,
    Prune,
    Tree,
    auth_bytes,
)
from crdtchain.sync.outputs import Ready
from crdtchain.sync.tree import RangeTree
from tests.builders import World
from tests.sync_pair import End, LedgerShelf, TableShelf, connect, make_hello, make_key, talk
from tests.unit.sync.test_session import ALL, SALT

# -- handshake --


def fresh_end(is_dialler: bool = True) -> tuple[End, bytes]:
    """Return an end that has said hello, and its network."""
    world = World()
    end = End(LedgerShelf(world.log), "dialler" if is_dialler else "listener", is_dialler, world.network)
    end.act(end.session.start())
    return end, bytes(world.network)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"network": b"\x01\x71\x12\x20" + bytes(32)}, "another network"),
        ({"version": 1}, "version 1 of the protocol, this node 2"),
        ({"version": 3}, "version 3"),
        ({"nonce": make_hello("dialler").nonce}, "this node itself"),
    ],
)
def test_other_networks_other_versions_and_oneself_are_refused(changes: dict[str, Any], reason: str) -> None:
    end, network = fresh_end()
    with pytest.raises(PeerError, match=reason):
        end.hear(msgspec.structs.replace(make_hello("listener", network), **changes))


@pytest.mark.parametrize("version", [1, 3, 2**40])
def test_a_hello_of_another_version_is_understood_whatever_else_is_in_it(version: int) -> None:
    end, network = fresh_end()
    for rest in ([], [b"x"], [network, {"new": "field"}, [1, 2]]):
        head = codec.encode([0, version, *rest])
        with pytest.raises(PeerError, match=f"version {version}"):
            end.receive(len(head).to_bytes(2, "big") + head)


def test_nothing_is_taken_before_the_key_is_proved() -> None:
    end, network = fresh_end()
    for head in (Probe(bytes(32), 1), Get(1, b"", SALT, ALL), Prune(), BlobGet(network, 0, 0, False)):
        with pytest.raises(PeerError, match="hello and prove its key first"):
            end.hear(head)
    with pytest.raises(PeerError, match="before its hello"):
        end.hear(Auth(bytes(64)))
    end.hear(make_hello("listener", network))
    with pytest.raises(PeerError, match="hello twice"):
        end.hear(make_hello("listener", network))
    with pytest.raises(PeerError, match="hello and prove its key first"):
        end.hear(Probe(bytes(32), 1))
    assert not end.session.node and not end.session.push([(OpId(network), b"x")]) and not end.session.probe(True)


def prove(end: End, theirs: Hello, name: str = "listener", is_dialler: bool = False) -> Auth:
    """Return a name's proof of its key to an end; `is_dialler` is the role that it claims."""
    mine = end.session._hello
    pair = (mine, theirs) if end.session._is_dialler else (theirs, mine)
    return Auth(make_key(name).sign(auth_bytes(*pair, is_dialler)))


def test_a_proof_holds_for_one_key_one_role_and_one_session() -> None:
    end, network = fresh_end()
    hello = make_hello("listener", network)
    end.hear(hello)
    other, _ = fresh_end()
    elsewhere = make_hello("listener", network, nonce=bytes(32))
    other.hear(elsewhere)
    for auth in (
        Auth(bytes(64)),
        prove(end, hello, "somebody else"),
        prove(end, hello, is_dialler=True),
        prove(other, elsewhere),
        prove(end, make_hello("somebody else", network)),
    ):
        with pytest.raises(PeerError, match="could not prove"):
            end.hear(auth)
    assert end.session.node == b""
    end.hear(prove(end, hello))
    assert end.session.node == make_key("listener").author
    assert [output.hello for output in end.outputs if isinstance(output, Ready)] == [hello]
    with pytest.raises(PeerError, match="or twice"):
        end.hear(prove(end, hello))


def test_what_is_reflected_proves_nothing() -> None:
    # A peer without a key sends back what it is sent: the same key, another nonce, the same proof.
    end, network = fresh_end()
    mirrored = make_hello("dialler", network, nonce=bytes(32))
    end.hear(mirrored)
    (auth, _) = end.said()[-1]
    assert isinstance(auth, Auth)
    with pytest.raises(PeerError, match="could not prove"):
        end.hear(auth)


# -- scopes --


class Half:
    """A stub of an index: the ops whose digest is even belong to the scope."""

    def __init__(self, shelf: TableShelf) -> None:
        self._shelf = shelf

    @property
    def tree(self) -> RangeTree:
        shelf = self._shelf
        return RangeTree(shelf.ids, shelf.depths, [number for number in range(len(shelf)) if self.holds(number)])

    def holds(self, number: int) -> bool:
        return self._shelf.ids[number][-1] % 2 == 0


def make_partial(keys: Sequence[str], scope: bytes) -> TableShelf:
    """Return a shelf that keeps a scope, and knows the scope "even" alone."""
    shelf = TableShelf(keys)

    def find(asked: bytes) -> Half:
        if asked != b"even":
            raise PeerError("the peer asks for a scope that nobody can read")
        return Half(shelf)

    shelf.holdings.scope = scope
    shelf.holdings._find_part = find
    return shelf


KEYS = [f"{place // 3:010x}{place:064x}" for place in range(300)]


@pytest.mark.parametrize("scopes", [(b"", b"even"), (b"even", b""), (b"even", b"even")])
def test_a_partial_replica_gets_and_gives_what_belongs_to_its_scope(scopes: tuple[bytes, bytes]) -> None:
    evens = KEYS[::2]
    held = [KEYS[:200] if scope == b"" else evens[:50] + evens[-3:] for scope in scopes]
    held[0] = sorted({*held[0], *evens[60:80]})
    shelves = [make_partial(keys, scope) for keys, scope in zip(held, scopes, strict=True)]
    ends = connect(shelves[0], shelves[1])
    for _ in range(3):
        talk(*ends)
        for end in ends:
            end.act(end.session.probe(is_forced=True))
    whole = {key for keys in held for key in keys if int(key[-1], 16) % 2 == 0}
    for shelf, scope, keys in zip(shelves, scopes, held, strict=True):
        now = {shelf.key(op) for op in shelf.ids}
        assert now == whole | {*keys}
        assert scope == b"" or not any(int(key[-1], 16) % 2 for key in now)
    assert all(end.session.is_in_step and not end.copies for end in ends)


def test_equal_partial_replicas_need_no_probe() -> None:
    ends = connect(make_partial(KEYS[:20], b"even"), make_partial(KEYS[:20], b"even"))
    assert talk(*ends) == 4
    for end in ends:
        assert end.session.is_in_step and not end.session.probe()


def test_live_ops_go_to_a_partial_replica_if_they_belong_to_its_scope() -> None:
    full, part = make_partial(KEYS[:10], b""), make_partial(KEYS[:10:2], b"even")
    ends = connect(full, part)
    talk(*ends)
    for key in KEYS[10:20]:
        block = bytes.fromhex(key)
        full.put(block)
        ends[0].act(ends[0].session.push([(full.find_id(block), block)]))
    talk(*ends)
    assert ends[1].got == 5 and len(part) == 10


def test_a_connection_is_about_one_scope_and_one_that_can_be_read() -> None:
    full, part = make_partial(KEYS[:10], b""), make_partial(KEYS[:10:2], b"even")
    ends = connect(full, part)
    talk(*ends)
    for head in (Tree(b"", SALT, b""), Tree(b"odd", SALT, b""), Get(1, b"", SALT, ALL)):
        with pytest.raises(PeerError, match="another scope"):
            ends[0].hear(head)
    other = End(full, "dialler", True)
    with pytest.raises(PeerError, match="nobody can read"):
        other.hear(make_hello("listener", scope=b"odd"))
