"""What a worker says about its models: the honest way, and the place where another may be put in.

The ledger must bear workers that lie, so what is said is apart from what is measured. Only demonstrations and tests put
anything but `Honest` here.
"""

from __future__ import annotations

from typing import Protocol

from crdtchain.ops import Job
from crdtchain.scalars import Micros
from node.worker.market import BidView


class Strategy(Protocol):
    """The decisions of a worker that others can't check at once."""

    def announce(self, terms: Job, measured: Micros, best: Micros | None) -> Micros | None:
        """Return the loss to announce for a model; None: no bid.

        Args:
            terms: of the job.
            measured: the model's loss as measured here.
            best: the lowest loss of the own bids so far.
        """
        ...

    def reveals(self, terms: Job, bid: BidView) -> bool:
        """Whether to reveal an own bid."""
        ...

    def shares(self, terms: Job, bid: BidView) -> bool:
        """Whether to offer the model's bytes when revealing."""
        ...


class Honest:
    """Announce what was measured, when it is better than one's own best; reveal and share."""

    def announce(self, terms: Job, measured: Micros, best: Micros | None) -> Micros | None:
        """Return the measured loss if it is worth a bid: below one's own best, and within the job's bound."""
        if terms.max_loss is not None and measured > terms.max_loss:
            return None
        return measured if best is None or measured < best else None

    def reveals(self, terms: Job, bid: BidView) -> bool:
        """Always."""
        return True

    def shares(self, terms: Job, bid: BidView) -> bool:
        """Always."""
        return True
