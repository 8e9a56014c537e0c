"""How one side gets what it lacks: a walk that finds it, and requests for the ops, page by page.

A walk pauses as soon as it has found something worth a request, and goes on when that is stored: so what is negotiated
stays in proportion to what came, and nothing piles up.

Not here: frames and turns (`session`), who is asked and when (the driver).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from msgspec import Struct

from crdtchain.errors import PeerError
from crdtchain.sync.messages import Get, Head, Tree
from crdtchain.sync.reconcile import VIEWS_MAX, Tags, Walk, prepare_parts, split_parts, weigh
from crdtchain.sync.regions import Part, decode_items, encode_items
from crdtchain.sync.tree import RangeTree

WORTH_BYTES: Final = 2_048
"""Parts of so many bytes are got before the walk goes on."""
LACKING_BYTES_MAX: Final = 64 * 1024
"""Bytes of parts that are kept of what the other side's walk found; the rest is found again."""
VIEWS_FIRST: Final = 64
"""Regions of one question until ops have come."""


class Trip(Struct):
    """What one pull took."""

    exchanges: int = 0
    """Round trips: questions and requests that were answered."""
    sent_bytes: int = 0
    received_bytes: int = 0
    """Bytes of negotiation; ops not among them."""
    ops: int = 0
    """Ops that came and were new."""
    op_bytes: int = 0
    """Bytes of the pages in which they came."""


class Pull:
    """The asking side of one conversation."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: random, for the salts of walks."""
        self.is_active = False
        self.trip = Trip()
        """Of the pull under way, or of the last one."""
        self.request = 0
        """The request that is waited for, or the last one."""
        self.is_asking = False
        """Whether ops are waited for."""
        self._seed = seed
        self._count = 0
        self._scope = b""
        self._walk: Walk | None = None
        self._waits_for_reply = False
        self._parts: list[Part] = []
        self._salt = b""
        self._found: list[Part] = []
        self._found_salt = b""

    @property
    def has_found(self) -> bool:
        """Whether the other side's walk has found something to get."""
        return bool(self._found)

    def note_found(self, salt: bytes, parts: Sequence[Part]) -> None:
        """Note what the other side's walk found lacking here."""
        if salt != self._found_salt:
            self._found_salt, self._found = salt, []
        if weigh(self._found) < LACKING_BYTES_MAX:
            self._found.extend(parts)

    def start(self, tree: RangeTree, scope: bytes) -> Head | None:
        """Begin, with what the other side has found if it has, else with a walk; returns what to send."""
        self.is_active, self._scope, self.trip = True, scope, Trip()
        if self._found:
            self._salt, found = self._found_salt, self._found
            self._found, self._found_salt = [], b""
            self._parts = prepare_parts(tree, Tags(self._salt), found)
        else:
            self._count += 1
            self._salt = sha256(self._seed + self._count.to_bytes(8, "big")).digest()[:16]
            self._walk = Walk(tree, self._salt)
        return self.go_on()

    def take_reply(self, answered: int, items: bytes) -> Head | None:
        """Take the answer to a question; returns what to send next.

        Raises:
            PeerError: nothing was asked, or it is no answer.
        """
        if self._walk is None or not self._waits_for_reply:
            raise PeerError("the peer answered what was not asked")
        self._waits_for_reply = False
        self._walk.take(decode_items(items), answered)
        self.trip.exchanges += 1
        return self.go_on()

    def go_on(self) -> Head | None:
        """Return the next question or request; None when the pull has ended."""
        walk = self._walk
        if walk is not None:
            if not walk.is_open or weigh(walk.lacking) >= WORTH_BYTES:
                self._parts.extend(walk.gather())
            if not self._parts:
                items = walk.ask(VIEWS_MAX if self.trip.ops else VIEWS_FIRST)
                if items is not None:
                    self._waits_for_reply = True
                    return Tree(self._scope, self._salt, items)
                self._walk = None
        if not self._parts:
            self.is_active = False
            return None
        parts, self._parts = split_parts(self._parts)
        self.request += 1
        self.is_asking = True
        return Get(self.request, self._scope, self._salt, encode_items(parts))

    def cut_walk(self) -> Head | None:
        """Leave the rest of the walk to another one, the question just made too; returns what to send instead."""
        self._waits_for_reply = False
        if self._walk is not None:
            self._parts.extend(self._walk.gather())
            self._walk = None
        return self.go_on()

    def end_request(self) -> Head | None:
        """Note that a request was answered whole; returns what to send next."""
        self.is_asking = False
        self.trip.exchanges += 1
        return self.go_on()
