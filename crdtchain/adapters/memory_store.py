"""The store in memory: for tests, and for programs that keep nothing."""

from __future__ import annotations

from collections.abc import Sequence

from crdtchain.adapters.blob_index import MemoryBlobIndex
from crdtchain.adapters.store import LINK_MISSING, Tip
from crdtchain.errors import StoreError
from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, OpId


class MemoryStore:
    """A `Store` without a disk; what it holds stays through `close` and `open`, and ends with the object."""

    def __init__(self) -> None:
        self._is_open = False
        self._positions: dict[OpId, int] = {}
        self._ids: list[OpId] = []
        self._blocks: list[bytes] = []
        self._seqs: list[int] = []
        self._links: list[list[int]] = []
        self._tips: dict[Author, set[int]] = {}
        self._snapshot: tuple[int, bytes] | None = None
        self._meta: dict[str, bytes] = {}
        self.blobs = MemoryBlobIndex(self._validate_open)

    def _validate_open(self) -> None:
        if not self._is_open:
            raise StoreError("the store is not open")

    async def open(self) -> None:
        """Open the store."""
        self._is_open = True

    async def close(self) -> None:
        """Close the store."""
        self._is_open = False

    async def append(self, ops: Sequence[SignedOp], *, durable: bool) -> None:
        """Store ops, all or none; see `Store.append`."""
        self._validate_open()
        known = set[OpId]()
        for signed in ops:
            op = signed.op
            for link in op.parents if op.prev is None else (op.prev, *op.parents):
                if link not in self._positions and link not in known:
                    raise StoreError(LINK_MISSING)
            known.add(op.id)
        for signed in ops:
            if signed.op.id not in self._positions:
                self._append(signed)

    def _append(self, signed: SignedOp) -> None:
        op, position = signed.op, len(self._ids)
        links = op.parents if op.prev is None else (op.prev, *op.parents)
        tips = self._tips.setdefault(op.author, set())
        if op.prev is not None:
            tips.discard(self._positions[op.prev])
        tips.add(position)
        self._positions[op.id] = position
        self._ids.append(op.id)
        self._blocks.append(signed.block)
        self._seqs.append(op.seq)
        self._links.append(sorted(self._positions[link] for link in links))

    async def get_blocks(self, ids: Sequence[OpId], positions: Sequence[int] = ()) -> list[bytes | None]:
        """Return the block of each id, or None."""
        self._validate_open()
        found = [self._positions.get(op) for op in ids]
        return [None if position is None else self._blocks[position] for position in found]

    async def count(self) -> int:
        """Return the number of ops."""
        self._validate_open()
        return len(self._ids)

    async def read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return at most `limit` positions above `after`, each with its block."""
        self._validate_open()
        return list(enumerate(self._blocks[after + 1 : after + 1 + limit], after + 1))

    async def ids(self, count: int) -> list[OpId]:
        """Return the ids of the first `count` ops, in order of position."""
        self._validate_open()
        return self._ids[:count]

    async def find_position(self, op: OpId) -> int | None:
        """Return the position of an op, or None."""
        self._validate_open()
        return self._positions.get(op)

    async def links(self, position: int) -> list[int]:
        """Return the positions that an op links to, sorted."""
        self._validate_open()
        return list(self._links[position]) if 0 <= position < len(self._links) else []

    async def own_tip(self, author: Author) -> Tip | None:
        """Return the end of an author's chain, or None."""
        self._validate_open()
        tips = [Tip(self._ids[op], self._seqs[op], len(self._tips[author])) for op in self._tips.get(author, ())]
        return min(tips, key=lambda tip: (-tip.seq, tip.op)) if tips else None

    async def save_snapshot(self, position: int, data: bytes) -> None:
        """Replace the snapshot."""
        self._validate_open()
        self._snapshot = position, bytes(data)

    async def load_snapshot(self) -> tuple[int, bytes] | None:
        """Return position and data of the snapshot, or None."""
        self._validate_open()
        return self._snapshot

    async def drop_snapshot(self) -> None:
        """Forget the snapshot."""
        self._validate_open()
        self._snapshot = None

    async def get_meta(self, key: str) -> bytes | None:
        """Return a note, or None."""
        self._validate_open()
        return self._meta.get(key)

    async def set_meta(self, key: str, value: bytes) -> None:
        """Write a note."""
        self._validate_open()
        self._meta[key] = bytes(value)
