"""A partial replica beside a full one, as processes on sockets."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_cid, format_did
from crdtchain.errors import UsageError
from crdtchain.ops import SignedOp
from crdtchain.scopes import ScopeIndex, Selector, make_selector
from node.datadir import create_data, join_network
from tests.builders import World
from tests.integration.node_process import ROOT, NodeProcess, join_all, nodes, wait_until

pytestmark = pytest.mark.integration


def make_world() -> World:
    """Return a network with three decided jobs."""
    world = World()
    for poster in ("alice", "bob", "alice"):
        world.play_job(poster, {"carol": [90, 80], "dave": [95]}, tags=("by-" + poster,))
    return world


async def make_full(folder: Path, ops: list[SignedOp]) -> NodeProcess:
    node = NodeProcess(folder, create_data(folder))
    store = SqliteStore(folder)
    await store.open()
    await store.append(ops, durable=True)
    await store.close()
    return node


async def stored_ids(node: NodeProcess) -> set[bytes]:
    """Return what a node's folder holds; the node has been stopped."""
    store = SqliteStore(node.folder)
    await store.open()
    ids = await store.ids(10**6)
    await store.close()
    return set(map(bytes, ids))


async def call_cli(node: NodeProcess, *words: str) -> str:
    """Run a command of the program beside a node; returns what it prints."""
    command = [sys.executable, "-m", "node.cli.main", *words, "--data", str(node.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(*command, cwd=node.folder.parent, env=environment, stdout=-1)
    out, _ = await process.communicate()
    assert process.returncode == 0, (words, out)
    return " ".join(out.decode().split()) if "--json" not in words else out.decode()


def find_scope(world: World, selector: Selector) -> set[bytes]:
    return {bytes(world.log[number].op.id) for number in ScopeIndex(world.ledger, selector).members}


async def wait_count(node: NodeProcess, count: int, what: str) -> None:
    async def is_there() -> bool:
        status = await node.status()
        return bool(status["ops"] >= count and status["waiting"] == 0)

    await wait_until(is_there, what)


@asynccontextmanager
async def full_and_partial(folder: Path, world: World, *flags: str) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    """Yield a full node that holds a world, and a partial one that was started with some flags."""
    full = await make_full(folder / "full", world.log)
    partial = NodeProcess(folder / "partial", create_data(folder / "partial"))
    try:
        await full.start()
        await join_network(partial.folder, full.peer)
        await partial.start(full.peer, flags=flags)
        yield full, partial
    finally:
        for node in (full, partial):
            if node.process is not None:
                node.process.kill()
                node.process.wait()


@pytest.mark.asyncio
async def test_a_partial_replica_keeps_its_job_judges_it_and_fetches_another_when_asked(tmp_path: Path) -> None:
    world = make_world()
    first, second, third = (world.ledger.dag.ids[job] for job in world.ledger.jobs.jobs)
    async with full_and_partial(tmp_path, world, "--jobs", format_cid(first)) as (full, partial):
        own = partial.key.author
        scope = find_scope(world, make_selector([first], accounts=[own]))
        assert len(scope) < len(world.log) / 2
        await wait_count(partial, len(scope), "the scope has come")
        async with partial.client() as mine, full.client() as theirs:
            kept, whole = await mine.job(format_cid(first)), await theirs.job(format_cid(first))
            assert kept["outcome"] == whole["outcome"] != None  # noqa: E711 - all three
            assert kept["leaderboard"][0]["id"] == whole["leaderboard"][0]["id"] and not kept["partial"]
            status = await mine.status()
            assert status["ops"] == len(scope) and status["scope"]["jobs"] == [format_cid(first)]
            assert any("other jobs" in text for text in status["scope"]["cannot_judge"])
            assert (await mine.account(format_did(world.key("bob"))))["partial"]
            assert not (await mine.account(format_did(own)))["partial"]
            assert (await theirs.status())["scope"] is None and not whole["partial"]
            with pytest.raises(UsageError, match="keeps everything already"):
                await theirs.widen_scope(jobs=[format_cid(second)])

            shown = await call_cli(partial, "scope", "show")
            assert format_cid(first) in shown and "It can't judge the end of other jobs." in shown
            text = await call_cli(partial, "account", format_did(world.key("bob")))
            assert "as far as this partial replica knows" in text
            assert "a partial replica" in await call_cli(partial, "status")
            assert "This node keeps everything." in await call_cli(full, "scope", "show")

            added = json.loads(await call_cli(partial, "scope", "add", format_cid(second), "--json"))
            assert added["changed"] and len(added["scope"]["jobs"]) == 2
            assert not (await mine.widen_scope(jobs=[format_cid(second)]))["changed"]
            larger = find_scope(world, make_selector([first, second], accounts=[own]))
            await wait_count(partial, len(larger), "the second job has come")
            assert (await mine.job(format_cid(second)))["outcome"] is not None
            assert format_cid(third) not in [row["id"] for row in await mine.jobs() if not row["partial"]]
        assert partial.stop() == 0
        assert await stored_ids(partial) == larger

        # What was added stays, also without the flag.
        await partial.start(full.peer)
        assert (await partial.status())["scope"]["jobs"] == sorted([format_cid(first), format_cid(second)])
        async with partial.client() as mine:
            assert (await mine.widen_scope(everything=True))["scope"] is None
        await wait_count(partial, len(world.log), "everything has come")
        assert (await partial.status())["heads_digest"] == world.ledger.heads_digest().hex()


@pytest.mark.asyncio
async def test_of_what_is_new_a_partial_replica_takes_what_is_about_its_jobs(tmp_path: Path) -> None:
    world = make_world()
    async with full_and_partial(tmp_path, world, "--job-tags", "live") as (full, partial):
        await wait_count(partial, 1, "genesis is here")
        place = len(world.log)
        world.play_job("alice", {"bob": [90, 80]}, tags=("live",))
        world.play_job("bob", {"carol": [70]}, tags=("other",))
        scope = find_scope(world, make_selector(tags=["live"], accounts=[partial.key.author]))
        async with full.client() as client:
            for signed in world.log[place:]:
                await client.submit_block(signed.block)
        await wait_count(partial, len(scope), "the new job has come")
        async with partial.client() as client:
            rows = [row for row in await client.jobs() if not row["partial"]]
            assert [row["tags"] for row in rows] == [["live"]] and rows[0]["phase"] == "decided"
        assert partial.stop() == 0
        assert await stored_ids(partial) == scope


@pytest.mark.asyncio
async def test_a_partial_replica_signs_and_is_heard_and_is_paid(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (founder, other):
        await founder.start(witness=True)
        await join_all([founder, other])
        await other.start(founder.peer, flags=("--own-jobs",))
        for amount in (5, 6):
            await founder.submit("transfer", {"to": format_did(other.key.author), "amount": amount})
        await founder.submit("profile", {"name": "not about anybody"})

        async def is_claimed() -> bool:
            return bool((await other.status())["balance"] == 1_011)

        await wait_until(is_claimed, "transfers to the own account are kept, certified and claimed")
        sent = await other.submit("transfer", {"to": format_did(founder.key.author), "amount": 1})
        async with founder.client() as client:

            async def is_paid() -> bool:
                return bool((await client.status())["balance"] == 990)

            await wait_until(is_paid, "what a partial replica signs reaches the others")
            assert (await client.op(sent["id"]))["author"] == format_did(other.key.author)
        assert other.stop() == 0
        with pytest.raises(AssertionError, match="a witness keeps everything"):
            await other.start(founder.peer, witness=True)
