"""Connections of a node within this process: handshakes, pages, silent peers, and keys that are not allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from crdtchain import limits
from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import compute_blob_id
from crdtchain.ops import Profile, SignedOp
from crdtchain.scalars import Author, OpId
from crdtchain.scopes import make_selector
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.signing import signing_bytes
from crdtchain.sync.messages import (
    PREFIX_BYTES,
    Announce,
    Auth,
    BlobGet,
    BlobNone,
    Get,
    Graft,
    More,
    Ops,
    Probe,
    Prune,
    Tree,
    TreeReply,
    auth_bytes,
)
from crdtchain.sync.regions import Except, encode_items
from node import peers
from node.config import Settings
from node.datadir import create_data, found_network, join_network, load_key
from node.node import Node
from node.serve import open_ports
from tests.integration.node_process import wait_until
from tests.integration.raw_peer import RawPeer, connect_raw

pytestmark = pytest.mark.integration


@asynccontextmanager
async def serving(folder: Path, *dialled: str, job_tags: tuple[str, ...] = ()) -> AsyncIterator[tuple[Node, str]]:
    """Run a node; yields it and the address of its peer port."""
    settings = Settings(local="127.0.0.1:0", listen="127.0.0.1:0", mdns="off", peers=dialled, job_tags=job_tags)
    async with Node.open(folder, settings) as node, open_ports(node, settings) as addresses:
        yield node, addresses["peer"]


async def make_folder(folder: Path, *others: Author) -> SignedOp:
    """Found a network; returns its genesis."""
    key = create_data(folder)
    return await found_network(folder, "a test", grants=dict.fromkeys((Author(key.author), *others), 100))


async def claim_more(peer: RawPeer) -> None:
    """Claim to hold a million ops, so that the node asks; a second time, for it may be the first's turn."""
    for root in (bytes(32), bytes(31) + b"x"):
        await peer.send(Probe(root, 10**6))


@pytest.mark.asyncio
async def test_who_does_not_prove_a_key_in_time_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genesis = await make_folder(tmp_path)
    monkeypatch.setattr(limits, "HANDSHAKE_S", 0.5)
    async with serving(tmp_path) as (node, url), connect_raw(url, genesis.op.id) as peer:
        await peer.say_hello()
        assert "in time" in await peer.wait_closed()

        async def is_gone() -> bool:
            return not node.peers.links

        await wait_until(is_gone, "nothing is left of the connection")


@pytest.mark.asyncio
async def test_a_proof_by_another_key_is_none(tmp_path: Path) -> None:
    genesis = await make_folder(tmp_path)
    async with serving(tmp_path) as (node, url), connect_raw(url, genesis.op.id) as peer:
        await peer.say_hello()
        peer.key = SigningKey.generate()
        await peer.send(peer.sign_auth())
        assert "could not prove its key" in await peer.wait_closed()
        assert not node.peers.ready()


@pytest.mark.asyncio
async def test_a_silent_peer_is_not_waited_for_when_another_has_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genesis = await make_folder(tmp_path)
    monkeypatch.setattr(peers, "SILENCE_S", 0.5)
    async with (
        serving(tmp_path) as (_, url),
        connect_raw(url, genesis.op.id) as silent,
        connect_raw(url, genesis.op.id) as other,
    ):
        await silent.shake_hands()
        await claim_more(silent)
        await silent.receive_a(Tree)
        await other.shake_hands()
        await claim_more(other)
        await other.receive_a(Tree)


def make_profiles(network: OpId, key: SigningKey, count: int) -> list[SignedOp]:
    """Return large ops of one author, each after the one before."""
    made: list[SignedOp] = []
    for seq in range(count):
        prev, parents = (made[-1].op.id, ()) if made else (None, (network,))
        payload = encode_payload(key.author, seq, prev, parents, seq, Profile(name="large", about="x" * 900))
        made.append(decode_op(join_block(payload, key.sign(signing_bytes(network, payload)))))
    return made


@pytest.mark.asyncio
async def test_a_page_is_acknowledged_when_it_is_stored_and_not_before(tmp_path: Path) -> None:
    key = SigningKey.generate()
    genesis = await make_folder(tmp_path, Author(key.author))
    page = make_profiles(genesis.op.id, key, 40)
    async with serving(tmp_path) as (node, url), connect_raw(url, genesis.op.id) as peer:
        await limit_pages(node, 0)
        await peer.shake_hands()
        await claim_more(peer)
        await peer.receive_a(Tree)
        await peer.send(TreeReply(1, encode_items([Except("", ())])))
        get, _ = await peer.receive_a(Get)
        blocks = [signed.block for signed in page]
        await peer.send(Ops(get.request, False, tuple(map(len, blocks))), blocks)

        async def is_added() -> bool:
            return node.runtime.writer.is_full and page[-1].op.id in node.runtime.ledger

        await wait_until(is_added, "the page is added, and can't be stored")
        with pytest.raises(TimeoutError):
            await peer.receive_a(More, seconds=0.5)
        await limit_pages(node, None)
    async with serving(tmp_path) as (node, _):
        assert page[-1].op.id in node.runtime.ledger


async def limit_pages(node: Node, more: int | None) -> None:
    """Let the database grow by so many pages at most; None: as it likes."""
    assert isinstance(node.store, SqliteStore)

    def limit(connection: object) -> None:
        (count,) = connection.execute("PRAGMA page_count").fetchone()  # type: ignore[attr-defined]
        connection.execute(f"PRAGMA max_page_count = {2**30 if more is None else count + more}")  # type: ignore[attr-defined]

    await node.store._call(limit)


@pytest.mark.asyncio
async def test_a_private_node_connects_to_nobody_else_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="node.node")
    await make_folder(tmp_path / "open")
    create_data(tmp_path / "private")
    async with serving(tmp_path / "open") as (open_node, url):
        await join_network(tmp_path / "private", url)
        (tmp_path / "private" / "peers.allow").write_text("# nobody\n")
        async with serving(tmp_path / "private", url) as (node, _):

            async def is_refused() -> bool:
                return any("not on the other's list" in ended.reason for ended in node.peers.ended)

            await wait_until(is_refused, "the dialled node is refused")
            assert not node.peers.ready() and not open_node.peers.ready()
            # Not even for a moment.
            assert f"Connected to {url}" not in caplog.text and "Connected to 127.0.0.1" in caplog.text


@pytest.mark.asyncio
async def test_a_node_that_waits_for_a_peers_word_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    await make_folder(tmp_path)
    settings = Settings(peers=("http://127.0.0.1:9",), tip_wait_s=600, mdns="off")
    async with asyncio.timeout(30):
        async with Node.open(tmp_path, settings) as node:
            assert node.runtime.waits_for_tip


@asynccontextmanager
async def listening(network: OpId, key: SigningKey, may_answer: asyncio.Event) -> AsyncIterator[str]:
    """Be a peer that is dialled, and proves its key when it may."""

    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        peer = RawPeer(cast("aiohttp.ClientWebSocketResponse", socket), network, key)
        await may_answer.wait()
        theirs = await peer.say_hello()
        await peer.send(Auth(key.sign(auth_bytes(theirs, peer.hello, is_dialler=False))))
        await peer.wait_closed()
        return socket

    app = web.Application()
    app.router.add_get("/sync", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.asyncio
@pytest.mark.parametrize("is_lower", [True, False])
async def test_of_two_connections_the_one_that_the_lower_key_dialled_is_kept(tmp_path: Path, is_lower: bool) -> None:
    network, may_answer = (await make_folder(tmp_path)).op.id, asyncio.Event()
    own = load_key(tmp_path, None).author
    key = next(key for key in iter(SigningKey.generate, None) if (own < key.author) == is_lower)
    async with (
        listening(network, key, may_answer) as address,
        serving(tmp_path, address) as (node, url),
        connect_raw(url, network, key) as peer,
    ):
        await peer.shake_hands()
        may_answer.set()

        async def is_decided() -> bool:
            return [link.is_dialler for link in node.peers.ready()] == [is_lower] and bool(node.peers.ended)

        await wait_until(is_decided, "one connection is left, and it is the right one", 30)
        if is_lower:
            assert "already connected" in await peer.wait_closed()
        else:
            assert "already connected" in node.peers.ended[0].reason and node.peers.ended[0].address == address


@pytest.mark.asyncio
async def test_what_is_announced_and_does_not_come_is_asked_for_and_copies_are_declined(tmp_path: Path) -> None:
    key = SigningKey.generate()
    network = (await make_folder(tmp_path, Author(key.author))).op.id
    first, second = make_profiles(network, key, 2)
    async with serving(tmp_path) as (_, url), connect_raw(url, network) as one, connect_raw(url, network) as other:
        await one.shake_hands()
        await other.shake_hands()
        prefix = first.op.id[4 : 4 + PREFIX_BYTES]
        await one.send(Announce(prefix))
        assert (await one.receive_a(Graft))[0] == Graft(prefix)
        await one.send(Ops(0, True, (len(first.block),)), [first.block])
        assert await other.receive_a(Ops) == (Ops(0, True, (len(first.block),)), [first.block])
        await other.send(Ops(0, True, (len(first.block),)), [first.block])
        assert (await other.receive_a(Prune))[0] == Prune(bytes(key.author))
        # Nobody sends it back to who brought it.
        await one.send(Ops(0, True, (len(second.block),)), [second.block])
        assert (await other.receive_a(Ops))[1] == [second.block]
        assert not any(isinstance(head, Ops) for head, _ in one.log)


@pytest.mark.asyncio
async def test_what_is_above_an_allowance_is_neither_taken_live_nor_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = SigningKey.generate()
    network = (await make_folder(tmp_path, Author(key.author))).op.id
    flood = make_profiles(network, key, 40)
    monkeypatch.setattr(limits, "AUTHOR_OPS_BURST", 10)
    monkeypatch.setattr(limits, "AUTHOR_OPS_S", 0.01)
    monkeypatch.setattr(limits, "PULL_DELAY_S", (3_600.0, 3_600.0))
    monkeypatch.setattr(peers, "BUSY_S", 0.05)
    monkeypatch.setattr(peers, "GRACE_S", 0.05)
    async with serving(tmp_path) as (node, url), connect_raw(url, network) as peer:
        await peer.shake_hands()
        blocks = [signed.block for signed in flood]
        await peer.send(Ops(0, True, tuple(map(len, blocks))), blocks)
        await claim_more(peer)
        with pytest.raises(TimeoutError):
            await peer.receive_a(Tree, seconds=1)
        assert flood[9].op.id in node.runtime.ledger and flood[10].op.id not in node.runtime.ledger
        for link in node.peers.ready():
            node.guards.admission.forget(link.name)
        await peer.receive_a(Tree)


@pytest.mark.asyncio
async def test_a_blob_that_no_op_names_is_looked_for_at_nobody(tmp_path: Path) -> None:
    network = (await make_folder(tmp_path)).op.id
    wanted = BlobGet(bytes(compute_blob_id(b"what nobody names")), 0, 2, False)
    async with serving(tmp_path) as (_, url), connect_raw(url, network) as asker, connect_raw(url, network) as other:
        await asker.shake_hands()
        await other.shake_hands()
        await asker.send(wanted)
        assert (await asker.receive_a(BlobNone))[0] == BlobNone(False)
        with pytest.raises(TimeoutError):
            await other.receive_a(BlobGet, seconds=0.2)


@pytest.mark.asyncio
async def test_who_keeps_more_than_before_begins_its_connections_anew(tmp_path: Path) -> None:
    network = (await make_folder(tmp_path)).op.id
    async with serving(tmp_path, job_tags=("one",)) as (node, url), connect_raw(url, network) as peer:
        assert (await peer.shake_hands()).scope == node.partial.scope != b""
        assert not await node.widen(make_selector(tags=["one"]))
        assert await node.widen(make_selector(tags=["another"]))
        assert "keeps more now" in await peer.wait_closed()
        async with connect_raw(url, network) as again:
            assert (await again.shake_hands()).scope == node.partial.scope


@pytest.mark.asyncio
async def test_who_asks_and_sends_more_than_its_pace_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = SigningKey.generate()
    network = (await make_folder(tmp_path, Author(key.author))).op.id
    first, second, third = make_profiles(network, key, 3)
    for name, value in (("WORK_BURST", 4), ("WORK_S", 0.01), ("OPS_BURST", 2), ("OPS_S", 0.01)):
        monkeypatch.setattr(limits, f"LINK_{name}", value)
    everything = encode_items([Except("", ())])
    async with serving(tmp_path) as (node, url), connect_raw(url, network) as one, connect_raw(url, network) as other:
        await one.shake_hands()
        await one.send(Get(1, b"", bytes(16), everything))
        assert (await one.receive_a(Ops))[0].last
        await one.send(Get(2, b"", bytes(16), everything))
        with pytest.raises(TimeoutError):
            await one.receive_a(Ops, seconds=0.5)
        await other.shake_hands()
        for page in ([first, second], [third]):
            await other.send(
                Ops(0, True, tuple(len(signed.block) for signed in page)), [signed.block for signed in page]
            )

        async def is_taken() -> bool:
            return second.op.id in node.runtime.ledger

        await wait_until(is_taken, "what comes at its pace is taken")
        await asyncio.sleep(0.3)
        assert third.op.id not in node.runtime.ledger
        # Who waits does not answer a goodbye.
        await node.peers.close("the test ends")
