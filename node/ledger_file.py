"""The ledger of a data folder, as its store holds it."""

from __future__ import annotations

from pathlib import Path

from crdtchain.adapters import opening
from crdtchain.adapters.store import Store
from crdtchain.errors import UsageError
from crdtchain.ledger.state import Ledger


async def open_ledger(store: Store, folder: Path) -> Ledger:
    """Return the ledger of a data folder's store.

    Raises:
        UsageError: the folder belongs to no network yet.
        StoreError: the store is damaged.
    """
    if not await store.count():
        raise UsageError(f"{folder} belongs to no network: run 'crdtchain network create' or 'network join URL'")
    return await opening.open_ledger(store)
