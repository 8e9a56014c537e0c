"""What a session asks its driver to do, and what it tells it.

Not here: when each comes (`session`).
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from crdtchain.scalars import OpId
from crdtchain.sync.messages import Blob, BlobGet, BlobNone, Hello
from crdtchain.sync.pull import Trip


class SendFrame(Struct, frozen=True):
    """Send these bytes as one frame."""

    frame: bytes


class Prove(Struct, frozen=True):
    """Sign this with the node's key, and call `prove`."""

    message: bytes


class Check(Struct, frozen=True):
    """Call `accept` if the signature holds by the signature rule, else end the session."""

    key: bytes
    message: bytes
    signature: bytes


class Ready(Struct, frozen=True):
    """The peer is of this network and has proved its key: it may still be refused."""

    hello: Hello


class Read(Struct, frozen=True):
    """Read the blocks of these ops, all of them here, and hand them to `supply`."""

    request: int
    """The request that they answer; 0: they are live."""
    ids: list[OpId]


class Take(Struct, frozen=True):
    """Decode, verify and add these blocks, in this order; then call `stored`."""

    request: int
    """The request that they answer; 0: they are live."""
    blocks: list[bytes]
    last: bool
    """Whether the answer to the request ends here."""


class Found(Struct, frozen=True):
    """The peer holds what is not here: `pull`, unless somebody else is being asked already."""

    is_sure: bool
    """Whether a walk said so; else it may be what is on its way."""


class Pulled(Struct, frozen=True):
    """A pull has ended: what it found is stored."""

    trip: Trip


class Announced(Struct, frozen=True):
    """The peer holds ops with these prefixes that are not here: `graft` those that do not come from others."""

    prefixes: list[bytes]


class Told(Struct, frozen=True):
    """Where other nodes answer, says the peer."""

    urls: tuple[str, ...]


class BlobAsked(Struct, frozen=True):
    """The peer wants a piece of a blob: call `give_blob` or `refuse_blob`, once."""

    get: BlobGet


class BlobCame(Struct, frozen=True):
    """The peer's answer to `ask_blob`."""

    head: Blob | BlobNone
    data: bytes


Output: TypeAlias = (
    SendFrame | Prove | Check | Ready | Read | Take | Found | Pulled | Announced | Told | BlobAsked | BlobCame
)


class Traffic(Struct):
    """What went over one connection, for people and for measurements."""

    sent_bytes: int = 0
    received_bytes: int = 0
    negotiated_bytes: int = 0
    """Of both directions: trees, requests, probes; no ops, no blobs."""
    sent_ops: int = 0
    received_ops: int = 0
    live_copies: int = 0
    """Live ops that came, those that were here already among them."""
