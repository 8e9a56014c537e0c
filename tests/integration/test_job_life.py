"""The life of a job over four witnesses' nodes, each a process: from its terms to everybody's claims."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from crdtchain.scalars import Author
from node.datadir import create_data, found_network, join_network
from tests.integration.node_process import NodeProcess, wait_equal, wait_until

pytestmark = pytest.mark.integration

DELTA_MS = 300
TICK_MS = 300


async def start_network(folder: Path) -> list[NodeProcess]:
    """Start four nodes, all of them witnesses with 1,000 credits, each connected to those before it."""
    made = [NodeProcess(folder / f"node{number}", create_data(folder / f"node{number}")) for number in range(4)]
    keys = [Author(node.key.author) for node in made]
    grants = dict.fromkeys(keys, 1_000)
    await found_network(
        made[0].folder, "four", keys, grants, delta_ms=DELTA_MS, tick_ms=TICK_MS, expiry_ms=60_000, verdict_min=2
    )
    await made[0].start(witness=True)
    for number, node in enumerate(made[1:], 1):
        await join_network(node.folder, made[0].peer)
        await node.start(*(other.peer for other in made[:number]), witness=True)
    return made


async def make_terms(poster: NodeProcess) -> dict[str, Any]:
    """Put the files of a job, and return its terms with deadlines some seconds from now."""
    async with poster.client() as client:
        file = await client.put_blob(b"a file of the job")
    window_ms = 5 * DELTA_MS

    def round_up(at: int) -> int:
        return -(-at // TICK_MS) * TICK_MS

    bid_until = round_up(time.time_ns() // 1_000_000 + 4_000)
    reveal_until = round_up(bid_until + window_ms)
    return {
        "title": "Digits",
        "tags": ["small"],
        "metric": "log_loss",
        "tolerance": 1,
        "max_loss": None,
        "bounty": 100,
        "stake": 5,
        "pool": 10,
        "on_cheat": "refund",
        "bid_until": bid_until,
        "reveal_until": reveal_until,
        "verdict_until": round_up(reveal_until + window_ms + 2_000),
        "editors": [],
        "task": {
            "runtime": "wasm",
            "image": "trainer.wasm",
            "code": [["trainer.wasm", file]],
            "train": [],
            "predict": [],
            "params": {"epochs": 3},
            "resources": {"cpus": 1, "memory_mib": 64, "disk_mib": 16, "seconds": 1, "gpus": 0},
        },
        "data": {"train": [["train.npz", file]], "features": [["x.npy", file]], "labels": file},
        "model": {"format": "npz", "arrays": [["bias", "float64", [10]]]},
    }


async def wait_job(node: NodeProcess, job: str, **values: object) -> dict[str, Any]:
    """Return a job when a node shows it with some values."""
    found: dict[str, Any] = {}

    async def is_so() -> bool:
        async with node.client() as client:
            # It comes from another node.
            if job not in [row["id"] for row in (await client.jobs())]:
                return False
            found.update(await client.job(job))
        return all(found[name] == value for name, value in values.items())

    await wait_until(is_so, f"the job is shown with {values}")
    return found


async def wait_status(node: NodeProcess, op: str, *words: str) -> None:
    async def is_so() -> bool:
        async with node.client() as client:
            return (await client.op(op))["status"] in words

    await wait_until(is_so, f"the op is {words}")


@pytest.mark.asyncio
async def test_a_job_is_decided_and_paid_by_four_witnesses(tmp_path: Path) -> None:
    made = await start_network(tmp_path)
    try:
        poster, winner, loser, judge = made
        posted = await poster.submit("job", await make_terms(poster))
        job = posted["id"]
        for worker, loss in ((winner, 250_000), (loser, 300_000)):
            await wait_job(worker, job, phase="bidding", certified=True)
            staked = await worker.submit("stake", {"job": job})
            await wait_status(worker, staked["id"], "certified")
            async with worker.client() as client:
                model = await client.put_blob(f"a model with a loss of {loss}".encode())
            await worker.submit("bid", {"job": job, "loss": loss, "model": model})
        shown = await wait_job(poster, job, bids=2)
        assert [row["loss"] for row in shown["leaderboard"]] == [250_000, 300_000]
        shown = await wait_job(judge, job, phase="judging")
        await asyncio.sleep(0.2)
        shown = await wait_job(judge, job, phase="judging")
        assert [row["status"] for row in shown["leaderboard"]] == ["leading", "on time"]
        for row in shown["leaderboard"]:
            assert len(row["reveals"]) == 1, "both reveal by themselves"
        reveal = shown["leaderboard"][0]["reveals"][0]
        async with judge.client() as client:
            assert await client.read_blob(reveal["model"]) == b"a model with a loss of 250000"
        await judge.submit("vote", {"reveal": reveal["id"], "verdict": "valid", "loss": 250_000})
        shown = await wait_job(judge, job, phase="decided")
        assert shown["outcome"]["winner"] == shown["leaderboard"][0]["id"]
        assert shown["outcome"]["loss"] == 250_000
        balances = [1_000 - 110, 1_000 + 100, 1_000, 1_000 + 10]

        async def is_claimed() -> bool:
            return [(await node.status())["balance"] for node in made] == balances

        await wait_until(is_claimed, "everybody has claimed")
        status = await wait_equal(made)
        assert status["equivocations"] == 0
        assert [node.stop() for node in made] == [0] * 4
    finally:
        for node in made:
            if node.process is not None:
                node.kill()
