"""What two replicas say to each other, as frames of bytes.

A frame is a big-endian u16, the length of a head; the head, a list in the strict profile of `crdtchain.codec` whose
first item is the number of the message and whose others are its fields; and behind it the blocks of ops, or a piece of
a blob, whose sizes are in the head.

Invariants:

1. `decode_frame(encode_frame(m)) == m`, and every frame that is not one message exactly is a `PeerError`.
2. Nothing is built from a frame beyond its own length; blocks are not looked into here.
3. The first two items of `Hello` have the same meaning in every version, so that versions can refuse each other.

Source: docs/protocol/sync.md, section 4; a reader of a frame needs nothing but this file. Not here: what follows from a
message (`session`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from crdtchain import codec, limits
from crdtchain.errors import DecodeError, PeerError

PROTOCOL_VERSION: Final = 2
TEXT_MAX: Final = 120
"""Characters of a reason: what a WebSocket's close frame holds."""
PREFIX_BYTES: Final = 8
"""Of an op's digest, where an announcement names it."""
ADDRESSES_MAX: Final = 16

Counter = Annotated[int, Meta(ge=0, le=limits.INT_MAX)]
RequestNumber = Annotated[int, Meta(ge=1, le=2**32)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Salt = Annotated[bytes, Meta(min_length=16, max_length=16)]
Scope = Annotated[bytes, Meta(max_length=limits.SCOPE_BYTES_MAX)]
Items = Annotated[bytes, Meta(max_length=limits.BYTES_MAX)]


class Hello(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=0):
    """The first message of each side."""

    version: Counter
    """`PROTOCOL_VERSION`; another one ends the session."""
    network: Annotated[bytes, Meta(min_length=codec.CID_BYTES, max_length=codec.CID_BYTES)]
    """Genesis' id; another one ends the session."""
    node: Digest
    """The key of the node, which `Auth` proves."""
    nonce: Digest
    """Random; one's own nonce coming back means a node that talks to itself."""
    root: Digest
    """The root of the tree over what the sender keeps."""
    count: Counter
    """How many ops that is."""
    scope: Scope
    """What the sender keeps, as `crdtchain.scopes` encodes it; empty: everything."""
    time_ms: Annotated[int, Meta(ge=0, le=limits.TIME_MAX_MS)]
    """The sender's clock, ms since the Unix epoch."""
    blobs: Annotated[str, Meta(max_length=TEXT_MAX)]
    """Where the sender serves blobs, without a host, which is where it is seen from: `http://:8470`, `https://:443/path`;
    empty: it serves none."""


class Auth(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=1):
    """The second message of each side: proves the node's key."""

    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    """Over `auth_bytes`."""


class Probe(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=2):
    """What the sender holds now, of what the receiver keeps: the anti-entropy."""

    root: Digest
    count: Counter


class Tree(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=3):
    """A question of a walk, and what the receiver lacks."""

    scope: Scope
    salt: Salt
    items: Items
    """Of `crdtchain.sync.regions`."""


class TreeReply(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=4):
    """The answer: views of regions that differ, and what the receiver lacks."""

    answered: Counter
    """How many of the question's outer views were dealt with."""
    items: Items


class Get(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=5):
    """Asks for parts of the other side's set, in key order."""

    request: RequestNumber
    """Names the request; ascending."""
    scope: Scope
    salt: Salt
    items: Items


class More(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=6):
    """One page of a request has been stored: another may come."""

    request: RequestNumber


class Ops(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=7):
    """Op blocks, parents first: a page of an answer, or, unasked, what is new."""

    request: Annotated[int, Meta(ge=0, le=2**32)]
    """The request that is answered; 0: live."""
    last: bool
    """Whether the answer ends here."""
    sizes: Annotated[tuple[Counter, ...], Meta(max_length=limits.BATCH_OPS_MAX)]
    """Bytes of each block that follows the head."""


class Credit(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=8):
    """So many bytes of live ops have been stored: as many more may come."""

    size: Counter


class Announce(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=9):
    """New ops that the sender holds and has not sent."""

    prefixes: Annotated[bytes, Meta(max_length=limits.BYTES_MAX)]
    """The first 8 bytes of each op's digest."""


class Prune(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=10):
    """What the receiver sends live of some authors comes from others before: it is to announce that instead."""

    authors: Annotated[bytes, Meta(max_length=limits.BYTES_MAX)] = b""
    """Their keys, 32 bytes each; empty: whoever it is of."""


class Graft(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=11):
    """Asks for announced ops, and for live ops from now on."""

    prefixes: Annotated[bytes, Meta(max_length=limits.BYTES_MAX)]


class Addresses(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=12):
    """Where other nodes of the network answer."""

    urls: Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=ADDRESSES_MAX)]


class BlobGet(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=13):
    """Asks for one piece of a blob; the next one only after the answer."""

    cid: Annotated[bytes, Meta(min_length=codec.CID_BYTES, max_length=codec.CID_BYTES)]
    offset: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    hops: Annotated[int, Meta(ge=0, le=limits.BLOB_HOPS_MAX)]
    """Through so many nodes it may be looked for; 0: answer from what is there."""
    list: bool
    """Whether the list of the blob's chunks is wanted instead of its bytes."""


class Blob(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=14):
    """The piece that was asked for, behind the head."""

    total: Annotated[int, Meta(ge=0, le=limits.BLOB_BYTES_MAX)]
    """Bytes of the whole."""
    size: Annotated[int, Meta(ge=0, le=limits.BLOB_PIECE_BYTES)]
    """Bytes of this piece."""


class BlobNone(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, tag=15):
    """The blob is not there."""

    later: bool
    """Whether it is being fetched, so that asking again makes sense."""


Head: TypeAlias = (
    Hello
    | Auth
    | Probe
    | Tree
    | TreeReply
    | Get
    | More
    | Ops
    | Credit
    | Announce
    | Prune
    | Graft
    | Addresses
    | BlobGet
    | Blob
    | BlobNone
)
Frame: TypeAlias = tuple[Head, list[bytes]]


def auth_bytes(dialler: Hello, listener: Hello, is_dialler: bool) -> bytes:
    """Put together what a side signs in `Auth`: both hellos' keys and nonces, the network, and its role."""
    role = b"dialler" if is_dialler else b"listener"
    keys_and_nonces = dialler.node + listener.node + dialler.nonce + listener.nonce
    return b"crdtchain/sync/2:" + role + b":" + dialler.network + keys_and_nonces


def encode_frame(head: Head, blocks: Sequence[bytes] = ()) -> bytes:
    """Encode a message; blocks only behind `Ops` and `Blob`, whose sizes they have."""
    plain = msgspec.to_builtins(head, builtin_types=(bytes,))
    data = codec.encode([list(value) if isinstance(value, tuple) else value for value in plain])
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
        _validate_version(value)
        head = msgspec.convert(value, Head, builtin_types=(bytes,))
    except (DecodeError, msgspec.ValidationError) as error:
        raise PeerError(f"the peer sent a malformed message: {str(error)[:TEXT_MAX]}") from None
    if isinstance(head, Blob):
        if len(frame) - end != head.size:
            raise PeerError("the peer sent a frame whose length is not what its head says")
        return head, [frame[end:]]
    return head, _split_blocks(frame, end, head.sizes if isinstance(head, Ops) else ())


def _validate_version(value: object) -> None:
    """Refuse the hello of another version, whatever else is in it."""
    if isinstance(value, list) and len(value) >= 2 and value[0] == 0 and type(value[0]) is int:
        version = value[1]
        if type(version) is int and version != PROTOCOL_VERSION:
            raise PeerError(f"the peer speaks version {version} of the protocol, this node {PROTOCOL_VERSION}")


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
