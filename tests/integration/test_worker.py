"""A worker in a market of real runtimes and the real WebAssembly sandbox: from posting a job to its claims."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crdtchain.adapters.keys import SigningKey
from crdtchain.adapters.memory_store import MemoryStore
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Genesis, Job, SignedOp
from crdtchain.scalars import Author, BlobId, Micros, OpId
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.signing import GENESIS_NETWORK, signing_bytes
from node.jobfile import NetworkRules, compute_data_id, read_job_file
from node.runtime import Runtime
from node.worker.loop import Worker, WorkerEvent
from node.worker.market import JobView, view_jobs
from node.worker.policy import Policy
from node.worker.runtime_market import RuntimeMarket
from node.worker.sandbox.wasm import WasmSandbox
from node.worker.strategy import Honest

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(300)]

DELTA_MS, TICK_MS = 200, 500
JOB = Path(__file__).parents[2] / "examples/digits-wasm/job.toml"
POLICY = Policy(min_time_left_s=1, runtimes=("wasm",))


class SharedBlobs:
    """The blobs of all nodes of a test, as if every fetch succeeded at once."""

    def __init__(self) -> None:
        self.data: dict[BlobId, bytes] = {}

    async def get(self, blob: BlobId) -> bytes | None:
        return self.data.get(blob)

    async def put(self, data: bytes) -> BlobId:
        blob = compute_data_id(data)
        self.data[blob] = data
        return blob


@dataclass
class Peer:
    """One runtime with its own key, ledger and store."""

    key: SigningKey
    runtime: Runtime
    market: RuntimeMarket
    events: list[WorkerEvent] = field(default_factory=list)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind not in ("progress", "training", "measured")]

    def balance(self) -> int:
        cut = self.runtime.ledger.everything()
        return self.runtime.ledger.accounts.certified_balance(self.key.author, cut)


def make_genesis(founder: SigningKey, grants: dict[Author, int]) -> SignedOp:
    body = Genesis(
        name="test", witnesses=(founder.author,), grants=tuple(sorted(grants.items())), elector_min=10, verdict_min=1,
        bounty_min=1, delta_ms=DELTA_MS, tick_ms=TICK_MS, expiry_ms=60_000,
    )  # fmt: skip
    payload = encode_payload(founder.author, 0, None, [], int(time.time() * 1000), body)
    return decode_op(join_block(payload, founder.sign(signing_bytes(GENESIS_NETWORK, payload))))


@asynccontextmanager
async def open_market(names: str) -> AsyncIterator[tuple[dict[str, Peer], SharedBlobs]]:
    """Run one runtime for each name, the first one the witness, all hearing each other at once."""
    keys = {name: SigningKey.generate() for name in names.split()}
    founder = next(iter(keys.values()))
    genesis = make_genesis(founder, {key.author: 1_000 for key in keys.values()})
    blobs, peers, deliveries = SharedBlobs(), {}, set[asyncio.Task[object]]()
    for name, key in keys.items():
        store = MemoryStore()
        await store.open()
        await store.append([genesis], durable=True)
        runtime = Runtime(Ledger(genesis.op), store, key, is_witness=key is founder, debounce_ms=20)
        peers[name] = Peer(key, runtime, RuntimeMarket(runtime, blobs, key.author))

    def connect(name: str, peer: Peer) -> None:
        def deliver(ops: object, source: str) -> None:
            for other in peers.values():
                if other is not peer and source == "":
                    task = asyncio.ensure_future(other.runtime.take(ops, name))  # type: ignore[arg-type]
                    deliveries.add(task)
                    task.add_done_callback(deliveries.discard)

        peer.runtime.on_stored = deliver

    for name, peer in peers.items():
        connect(name, peer)
    running = [asyncio.ensure_future(peer.runtime.run()) for peer in peers.values()]
    try:
        yield peers, blobs
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@asynccontextmanager
async def work(
    peer: Peer, folder: Path, policy: Policy = POLICY, strategy: Honest | None = None
) -> AsyncIterator[Worker]:
    """Run a worker for a while."""
    sandbox = WasmSandbox(folder / "cache")
    worker = Worker(peer.market, {"wasm": sandbox}, policy, folder / "work", strategy or Honest(), peer.events.append)
    task = asyncio.ensure_future(worker.run())
    try:
        yield worker
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sandbox.close()


async def post(peer: Peer, blobs: SharedBlobs, folder: Path, bid_for: str = "6s", on_cheat: str = "refund") -> OpId:
    text = JOB.read_text()
    for old, new in (
        ('bid_for = "10m"', f'bid_for = "{bid_for}"'),
        ('reveal_for = "2m"', 'reveal_for = "2s"'),
        ('verdict_for = "5m"', 'verdict_for = "10s"'),
        ("seconds = 120", "seconds = 4"),
        ("epochs = 300", "epochs = 20"),
        ('on_cheat = "refund"', f'on_cheat = "{on_cheat}"'),
        ('"trainer.wasm"]', f'"{JOB.parent}/trainer.wasm"]'),
        ('"../digits/', f'"{JOB.parent.parent}/digits/'),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "job.toml"
    path.write_text(text)
    rules = NetworkRules.from_params(peer.runtime.ledger.params)
    draft = read_job_file(path, rules, peer.runtime.now_ms())
    for blob, file in draft.blobs.items():
        assert await blobs.put(file.read_bytes()) == blob
    return (await peer.runtime.submit(draft.terms)).op.id


async def until(condition: Callable[[], object], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


def find_view(peer: Peer, job: OpId) -> JobView:
    return next(view for view in view_jobs(peer.runtime.ledger, peer.key.author) if view.id == job)


@pytest.mark.asyncio
async def test_a_job_is_trained_bid_revealed_judged_and_paid(tmp_path: Path) -> None:
    async with open_market("alice poster bob") as (peers, blobs):
        alice, poster, bob = peers["alice"], peers["poster"], peers["bob"]
        async with work(alice, tmp_path / "a", Policy(verify="only")), work(bob, tmp_path / "b"):
            job = await post(poster, blobs, tmp_path)
            await until(lambda: bob.balance() == 1_100 and alice.balance() == 1_010, 45)
            await until(lambda: poster.balance() == 890, 5)
            await until(lambda: "decided" in bob.kinds(), 5)
        assert bob.kinds()[:2] == ["taken", "staked"]
        assert {"bid", "training_over", "revealed"} <= set(bob.kinds())
        votes = [event for event in alice.events if event.kind == "vote"]
        assert [event.data["verdict"] for event in votes] == ["valid"]
        view = find_view(poster, job)
        assert view.decided and len(view.reveals) == 1
        losses = [bid.loss for bid in view.bids]
        assert losses == sorted(losses, reverse=True)
        assert view.reveals[0].loss == min(losses) == votes[0].data["loss"]
        assert blobs.data[view.reveals[0].model]


class Liar(Honest):
    """Announces a tenth of what it measured."""

    def announce(self, terms: Job, measured: Micros, best: Micros | None) -> Micros | None:
        return Micros(measured // 10) if best is None else None


@pytest.mark.asyncio
async def test_a_cheat_is_found_and_the_next_best_is_paid(tmp_path: Path) -> None:
    async with open_market("alice poster bob dave") as (peers, blobs):
        alice, bob, dave = peers["alice"], peers["bob"], peers["dave"]
        async with (
            work(alice, tmp_path / "a", Policy(verify="only")),
            work(bob, tmp_path / "b"),
            work(dave, tmp_path / "d", strategy=Liar()),
        ):
            await post(peers["poster"], blobs, tmp_path, bid_for="8s", on_cheat="next")
            await until(lambda: bob.balance() == 1_100 and dave.balance() == 995, 50)
        verdicts = [event.data["verdict"] for event in alice.events if event.kind == "vote"]
        assert sorted(map(str, verdicts)) == ["cheat", "valid"]


@pytest.mark.asyncio
async def test_a_worker_that_was_killed_still_reveals_what_it_bid(tmp_path: Path) -> None:
    async with open_market("alice poster bob") as (peers, blobs):
        bob = peers["bob"]
        async with work(bob, tmp_path / "b"):
            job = await post(peers["poster"], blobs, tmp_path, bid_for="7s")
            await until(lambda: "bid" in bob.kinds(), 20)
        bob.events.clear()
        assert not find_view(bob, job).bidding_closed
        async with work(bob, tmp_path / "b", Policy(min_bounty=10**6, runtimes=("wasm",))):
            await until(lambda: "revealed" in bob.kinds(), 20)
            await until(lambda: bob.balance() == 1_100, 30)
        assert "staked" not in bob.kinds()


@pytest.mark.asyncio
async def test_a_model_that_nobody_has_is_missing(tmp_path: Path) -> None:
    class Hoarder(Honest):
        def shares(self, terms: Job, bid: object) -> bool:
            return False

    async with open_market("alice poster dave") as (peers, blobs):
        alice, dave = peers["alice"], peers["dave"]
        async with work(alice, tmp_path / "a", Policy(verify="only")), work(dave, tmp_path / "d", strategy=Hoarder()):
            await post(peers["poster"], blobs, tmp_path)
            await until(lambda: [event for event in alice.events if event.kind == "vote"], 40)
        assert [event.data["verdict"] for event in alice.events if event.kind == "vote"] == ["missing"]


@pytest.mark.asyncio
async def test_the_poster_and_bidders_never_vote(tmp_path: Path) -> None:
    async with open_market("alice bob") as (peers, blobs):
        alice, bob = peers["alice"], peers["bob"]
        async with work(alice, tmp_path / "a"), work(bob, tmp_path / "b"):
            await post(alice, blobs, tmp_path)
            await until(lambda: bob.balance() == 1_100, 45)
        assert "vote" not in alice.kinds() + bob.kinds()
        assert "taken" not in alice.kinds()


@pytest.mark.asyncio
async def test_a_fault_on_the_way_does_not_give_a_stake_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.loop.AGAIN_S", 0.2)
    async with open_market("alice poster bob") as (peers, blobs):
        bob, faults = peers["bob"], [OSError(5, "Input/output error")]

        class FlakyBlobs(SharedBlobs):
            async def put(self, data: bytes) -> BlobId:
                if faults:
                    raise faults.pop()
                return await blobs.put(data)

            async def get(self, blob: BlobId) -> bytes | None:
                return await blobs.get(blob)

        bob.market = RuntimeMarket(bob.runtime, FlakyBlobs(), bob.key.author)
        async with work(bob, tmp_path / "b"):
            await post(peers["poster"], blobs, tmp_path, bid_for="8s")
            await until(lambda: bob.balance() == 1_100, 45)
        assert not faults
        assert bob.kinds().count("staked") == 1 and bob.kinds().count("failed") == 1
