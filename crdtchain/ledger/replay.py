"""The state from nothing: what every snapshot and every incremental state has to equal."""

from __future__ import annotations

from collections.abc import Iterable

from crdtchain.ledger.state import Ledger
from crdtchain.ops import Op


def replay(genesis: Op, ops: Iterable[Op]) -> Ledger:
    """Return the ledger of a network's ops, given in a causal order; genesis may be among them.

    Raises:
        RuleError: an op breaks a rule.
        LookupError: an op comes before one that it links to.
    """
    ledger = Ledger(genesis)
    for op in ops:
        ledger.add(op)
    return ledger
