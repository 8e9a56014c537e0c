"""Accounts: a running sum along each chain.

Invariants:

1. `balance(x)` = grant + claims - bounties - pools - stakes - transfers on the chain of x; never negative.
2. It follows from the chain of x alone: two branches of one chain have sums of their own.
3. What others may rely on is the balance after the last *certified* value op.

Source: protocol section 6.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from crdtchain.crdts.register import WriteOnceMap
from crdtchain.dag import NONE, Dag
from crdtchain.scalars import Author
from crdtchain.witness import Cut, Witnesses


class Accounts:
    """Balances after value ops."""

    def __init__(self, dag: Dag, witnesses: Witnesses) -> None:
        self._dag = dag
        self._witnesses = witnesses
        self._grants = witnesses.params.grants
        self.changes: WriteOnceMap[int, int] = WriteOnceMap()
        """Value op to what it adds (a claim) or takes, credits."""
        self.balances: WriteOnceMap[int, int] = WriteOnceMap()
        """Value op to the balance after it, credits."""

    def grant(self, author: Author) -> int:
        """Return the credits that genesis gives a key."""
        return self._grants.get(author, 0)

    def balance(self, author: Author, tip: int) -> int:
        """Return the balance of a chain after `tip` (-1: before its first op), credits."""
        last = NONE if tip == NONE else self._dag.last_values[tip]
        return self.grant(author) if last == NONE else self.balances.get(last)

    def apply(self, number: int, change: int) -> None:
        """Write what a just added value op does to its chain's balance."""
        balance = self.balance(self._dag.author_key(number), self._dag.prevs[number]) + change
        self.changes.write(number, change)
        self.balances.write(number, balance)

    def last_certified(self, author: int, cut: Cut) -> int:
        """Return the last value op of an author that is certified as of a cut, or -1."""
        best = NONE
        for lane in self._dag.chains.lanes_of(author):
            last = self._last_certified_in(lane, cut)
            if last != NONE and (best == NONE or self._rank(last) > self._rank(best)):
                best = last
        return best

    def _rank(self, op: int) -> tuple[int, bytes]:
        # The lowest id wins among equal seqs; complementing the bytes makes one comparison of both.
        return self._dag.chains.seq(op), bytes(255 - byte for byte in self._dag.ids[op])

    def _last_certified_in(self, lane: array[int], cut: Cut) -> int:
        """Return the last certified value op of a lane, or -1: along a chain certification is prefix-closed."""
        dag, is_certified = self._dag, self._witnesses.is_certified
        op = dag.last_values[lane[-1]]
        while op != NONE and op >= lane[0]:
            if is_certified(op, cut):
                return op
            op = dag.previous_value(op)
        return NONE

    def certified_balance(self, author: Author, cut: Cut) -> int:
        """Return the balance after the author's last value op certified as of a cut, credits."""
        number = self._dag.find_author(author)
        last = NONE if number is None else self.last_certified(number, cut)
        return self.grant(author) if last == NONE else self.balances.get(last)

    def merge(self, other: Accounts, rename: Sequence[int]) -> None:
        """Join the other's balances into these, ops renamed."""
        self.changes.merge(other.changes, rename.__getitem__)
        self.balances.merge(other.balances, rename.__getitem__)
