"""What two replicas say to each other, as frames of bytes.

A frame is a big-endian u16, the length of a head; the head, a map in the strict profile of `crdtchain.codec`; and
behind it the blocks of ops, end to end, whose lengths are in the head. Lists of ids are byte strings of 36 bytes each,
so that they cost no items.

Invariants:

1. `decode_frame(encode_frame(m)) == m`, and every frame that is not one message exactly is a `PeerError`.
2. Nothing is built from a frame beyond its own length; blocks are not looked into here.

Source: none; a reader of a frame needs nothing but this file. Not here: what follows from a message (`session`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from crdtchain import codec, limits
from crdtchain.errors import DecodeError, PeerError
from crdtchain.scalars import OpId

PROTOCOL_VERSION: Final = 1
IDS_MAX: Final = limits.BYTES_MAX // codec.CID_BYTES
"""Ids that fit into one list."""
TEXT_MAX: Final = 120
"""Characters of a reason: what a WebSocket's close frame holds."""

Counter = Annotated[int, Meta(ge=0, le=limits.INT_MAX)]
RequestNumber = Annotated[int, Meta(ge=0, le=2**32)]
IdList = Annotated[bytes, Meta(max_length=limits.BYTES_MAX)]


class Hello(Struct, frozen=True, forbid_unknown_fields=True, tag="hello", tag_field="type"):
    """The first message of each side."""

    version: Counter
    """`PROTOCOL_VERSION`; another one ends the session."""
    network: Annotated[bytes, Meta(min_length=codec.CID_BYTES, max_length=codec.CID_BYTES)]
    """Genesis' id; another one ends the session."""
    node: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """The key of the node, as it says; nothing relies on it."""
    nonce: Annotated[bytes, Meta(min_length=16, max_length=16)]
    """Random; one's own nonce coming back means a node that talks to itself."""
    heads: IdList
    """Heads, or, with too many of them, some."""
    count: Counter
    """How many ops the sender holds."""
    blobs: Annotated[str, Meta(max_length=TEXT_MAX)]
    """`host:port` of the sender's peer port, host empty for "where you see me from"; empty: it serves no blobs."""


class Heads(Struct, frozen=True, forbid_unknown_fields=True, tag="heads", tag_field="type"):
    """What the sender holds now: the anti-entropy, from time to time."""

    heads: IdList
    count: Counter


class Get(Struct, frozen=True, forbid_unknown_fields=True, tag="get", tag_field="type"):
    """Asks for past(want) without past(have)."""

    request: Annotated[int, Meta(ge=1, le=2**32)]
    """Names the request; ascending."""
    want: IdList
    have: IdList


class More(Struct, frozen=True, forbid_unknown_fields=True, tag="more", tag_field="type"):
    """One page of a request has been stored: another may come."""

    request: Annotated[int, Meta(ge=1, le=2**32)]


class Ops(Struct, frozen=True, forbid_unknown_fields=True, tag="ops", tag_field="type"):
    """Op blocks, parents first: a page of an answer, or, unasked, what is new."""

    request: RequestNumber
    """The request that is answered; 0: live."""
    last: bool
    """Whether the answer ends here."""
    sizes: Annotated[tuple[Counter, ...], Meta(max_length=limits.BATCH_OPS_MAX)]
    """Bytes of each block that follows the head."""


class BlobGet(Struct, frozen=True, forbid_unknown_fields=True, tag="blob_get", tag_field="type"):
    """Asks for one piece of a blob; the next one only after the answer."""

    cid: Annotated[bytes, Meta(min_length=codec.CID_BYTES, max_length=codec.CID_BYTES)]
    offset: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    hops: Annotated[int, Meta(ge=0, le=limits.BLOB_HOPS_MAX)]
    """Through so many nodes it may be looked for; 0: answer from what is there."""
    list: bool
    """Whether the list of the blob's chunks is wanted instead of its bytes."""


class Blob(Struct, frozen=True, forbid_unknown_fields=True, tag="blob", tag_field="type"):
    """The piece that was asked for, behind the head."""

    total: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    """Bytes of the whole."""
    size: Annotated[int, Meta(ge=0, le=limits.BLOB_PIECE_BYTES)]
    """Bytes of this piece."""


class BlobNone(Struct, frozen=True, forbid_unknown_fields=True, tag="blob_none", tag_field="type"):
    """The blob is not there."""

    later: bool
    """Whether it is being fetched, so that asking again makes sense."""


Head: TypeAlias = Hello | Heads | Get | More | Ops | BlobGet | Blob | BlobNone
Frame: TypeAlias = tuple[Head, list[bytes]]


def join_ids(ids: Sequence[OpId]) -> bytes:
    """Put ids into a list of a message: the first `IDS_MAX` of them."""
    return b"".join(ids[:IDS_MAX])


def split_ids(ids: bytes) -> list[OpId]:
    """Take the ids out of a list.

    Raises:
        PeerError: it is not made of ids of ops.
    """
    size = codec.CID_BYTES
    if len(ids) % size:
        raise PeerError("the peer sent a list of ids that ends within one")
    found = [OpId(ids[at : at + size]) for at in range(0, len(ids), size)]
    if not all(codec.is_op_id(op) for op in found):
        raise PeerError("the peer sent an id that is none of an op")
    return found


def encode_frame(head: Head, blocks: Sequence[bytes] = ()) -> bytes:
    """Encode a message; blocks only behind `Ops` and `Blob`, whose sizes they have."""
    plain = msgspec.to_builtins(head, builtin_types=(bytes,))
    data = codec.encode({name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()})
    return b"".join((len(data).to_bytes(2, "big"), data, *blocks))


def encode_ops(blocks: Sequence[bytes], request: int = 0, last: bool = False) -> bytes:
    """Encode blocks as one `Ops` message."""
    return encode_frame(Ops(request, last, tuple(len(block) for block in blocks)), blocks)


def decode_frame(frame: bytes) -> Frame:
    """Decode one message with the blocks behind it.

    Raises:
        PeerError: it is malformed.
    """
    if len(frame) > limits.FRAME_BYTES_MAX:
        raise PeerError(f"the peer sent a frame of {len(frame)} bytes; at most {limits.FRAME_BYTES_MAX} are allowed")
    end = 2 + int.from_bytes(frame[:2], "big")
    if len(frame) < end or len(frame) < 3:
        raise PeerError("the peer sent a frame that ends within its head")
    try:
        value = codec.decode(frame[2:end])
        head = msgspec.convert(value, Head, builtin_types=(bytes,))
    except (DecodeError, msgspec.ValidationError) as error:
        raise PeerError(f"the peer sent a malformed message: {str(error)[:TEXT_MAX]}") from None
    if isinstance(head, Blob):
        if len(frame) - end != head.size:
            raise PeerError("the peer sent a frame whose length is not what its head says")
        return head, [frame[end:]]
    return head, _split_blocks(frame, end, head.sizes if isinstance(head, Ops) else ())


def _split_blocks(frame: bytes, start: int, sizes: Sequence[int]) -> list[bytes]:
    blocks = []
    for size in sizes:
        blocks.append(frame[start : start + size])
        start += size
        if not 0 < size <= limits.BLOCK_BYTES_MAX:
            raise PeerError("the peer sent a block of a size that no op has")
    if start != len(frame):
        raise PeerError("the peer sent a frame whose length is not what its head says")
    return blocks
