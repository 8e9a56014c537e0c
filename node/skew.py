"""Whether this machine's clock agrees with the peers': the median of what they tell when they connect.

One node has one voice. Those that this node dialled, and witnesses, are believed before others: as long as there are
three of them, the rest is not asked, for whoever connects much could else outvote them and stop a witness. A clock that
is off by more than a day is broken and left out; a median ignores the others that are wrong while most are right.

Not here: jumps of the own clock (`clock`).
"""

from __future__ import annotations

from statistics import median_low

from msgspec import Struct

from crdtchain import limits
from crdtchain.scalars import Author


class _Voice(Struct):
    offset_ms: int
    is_chosen: bool


class Skew:
    """What the clocks of connected nodes say."""

    def __init__(self) -> None:
        self._voices: dict[str, tuple[Author, _Voice]] = {}

    def note(self, link: str, node: Author, peer_ms: int, now_ms: int, is_chosen: bool) -> None:
        """Note what time a peer told, and what time it was here when that came.

        `link` names the connection, `node` is the key that was proved; `is_chosen`: dialled by this node, or a witness.
        """
        self._voices[link] = node, _Voice(peer_ms - now_ms, is_chosen)

    def forget(self, link: str) -> None:
        """Forget a connection that has ended."""
        self._voices.pop(link, None)

    def _offsets(self) -> list[int]:
        """Return the offsets that count, one for each node, ms."""
        by_node: dict[Author, _Voice] = {}
        for node, voice in self._voices.values():
            if abs(voice.offset_ms) > limits.SKEW_ODD_MS:
                continue
            before = by_node.get(node)
            if before is None or (voice.is_chosen and not before.is_chosen):
                by_node[node] = voice
        chosen = [voice.offset_ms for voice in by_node.values() if voice.is_chosen]
        if len(chosen) >= limits.SKEW_PEERS_MIN:
            return chosen
        return [voice.offset_ms for voice in by_node.values()]

    @property
    def peer_count(self) -> int:
        """Nodes whose clocks count."""
        return len(self._offsets())

    def median_ms(self) -> int | None:
        """Return by how much the peers' clocks are ahead of this one, ms; None: too few peers to tell."""
        offsets = self._offsets()
        return median_low(offsets) if len(offsets) >= limits.SKEW_PEERS_MIN else None

    def find_fault(self, delta_ms: int) -> str:
        """Return why a witness of a network with this Δ must not date anything now; nothing if it may."""
        offset_ms = self.median_ms()
        if offset_ms is None or abs(offset_ms) <= find_bound_ms(delta_ms):
            return ""
        side = "behind" if offset_ms > 0 else "ahead of"
        return f"the clock is {abs(offset_ms) // 1_000} s {side} those of {self.peer_count} peers; set it right"


def find_bound_ms(delta_ms: int) -> int:
    """Return by how much a witness's clock may differ from its peers' in a network with this Δ, ms."""
    return max(limits.SKEW_MIN_MS, min(limits.SKEW_MAX_MS, delta_ms))
