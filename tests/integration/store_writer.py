"""A process that appends ops to a store and says what was acknowledged: the victim of the tests of crashes.

Arguments: data folder, file of blocks (each behind its length, 4 bytes), ops a batch, and how: `durable`, `lazy`, or
`twice`, first lazily and then durably. It goes on behind what the store holds, and prints the number of ops stored
after each append.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.errors import StoreError
from crdtchain.ops import SignedOp
from crdtchain.shapes import decode_op


def read_blocks(path: Path) -> list[bytes]:
    """Return the blocks of a file that `write_blocks` wrote."""
    data, blocks, start = path.read_bytes(), [], 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "big")
        blocks.append(data[start + 4 : end])
        start = end
    return blocks


def write_blocks(path: Path, ops: list[SignedOp]) -> None:
    """Write the blocks of ops for `read_blocks`."""
    path.write_bytes(b"".join(len(signed.block).to_bytes(4, "big") + signed.block for signed in ops))


async def main(folder: Path, blocks: list[bytes], size: int, mode: str) -> None:
    """Append until all is stored or an error comes, which is printed by its name."""
    store = SqliteStore(folder)
    await store.open()
    try:
        start = await store.count()
        for first in range(start, len(blocks), size):
            batch = [decode_op(block) for block in blocks[first : first + size]]
            if mode == "twice":
                await store.append(batch, durable=False)
            await store.append(batch, durable=mode != "lazy")
            print(first + len(batch), flush=True)
    except StoreError as error:
        count = await store.count()
        rows = await store.read(-1, len(blocks))
        readable = [block for _, block in rows] == blocks[:count]
        print(type(error).__name__, count, readable, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), read_blocks(Path(sys.argv[2])), int(sys.argv[3]), sys.argv[4]))
