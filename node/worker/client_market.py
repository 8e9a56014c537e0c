"""The market of a worker beside its node: the same as inside, over the node's API.

The node signs, keeps the blobs, and reveals and claims by itself. What its API does not tell is inferred here: that
bidding is closed, from the clock (a reveal that comes too early is refused and tried again); who is an elector, from
balances (a vote of one who is none is refused, and costs an evaluation).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from crdtchain.codec import format_cid, parse_cid, parse_did
from crdtchain.errors import PeerError
from crdtchain.scalars import Author, BlobId, Credits, Micros, OpId
from node.client import NodeClient
from node.server.bodies import read_terms
from node.worker.market import BidView, JobView, RevealView, Verdict

POLL_S: Final = 0.5
ON_TIME: Final = frozenset({"on time", "leading", "decided", "claimed", "unrevealed"})
DECIDED: Final = frozenset({"decided", "no winner", "refunded", "expired", "conflict"})
CERTIFIED: Final = frozenset({"certified", "decided", "claimed"})


def dump_terms(terms: Mapping[str, Any]) -> bytes:
    """Write a job's terms, as the API shows them, in the form that `read_terms` reads."""
    return json.dumps(terms).encode()


class ClientMarket:
    """A market on a node elsewhere; make it with `make`."""

    def __init__(self, client: NodeClient, me: Author, network: Mapping[str, Any]) -> None:
        self._client = client
        self._me = me
        self._delta_ms = int(network["delta_ms"])
        faulty_max = (len(network["witnesses"]) - 1) // 3
        self._closing_ms = (faulty_max + 1) * self._delta_ms
        self._elector_min = int(network["elector_min"])
        self._over: dict[str, JobView] = {}

    @classmethod
    async def make(cls, client: NodeClient) -> ClientMarket:
        """Make the market of a node.

        Raises:
            PeerError: the node does not answer.
        """
        status = await client.status()
        return cls(client, parse_did(status["did"]), await client.network())

    @property
    def me(self) -> Author:
        """The key that signs."""
        return self._me

    @property
    def delta_ms(self) -> int:
        """Δ of the network."""
        return self._delta_ms

    def now_ms(self) -> int:
        """The time now, ms since the Unix epoch."""
        return time.time_ns() // 1_000_000

    async def balance(self) -> Credits:
        """Return the spendable credits."""
        return Credits(int((await self._client.status())["balance"]))

    async def jobs(self) -> list[JobView]:
        """Return a snapshot of all jobs."""
        did = (await self._client.status())["did"]
        account = await self._client.account(did)
        stakes = {row["body"]["job"]: row["status"] for row in account["history"] if row["kind"] == "stake"}
        is_elector = account["is_witness"] or account["certified_balance"] >= self._elector_min
        views = []
        for row in await self._client.jobs():
            view = self._over.get(row["id"])
            if view is None:
                job = await self._client.job(row["id"])
                view = self._view(job, did, stakes.get(row["id"]), is_elector and not account["banned"])
                if view.decided:
                    self._over[row["id"]] = view
            views.append(view)
        return views

    def _view(self, job: Mapping[str, Any], did: str, stake: str | None, is_elector: bool) -> JobView:
        terms = read_terms(dump_terms(job["terms"]))
        return JobView(
            id=OpId(parse_cid(job["id"])),
            poster=parse_did(job["poster"]),
            terms=terms,
            certified=bool(job["certified"]),
            decided=job["phase"] in DECIDED,
            bidding_closed=self.now_ms() > terms.bid_until + self._closing_ms,
            elector=is_elector,
            staked=stake is not None,
            stake_certified=stake in CERTIFIED,
            bids=tuple(_view_bid(bid) for bid in job["leaderboard"]),
            reveals=tuple(_view_reveal(bid, reveal, did) for bid in job["leaderboard"] for reveal in bid["reveals"]),
        )

    async def wait(self, timeout_s: float) -> None:
        """Wait for a moment: the node is asked again and again."""
        await asyncio.sleep(min(timeout_s, POLL_S))

    async def get_blob(self, blob: BlobId) -> bytes | None:
        """Return a blob's bytes, or None when nobody has it now."""
        try:
            return await self._client.read_blob(format_cid(blob))
        except PeerError:
            return None

    async def put_blob(self, data: bytes) -> BlobId:
        """Keep a blob and offer it to others."""
        return BlobId(parse_cid(await self._client.put_blob(data)))

    async def stake(self, job: OpId) -> OpId:
        """Put down a job's stake."""
        return await self._submit("stake", {"job": format_cid(job)})

    async def bid(self, job: OpId, loss: Micros, model: BlobId, data: bytes) -> OpId:
        """Announce a loss and commit to a model; the node keeps its bytes."""
        await self._client.put_blob(data)
        return await self._submit("bid", {"job": format_cid(job), "loss": loss, "model": format_cid(model)})

    async def reveal(self, bid: OpId, model: BlobId, size: int) -> OpId:
        """Show the model behind a bid."""
        return await self._submit("reveal", {"bid": format_cid(bid)})

    async def vote(self, reveal: OpId, verdict: Verdict, loss: Micros | None) -> OpId:
        """Say what a revealed model is worth."""
        return await self._submit("vote", {"reveal": format_cid(reveal), "verdict": verdict, "loss": loss})

    async def claim(self, of: OpId) -> OpId:
        """Take what a job's outcome or a transfer gives."""
        return await self._submit("claim", {"of": format_cid(of)})

    async def _submit(self, kind: str, body: Mapping[str, Any]) -> OpId:
        return OpId(parse_cid((await self._client.submit(kind, body))["id"]))


def _view_bid(bid: Mapping[str, Any]) -> BidView:
    return BidView(
        id=OpId(parse_cid(bid["id"])),
        author=parse_did(bid["author"]),
        loss=Micros(bid["loss"]),
        commit=bytes.fromhex(bid["commit"]),
        on_time=bid["status"] in ON_TIME,
        late=bid["status"] == "late",
        revealed=bool(bid["reveals"]),
    )


def _view_reveal(bid: Mapping[str, Any], reveal: Mapping[str, Any], did: str) -> RevealView:
    return RevealView(
        id=OpId(parse_cid(reveal["id"])),
        author=parse_did(bid["author"]),
        bid=OpId(parse_cid(bid["id"])),
        loss=Micros(bid["loss"]),
        model=BlobId(parse_cid(reveal["model"])),
        size=reveal["size"],
        late=reveal["status"] == "late",
        voted=any(vote["author"] == did for vote in reveal["votes"]),
    )


@asynccontextmanager
async def open_market(client: NodeClient) -> AsyncIterator[ClientMarket]:
    """Make the market of a node for the length of a block."""
    yield await ClientMarket.make(client)
