"""How connections are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from node.cli.shell import shorten

ENDED_SHOWN = 5


def format_size(size: int) -> str:
    """Write bytes for people: 512 B, 1.2 kB, 3.4 MB."""
    if size < 1_000:
        return f"{size} B"
    if size < 1_000_000:
        return f"{size / 1_000:.1f} kB"
    return f"{size / 1_000_000:.1f} MB"


def describe_peers(values: Mapping[str, Any]) -> str:
    """Write the connections for people, and what became of others."""
    lines: list[str] = []
    for peer in values["connected"]:
        lines.extend(_describe_peer(peer))
    failed = values["failed"]
    rows = failed.items() if isinstance(failed, Mapping) else ((str(row), "") for row in failed)
    lines.extend(f"{address}  not connected: {reason}" for address, reason in rows)
    lines.extend(_describe_ended(values.get("ended", ())))
    return "\n".join(lines) or "No peers. Give one with `crdtchain serve --peer URL`."


def _describe_peer(peer: Mapping[str, Any]) -> list[str]:
    state = "in step" if peer["synced"] else "catching up"
    behind = []
    if peer.get("lacking_here"):
        behind.append(f"{peer['lacking_here']:,} of its ops are missing here")
    if peer.get("lacking_there"):
        behind.append(f"it lacks {peer['lacking_there']:,} of ours")
    way = "dialled" if peer.get("dialled") else "dialled in"
    lines = [
        f"{peer['address']}  {shorten(peer['node'])}  {way}  {peer['ops']:,} ops  {', '.join([state, *behind])}"
        f"{'  keeps a part' if peer.get('partial') else ''}"
    ]
    traffic, last = peer.get("traffic"), peer.get("last_sync")
    if last:
        lines.append(
            f"    last sync: {last['ops']:,} ops ({format_size(last['op_bytes'])}) in {last['round_trips']} round trips"
            f" and {format_size(last['negotiated_bytes'])} of negotiation"
        )
    if traffic:
        lines.append(
            f"    in all: {format_size(traffic['received_bytes'])} received, {format_size(traffic['sent_bytes'])} sent;"
            f" new ops are {peer['live']}"
        )
    return lines


def _describe_ended(ended: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the last connections that ended, one line for each reason and address."""
    latest = {(end["address"], end["reason"]): end for end in ended}
    return [
        f"{end['address']}  ended: {end['reason']}" + (f"  {shorten(end['node'])}" if end["node"] else "")
        for end in list(latest.values())[-ENDED_SHOWN:]
    ]
