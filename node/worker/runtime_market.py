"""The market of a worker that runs inside its node: the runtime itself, without a socket between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from crdtchain.codec import Link
from crdtchain.errors import PeerError, StoreFullError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Bid, Body, Claim, Reveal, SignedOp, Stake, Vote
from crdtchain.scalars import Author, BlobId, Credits, Micros, OpId
from node.blobs import Blobs as FileBlobs
from node.worker.market import JobView, Verdict, compute_balance, view_jobs

SETTLE_S = 0.05
"""After a change the next ones are awaited so long, so that a burst is one snapshot."""


class Node(Protocol):
    """What is used of the runtime."""

    @property
    def ledger(self) -> Ledger:
        """All that is known."""
        ...

    def now_ms(self) -> int:
        """The time, ms since the Unix epoch."""
        ...

    async def submit(self, body: Body) -> SignedOp:
        """Sign and store an own op."""
        ...


class Blobs(Protocol):
    """What is used of the blobs: all that a worker needs is whole files."""

    async def get(self, blob: BlobId) -> bytes | None:
        """Return a blob, fetched if need be, or None."""
        ...

    async def put(self, data: bytes) -> BlobId:
        """Keep a blob."""
        ...


class BlobFiles:
    """The node's own blobs, as a worker needs them."""

    def __init__(self, blobs: FileBlobs) -> None:
        self._blobs = blobs

    async def get(self, blob: BlobId) -> bytes | None:
        """Return a blob, fetched from peers if need be; None when no peer has it, or there is no room for it."""
        try:
            await self._blobs.ensure(blob)
        except (PeerError, StoreFullError):
            return None
        return await self._blobs.read(blob)

    async def put(self, data: bytes) -> BlobId:
        """Keep a blob."""
        return await self._blobs.put_bytes(data)


class RuntimeMarket:
    """A market on a runtime in this process.

    Args:
        node: the runtime.
        blobs: where files are.
        me: the runtime's key.
        count_changes: returns how many ops are here: another number means that something has changed.
    """

    def __init__(self, node: Node, blobs: Blobs, me: Author, count_changes: Callable[[], int] | None = None) -> None:
        self._node = node
        self._blobs = blobs
        self._me = me
        self._count = count_changes or (lambda: len(node.ledger))
        self._seen = -1

    @property
    def me(self) -> Author:
        """The key that signs."""
        return self._me

    @property
    def delta_ms(self) -> int:
        """Δ of the network."""
        return self._node.ledger.params.delta_ms

    def now_ms(self) -> int:
        """The time now, ms since the Unix epoch."""
        return self._node.now_ms()

    async def balance(self) -> Credits:
        """Return the spendable credits."""
        return compute_balance(self._node.ledger, self._me)

    async def jobs(self) -> list[JobView]:
        """Return a snapshot of all jobs."""
        self._seen = self._count()
        return view_jobs(self._node.ledger, self._me)

    async def wait(self, timeout_s: float) -> None:
        """Wait until an op has come since the last snapshot, or a time has passed."""
        # Counting is cheaper than a listener: nothing queues up while a snapshot is worked on.
        try:
            async with asyncio.timeout(timeout_s):
                while self._count() == self._seen:  # noqa: ASYNC110 — a count is polled so that nothing can queue up
                    await asyncio.sleep(SETTLE_S)
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_S)

    async def get_blob(self, blob: BlobId) -> bytes | None:
        """Return a blob's bytes, or None when nobody has it now."""
        return await self._blobs.get(blob)

    async def put_blob(self, data: bytes) -> BlobId:
        """Keep a blob and offer it to others."""
        return await self._blobs.put(data)

    async def stake(self, job: OpId) -> OpId:
        """Put down a job's stake."""
        return await self._submit(Stake(job=Link(job)))

    async def bid(self, job: OpId, loss: Micros, model: BlobId, data: bytes) -> OpId:
        """Announce a loss and commit to a model."""
        commit = compute_commitment(self._me, model)
        return await self._submit(Bid(job=Link(job), loss=loss, commit=commit))

    async def reveal(self, bid: OpId, model: BlobId, size: int) -> OpId:
        """Show the model behind a bid."""
        return await self._submit(Reveal(bid=Link(bid), model=Link(model), size=size))

    async def vote(self, reveal: OpId, verdict: Verdict, loss: Micros | None) -> OpId:
        """Say what a revealed model is worth."""
        return await self._submit(Vote(reveal=Link(reveal), verdict=verdict, loss=loss))

    async def claim(self, of: OpId) -> OpId:
        """Take what a job's outcome or a transfer gives."""
        return await self._submit(Claim(of=Link(of)))

    async def _submit(self, body: Body) -> OpId:
        return (await self._node.submit(body)).op.id
