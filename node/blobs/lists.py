"""The list of a blob's chunks: the DAG-CBOR block `{size, chunks}` that stands for a blob above 1 MiB.

Source: protocol section 2, "Links".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.errors import DecodeError, PeerError
from crdtchain.scalars import BlobId

LIST_BYTES_MAX: Final = 32_768
"""No list of at most 256 MiB is longer."""


class Layout(Struct, frozen=True):
    """What a blob is made of."""

    blob: BlobId
    size: int
    """Bytes of the whole."""
    chunks: tuple[BlobId, ...]

    def span(self, index: int) -> tuple[int, int]:
        """Return offset and size of a chunk, bytes."""
        start = index * limits.CHUNK_BYTES
        return start, min(limits.CHUNK_BYTES, self.size - start)


def encode_chunk_list(size: int, chunks: Sequence[BlobId]) -> bytes:
    """Return the block that stands for a blob above 1 MiB."""
    return codec.encode({"size": size, "chunks": [Link(chunk) for chunk in chunks]})


def decode_chunk_list(block: bytes) -> tuple[int, list[BlobId]]:
    """Return size and chunks of a list.

    Raises:
        DecodeError: the block is none, or its size and its chunks do not fit.
    """
    value = codec.decode(block)
    size = value.get("size") if isinstance(value, dict) and set(value) == {"size", "chunks"} else None
    chunks = value["chunks"] if isinstance(value, dict) and size is not None else None
    if type(size) is not int or type(chunks) is not list or not limits.CHUNK_BYTES < size <= limits.BLOB_BYTES_MAX:
        raise DecodeError("shape", "not the list of a blob's chunks")
    found = [BlobId(chunk) for chunk in chunks if isinstance(chunk, Link) and codec.is_raw_blob_id(chunk)]
    if len(found) != len(chunks) or len(found) != -(-size // limits.CHUNK_BYTES):
        raise DecodeError("shape", "the list of chunks does not fit its size")
    return size, found


def is_list_of(blob: BlobId, block: bytes) -> bool:
    """Whether a block is the one that a blob's id names."""
    return bytes(codec.compute_op_id(block)) == blob


def read_layout(blob: BlobId, block: bytes) -> Layout:
    """Return what the list of a blob, whose id was checked, says.

    Raises:
        PeerError: it is no list; whoever hands it on is not to blame.
    """
    try:
        size, chunks = decode_chunk_list(block)
    except DecodeError as error:
        raise PeerError(f"what {codec.format_cid(blob)} names is no blob: {error}") from None
    return Layout(blob, size, tuple(chunks))
