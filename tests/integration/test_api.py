"""The local port's API: true to its description, and never a 5xx for what somebody sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from crdtchain.codec import format_cid, format_did, parse_cid
from node.datadir import load_token
from node.server.api import ROUTES
from node.server.openapi import API, make_openapi
from node.server.problems import PROBLEMS, TYPE_PREFIX
from tests.integration.node_process import NodeProcess, nodes, wait_until

pytestmark = pytest.mark.integration

NO_OP = format_cid(b"\x01\x71\x12\x20" + bytes(32))
BODIES: list[bytes] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b"1" * 400,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"name":"\\ud800"}',
    b'{"name":"x","about":' + b'"' + b"y" * 1_000_000 + b'"}',
    b'{"job":"bafy"}',
    json.dumps({"job": NO_OP}).encode(),
    json.dumps({"job": NO_OP, "loss": 2**80, "model": NO_OP}).encode(),
    json.dumps({"job": NO_OP, "loss": -1, "model": NO_OP}).encode(),
    json.dumps({"job": NO_OP, "loss": 1.5, "model": NO_OP}).encode(),
    json.dumps({"bid": NO_OP}).encode(),
    json.dumps({"reveal": NO_OP, "verdict": "perhaps"}).encode(),
    json.dumps({"reveal": NO_OP, "verdict": "valid", "loss": 1}).encode(),
    json.dumps({"of": NO_OP}).encode(),
    json.dumps({"to": "did:key:z6Mk" + "1" * 40, "amount": 1}).encode(),
    json.dumps({"title": "x", "editors": [1]}).encode(),
    json.dumps({"title": "x", "editors": ["x"]}).encode(),
    b"\x82\x80\x80",
    b"\xff" * 65_537,
    bytes(2**20 + 1),
]
PATHS = [
    "ops/x", f"ops/{NO_OP}", "ops/%00", "ops/%F0%9F%98%80", "jobs/x", f"jobs/{NO_OP}", "accounts/x",
    "accounts/did:key:z6Mk", "blobs/x", f"blobs/{NO_OP}", "ops?after=x", "ops?limit=0", "ops?limit=501", "ops?kind=x",
    "ops?author=x", "ops?after=99999999999999999999", "ops?after=-1&limit=-1", "nothing", "ops?after=%C2%B2",
]  # fmt: skip


@pytest.mark.asyncio
async def test_garbage_gets_a_problem_document_and_never_a_5xx(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as made:
        node = await made[0].start(witness=True)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {load_token(node.folder)}"}) as http:
            for path in PATHS:
                async with http.get(f"{node.local}{API}/{path}") as answer:
                    await check_problem(path, answer)
            for route in ROUTES:
                if route.method == "POST":
                    for body in BODIES:
                        kind = route.body_type or "application/json"
                        address = f"{node.local}{API}{route.path}"
                        async with http.post(address, data=body, headers={"Content-Type": kind}) as answer:
                            await check_problem((route.path, body[:60]), answer)
            async with http.request("DELETE", f"{node.local}{API}/ops", json={}) as answer:
                assert answer.status == 405
                await check_problem("DELETE", answer)
        assert (await node.status())["ops"] == 1


async def check_problem(what: object, answer: aiohttp.ClientResponse) -> None:
    content = json.loads(await answer.read())
    assert 400 <= answer.status < 500, (what, content)
    assert answer.content_type == "application/problem+json", what
    assert content["status"] == answer.status and content["title"] and content["detail"]
    assert content["type"].removeprefix(TYPE_PREFIX) in PROBLEMS


@pytest.mark.asyncio
async def test_every_address_of_the_description_answers_as_it_says(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as made:
        node = await made[0].start(witness=True)
        sent = await node.submit("transfer", {"to": format_did(made[1].key.author), "amount": 5, "memo": "for you"})
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {load_token(node.folder)}"}) as http:
            async with http.get(f"{node.local}/openapi.json") as answer:
                description = await answer.json()
            assert description == json.loads(json.dumps(make_openapi(ROUTES)))
            assert description["openapi"].startswith("3.1")
            for path, operations in description["paths"].items():
                assert {route.method.lower() for route in ROUTES if API + route.path == path} == set(operations)
                if "get" in operations and "{" not in path and not path.endswith("/events"):
                    async with http.get(node.local + path) as answer:
                        assert answer.status == 200, path
                        assert answer.content_type in operations["get"]["responses"]["200"]["content"]
        await check_reads(node, made[1], sent)


async def check_reads(node: NodeProcess, other: NodeProcess, sent: dict[str, Any]) -> None:
    async with node.client() as client:
        shown = await client.op(sent["id"])
        assert shown["body"] == {"to": format_did(other.key.author), "amount": 5, "memo": "for you"}
        assert parse_cid(sent["id"])
        assert (await client.block(sent["id"]))[:1] == b"\x82"
        page = await client.ops(limit=1)
        assert page["next"] == 0 and page["ops"][0]["kind"] == "genesis"
        page = await client.ops(kind="transfer", author=format_did(node.key.author))
        assert [op["id"] for op in page["ops"]] == [sent["id"]] and page["next"] is None
        account = await client.account(format_did(node.key.author))
        assert account["balance"] == 995 and account["history"][0]["change"] == -5
        incoming = (await client.account(format_did(other.key.author)))["incoming"]
        assert [op["id"] for op in incoming] == [sent["id"]]
        assert len(await client.accounts()) == 2
        network = await client.network()
        assert network["witnesses"] == [format_did(node.key.author)] and network["tick_ms"] == 200
        assert (await client.peers()) == {"connected": [], "failed": {}, "ended": [], "known": []}

        async def is_certified() -> bool:
            return bool((await client.op(sent["id"]))["status"] == "certified")

        await wait_until(is_certified, "the transfer is certified")
