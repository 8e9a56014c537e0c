"""The ledger between two runs: opened from snapshot and ops, saved as a snapshot."""

from __future__ import annotations

import asyncio
from pathlib import Path

from crdtchain.adapters.store import Store
from crdtchain.errors import UsageError
from crdtchain.ledger.snapshot import SnapshotError, load_ledger
from crdtchain.ledger.state import Ledger
from crdtchain.shapes import decode_op

_PAGE = 1_000


async def open_ledger(store: Store, folder: Path) -> Ledger:
    """Return the ledger of a store.

    Raises:
        UsageError: it belongs to no network yet.
        StoreError: it can't be read.
    """
    rows = await store.read(-1, 1)
    if not rows:
        raise UsageError(f"{folder} belongs to no network: run 'crdtchain network create' or 'network join URL'")
    genesis = decode_op(rows[0][1]).op
    ledger = Ledger(genesis)
    snapshot = await store.load_snapshot()
    if snapshot is not None and snapshot[0] < await store.count():
        try:
            ledger = await asyncio.to_thread(load_ledger, genesis, snapshot[1])
        except SnapshotError:
            ledger = Ledger(genesis)
    while rows := await store.read(len(ledger) - 1, _PAGE):
        for _, block in rows:
            ledger.add(decode_op(block).op)
    return ledger
