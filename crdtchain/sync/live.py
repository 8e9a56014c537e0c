"""What is new goes to a peer at once, or is only announced to it: the live half of one conversation.

Every link starts *eager*: new ops are sent over it. Who gets an op that it has already asks the sender to `prune` the
link for that author, so that for each author the eager links of a network become a tree of first deliveries, from its
node to all others; over the other links prefixes are announced. Who hears of an op and does not get it asks for it with
a `graft`, which makes the link eager again. (The scheme is Plumtree's, by Leitao, Pereira and Rodrigues, 2007, with a
tree for each author as for each source there: one tree for all would be short for some, and broken for others.)

A byte of live ops costs credit, which comes back when it is stored on the other side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Final

from crdtchain import limits
from crdtchain.errors import PeerError
from crdtchain.scalars import Author, OpId
from crdtchain.signing import KEY_BYTES
from crdtchain.sync.messages import PREFIX_BYTES

LIVE_CREDIT: Final = 2**20
"""Bytes of live ops that may be under way."""
CREDIT_STEP: Final = 64 * 1024
"""Stored live bytes that are worth telling."""
ANNOUNCED_MAX: Final = limits.BYTES_MAX // PREFIX_BYTES
PRUNED_MAX: Final = 4_096
"""Authors whose ops go another way, for each link."""
_KNOWN_MAX: Final = 4_096
_ID_PREFIX: Final = 4


class Urgency(Enum):
    """How new ops go to a peer."""

    OWN = "own"
    """At once: nobody else can bring them. So the eager links of many sources need not all meet."""
    AS_WANTED = "as wanted"
    """At once over eager links, announced over the others."""
    ANNOUNCED = "announced"


class Live:
    """The live half of one conversation."""

    def __init__(self) -> None:
        self.is_eager = True
        """Whether new ops are sent at all, and not only announced."""
        self._pruned: dict[Author, None] = {}
        """Whose ops are announced only."""
        self.is_behind = False
        """Whether something was left out that the next probe makes up for."""
        self._known: dict[OpId, None] = {}
        self._announced: dict[bytes, OpId] = {}
        self._to_announce: list[bytes] = []
        self._credit = LIVE_CREDIT
        self._granted = LIVE_CREDIT
        self._owed = 0

    # -- out --

    def note_known(self, ids: Iterable[OpId]) -> None:
        """Note that the peer holds some ops: they are not sent to it."""
        self._known.update(dict.fromkeys(ids))
        if len(self._known) > 2 * _KNOWN_MAX:
            # Seldom, and many at once: looking for the oldest of a dictionary passes all that was deleted before it.
            self._known = dict.fromkeys(list(self._known)[-_KNOWN_MAX:])

    def push(
        self,
        ops: Sequence[tuple[OpId, bytes]],
        author_of: Callable[[OpId], Author],
        urgency: Urgency = Urgency.AS_WANTED,
    ) -> list[bytes]:
        """Take new ops, ids and blocks; returns the blocks that are to be sent now, the others are announced."""
        eager: list[tuple[OpId, bytes]] = []
        for op, block in ops:
            if op in self._known:
                continue
            if urgency is Urgency.OWN or (urgency is Urgency.AS_WANTED and self._is_wanted(author_of(op))):
                eager.append((op, block))
            else:
                prefix = op[_ID_PREFIX : _ID_PREFIX + PREFIX_BYTES]
                self._announced[prefix] = op
                self._to_announce.append(prefix)
        while len(self._announced) > ANNOUNCED_MAX:
            del self._announced[next(iter(self._announced))]
        self.note_known(op for op, _ in eager)
        return self.spend([block for _, block in eager])

    def _is_wanted(self, author: Author) -> bool:
        return self.is_eager and author not in self._pruned

    def take_prune(self, authors: Sequence[Author]) -> None:
        """Announce only the ops of some authors from now on, or, when none is named, of all."""
        if not authors:
            self.is_eager = False
        remember(self._pruned, authors)

    def spend(self, blocks: list[bytes]) -> list[bytes]:
        """Pay for blocks with credit; without enough of it none is to be sent, and the peer is behind."""
        size = sum(map(len, blocks))
        if size > self._credit:
            self.is_behind = True
            return []
        self._credit -= size
        return blocks

    def gain(self, size: int) -> None:
        """Take credit that the peer gives back."""
        self._credit = min(LIVE_CREDIT, self._credit + size)

    @property
    def has_news(self) -> bool:
        """Whether something is to be announced."""
        return bool(self._to_announce)

    def take_announcement(self) -> bytes:
        """Return the prefixes that are to be announced now; empty for none."""
        prefixes, self._to_announce = self._to_announce[-ANNOUNCED_MAX:], []
        return b"".join(prefixes)

    def take_graft(self, prefixes: Iterable[bytes], author_of: Callable[[OpId], Author]) -> list[OpId]:
        """Make the link eager for the authors of some announced ops; returns these ops, which the peer asks for."""
        self.is_eager = True
        found = [self._announced[prefix] for prefix in prefixes if prefix in self._announced][: limits.BATCH_OPS_MAX]
        for op in found:
            self._pruned.pop(author_of(op), None)
        return found

    # -- in --

    def note_come(self, size: int) -> None:
        """Note live bytes that came.

        Raises:
            PeerError: there was no credit for them.
        """
        self._granted -= size
        if self._granted < 0:
            raise PeerError("the peer sent more live ops than it may", "credit")

    def note_stored(self, size: int) -> int:
        """Note live bytes that were stored; returns the credit to give back now, or 0."""
        self._owed += size
        if self._owed < CREDIT_STEP:
            return 0
        self._granted += self._owed
        owed, self._owed = self._owed, 0
        return owed


def remember(authors: dict[Author, None], new: Iterable[Author]) -> None:
    """Put authors at the end of a bounded list, whose oldest ones are forgotten."""
    for author in new:
        authors.pop(author, None)
        authors[author] = None
    while len(authors) > PRUNED_MAX:
        del authors[next(iter(authors))]


def split_authors(data: bytes) -> list[Author]:
    """Take the keys out of a list.

    Raises:
        PeerError: it is not made of keys.
    """
    if len(data) % KEY_BYTES:
        raise PeerError("the peer sent a list of keys that ends within one")
    return [Author(data[start : start + KEY_BYTES]) for start in range(0, len(data), KEY_BYTES)]


def split_prefixes(data: bytes) -> list[bytes]:
    """Take the prefixes out of an announcement.

    Raises:
        PeerError: it is not made of prefixes.
    """
    if len(data) % PREFIX_BYTES:
        raise PeerError("the peer sent a list of prefixes that ends within one")
    return [data[start : start + PREFIX_BYTES] for start in range(0, len(data), PREFIX_BYTES)]
