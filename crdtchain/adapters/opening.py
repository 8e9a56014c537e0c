"""From a store to a ledger, and a snapshot back: what happens at every start.

A snapshot saves time and is never trusted with anything: it is used only if it stands for exactly the ops that are
stored up to its position. Otherwise it is dropped, and the state is rebuilt from the blocks. Signatures are not
checked again here, for nothing unverified gets into a store; `crdtchain.audit` is for those who doubt that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crdtchain.adapters.store import Store
from crdtchain.errors import InvalidOpError, StoreError
from crdtchain.ledger.snapshot import dump_ledger, load_ledger
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, Op
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op

_PAGE: Final = 1_000


async def open_ledger(store: Store, network: OpId | None = None) -> Ledger:
    """Return the ledger of a store's ops; ops have the numbers of their positions, unless a snapshot numbered them
    otherwise.

    Raises:
        StoreError: the store is empty, damaged, or holds another network than `network`.
    """
    ids = await store.ids(await store.count())
    if not ids:
        raise StoreError("the store holds no network; create or join one first")
    if network is not None and ids[0] != network:
        raise StoreError("the store holds another network; choose another data folder")
    ((_, block),) = await store.read(-1, 1)
    genesis = _decode(block, ids, 0)
    if genesis.kind is not Kind.GENESIS:
        raise StoreError("the store is damaged: its first op is no genesis")
    ledger = await _load_snapshot(store, genesis, ids)
    if ledger is not None:
        try:
            return await _add_tail(store, ledger, ids)
        except StoreError:
            # Whoever is at fault, snapshot or tail: the blocks alone decide.
            await store.drop_snapshot()
    return await _add_tail(store, Ledger(genesis), ids)


async def save_ledger(store: Store, ledger: Ledger) -> None:
    """Save a snapshot of a ledger, all of whose ops have been stored.

    Raises:
        StoreError: the store holds fewer ops, or can't write.
    """
    if await store.count() < len(ledger):
        raise StoreError("a snapshot is saved only after all its ops")
    await store.save_snapshot(len(ledger) - 1, dump_ledger(ledger))


async def _load_snapshot(store: Store, genesis: Op, ids: Sequence[OpId]) -> Ledger | None:
    """Return the ledger of the snapshot if it fits the stored ops; drop it if it does not."""
    try:
        snapshot = await store.load_snapshot()
        if snapshot is None:
            return None
        position, data = snapshot
        ledger = load_ledger(genesis, data)
    except StoreError:
        await store.drop_snapshot()
        return None
    stored = ids[: position + 1]
    # As sets: merged ledgers may number ops in another causal order than that of the store.
    if len(ledger) == len(stored) and (ledger.dag.ids == stored or set(ledger.dag.ids) == set(stored)):
        return ledger
    await store.drop_snapshot()
    return None


async def _add_tail(store: Store, ledger: Ledger, ids: Sequence[OpId]) -> Ledger:
    """Add all stored ops behind those that the ledger has.

    Raises:
        StoreError: a block is not the one that was stored, or breaks a rule.
    """
    position = len(ledger) - 1
    while rows := await store.read(position, _PAGE):
        for position, block in rows:
            op = _decode(block, ids, position)
            try:
                ledger.add(op)
            except (InvalidOpError, LookupError) as error:
                raise StoreError(f"the store is damaged: the op at position {position} is invalid: {error}") from error
    if len(ledger) != len(ids):
        raise StoreError(f"the store is damaged: it has {len(ids)} ids for {len(ledger)} ops")
    return ledger


def _decode(block: bytes, ids: Sequence[OpId], position: int) -> Op:
    try:
        op = decode_op(block).op
    except InvalidOpError as error:
        raise StoreError(f"the store is damaged: the op at position {position} can't be read: {error}") from error
    if position >= len(ids) or op.id != ids[position]:
        raise StoreError(f"the store is damaged: the op at position {position} is not what was stored")
    return op
