"""How the workers of a demonstration work: what they say of their models, how long each run is, which seeds they draw.

The ledger must bear workers that lie, so two of these do.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from crdtchain.ops import Job
from crdtchain.scalars import Micros
from node.worker.market import BidView
from node.worker.sandbox.base import Mode, Progress, RunResult, RunSpec, Sandbox, SandboxInfo
from node.worker.strategy import Honest, Strategy
from node.worker.training import SEED_MAX

BOAST_DIVISOR: Final = 10


class Boast(Honest):
    """Announces a tenth of the loss that its model has, and reveals that model."""

    def announce(self, terms: Job, measured: Micros, best: Micros | None) -> Micros | None:
        """Return a loss that nobody beats."""
        return super().announce(terms, Micros(measured // BOAST_DIVISOR), best)


class Withhold(Honest):
    """Announces a loss of 0, once, and never reveals anything."""

    def announce(self, terms: Job, measured: Micros, best: Micros | None) -> Micros | None:
        """Return the lowest loss there is."""
        return Micros(0) if best is None else None

    def reveals(self, terms: Job, bid: BidView) -> bool:
        """Never."""
        return False


TACTICS: Final[dict[str, Callable[[], Strategy]]] = {"honest": Honest, "boast": Boast, "withhold": Withhold}


class Growing:
    """A sandbox whose training runs grow: each has twice the epochs of the one before.

    How long a worker trains is its own decision; the ledger judges the model alone. Short first runs put bids on the
    board early, on slow machines too; longer ones beat them.

    Args:
        inner: where everything really runs.
        epochs: of the first run.
        epochs_max: no run has more.
        rest_s: before each training run but the first, seconds.
    """

    def __init__(self, inner: Sandbox, epochs: int, epochs_max: int, rest_s: int = 0) -> None:
        self.name = inner.name
        self.epochs = epochs
        """Of the next run."""
        self._inner = inner
        self._epochs_max = epochs_max
        self._rest_s = rest_s
        self._next_rest_s = 0

    async def check(self) -> SandboxInfo:
        """Say whether the inner sandbox can run here."""
        return await self._inner.check()

    async def has_image(self, image: str) -> bool:
        """Whether the inner sandbox has an image."""
        return await self._inner.has_image(image)

    async def run(
        self,
        spec: RunSpec,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: asyncio.Event | None = None,
    ) -> RunResult:
        """Run a program; a training run gets this worker's epochs.

        Raises:
            SandboxError: the sandbox can't be used at all.
        """
        if spec.mode is not Mode.TRAIN:
            return await self._inner.run(spec, on_progress, cancel)
        rest_s, self._next_rest_s = self._next_rest_s, self._rest_s
        await asyncio.sleep(rest_s)
        spec = replace(spec, params={**spec.params, "epochs": min(self.epochs, self._epochs_max)})
        self.epochs = min(2 * self.epochs, self._epochs_max)
        result = await self._inner.run(spec, on_progress, cancel)
        # The worker plans by how long runs take; a rest is part of them.
        return replace(result, wall_ms=result.wall_ms + rest_s * 1_000)

    async def sweep(self) -> int:
        """Remove what earlier runs left behind."""
        return await self._inner.sweep()

    async def close(self) -> None:
        """Release what the inner sandbox holds."""
        await self._inner.close()


def make_draw(seed: int, name: str) -> Callable[[], int]:
    """Return what draws a worker's training seeds: the same for the same seed and name."""
    count = 0

    def draw() -> int:
        nonlocal count
        count += 1
        digest = hashlib.sha256(f"crdtchain demo {seed} {name} {count}".encode()).digest()
        return int.from_bytes(digest[:8]) % (SEED_MAX + 1)

    return draw
