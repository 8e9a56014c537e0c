"""What genesis fixes for a network, in the form that rules use.

Source: protocol section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from crdtchain.ops import Genesis, Kind, Op
from crdtchain.scalars import Author, OpId


class Params(Struct, frozen=True):
    """Constants of one network."""

    network: OpId
    """Genesis' id."""
    founder: Author
    name: str
    witnesses: tuple[Author, ...]
    grants: Mapping[Author, int]
    """Credits by key."""
    elector_min: int
    verdict_min: int
    bounty_min: int
    delta_ms: int
    tick_ms: int
    expiry_ms: int
    faulty_max: int
    """f: so many witnesses may be Byzantine."""
    quorum: int
    """q: so many witnesses make a certificate."""

    @property
    def closing_ms(self) -> int:
        """How long after a deadline a witness may still come to have an op for it: (f + 1) · Δ."""
        return (self.faulty_max + 1) * self.delta_ms

    def is_named(self, author: Author) -> bool:
        """Whether genesis names the key, so that its chain may start with any op."""
        return author in self.grants or author in self.witnesses or author == self.founder


def compute_params(genesis: Op) -> Params:
    """Return the constants that a genesis op fixes."""
    body = genesis.body
    if genesis.kind is not Kind.GENESIS or not isinstance(body, Genesis):
        raise TypeError("a network's constants come from its genesis")
    count = len(body.witnesses)
    faulty_max = (count - 1) // 3
    return Params(
        network=genesis.id,
        founder=genesis.author,
        name=body.name,
        witnesses=tuple(Author(key) for key in body.witnesses),
        grants={Author(key): amount for key, amount in body.grants},
        elector_min=body.elector_min,
        verdict_min=body.verdict_min,
        bounty_min=body.bounty_min,
        delta_ms=body.delta_ms,
        tick_ms=body.tick_ms,
        expiry_ms=body.expiry_ms,
        faulty_max=faulty_max,
        quorum=(count + faulty_max + 2) // 2,
    )
