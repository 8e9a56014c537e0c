"""An elector's work: measure what others reveal, and vote.

A model that measures at most the announced loss plus the job's tolerance is `valid`. One that measures more, is not
what the schema says, or with which the program does not come to predictions, is a `cheat`: whoever bid had measured it,
or should have. When the bytes can't be had until shortly before the window closes, it is `missing`. Trouble of this
machine is blamed on nobody: the elector abstains.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from crdtchain.errors import InvalidOpError, ModelError
from crdtchain.ops import Job
from crdtchain.scalars import Author, Micros, OpId
from node.tables import format_micros
from node.worker.evaluate import Evaluation
from node.worker.market import JobView, Market, RevealView, Verdict
from node.worker.materials import fetch_materials
from node.worker.sandbox.base import Sandbox, Status
from node.worker.shelf import Shelf
from node.worker.training import Tell, measure

ATTEMPTS_MAX: Final = 3
"""So often is a reveal tried again after trouble of this machine, or a limit that was hit."""
PREPARE_RETRY_MS: Final = 2_000
_MINE: Final = frozenset({Status.INFRA_ERROR, Status.POLICY_REFUSED, Status.CANCELLED})
_LIMITS: Final = frozenset({Status.TIMEOUT, Status.OOM})
"""A slow or small machine may be to blame: tried again before it counts."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with the loss measured, if any."""

    verdict: Verdict
    loss: Micros | None
    reason: str


def judge(terms: Job, announced: Micros, found: Evaluation, is_last_try: bool) -> Judgement | None:
    """Return what to vote after an evaluation; None: try again, or abstain if it was the last try."""
    if found.status in _MINE or (found.status in _LIMITS and not is_last_try):
        return None
    if found.loss_micros is None:
        return Judgement("cheat", None, f"It can't be measured: {found.status.value}. {found.reason}".strip())
    text = f"It measures {format_micros(found.loss_micros)}; {format_micros(announced)} was announced."
    is_valid = found.loss_micros <= announced + terms.tolerance
    return Judgement("valid" if is_valid else "cheat", found.loss_micros, text)


def compute_missing_at(terms: Job, delta_ms: int) -> int:
    """Return when a model that can't be had counts as missing: late, but with time for the vote to arrive, ms."""
    window = terms.verdict_until - terms.reveal_until
    return terms.verdict_until - min(2 * delta_ms + 5_000, window // 3)


class Verifying:
    """Judges the reveals of all jobs, one after the other; it keeps count of its attempts only."""

    def __init__(self, market: Market, sandboxes: Mapping[str, Sandbox], shelf: Shelf, tell: Tell) -> None:
        self._market = market
        self._sandboxes = sandboxes
        self._shelf = shelf
        self._tell = tell
        self._attempts: dict[OpId, int] = {}
        self._done: set[OpId] = set()
        self._prepared: set[OpId] = set()
        self._next_try_ms: dict[OpId, int] = {}

    def find_next(self, views: Mapping[OpId, JobView], mine: frozenset[OpId]) -> tuple[JobView, RevealView] | None:
        """Return the reveal to be judged next, the most urgent first; None: nothing to do now.

        `mine`: jobs that this worker itself bids on.
        """
        me, now = self._market.me, self._market.now_ms()
        found = [
            (view, reveal)
            for view in views.values()
            if view.id not in mine and may_vote(view, me, now) and view.terms.task.runtime in self._sandboxes
            for reveal in view.reveals
            if not (reveal.voted or reveal.late or reveal.id in self._done)
        ]
        return min(
            found,
            key=lambda pair: (self._attempts.get(pair[1].id, 0), pair[0].terms.verdict_until, pair[1].loss),
            default=None,
        )

    def find_unprepared(self, views: Mapping[OpId, JobView], mine: frozenset[OpId]) -> JobView | None:
        """Return a job that may have to be judged and whose files have not been fetched; None: there is none.

        Fetching early makes the elector ready, and one more place from which workers get the files.
        """
        me, now = self._market.me, self._market.now_ms()
        for view in views.values():
            if view.id in mine or view.id in self._prepared or not view.certified or not may_vote(view, me, now):
                continue
            if view.terms.task.runtime in self._sandboxes and self._next_try_ms.get(view.id, 0) <= now:
                return view
        return None

    async def prepare(self, view: JobView) -> None:
        """Fetch the files of a job; tried again after a while when they can't be had."""
        folder = self._shelf.folder_of(view.id) / "files"
        if await fetch_materials(self._market, view.id, view.terms, folder) is None:
            self._next_try_ms[view.id] = self._market.now_ms() + PREPARE_RETRY_MS
        else:
            self._prepared.add(view.id)

    async def judge_one(self, view: JobView, reveal: RevealView) -> bool:
        """Judge one reveal and vote; False when it has to be tried again after a while.

        Raises:
            SandboxError: the sandbox can't be used at all.
            PeerError: the node does not answer.
        """
        attempt = self._attempts[reveal.id] = self._attempts.get(reveal.id, 0) + 1
        folder = self._shelf.folder_of(view.id) / "files"
        materials = await fetch_materials(self._market, view.id, view.terms, folder)
        if materials is None:
            return False
        model = await self._market.get_blob(reveal.model)
        if model is None:
            return await self._vote_missing(view, reveal)
        sandbox = self._sandboxes[view.terms.task.runtime]
        try:
            found = await measure(sandbox, materials, model, f"verify-{secrets.token_hex(6)}")
        except ModelError as error:
            self._done.add(reveal.id)
            self._tell(view.id, "abstained", f"The job's labels can't be read: {error}.", {"reveal": reveal.id})
            return True
        is_last = attempt >= ATTEMPTS_MAX
        judgement = judge(view.terms, reveal.loss, found, is_last)
        if judgement is not None:
            await self._vote(view, reveal, judgement)
        elif is_last:
            self._done.add(reveal.id)
            text = f"No vote, for this machine is to blame: {found.status.value}. {found.reason}".strip()
            self._tell(view.id, "abstained", text, {"reveal": reveal.id})
        return judgement is not None or is_last

    async def _vote_missing(self, view: JobView, reveal: RevealView) -> bool:
        if self._market.now_ms() < compute_missing_at(view.terms, self._market.delta_ms):
            return False
        await self._vote(view, reveal, Judgement("missing", None, "Nobody has the model."))
        return True

    async def _vote(self, view: JobView, reveal: RevealView, judgement: Judgement) -> None:
        self._done.add(reveal.id)
        try:
            await self._market.vote(reveal.id, judgement.verdict, judgement.loss)
        except InvalidOpError as error:
            self._tell(view.id, "refused", f"The vote was refused: {error}.", {"reveal": reveal.id})
            return
        data: dict[str, object] = {"reveal": reveal.id, "verdict": judgement.verdict, "loss": judgement.loss}
        self._tell(view.id, "vote", f"Voted {judgement.verdict}. {judgement.reason}", data)


def may_vote(view: JobView, me: Author, now_ms: int) -> bool:
    """Whether a key may and should vote on a job's reveals now: an elector that neither posted it nor bid on it."""
    return (
        view.elector
        and not view.decided
        and view.poster != me
        and not view.staked
        and not view.bids_of(me)
        and now_ms < view.terms.verdict_until
    )
