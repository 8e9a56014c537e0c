"""The worker: takes jobs that fit its policy, trains, bids, reveals, and judges what others reveal.

Theory of operation:

1. One task watches the market and starts a task for each job that is taken; another judges reveals, one at a time. All
   see the same snapshots. Nothing else is remembered: what was staked, bid, revealed and voted is read off the ledger,
   and models are on the shelf, so a worker that was killed goes on where it was.
2. A job's task goes through its stations in order: stake, certified, files, training, the end of bidding, revealing,
   the outcome. Each asks the snapshot whether it is behind already.
3. A worker never votes on a job that it posted or bids on, and never bids on one that it has voted on.
4. What one job does wrong ends that job's task only; a node that does not answer is asked again.

Not here: which jobs (`policy`), the runs (`training`), the votes (`verifying`), what is said of a model (`strategy`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from crdtchain.errors import CrdtchainError, InvalidOpError, PeerError
from crdtchain.scalars import BlobId, Credits, OpId
from node.worker.market import BidView, JobView, Market
from node.worker.materials import Materials, fetch_materials
from node.worker.policy import Budget, Policy, find_refusals
from node.worker.sandbox.base import Sandbox
from node.worker.shelf import Shelf
from node.worker.strategy import Honest, Strategy
from node.worker.training import Training, draw_seed
from node.worker.verifying import Verifying

POLL_S: Final = 1.0
"""The market is looked at so often even when nothing stirs: clocks go on."""
RETRY_S: Final = 1.0
AGAIN_S: Final = 5.0
"""After a fault in a job it is gone on with, once so much time has passed."""

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """Something a person may want to see.

    Attributes:
        job: the job it is about.
        kind: a stable word: taken, staked, training, progress, measured, bid, training_over, run_failed, too_late,
            refused, revealed, withheld, vote, abstained, decided, failed.
        text: one sentence.
        data: its values, by name.
    """

    job: OpId
    kind: str
    text: str
    data: Mapping[str, object] = field(default_factory=dict)


class Worker:
    """Works in one market until cancelled.

    Args:
        market: the node it works for.
        sandboxes: by runtime, those that can run here.
        policy: which jobs it takes.
        folder: where models and files are kept; its own.
        strategy: what it says about its models.
        on_event: told what happens; must return at once.
        draw: draws the seeds of runs.
    """

    def __init__(
        self,
        market: Market,
        sandboxes: Mapping[str, Sandbox],
        policy: Policy,
        folder: Path,
        strategy: Strategy | None = None,
        on_event: Callable[[WorkerEvent], None] | None = None,
        draw: Callable[[], int] = draw_seed,
    ) -> None:
        self._market = market
        self._sandboxes = sandboxes
        self._policy = policy
        self._shelf = Shelf(folder)
        self._strategy = strategy or Honest()
        self._on_event = on_event or (lambda event: None)
        self._draw = draw
        self._verifying = Verifying(market, sandboxes, self._shelf, self._tell)
        self._views: dict[OpId, JobView] = {}
        self._tasks: dict[OpId, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()

    @property
    def working_on(self) -> frozenset[OpId]:
        """The jobs that it works on at the moment."""
        return frozenset(job for job, task in self._tasks.items() if not task.done())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._policy.verify != "no":
                group.create_task(self._verify(), name="worker-verify")
            await self._watch(group)

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        """Look at the market again and again, and start a task for each job that is taken."""
        while True:
            try:
                views = await self._market.jobs()
                balance = await self._market.balance()
            except PeerError as error:
                log.warning("the node does not answer: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            async with self._changed:
                self._views = {view.id: view for view in views}
                self._changed.notify_all()
            for view in views:
                if view.id not in self._tasks and self._takes(view, balance):
                    self._tasks[view.id] = group.create_task(self._work(view.id), name=f"worker-{view.id.hex()[-8:]}")
                    balance = Credits(balance - (0 if view.staked else view.terms.stake))
            try:
                await self._market.wait(POLL_S)
            except PeerError:
                await asyncio.sleep(RETRY_S)

    def _takes(self, view: JobView, balance: int) -> bool:
        """Whether to start with a job: one begun before is gone on with; a new one must fit the policy."""
        if view.decided or not view.certified:
            return False
        if view.staked or view.bids_of(self._market.me):
            return view.terms.task.runtime in self._sandboxes
        if any(reveal.voted for reveal in view.reveals):
            return False
        now_ms, me = self._market.now_ms(), self._market.me
        # A job whose outcome stays open for long keeps no machine busy.
        busy = [job for job in self.working_on if now_ms <= self._views[job].terms.reveal_until]
        budget = Budget(balance, len(busy), tuple(self._sandboxes))
        return not find_refusals(self._policy, view.terms, view.poster, budget, now_ms, me)

    async def _work(self, job: OpId) -> None:
        """Bring one job from the stake to its outcome; what was staked is not given up for one fault."""
        while True:
            try:
                await self._compete(job)
                return
            except (CrdtchainError, OSError) as error:
                self._tell(job, "failed", f"Work on this job is interrupted: {error}.", {})
                log.info("job %s", job.hex(), exc_info=True)
            await asyncio.sleep(AGAIN_S)
            view = self._views[job]
            if view.decided or not (view.staked or view.bids_of(self._market.me)):
                return

    async def _compete(self, job: OpId) -> None:
        view = self._views[job]
        self._tell(job, "taken", f"Taken: {view.terms.title}.", {"bounty": view.terms.bounty})
        if view.terms.stake > 0 and not view.staked:
            await self._insist(lambda: self._market.stake(job))
            self._tell(job, "staked", f"Put down {view.terms.stake} credits.", {"stake": view.terms.stake})
        if view.terms.stake > 0:
            view = await self._until(job, lambda view: view.stake_certified or self._is_over(view))
        materials = await self._fetch(view)
        if materials is not None and not self._is_over(view):
            sandbox = self._sandboxes[view.terms.task.runtime]
            training = Training(self._market, sandbox, self._shelf, self._strategy, self._tell, self._draw)
            try:
                await training.run(self._views[job], materials)
            except CrdtchainError as error:
                # Bids that are out must still be revealed, whatever has become of the sandbox.
                self._tell(job, "run_failed", f"Training has stopped: {error}.", {})
        await self._until(job, lambda view: view.bidding_closed or view.decided)
        await self._reveal(job)
        view = await self._until(job, lambda view: view.decided)
        self._shelf.forget_files(job)
        self._tell(job, "decided", "The outcome is certified.", {"due": view.due})

    async def _fetch(self, view: JobView) -> Materials | None:
        """Fetch a job's files, again and again while there is time to bid."""
        folder = self._shelf.folder_of(view.id) / "files"
        while not self._is_over(view):
            materials = await self._insist(lambda: fetch_materials(self._market, view.id, view.terms, folder))
            if materials is not None:
                return materials
            await asyncio.sleep(RETRY_S)
        return None

    def _is_over(self, view: JobView) -> bool:
        return self._market.now_ms() >= view.terms.bid_until or view.bidding_closed or view.decided

    async def _reveal(self, job: OpId) -> None:
        """Reveal own bids from the lowest loss up to the first that certainly was in time."""
        view = self._views[job]
        for bid in view.bids_of(self._market.me):
            if bid.late:
                continue
            if not bid.revealed:
                await self._reveal_one(view, bid)
            if bid.on_time:
                return

    async def _reveal_one(self, view: JobView, bid: BidView) -> None:
        if not self._strategy.reveals(view.terms, bid):
            self._tell(view.id, "withheld", "The bid is not revealed.", {"bid": bid.id})
            return
        note, model = self._shelf.find_note(view.id, bid.commit), self._shelf.find(view.id, bid.commit)
        if model is None or note is None:
            self._tell(view.id, "failed", "The model behind the bid is not here.", {"bid": bid.id})
            return
        cid = note.model_id()
        if self._strategy.shares(view.terms, bid):
            await self._insist(lambda: self._market.put_blob(model))
        reveal: OpId | None = None
        try:
            reveal = await self._reveal_in_time(view, bid, cid, len(model))
        except InvalidOpError as error:
            # A node that has the model reveals by itself, and may have been quicker.
            if error.code != "once":
                self._tell(view.id, "refused", f"The reveal was refused: {error}.", {"bid": bid.id})
                return
        self._tell(view.id, "revealed", "The model is revealed.", {"bid": bid.id, "reveal": reveal})

    async def _reveal_in_time(self, view: JobView, bid: BidView, model: BlobId, size: int) -> OpId:
        """Reveal a bid; again and again while the node finds that bidding is not closed yet."""
        while True:
            try:
                return await self._insist(lambda: self._market.reveal(bid.id, model, size))
            except InvalidOpError as error:
                if error.code != "early" or self._market.now_ms() > view.terms.reveal_until:
                    raise
            await self._stir(RETRY_S)

    async def _verify(self) -> None:
        """Judge reveals, one at a time."""
        while True:
            found = self._verifying.find_next(self._views, self.working_on)
            unprepared = self._verifying.find_unprepared(self._views, self.working_on)
            is_done = False
            try:
                if found is not None:
                    is_done = await self._verifying.judge_one(*found)
                elif unprepared is not None:
                    await self._verifying.prepare(unprepared)
            except (CrdtchainError, OSError) as error:
                log.warning("an elector's work is interrupted: %s", error)
            if not is_done:
                await self._stir(RETRY_S if found is None else RETRY_S / 2)

    async def _until(self, job: OpId, condition: Callable[[JobView], bool]) -> JobView:
        """Wait until a job's snapshot is as it should be."""
        while not condition(self._views[job]):
            await self._stir(POLL_S)
        return self._views[job]

    async def _stir(self, timeout_s: float) -> None:
        """Wait for the next snapshot, or for a time."""
        async with self._changed:
            # Not wait_for: before Python 3.12 it forgets that it was cancelled when what it waits for has just come.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()

    async def _insist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do something with the node until it answers."""
        while True:
            try:
                return await action()
            except PeerError as error:
                log.warning("the node does not answer: %s", error)
                await asyncio.sleep(RETRY_S)

    def _tell(self, job: OpId, kind: str, text: str, data: dict[str, object]) -> None:
        self._on_event(WorkerEvent(job, kind, text, data))
