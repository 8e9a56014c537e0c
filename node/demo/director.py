"""Runs a demonstration: starts the nodes, posts the job, pulls cables where the scenario says so, and judges the end.

Theory of operation: everybody acts by itself; nothing here signs, trains, bids or votes. What is seen comes from two
sources: the lines that the processes tell, and the poster's node, asked through its API like any client would. At the
end one node's data folder is audited from nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crdtchain.adapters.auditing import audit_source
from crdtchain.audit import AuditReport
from crdtchain.errors import PeerError
from crdtchain.views import body_to_json
from node.client import NodeClient
from node.datadir import load_token
from node.demo.board import END_PHASES, Board
from node.demo.company import Actor, Company, DemoError
from node.demo.judge import Verdict, judge
from node.demo.plan import DELTA_MS, Member, Plan, write_job_file
from node.demo.relay import Relay
from node.demo.sandboxes import make_sandbox
from node.jobfile import JobDraft, NetworkRules, read_job_file
from node.tables import format_micros
from node.worker.materials import use_draft
from node.worker.sandbox.base import Status
from node.worker.training import measure

POLL_S: Final = 0.4
SETTLE_S: Final = 30
"""After the last deadline things get so long to be settled."""
CONNECT_S: Final = 20
RETURN_MS: Final = 10_000
"""So long before the end of bidding does a worker come back that comes back in time."""
FAULTY_MAX: Final = 1


@dataclass(slots=True)
class Model:
    """The winning model."""

    file: Path
    loss: int
    accuracy: float | None


@dataclass(slots=True)
class Result:
    """What came of a demonstration."""

    network: str
    job: dict[str, Any]
    accounts: dict[str, int]
    """Name to certified credits, at the poster's node."""
    digests: dict[str, str]
    """Name to state digest, at each node."""
    dids: dict[str, str]
    leads: list[tuple[str, int]]
    """Who has led, with which loss in micros, in order."""
    heads_digest: str
    model: Model | None = None
    audit: AuditReport | None = None
    verdict: Verdict = field(default_factory=Verdict)
    seconds: float = 0.0


class Director:
    """One demonstration in one folder."""

    def __init__(self, plan: Plan, folder: Path, board: Board, image: str | None) -> None:
        """`image` is the trainer image's id, for docker."""
        self._plan = plan
        self._folder = folder
        self._board = board
        self._image = image
        self._relays: dict[str, list[Relay]] = {}
        self._stirred = asyncio.Event()
        self._draft: JobDraft | None = None

    async def run(self, hold: Callable[[Result, Company], Awaitable[None]] | None = None) -> Result:
        """Play it to the end; `hold` is awaited with what came of it while the nodes still run.

        Raises:
            DemoError: something did not happen in time, or a process ended.
            CrdtchainError: something else that it needs is not there.
        """
        started_s = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            company = await stack.enter_async_context(Company(self._plan, self._folder, self._hear))
            await self._begin(company, stack)
            poster = company[self._plan.members[0].name]
            client = await stack.enter_async_context(NodeClient(poster.local, load_token(poster.folder)))
            job = await self._post(client)
            await self._follow(client, job)
            result = await self._settle(company, client, job)
            result.model = await self._fetch_model(client, result.job)
            self._board.stage = "auditing"
            result.audit = await audit_source(poster.folder)
            result.verdict = judge(self._plan, self._board, result)
            result.seconds = time.monotonic() - started_s
            self._board.stage = "done"
            if hold is not None:
                await hold(result, company)
        return result

    def _hear(self, name: str, row: dict[str, Any]) -> None:
        self._board.hear(name, row)
        if row["kind"] == "worker" and row["event"] in ("training", "bid"):
            self._stirred.set()

    # -- the beginning --

    async def _begin(self, company: Company, stack: contextlib.AsyncExitStack) -> None:
        board = self._board
        board.stage = "founding the network"
        await company.found()
        for name, actor in company.actors.items():
            board.seats[name].did = actor.did
        await self._lay_cables(company, stack)
        board.stage = "starting six nodes"
        await company.start(lambda actor: self._find_peers(company, actor))
        witnesses = ", ".join(member.name for member in self._plan.members if member.is_witness)
        board.note("demo", f"six nodes run; the witnesses are {witnesses}: one of them may lie.")
        board.stage = "connecting the nodes"
        await self._wait_connected(company)

    def _hubs(self, company: Company) -> list[Actor]:
        """Return those whom everybody dials: the poster and the verifiers."""
        return [actor for actor in company.actors.values() if actor.member.role != "worker"]

    def _find_peers(self, company: Company, actor: Actor) -> Sequence[str]:
        name, hubs = actor.member.name, self._hubs(company)
        if name in self._relays:
            return [f"http://127.0.0.1:{relay.port}" for relay in self._relays[name]]
        if actor.member.role != "worker":
            hubs = hubs[: hubs.index(actor)]
        return [hub.peer_url for hub in hubs]

    async def _lay_cables(self, company: Company, stack: contextlib.AsyncExitStack) -> None:
        """Lead the connections of those that will be cut off through relays of ours."""
        for member in self._plan.members:
            if member.cut:
                self._relays[member.name] = [
                    await stack.enter_async_context(Relay(hub.port)) for hub in self._hubs(company)
                ]

    async def _wait_connected(self, company: Company) -> None:
        deadline_s = time.monotonic() + CONNECT_S
        for actor in company.actors.values():
            wanted = len(self._find_peers(company, actor))
            async with NodeClient(actor.local, load_token(actor.folder)) as client:
                while len((await client.status())["peers"]) < wanted:
                    self._check()
                    if time.monotonic() > deadline_s:
                        raise DemoError(f"the node of {actor.member.name} did not reach the others in {CONNECT_S} s")
                    await asyncio.sleep(0.2)

    def _check(self) -> None:
        if self._board.broken:
            raise DemoError(f"a process of the demonstration failed: {self._board.broken}")

    # -- the job --

    async def _post(self, client: NodeClient) -> str:
        """Upload the job's files and post it; returns its id."""
        self._board.stage = "posting the job"
        self._board.network = str((await client.status())["network"])
        rules = NetworkRules(1, DELTA_MS, DELTA_MS, FAULTY_MAX)
        now_ms = time.time_ns() // 1_000_000
        draft = self._draft = read_job_file(write_job_file(self._plan, self._folder), rules, now_ms, self._image)
        for file in draft.blobs.values():
            await client.put_blob(file)
        job = await client.submit("job", body_to_json(draft.terms))
        poster = self._plan.members[0].name
        self._board.seats[poster].doing = "posted"
        self._board.note(
            poster, f"posts “{draft.terms.title}”: bounty {draft.terms.bounty}, stake {draft.terms.stake}."
        )
        return str(job["id"])

    async def _follow(self, client: NodeClient, job: str) -> None:
        """Watch until the outcome is certified, and pull the cables in time."""
        assert self._draft is not None
        terms = self._draft.terms
        last_ms = terms.verdict_until + SETTLE_S * 1_000
        cables = [asyncio.create_task(self._play_cut(member)) for member in self._plan.members if member.cut]
        try:
            while self._board.phase not in END_PHASES:
                self._check()
                if time.time_ns() // 1_000_000 > last_ms:
                    raise DemoError(f"the job has no outcome {SETTLE_S} s after its last deadline")
                await self._look(client, job)
                await asyncio.sleep(POLL_S)
            await asyncio.gather(*cables)
        finally:
            for task in cables:
                task.cancel()

    async def _look(self, client: NodeClient, job: str) -> None:
        """Ask the poster's node for all that is shown."""
        found = await client.job(job)
        ops = {kind: (await client.ops(kind=kind))["ops"] for kind in ("stake", "attest", "claim")}
        self._board.see(found, ops, await client.accounts())

    async def _play_cut(self, member: Member) -> None:
        """Pull a worker's cable when it has begun to train, and mend it at its time."""
        assert self._draft is not None
        seat, relays, terms = self._board.seats[member.name], self._relays[member.name], self._draft.terms
        while not seat.runs:
            self._stirred.clear()
            await self._stirred.wait()
        for relay in relays:
            await relay.cut()
        seat.is_cut = True
        self._board.note(member.name, "is cut off from the network; it goes on alone.", is_loud=True)
        if member.cut == "returns":
            await _sleep_until(terms.bid_until - RETURN_MS)
        else:
            await _sleep_until(terms.bid_until + (FAULTY_MAX + 3) * DELTA_MS)
        for relay in relays:
            relay.mend()
        seat.is_cut = False
        text = "before the end of bidding" if member.cut == "returns" else "after the end of bidding"
        self._board.note(member.name, f"is back, {text}, with {seat.bids} bids that nobody has seen.", is_loud=True)

    # -- the end --

    async def _settle(self, company: Company, client: NodeClient, job: str) -> Result:
        """Wait until everything is claimed and all nodes know the same."""
        self._board.stage = "settling"
        deadline_s = time.monotonic() + SETTLE_S
        async with contextlib.AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(NodeClient(actor.local, load_token(actor.folder)))
                for name, actor in company.actors.items()
            }
            before: dict[str, str] = {}
            while True:
                self._check()
                await self._look(client, job)
                accounts = {row["did"]: int(row["certified_balance"]) for row in await client.accounts()}
                status = {name: await other.status() for name, other in clients.items()}
                digests = {name: str(row["state_digest"]) for name, row in status.items()}
                heads = {str(row["heads_digest"]) for row in status.values()}
                is_even = len(set(digests.values())) == 1 and len(heads) == 1
                # Beats follow the last claim: only what stays the same for a while is the end.
                if is_even and digests == before and sum(accounts.values()) == self._plan.granted:
                    break
                if time.monotonic() > deadline_s:
                    self._board.note("demo", "things did not settle in time.", is_loud=True)
                    break
                before = digests if is_even else {}
                await asyncio.sleep(1)
        named = {name: accounts.get(seat.did, 0) for name, seat in self._board.seats.items()}
        shown = await client.job(job)
        dids = {name: seat.did for name, seat in self._board.seats.items()}
        return Result(self._board.network, shown, named, digests, dids, self._board.leads, min(heads))

    async def _fetch_model(self, client: NodeClient, job: dict[str, Any]) -> Model | None:
        """Let the poster fetch the winning model and test it."""
        outcome = job["outcome"]
        if outcome is None or outcome["winner"] is None or self._draft is None:
            return None
        self._board.stage = "fetching the winning model"
        path = self._folder / self._draft.schema.file_name
        try:
            await client.get_blob(outcome["model"], path)
        except PeerError as error:
            raise DemoError(f"the winning model can't be fetched: {error}") from None
        sandbox = make_sandbox(self._plan.runtime, self._folder)
        try:
            found = await measure(sandbox, use_draft(self._draft), path.read_bytes(), "demo-winner")
        finally:
            await sandbox.close()
        if found.status is not Status.OK or found.loss_micros is None:
            raise DemoError(f"the winning model can't be tested: {found.status.value}. {found.reason}")
        poster = self._plan.members[0].name
        text = f"has fetched the winning model; it measures {format_micros(found.loss_micros)}"
        self._board.note(poster, f"{text}, {found.accuracy or 0:.1%} of the test digits right.", is_loud=True)
        return Model(path, found.loss_micros, found.accuracy)


async def _sleep_until(at_ms: int) -> None:
    await asyncio.sleep(max(at_ms / 1_000 - time.time(), 0))
