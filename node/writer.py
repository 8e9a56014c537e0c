"""The one writer of a node's store: ops in the order in which they were added, many in one transaction.

Invariants:

1. Ops are stored in the order of `put` and `write`, so every op after all that it links to.
2. `then` of an item runs once, right after its ops are stored, before those of later items: Persist comes before Send.
3. An item that may be refused (an own op, not yet in the replica) is refused when the disk is full, and nothing of it
   stays. Items that the replica has already added are kept and tried again, ahead of all later ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from crdtchain.adapters.store import Store
from crdtchain.errors import StoreError, StoreFullError
from crdtchain.ops import SignedOp

BATCH_OPS: Final = 500
"""Ops of one transaction, unless one item alone has more."""
RETRY_S: Final = 1.0

log = logging.getLogger(__name__)


class _Item(Struct, eq=False):
    ops: Sequence[SignedOp]
    durable: bool
    may_refuse: bool
    then: Callable[[], None] | None
    done: asyncio.Future[None]


class Writer:
    """Stores ops; `run` is its task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: list[_Item] = []
        self._stirred = asyncio.Event()
        self._is_closing = False
        self._failure: StoreError | None = None
        self.is_full = False
        """Whether the disk refused the last transaction."""
        self.stored_count = 0

    def put(
        self, ops: Sequence[SignedOp], durable: bool, then: Callable[[], None] | None = None, may_refuse: bool = False
    ) -> asyncio.Future[None]:
        """Queue ops; the future is done when they are stored and `then` has run."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._failure is not None:
            done.set_exception(self._failure)
            return done
        self._items.append(_Item(ops, durable, may_refuse, then, done))
        self._stirred.set()
        return done

    async def drain(self) -> None:
        """Return when all that was put is stored.

        Raises:
            StoreError: the store has failed, or the disk is full.
        """
        if self._failure is not None:
            raise self._failure
        if self._items and self.is_full:
            raise StoreFullError("the disk is full")
        if self._items:
            await self._items[-1].done

    def close(self) -> None:
        """Let `run` end when all is stored."""
        self._is_closing = True
        self._stirred.set()

    async def run(self) -> None:
        """Store until closed.

        Raises:
            StoreError: the store fails for another reason than a full disk; what was put is failed with it.
        """
        while True:
            while not self._items:
                if self._is_closing:
                    return
                self._stirred.clear()
                await self._stirred.wait()
            batch = self._next_batch()
            try:
                await self._append(batch)
            except StoreFullError as error:
                self._refuse(batch, error)
                if self._is_closing:
                    self._fail(error)
                    return
                await self._pause()
            except StoreError as error:
                self._fail(error)
                raise

    def _next_batch(self) -> list[_Item]:
        count, batch = 0, list[_Item]()
        for item in self._items:
            count += len(item.ops)
            if batch and count > BATCH_OPS:
                break
            batch.append(item)
        return batch

    async def _append(self, batch: list[_Item]) -> None:
        ops = [signed for item in batch for signed in item.ops]
        await self._store.append(ops, durable=any(item.durable for item in batch))
        if self.is_full:
            log.info("The disk has room again; writing goes on.")
        self.is_full = False
        self.stored_count += len(ops)
        del self._items[: len(batch)]
        for item in batch:
            if item.then is not None:
                item.then()
            if not item.done.done():
                item.done.set_result(None)

    def _refuse(self, batch: list[_Item], error: StoreFullError) -> None:
        if not self.is_full:
            log.error("The disk is full: nothing new is stored until there is room. %s", error)
        self.is_full = True
        for item in batch:
            if item.may_refuse:
                self._items.remove(item)
                if not item.done.done():
                    item.done.set_exception(error)

    async def _pause(self) -> None:
        """Wait for a while, or for an own op to try with."""
        self._stirred.clear()
        if not any(item.may_refuse for item in self._items):
            try:
                await asyncio.wait_for(self._stirred.wait(), RETRY_S)
            except TimeoutError:
                return

    def _fail(self, error: StoreError) -> None:
        self._failure = error
        for item in self._items:
            if not item.done.done():
                item.done.set_exception(error)
                # Not everybody waits for what it put.
                item.done.exception()
        self._items.clear()
