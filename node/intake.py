"""From a peer's blocks to signed ops that hold: decoding on the loop, signatures on other cores.

A few blocks are verified at once, here. Many are verified in a process of their own: threads would wait for the
interpreter's lock once for each signature, which costs more than the signature while the loop is busy.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Final

from crdtchain.adapters.keys import is_accepted
from crdtchain.codec import compute_op_id
from crdtchain.errors import SignatureError
from crdtchain.ops import SignedOp
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op
from crdtchain.signing import signing_bytes

INLINE_MAX: Final = 32
"""So many signatures (2 ms) are verified on the loop itself."""

log = logging.getLogger(__name__)


def verify_many(network: bytes, rows: Sequence[tuple[bytes, bytes]]) -> int:
    """Verify (author, block) pairs; returns the place of the first whose signature does not hold, or -1."""
    for place, (author, block) in enumerate(rows):
        if not is_accepted(author, signing_bytes(network, block[1:-66]), block[-64:]):
            return place
    return -1


def _ignore_interrupt() -> None:
    # The parent decides when to stop; an interrupt at the terminal reaches every process of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Intake:
    """Decodes and verifies; it knows nothing of links."""

    def __init__(self, network: OpId) -> None:
        self._network = bytes(network)
        self._pool: ProcessPoolExecutor | None = None
        self._warming: asyncio.Future[int] | None = None

    def warm_up(self) -> None:
        """Start the verifying process, because much is about to come."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_ignore_interrupt)
            loop = asyncio.get_running_loop()
            self._warming = loop.run_in_executor(self._pool, verify_many, self._network, ())
            # A process that can't start is noticed, and said, at the first use.
            self._warming.add_done_callback(lambda done: done.cancelled() or done.exception())

    def close(self) -> None:
        """End the verifying process, without waiting for it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None

    async def prepare(self, blocks: Sequence[bytes], is_known: Callable[[OpId], bool]) -> list[SignedOp]:
        """Decode and verify those of some blocks that are not known.

        Raises:
            InvalidOpError: one of them breaks a rule.
        """
        decoded = [decode_op(block) for block in blocks if not is_known(compute_op_id(block))]
        rows = [(bytes(signed.op.author), signed.block) for signed in decoded]
        if len(rows) <= INLINE_MAX:
            bad = verify_many(self._network, rows)
        else:
            bad = await self._verify_elsewhere(rows)
        if bad >= 0:
            raise SignatureError("signature", f"the signature of op {decoded[bad].op.id.hex()} does not hold")
        return decoded

    async def _verify_elsewhere(self, rows: Sequence[tuple[bytes, bytes]]) -> int:
        """Verify in the process, or, until it is up, or when it has died, slowly in a thread."""
        self.warm_up()
        loop = asyncio.get_running_loop()
        if self._warming is not None and self._warming.done():
            try:
                return await loop.run_in_executor(self._pool, verify_many, self._network, rows)
            except BrokenExecutor:
                log.warning("The process that verifies signatures has died; it is started again.")
                self.close()
        return await loop.run_in_executor(None, verify_many, self._network, rows)
