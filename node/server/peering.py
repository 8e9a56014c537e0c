"""What people are shown of connections."""

from __future__ import annotations

from crdtchain import codec
from crdtchain.views import Json
from node.dialer import describe_book
from node.link import Link
from node.node import Node

KNOWN_SHOWN = 100


def describe_peers(node: Node) -> dict[str, Json]:
    """Return the connections, what became of others, and why configured peers are not connected."""
    ended: list[Json] = [
        {
            "address": end.address,
            "node": codec.format_did(end.node) if end.node else None,
            "reason": end.reason,
            "time": end.time_ms,
        }
        for end in node.peers.ended
    ]
    return {
        "connected": [_describe_link(node, link) for link in node.peers.ready()],
        "failed": dict(node.peers.failures),
        "ended": ended,
        "known": [dict(row) for row in describe_book(node.book)[:KNOWN_SHOWN]],
    }


def _describe_link(node: Node, link: Link) -> Json:
    session, here = link.session, len(node.holdings.tree(link.session.pull_scope))
    traffic, trip = session.traffic, link.last_trip
    synced = link.is_synced
    return {
        "name": link.name,
        "address": link.address,
        "node": codec.format_did(link.node),
        "configured": link.is_configured,
        "dialled": link.is_dialler,
        "synced": synced,
        "ops": session.peer_count,
        # Counts alone: when both sides have what the other lacks, each lacks more than this.
        "lacking_here": 0 if synced else max(0, session.peer_count - here),
        "lacking_there": max(0, here - session.peer_count),
        "pulling": session.is_pulling,
        "serving": session.is_serving,
        "live": "pushed" if session.live.is_eager else "announced",
        "partial": bool(session.peer and session.peer.scope),
        "traffic": {
            "sent_bytes": traffic.sent_bytes,
            "received_bytes": traffic.received_bytes,
            "negotiated_bytes": traffic.negotiated_bytes,
            "sent_ops": traffic.sent_ops,
            "received_ops": traffic.received_ops,
            "live_copies": traffic.live_copies,
        },
        "last_sync": None
        if trip is None
        else {
            "round_trips": trip.exchanges,
            "negotiated_bytes": trip.sent_bytes + trip.received_bytes,
            "ops": trip.ops,
            "op_bytes": trip.op_bytes,
        },
    }
