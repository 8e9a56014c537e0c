"""One job's training: run after run with a new seed until the time is too short, each improvement kept and bid.

The time of a run is planned so that its model can still be measured and bid before bidding ends. The worker improves on
its own best only: what others announce may be a lie, and answering it would show the market what one has.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from crdtchain import limits
from crdtchain.errors import InvalidOpError, PeerError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.scalars import Micros, OpId
from node.jobfile import compute_data_id
from node.tables import format_micros
from node.worker.evaluate import Evaluation, evaluate
from node.worker.market import JobView, Market
from node.worker.materials import Materials
from node.worker.sandbox.base import Progress, Sandbox, Status
from node.worker.shelf import Note, Shelf
from node.worker.strategy import Strategy

FAILURES_MAX = 3
"""A job whose program fails so often in a row is left alone."""
SEED_MAX = 2**31 - 1

Tell = Callable[[OpId, str, str, dict[str, object]], None]
"""(job, kind of event, one sentence, its data)."""


def draw_seed() -> int:
    """Draw a seed that nobody can foresee."""
    return secrets.randbelow(SEED_MAX + 1)


@dataclass(slots=True)
class Pace:
    """How long things took in this job, ms; starts with what is usual."""

    train_ms: int = 0
    """The longest run so far; 0: none yet."""
    evaluate_ms: int = 2_000
    overhead_ms: int = 2_000
    """What a run takes beyond its wall limit."""

    def note_train(self, wall_ms: int) -> None:
        """Take notice of a training run."""
        self.train_ms = max(self.train_ms, wall_ms)

    def note_evaluate(self, wall_ms: int) -> None:
        """Take notice of an evaluation."""
        self.evaluate_ms = max(wall_ms * 3 // 2, 250)


def plan_seconds(left_ms: int, margin_ms: int, run_seconds_max: int, pace: Pace) -> int:
    """Return the wall limit of the next run in seconds; 0: no run can end, be measured and be bid in time.

    Args:
        left_ms: until the end of bidding.
        margin_ms: what a bid needs to reach the witnesses.
        run_seconds_max: the job's own limit.
        pace: what is known of earlier runs.
    """
    free_ms = left_ms - margin_ms - pace.evaluate_ms
    if pace.train_ms > free_ms:
        return 0
    # A limit of whole seconds must hold with the overhead; a run that is known to be short needs no such room.
    seconds = min(run_seconds_max, max(free_ms - pace.overhead_ms, 0) // 1_000)
    return seconds if seconds >= 1 else int(0 < pace.train_ms <= min(free_ms, 1_000))


class Training:
    """Trains for one job until bidding is over."""

    def __init__(
        self,
        market: Market,
        sandbox: Sandbox,
        shelf: Shelf,
        strategy: Strategy,
        tell: Tell,
        draw: Callable[[], int] = draw_seed,
    ) -> None:
        self._market = market
        self._sandbox = sandbox
        self._shelf = shelf
        self._strategy = strategy
        self._tell = tell
        self._draw = draw
        self._count = 0

    async def run(self, view: JobView, materials: Materials) -> None:
        """Train, measure and bid until the time is up, the bids are used up, or the program fails again and again.

        Raises:
            SandboxError: the sandbox can't be used at all.
        """
        pace, failures, seeds = Pace(), 0, self._shelf.seeds(view.id)
        own = view.bids_of(self._market.me)
        best = own[0].loss if own else None
        bid_count = len(own)
        margin_ms = self._market.delta_ms + 250
        while failures < FAILURES_MAX and bid_count < limits.BIDS_MAX:
            left_ms = view.terms.bid_until - self._market.now_ms()
            seconds = plan_seconds(left_ms, margin_ms, view.terms.task.resources.seconds, pace)
            if seconds < 1:
                self._tell(view.id, "training_over", "No further run would end in time.", {})
                return
            seed = self._draw_new(seeds)
            model = await self._train(view.id, materials, seed, seconds, pace)
            measured = None if model is None else await self._measure(view.id, materials, model, pace)
            failures = failures + 1 if measured is None else 0
            if model is None or measured is None:
                continue
            announced = self._strategy.announce(view.terms, measured, best)
            if announced is None or (best is not None and announced >= best):
                continue
            if await self._bid(view, model, Note("", seed, measured, announced)):
                best, bid_count = announced, bid_count + 1

    def _draw_new(self, seeds: set[int]) -> int:
        seed = self._draw()
        while seed in seeds:
            seed = (seed + 1) % (SEED_MAX + 1)
        seeds.add(seed)
        return seed

    def _make_run_id(self, materials: Materials) -> str:
        self._count += 1
        return f"{materials.job_id[-12:]}-{secrets.token_hex(4)}-{self._count}"

    async def _train(self, job: OpId, materials: Materials, seed: int, seconds: int, pace: Pace) -> bytes | None:
        """Run the program in train mode; returns the model's bytes, or None."""
        spec = materials.make_train_spec(self._make_run_id(materials), seed, seconds)
        self._tell(job, "training", f"Training with seed {seed}, {seconds} s at most.", {"seed": seed})

        def report(progress: Progress) -> None:
            data: dict[str, object] = {"seed": seed, "epoch": progress.epoch, "loss": progress.loss}
            self._tell(job, "progress", f"Epoch {progress.epoch}: loss {progress.loss:.6f}.", data)

        result = await self._sandbox.run(spec, report)
        pace.note_train(result.wall_ms)
        if result.status is not Status.OK:
            text = f"Training ended as {result.status.value}. {result.reason}"
            self._tell(job, "run_failed", text.strip(), {"seed": seed, "status": result.status.value})
            return None
        return result.files.get(f"model/{materials.schema.file_name}")

    async def _measure(self, job: OpId, materials: Materials, model: bytes, pace: Pace) -> Micros | None:
        started = self._market.now_ms()
        found = await measure(self._sandbox, materials, model, self._make_run_id(materials))
        pace.note_evaluate(self._market.now_ms() - started)
        if found.loss_micros is None:
            text = f"The trained model can't be measured: {found.status.value}. {found.reason}"
            self._tell(job, "run_failed", text.strip(), {"status": found.status.value})
            return None
        data: dict[str, object] = {"loss": found.loss_micros, "accuracy": found.accuracy}
        self._tell(job, "measured", f"Measured loss {format_micros(found.loss_micros)}.", data)
        return found.loss_micros

    async def _bid(self, view: JobView, model: bytes, note: Note) -> bool:
        """Keep a model, then bid with it; False when it is too late or the ledger refuses it."""
        if self._market.now_ms() >= view.terms.bid_until:
            self._tell(view.id, "too_late", "The model came too late for a bid.", {})
            return False
        cid = compute_data_id(model)
        commit = compute_commitment(self._market.me, cid)
        self._shelf.keep(view.id, commit, model, Note(cid.hex(), note.seed, note.measured, note.announced))
        try:
            bid = await self._market.bid(view.id, Micros(note.announced), cid, model)
        except (InvalidOpError, PeerError) as error:
            self._tell(view.id, "refused", f"The bid was refused: {error}.", {})
            return False
        data: dict[str, object] = {"bid": bid, "loss": note.announced, "seed": note.seed}
        self._tell(view.id, "bid", f"Bid a loss of {format_micros(note.announced)}.", data)
        return True


async def measure(sandbox: Sandbox, materials: Materials, model: bytes, run_id: str) -> Evaluation:
    """Compute a model's loss by the job's own program and metric.

    Raises:
        ModelError: the labels can't be read: nobody can judge this job.
        SandboxError: the sandbox can't be used at all.
    """
    spec = materials.make_predict_spec(run_id)
    return await evaluate(sandbox, spec, materials.terms.metric, materials.labels, model, materials.schema)
