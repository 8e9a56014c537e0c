"""The API of the local port, under `/api/v1`: what is known as JSON, and ops signed by the node's key."""

from __future__ import annotations

import json
from typing import Final

import msgspec
from aiohttp import web

from crdtchain import codec, views
from crdtchain.codec import Link
from crdtchain.errors import UsageError
from crdtchain.ledger.rules import compute_commitment
from crdtchain.ops import Bid, Body, Claim, Job, Kind, Profile, Reveal, SignedOp, Stake, Transfer, Vote
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.shapes import decode_op
from node.events import Event
from node.node import Node
from node.server import blobs
from node.server.bodies import (
    BidInput,
    ClaimInput,
    ProfileInput,
    RevealInput,
    StakeInput,
    TransferInput,
    VoteInput,
    read_input,
    read_terms,
)
from node.server.openapi import API, Route, make_openapi
from node.server.peering import describe_peers
from node.server.scope import ScopeInput, get_scope, post_scope
from node.server.ws import NODE

PAGE_MAX: Final = 500
"""Ops of one answer."""
PING_S: Final = 15.0
SIGNING_WAIT_S: Final = 20.0
"""So long a request may wait until this node is allowed to sign; clients wait longer."""


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(content).encode(), status=status, content_type="application/json")


def _find_op(node: Node, text: str, kind: Kind | None = None) -> int:
    """Return the number of the op that a text names.

    Raises:
        UsageError: it is no CID, or of an op of another kind.
        HTTPNotFound: it is not here.
    """
    number = node.runtime.ledger.dag.find(OpId(codec.parse_cid(text)))
    if number is None:
        raise web.HTTPNotFound
    if kind is not None and node.runtime.ledger.dag.kind(number) is not kind:
        raise UsageError(f"{text} is a {node.runtime.ledger.dag.kind(number).value}, not a {kind.value}")
    return number


def _link(node: Node, text: str, kind: Kind) -> Link:
    return Link(node.runtime.ledger.dag.ids[_find_op(node, text, kind)])


# -- what is known --


async def get_status(request: web.Request) -> web.Response:
    """Answer what this node holds, and how it does."""
    return _json(node_status(request.app[NODE]))


def node_status(node: Node) -> dict[str, views.Json]:
    """Return what a node holds, and how it does."""
    runtime, ledger = node.runtime, node.runtime.ledger
    links = node.peers.ready()
    return {
        **views.ledger_status(ledger, runtime.state_digest()),
        "did": codec.format_did(node.author),
        "balance": views.own_balance(ledger, node.author),
        "time": runtime.now_ms(),
        "peers": [codec.format_did(link.node) for link in links],
        "waiting": len(runtime.replica.waiting),
        "waits_for": [codec.format_cid(op) for op in runtime.replica.waiting.missing()[:100]],
        "synced": bool(links) and all(link.is_synced for link in links),
        "is_witness": runtime.replica.duty is not None,
        "duty_stopped": runtime.duty_stopped or None,
        "waits_for_tip": runtime.waits_for_tip or None,
        "disk_full": runtime.writer.is_full,
        "blob_bytes": node.blobs.total_bytes,
        "scope": node.partial.to_json(),
    }


async def get_network(request: web.Request) -> web.Response:
    """Answer the network's constants."""
    return _json(views.params_to_json(request.app[NODE].runtime.ledger))


async def get_peers(request: web.Request) -> web.Response:
    """Answer connections, those that ended lately, and configured peers that are not connected, with the reason."""
    return _json(describe_peers(request.app[NODE]))


async def get_ops(request: web.Request) -> web.Response:
    """Answer ops in the order in which they came here; `next` continues."""
    node = request.app[NODE]
    ledger, query = node.runtime.ledger, request.query
    after, limit = _read_int(request, "after", -1), _read_int(request, "limit", 100)
    if not 1 <= limit <= PAGE_MAX:
        raise UsageError(f"limit is {limit}; it must be 1 to {PAGE_MAX}")
    author = None if "author" not in query else ledger.dag.find_author(codec.parse_did(query["author"]))
    if "kind" in query and query["kind"] not in {kind.value for kind in Kind}:
        raise UsageError(f"there is no kind {query['kind']!r} of op")
    if "author" in query:
        numbers = [] if author is None else sorted(ledger.dag.chains.ops_of(author))
    else:
        numbers = list(range(max(after + 1, 0), len(ledger)))
    chosen = []
    for number in numbers:
        if number > after and ("kind" not in query or ledger.dag.kind(number).value == query["kind"]):
            chosen.append(number)
            if len(chosen) == limit:
                break
    cut = ledger.everything()
    rows = [views.row_to_json(ledger, number, cut) for number in chosen]
    return _json({"ops": rows, "next": chosen[-1] if chosen and len(chosen) == limit else None})


def _read_int(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > 16:
        raise UsageError(f"{name} is {text[:40]!r}; it must be a whole number")
    return int(text)


async def get_op(request: web.Request) -> web.Response:
    """Answer one op, as JSON, or, if that is accepted, as its block."""
    node = request.app[NODE]
    number = _find_op(node, request.match_info["cid"])
    ledger = node.runtime.ledger
    blocks = await node.read_blocks([ledger.dag.ids[number]])
    if request.headers.get("Accept", "").startswith("application/cbor"):
        return web.Response(body=blocks[0], content_type="application/cbor")
    shown = {**views.op_to_json(decode_op(blocks[0]).op), **views.find_status(ledger, number, ledger.everything())}
    return _json(shown)


async def get_jobs(request: web.Request) -> web.Response:
    """Answer all jobs, the newest first."""
    node = request.app[NODE]
    ledger, now_ms = node.runtime.ledger, node.runtime.now_ms()
    cut = ledger.everything()
    rows: list[views.Json] = [
        {**views.job_summary(ledger, job, cut, now_ms), "partial": not node.partial.is_whole(job)}
        for job in reversed(ledger.jobs.jobs)
    ]
    return _json({"jobs": rows})


async def get_job(request: web.Request) -> web.Response:
    """Answer one job: terms, leaderboard, outcome."""
    node = request.app[NODE]
    job = _find_op(node, request.match_info["cid"], Kind.JOB)
    runtime = node.runtime
    shown = views.job_to_json(runtime.ledger, job, runtime.ledger.everything(), runtime.now_ms())
    return _json({**shown, "partial": not node.partial.is_whole(job)})


async def get_accounts(request: web.Request) -> web.Response:
    """Answer all accounts."""
    node = request.app[NODE]
    ledger = node.runtime.ledger
    cut = ledger.everything()
    rows: list[views.Json] = [
        {**views.account_summary(ledger, key, cut), "partial": not node.partial.is_own(key)}
        for key in views.account_keys(ledger)
    ]
    return _json({"accounts": rows})


async def get_account(request: web.Request) -> web.Response:
    """Answer one account with its history."""
    node = request.app[NODE]
    ledger, key = node.runtime.ledger, codec.parse_did(request.match_info["did"])
    return _json({**views.account_to_json(ledger, key, ledger.everything()), "partial": not node.partial.is_own(key)})


# -- what is signed --


async def _submit(request: web.Request, body: Body) -> web.Response:
    node = request.app[NODE]
    # Whoever asks must be answered before giving up, or it would be signed behind the back of who believes it was not.
    await node.runtime.wait_to_sign(SIGNING_WAIT_S)
    signed = await node.runtime.submit(body)
    return _json(_show_new(node, signed), 201)


def _show_new(node: Node, signed: SignedOp) -> dict[str, views.Json]:
    ledger = node.runtime.ledger
    number = ledger.dag.find(signed.op.id)
    status = {} if number is None else views.find_status(ledger, number, ledger.everything())
    return {**views.op_to_json(signed.op), **status}


async def post_op(request: web.Request) -> web.Response:
    """Take a block that was signed elsewhere: 201 when it was added, 202 while it waits for ops that it links to."""
    node = request.app[NODE]
    ops = await node.prepare([await request.read()])
    rejected, stored = await node.runtime.take(ops, "api")
    if rejected:
        raise rejected[0].error
    await stored
    if ops and ops[0].op.id not in node.runtime.ledger:
        missing: list[views.Json] = [codec.format_cid(op) for op in node.runtime.ledger.dag.missing(ops[0].op)]
        return _json({"id": codec.format_cid(ops[0].op.id), "status": "waiting", "missing": missing}, 202)
    return _json(_show_new(node, ops[0]) if ops else {"status": "known"}, 201 if ops else 200)


async def post_job(request: web.Request) -> web.Response:
    """Post a job."""
    return await _submit(request, read_terms(await request.read()))


async def post_stake(request: web.Request) -> web.Response:
    """Put down a job's stake."""
    given = read_input(await request.read(), StakeInput)
    return await _submit(request, Stake(job=_link(request.app[NODE], given.job, Kind.JOB)))


async def post_bid(request: web.Request) -> web.Response:
    """Bid on a job."""
    node, given = request.app[NODE], read_input(await request.read(), BidInput)
    model = BlobId(codec.parse_cid(given.model))
    if node.blobs.find_size(model) is None:
        raise UsageError("the model's blob is not here; put it first, so that it can be revealed")
    commit = compute_commitment(node.author, model)
    return await _submit(request, Bid(job=_link(node, given.job, Kind.JOB), loss=given.loss, commit=commit))


async def post_reveal(request: web.Request) -> web.Response:
    """Reveal a bid's model."""
    node, given = request.app[NODE], read_input(await request.read(), RevealInput)
    bid = _find_op(node, given.bid, Kind.BID)
    found = node.blobs.commitments(node.author).get(node.runtime.ledger.jobs.bid(bid).commit)
    if found is None:
        raise UsageError("the model that this bid commits to is not among this node's blobs, or the bid is not its own")
    body = Reveal(bid=Link(node.runtime.ledger.dag.ids[bid]), model=Link(found[0]), size=found[1])
    return await _submit(request, body)


async def post_vote(request: web.Request) -> web.Response:
    """Vote on a reveal."""
    given = read_input(await request.read(), VoteInput)
    reveal = _link(request.app[NODE], given.reveal, Kind.REVEAL)
    return await _submit(request, Vote(reveal=reveal, verdict=given.verdict, loss=given.loss))


async def post_transfer(request: web.Request) -> web.Response:
    """Transfer credits."""
    given = read_input(await request.read(), TransferInput)
    return await _submit(request, Transfer(to=bytes(codec.parse_did(given.to)), amount=given.amount, memo=given.memo))


async def post_claim(request: web.Request) -> web.Response:
    """Claim a job or a transfer."""
    node, given = request.app[NODE], read_input(await request.read(), ClaimInput)
    return await _submit(request, Claim(of=Link(node.runtime.ledger.dag.ids[_find_op(node, given.of)])))


async def post_profile(request: web.Request) -> web.Response:
    """Say how one wants to be called."""
    given = read_input(await request.read(), ProfileInput)
    return await _submit(request, Profile(name=given.name, about=given.about))


# -- events --


def event_to_json(event: Event) -> dict[str, views.Json]:
    """Return an event with ids as CIDs and keys as did:key."""
    shown: dict[str, views.Json] = {"type": str(event.__struct_config__.tag)}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, bytes):
            is_key = name in ("author", "node")
            shown[name] = codec.format_did(Author(value)) if is_key else codec.format_cid(value)
        else:
            shown[name] = value
    return shown


async def get_events(request: web.Request) -> web.StreamResponse:
    """Stream events as server-sent events, from now on."""
    events = request.app[NODE].runtime.events
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    listener = events.subscribe()
    try:
        await response.write(b": listening\n\n")
        async for event in listener.with_pings(PING_S):
            if event is None:
                await response.write(b": still here\n\n")
                continue
            shown = event_to_json(event)
            data = msgspec.json.encode(shown)
            await response.write(b"event: " + str(shown["type"]).encode() + b"\ndata: " + data + b"\n\n")
    except ConnectionError:
        pass
    finally:
        events.unsubscribe(listener)
    return response


async def handle_openapi(request: web.Request) -> web.Response:
    """Answer the description of this API."""
    return _json(make_openapi(ROUTES))


ROUTES: Final = (
    Route("GET", "/status", get_status, "What this node holds, and how it does."),
    Route("GET", "/network", get_network, "The network's constants."),
    Route("GET", "/peers", get_peers, "Connections, and why others are missing."),
    Route("GET", "/ops", get_ops, "Ops in the order in which they came.", query=("author", "kind", "after", "limit")),
    Route("GET", "/ops/{cid}", get_op, "One op, as JSON or (Accept: application/cbor) as its block."),
    Route("GET", "/jobs", get_jobs, "All jobs."),
    Route("GET", "/jobs/{cid}", get_job, "One job: terms, leaderboard, outcome."),
    Route("GET", "/accounts", get_accounts, "All accounts."),
    Route("GET", "/accounts/{did}", get_account, "One account with its history."),
    Route("GET", "/blobs", blobs.list_blobs, "The blobs here, why each stays, and what is being fetched."),
    Route("GET", "/blobs/{cid}", blobs.get_blob, "A blob's content.", answer_type="application/vnd.ipld.raw"),
    Route("HEAD", "/blobs/{cid}", blobs.head_blob, "A blob's size.", answer_type="application/vnd.ipld.raw"),
    Route("GET", "/scope", get_scope, "What this node keeps, when that is not everything."),
    Route("GET", "/events", get_events, "What happens from now on, server-sent.", answer_type="text/event-stream"),
    Route("POST", "/ops", post_op, "Take a block signed elsewhere.", body_type="application/cbor", status=201),
    Route("POST", "/jobs", post_job, "Post a job.", body=Job, status=201),
    Route("POST", "/stakes", post_stake, "Stake on a job.", body=StakeInput, status=201),
    Route("POST", "/bids", post_bid, "Bid on a job.", body=BidInput, status=201),
    Route("POST", "/reveals", post_reveal, "Reveal a bid's model.", body=RevealInput, status=201),
    Route("POST", "/votes", post_vote, "Vote on a reveal.", body=VoteInput, status=201),
    Route("POST", "/transfers", post_transfer, "Transfer credits.", body=TransferInput, status=201),
    Route("POST", "/claims", post_claim, "Claim a job or transfer.", body=ClaimInput, status=201),
    Route("POST", "/profiles", post_profile, "Name oneself.", body=ProfileInput, status=201),
    Route("POST", "/scope", post_scope, "Keep more than before, and fetch it.", body=ScopeInput),
    Route("PUT", "/blobs", blobs.put_blob, "Store a blob.", body_type="application/octet-stream", status=201),
    Route("POST", "/blobs/{cid}/pin", blobs.pin_blob, "Have a blob stay, fetched if it is not here."),
    Route("POST", "/blobs/{cid}/unpin", blobs.unpin_blob, "Let a blob go when there is no room."),
    Route("DELETE", "/blobs/{cid}", blobs.remove_blob, "Remove a blob.", query=("force",)),
)
"""Every address under `/api/v1`, the sync WebSocket aside."""


def add_routes(app: web.Application) -> None:
    """Add all of them to an application."""
    for route in ROUTES:
        app.router.add_route(route.method, API + route.path, route.handler)
