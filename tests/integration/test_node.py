"""Nodes as processes on sockets: they converge, survive restarts, and refuse what they must."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import Link, compute_blob_id, format_cid, format_did
from crdtchain.errors import NoPeerError, RuleError, UsageError
from crdtchain.ops import Transfer
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.signing import signing_bytes
from crdtchain.sync.messages import Get, More, Probe, Tree, encode_frame, encode_ops
from node.datadir import create_data, found_network, join_network, load_token
from tests.builders import bulk_history
from tests.integration.node_process import ROOT, NodeProcess, join_all, nodes, wait_equal, wait_until
from tests.integration.raw_peer import RawPeer, connect_raw

pytestmark = pytest.mark.integration


async def transfer(source: NodeProcess, target: NodeProcess, amount: int = 1) -> dict[str, Any]:
    return await source.submit("transfer", {"to": format_did(target.key.author), "amount": amount})


@pytest.mark.asyncio
async def test_two_nodes_come_to_hold_the_same_and_what_is_transferred_is_claimed(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        sent = await transfer(made[0], made[1], 5)
        assert sent["kind"] == "transfer" and sent["seq"] == 1

        async def is_claimed() -> bool:
            return bool((await made[1].status())["balance"] == 1_005)

        await wait_until(is_claimed, "the receiver's node claims by itself")
        status = await wait_equal(made)
        assert status["balance"] == 995
        assert status["ops"] >= 3
        assert [node.stop() for node in made] == [0, 0]


@pytest.mark.asyncio
async def test_three_nodes_in_a_line_converge_while_all_of_them_write(tmp_path: Path) -> None:
    async with nodes(tmp_path, 3) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        await made[2].start(made[1].peer)

        async def write(node: NodeProcess) -> None:
            for number in range(15):
                await node.submit("profile", {"name": f"name {number}"})

        await asyncio.gather(*(write(node) for node in made))

        async def is_whole() -> bool:
            return bool(min([(await node.status())["ops"] for node in made]) >= 46)

        await wait_until(is_whole, "everything is everywhere")
        status = await wait_equal(made)
        assert status["equivocations"] == 0 and status["waiting"] == 0


@pytest.mark.asyncio
async def test_a_node_that_was_away_catches_up_and_keeps_its_state_over_a_restart(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        await transfer(made[1], made[0])
        await wait_equal(made)
        before = await made[1].status()
        assert made[1].stop() == 0
        for _ in range(10):
            await transfer(made[0], made[1])
        await made[1].start(made[0].peer)

        async def is_claimed() -> bool:
            return [(await node.status())["balance"] for node in made] == [991, 1_009]

        await wait_until(is_claimed, "all that was transferred is claimed")
        after = await wait_equal(made)
        assert after["ops"] >= before["ops"] + 20
        made[1].stop()
        held = await made[0].status()
        assert made[0].stop() == 0
        await made[0].start(witness=True)
        again = await made[0].status()
        assert again["ops"] >= held["ops"] and again["balance"] == 991
        await made[1].start(made[0].peer)
        assert (await wait_equal(made))["equivocations"] == 0


@pytest.mark.asyncio
async def test_a_long_history_is_fetched_whole_from_another_process(tmp_path: Path) -> None:
    history = bulk_history(jobs=12, seed="fetched")
    source = NodeProcess(tmp_path / "source", create_data(tmp_path / "source"))
    target = NodeProcess(tmp_path / "target", create_data(tmp_path / "target"))
    store = SqliteStore(source.folder)
    await store.open()
    await store.append(history, durable=True)
    await store.close()
    try:
        await source.start()
        await join_network(target.folder, source.peer)
        await target.start(source.peer)

        async def is_whole() -> bool:
            return bool((await target.status())["ops"] == len(history))

        await wait_until(is_whole, "the history is here")
        status = await wait_equal([source, target])
        assert status["jobs"] == 12
        assert [source.stop(), target.stop()] == [0, 0]
    finally:
        for node in (source, target):
            if node.process is not None:
                node.kill()


@pytest.mark.asyncio
async def test_a_restored_backup_asks_for_its_own_tip_before_it_signs(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        await transfer(made[1], made[0])
        await wait_equal(made)
        made[1].stop()
        backup = (made[1].folder / "ledger.sqlite").read_bytes()
        await made[1].start(made[0].peer)
        for _ in range(5):
            await transfer(made[1], made[0])
        await wait_equal(made)
        made[1].stop()
        (made[1].folder / "ledger.sqlite").write_bytes(backup)
        await made[1].start(made[0].peer)
        sent = await transfer(made[1], made[0])
        assert sent["seq"] >= 6
        assert (await wait_equal(made))["equivocations"] == 0


@pytest.mark.asyncio
async def test_nodes_of_different_networks_part_with_a_reason(tmp_path: Path) -> None:
    async with nodes(tmp_path / "one", 1) as one, nodes(tmp_path / "two", 1) as two:
        await one[0].start()
        await two[0].start(one[0].peer)

        async def has_reason() -> bool:
            async with two[0].client() as client:
                failed = (await client.peers())["failed"]
            return "another network" in failed.get(one[0].peer, "")

        await wait_until(has_reason, "the peer is named with its reason")
        assert (await two[0].status())["peers"] == []


Step = Callable[[RawPeer], Awaitable[None]]
"""What a peer does that is to be refused."""


def send_frames(*frames: bytes, shakes: bool = True) -> Step:
    """Return a step that sends frames, by default after the handshake."""

    async def step(peer: RawPeer) -> None:
        if shakes:
            await peer.shake_hands()
        for frame in frames:
            await peer.send_bytes(frame)

    return step


def say_hello(**changes: Any) -> Step:
    """Return a step that says a hello with some fields replaced, and then nothing."""

    async def step(peer: RawPeer) -> None:
        await peer.send(msgspec.structs.replace(peer.hello, **changes))

    return step


async def say_hello_twice(peer: RawPeer) -> None:
    await peer.shake_hands()
    await peer.send(peer.hello)


async def talk_before_the_proof(peer: RawPeer) -> None:
    await peer.say_hello()
    await peer.send(Probe(bytes(32), 1))


async def prove_another_key(peer: RawPeer) -> None:
    await peer.say_hello()
    peer.key = SigningKey.generate()
    await peer.send(peer.sign_auth())


async def claim_the_other_role(peer: RawPeer) -> None:
    await peer.say_hello()
    await peer.send(peer.sign_auth(is_dialler=False))


async def send_text(peer: RawPeer) -> None:
    await peer.shake_hands()
    await peer.socket.send_str("text")


@pytest.mark.asyncio
async def test_garbage_from_a_peer_closes_its_connection_with_a_reason_and_nothing_else(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        network = decode_op((made[0].folder / "genesis.cbor").read_bytes()).op.id
        url = made[0].peer
        forged = bytearray((made[0].folder / "genesis.cbor").read_bytes())
        forged[-1] ^= 1
        salt = bytes(16)
        cases: list[tuple[str, Step]] = [
            ("ends within its head", send_frames(b"", shakes=False)),
            ("malformed", send_frames(b"\x00\x03abc", shakes=False)),
            ("hello and prove its key first", send_frames(encode_frame(More(1)), shakes=False)),
            ("hello and prove its key first", talk_before_the_proof),
            ("could not prove its key", prove_another_key),
            ("could not prove its key", claim_the_other_role),
            ("hello twice", say_hello_twice),
            ("version 3 of the protocol", say_hello(version=3)),
            ("another network", say_hello(network=b"\x01\x71\x12\x20" + bytes(32))),
            ("not binary", send_text),
            ("nobody asked for", send_frames(encode_ops([b"\x80"], 7))),
            ("breaks a rule (shape)", send_frames(encode_ops([b"\x80"]))),
            ("breaks a rule (signature)", send_frames(encode_ops([bytes(forged)]))),
            ("ends within one", send_frames(encode_frame(Get(1, b"", salt, b"\x00\x04\x12")))),
            ("unknown sort", send_frames(encode_frame(Tree(b"", salt, b"\x00\x00\x7f")))),
        ]
        for reason, step in cases:
            async with connect_raw(url, network) as peer:
                await step(peer)
                assert reason in await peer.wait_closed()
        for _ in range(30):
            async with connect_raw(url, network) as peer:
                await send_frames(secrets.token_bytes(200))(peer)
                await peer.wait_closed()
        await join_all(made)
        await made[1].start(url)
        await transfer(made[0], made[1])
        assert (await wait_equal(made))["ops"] >= 2


@pytest.mark.asyncio
async def test_a_port_in_use_and_a_folder_in_use_are_said_in_one_sentence(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        await made[0].start()
        port = made[0].local.rpartition(":")[2]
        again = await asyncio.to_thread(run_serve, made[0].folder)
        assert again.returncode == 1 and b"another crdtchain process uses the data folder" in again.stderr
        other = tmp_path / "other"
        create_data(other)
        await found_network(other, "other")
        taken = await asyncio.to_thread(run_serve, other, "--local", f"127.0.0.1:{port}")
        assert taken.returncode == 2 and b"can't listen at" in taken.stderr and b"Traceback" not in taken.stderr
        empty = tmp_path / "empty"
        create_data(empty)
        nothing = await asyncio.to_thread(run_serve, empty)
        assert nothing.returncode == 2 and b"network" in nothing.stderr


def run_serve(folder: Path, *flags: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "node.serve", "--data", str(folder), *(flags or ("--local", "127.0.0.1:0"))]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=20, check=False)


@pytest.mark.asyncio
async def test_the_local_port_needs_token_host_origin_and_type(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        node = await made[0].start()
        port = node.local.rpartition(":")[2]
        right = {"Authorization": f"Bearer {load_token(node.folder)}"}
        refused: list[tuple[str, dict[str, str], int]] = [
            ("GET", {}, 401),
            ("GET", {"Authorization": "Bearer wrong"}, 401),
            ("GET", {"Authorization": f"Basic {load_token(node.folder)}"}, 401),
            ("GET", {**right, "Host": "evil.example"}, 421),
            ("GET", {**right, "Host": f"evil.example:{port}"}, 421),
            ("GET", {**right, "Host": "127.0.0.1"}, 421),
            ("GET", {**right, "Origin": "http://evil.example"}, 403),
            ("GET", {**right, "Origin": "null"}, 403),
            ("GET", {**right, "Origin": f"http://127.0.0.1:{int(port) + 1}"}, 403),
            ("GET", {**right, "Sec-Fetch-Site": "cross-site"}, 403),
            ("GET", {**right, "Sec-Fetch-Site": "same-site"}, 403),
            ("POST", {**right, "Content-Type": "text/plain"}, 415),
            ("POST", {**right, "Content-Type": "application/x-www-form-urlencoded"}, 415),
            ("POST", {**right, "Content-Type": "multipart/form-data; boundary=x"}, 415),
            ("POST", {"Content-Type": "application/json"}, 401),
        ]
        async with aiohttp.ClientSession() as http:
            for method, headers, status in refused:
                path = "status" if method == "GET" else "profiles"
                body = b'{"name":"x"}' if method == "POST" else None
                address = f"{node.local}/api/v1/{path}"
                async with http.request(method, address, headers=headers, data=body) as answer:
                    assert answer.status == status, headers
                    assert answer.content_type == "application/problem+json"
                    assert (await answer.json())["type"].startswith("urn:crdtchain:problem:")
                    assert "Access-Control-Allow-Origin" not in answer.headers
            allowed = {**right, "Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
            async with http.get(f"{node.local}/api/v1/status", headers=allowed) as answer:
                assert answer.status == 200
                assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(f"{node.local}/api/v1/sync", headers={"Origin": "http://evil.example", **right})
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(f"{node.local}/api/v1/sync")
            protocols = ("crdtchain.sync.1", f"crdtchain.token.{load_token(node.folder)}")
            async with http.ws_connect(f"{node.local}/api/v1/sync", protocols=protocols) as link:
                assert link.protocol == "crdtchain.sync.1"
                assert (await link.receive(5)).type is aiohttp.WSMsgType.BINARY
            for path in ("/", "/healthz", "/metrics", "/openapi.json"):
                async with http.get(node.local + path) as answer:
                    assert answer.status == 200
                    assert load_token(node.folder) not in await answer.text()
            async with http.get(f"{node.peer}/api/v1/status", headers=right) as answer:
                assert answer.status == 404
        assert (await node.status())["ops"] == 1


@pytest.mark.asyncio
async def test_a_blob_is_fetched_from_the_peer_that_has_it(tmp_path: Path) -> None:
    small, large = b"a small blob", os.urandom(3 * 2**20 + 17)
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        await join_all(made)
        await made[1].start(made[0].peer)
        await wait_equal(made)
        async with made[0].client() as first, made[1].client() as second:
            cids = [await first.put_blob(small), await first.put_blob(large)]
            assert cids[0] == format_cid(compute_blob_id(small))
            assert cids[1].startswith("bafyrei")
            assert await second.read_blob(cids[0]) == small
            target = tmp_path / "large.bin"
            assert await second.get_blob(cids[1], target) == len(large)
            assert target.read_bytes() == large
            # And the other way: the first dialled nobody, so it goes by what the second said of its port.
            back = await second.put_blob(b"from the second")
            assert await first.read_blob(back) == b"from the second"
            with pytest.raises(NoPeerError):
                await second.read_blob(format_cid(compute_blob_id(b"nobody has this")))
            with pytest.raises(UsageError):
                await second.read_blob("bafynonsense")


@pytest.mark.asyncio
async def test_what_the_ledger_refuses_comes_back_with_its_rule_and_uses_no_seq(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        with pytest.raises(RuleError, match="the balance is 1000") as caught:
            await transfer(made[0], made[1], 5_000)
        assert caught.value.code == "balance"
        with pytest.raises(UsageError):
            await made[0].submit("transfer", {"to": "nobody", "amount": 1})
        with pytest.raises(UsageError):
            await made[0].submit("transfer", {"to": format_did(made[1].key.author), "amount": -1})
        assert (await transfer(made[0], made[1]))["seq"] == 1


@pytest.mark.asyncio
async def test_a_block_signed_elsewhere_is_taken_and_a_forged_one_is_not(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        network = decode_op((made[0].folder / "genesis.cbor").read_bytes()).op.id
        key = made[1].key
        body = Transfer(to=bytes(made[0].key.author), amount=3, memo=None)
        payload = encode_payload(key.author, 0, None, [network], 1, body)
        block = join_block(payload, key.sign(signing_bytes(network, payload)))
        async with made[0].client() as client:
            with pytest.raises(RuleError):
                await client.submit_block(block[:-1] + bytes([block[-1] ^ 1]))
            assert (await client.submit_block(block))["kind"] == "transfer"
            assert (await client.submit_block(block))["status"] == "known"
            payload = encode_payload(key.author, 2, OpId(Link(network[:-1] + b"x")), [], 2, body)
            later = join_block(payload, key.sign(signing_bytes(network, payload)))
            assert (await client.submit_block(later))["status"] == "waiting"


@pytest.mark.asyncio
async def test_events_are_streamed(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        await made[0].start(witness=True)
        async with made[0].client() as client:
            events = client.events()
            first = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0.3)
            sent = await transfer(made[0], made[1])
            event = await asyncio.wait_for(first, 5)
            assert event["type"] == "op_added" and event["op"] == sent["id"] and event["is_own"] is True
            await events.aclose()  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_nobody_answers_is_an_error_of_its_own(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(NoPeerError):
            await join_network(tmp_path / "new", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(UsageError):
        await join_network(tmp_path / "new", "ftp://127.0.0.1")
