"""Invite newcomers: a transfer of first credits to each key without any that connects.

Rate: at most one in ten seconds, so that making keys does not empty the purse; who comes in between is invited when its
turn comes. A key that has credits, ops, or an unclaimed transfer is no newcomer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from crdtchain.errors import InvalidOpError, StoreError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Transfer
from crdtchain.scalars import Author
from node.events import PeerConnected
from node.node import Node

PAUSE_S: Final = 10.0
QUEUE_MAX: Final = 100

log = logging.getLogger(__name__)


def is_newcomer(ledger: Ledger, author: Author) -> bool:
    """Whether a key is unknown to the ledger: no grant, no witness, no ops, no transfer to it."""
    if ledger.params.is_named(author) or ledger.jobs.transfers.get(author):
        return False
    number = ledger.dag.find_author(author)
    return number is None or not ledger.dag.chains.tips(number)


async def welcome(node: Node, amount: int, pause_s: float = PAUSE_S) -> None:
    """Invite newcomers until cancelled; `amount` in credits."""
    listener = node.runtime.events.subscribe(QUEUE_MAX)
    try:
        async for event in listener:
            if isinstance(event, PeerConnected) and is_newcomer(node.runtime.ledger, event.node):
                try:
                    await node.runtime.submit(Transfer(to=bytes(event.node), amount=amount, memo="welcome"))
                except (InvalidOpError, StoreError) as error:
                    log.warning("A newcomer could not be invited: %s", error)
                except UsageError:
                    return
                await asyncio.sleep(pause_s)
    finally:
        node.runtime.events.unsubscribe(listener)
