"""The running node of a data folder, as commands use it: calls, and ids that people shorten."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from crdtchain.codec import parse_cid, parse_did
from crdtchain.errors import UsageError
from node.cli.shell import Shell, find_one
from node.client import NodeClient

Json = dict[str, Any]


@asynccontextmanager
async def connect(shell: Shell) -> AsyncIterator[NodeClient]:
    """Talk to the node that runs in the data folder.

    Raises:
        NoPeerError: none runs.
    """
    async with NodeClient.from_data(shell.data) as client:
        yield client


def is_full_cid(text: str) -> bool:
    """Whether a text is a whole id."""
    try:
        parse_cid(text)
    except UsageError:
        return False
    return True


async def find_job(client: NodeClient, text: str) -> str:
    """Return the full id of a job."""
    return text if is_full_cid(text) else find_one(text, [job["id"] for job in await client.jobs()], "job")


async def find_did(client: NodeClient, text: str) -> str:
    """Return the full did:key of an account; a full one need not be known."""
    if text.startswith("did:key:z6Mk") and len(text) > 50:
        parse_did(text)
        return text
    return find_one(text, [account["did"] for account in await client.accounts()], "account")


async def find_bid(client: NodeClient, text: str) -> tuple[str, Mapping[str, Any]]:
    """Return the full id of a bid, and the job that it is on, with all its details."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in await client.jobs():
        if row["bids"]:
            job = await client.job(row["id"])
            found.update({bid["id"]: job for bid in job["leaderboard"]})
    bid = find_one(text, found, "bid")
    return bid, found[bid]


async def find_reveal(client: NodeClient, text: str) -> str:
    """Return the full id of a reveal."""
    if is_full_cid(text):
        return text
    found: list[str] = []
    for row in await client.jobs():
        if row["bids"]:
            job = await client.job(row["id"])
            found.extend(reveal["id"] for bid in job["leaderboard"] for reveal in bid["reveals"])
    return find_one(text, found, "reveal")
