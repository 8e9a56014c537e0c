"""What a node keeps between two runs: the ops, a snapshot of what follows from them, notes, and an index of its blobs.

`Store` is what the program relies on; `SqliteStore` and `MemoryStore` pass one acceptance suite. Ops have *positions*:
0 for genesis, then 1, 2, … in the order in which they were appended, which is a causal order.

Invariants:

1. An op is stored only after all that it links to: any prefix of the positions is a closed past.
2. An append happens wholly or not at all, also when the disk is full or the process dies.
3. After a durable append has returned, its ops survive a power cut.
4. A block read back is the block that was stored, or there is an error.

Not here: the files of blobs (they lie in a folder of their own), keys, settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from crdtchain.ops import SignedOp
from crdtchain.scalars import Author, BlobId, OpId

STORE_FILE = "ledger.sqlite"
"""Name of the database inside a data folder."""
LINK_MISSING = "an op is stored only after all that it links to; the store lacks one of its links"
"""What an append says that breaks invariant 1."""


class Tip(Struct, frozen=True):
    """The end of an author's chain, as far as the store knows it."""

    op: OpId
    seq: int
    branches: int
    """Above 1 when the author equivocated; `op` then ends the longest branch, and has the lowest id among equals."""


class BlobRow(Struct, frozen=True):
    """What is known of one blob."""

    cid: BlobId
    size: int
    """Bytes."""
    state: str
    """`whole` when the file is complete and was checked; other words are the node's."""
    added_ms: int
    """When the row was written first, ms since the Unix epoch."""


class BlobIndex(Protocol):
    """Which blobs a node has; sizes and states, not contents."""

    async def put(self, cid: BlobId, size: int, added_ms: int, state: str = "whole") -> None:
        """Add a blob, or change its size and state; the time of the first call stays."""

    async def has(self, cid: BlobId) -> bool:
        """Whether a blob is here as a whole."""

    async def find(self, cid: BlobId) -> BlobRow | None:
        """Return the row of a blob, or None."""

    async def list(self) -> Sequence[BlobRow]:
        """Return all rows, the oldest first."""

    async def total_bytes(self) -> int:
        """Return the sum of all sizes."""

    async def remove(self, cid: BlobId) -> None:
        """Forget a blob; nothing happens when it is not here."""


class Store(Protocol):
    """The memory of one node. All methods but `open` raise StoreError before `open` and after `close`.

    All may raise StoreError, and those that write StoreFullError; a failed write changes nothing, and reads go on.
    """

    @property
    def blobs(self) -> BlobIndex:
        """The index of blobs."""

    async def open(self) -> None:
        """Open or create the store.

        Raises:
            StoreBusyError: another process uses the data folder.
            StoreVersionError: a newer version wrote it.
            StoreError: it can't be read.
        """

    async def close(self) -> None:
        """Close the store; closing twice is no fault."""

    async def append(self, ops: Sequence[SignedOp], *, durable: bool) -> None:
        """Store ops in one transaction; those that are here already are skipped.

        `durable`: they are on the disk itself before this returns. Links have to point to ops that are here, or earlier
        in `ops`.
        """

    async def get_blocks(self, ids: Sequence[OpId], positions: Sequence[int] = ()) -> list[bytes | None]:
        """Return the block of each id, or None for one that is not here; who knows their positions saves looking."""

    async def count(self) -> int:
        """Return the number of ops: one more than the last position."""

    async def read(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return at most `limit` positions above `after` (-1: from genesis), ascending, each with its block."""

    async def ids(self, count: int) -> list[OpId]:
        """Return the ids of the first `count` ops, or of all if there are fewer, in order of position."""

    async def find_position(self, op: OpId) -> int | None:
        """Return the position of an op, or None when it is not here."""

    async def links(self, position: int) -> list[int]:
        """Return the positions that an op links to by prev and parents, sorted."""

    async def own_tip(self, author: Author) -> Tip | None:
        """Return the end of an author's chain, or None for an author without ops."""

    async def save_snapshot(self, position: int, data: bytes) -> None:
        """Replace the snapshot; it stands for the ops up to `position`, that one included."""

    async def load_snapshot(self) -> tuple[int, bytes] | None:
        """Return position and data of the snapshot, or None."""

    async def drop_snapshot(self) -> None:
        """Forget the snapshot."""

    async def get_meta(self, key: str) -> bytes | None:
        """Return a note, or None."""

    async def set_meta(self, key: str, value: bytes) -> None:
        """Write a note, durably."""
