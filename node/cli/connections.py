"""How connections are shown to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any

from node.allow import REFUSED
from node.cli.shell import shorten
from node.dialer import ALREADY_CONNECTED

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
    failed: Mapping[str, str] = values["failed"]
    for address, reason in failed.items():
        lines += [address, f"    not connected: {_explain(reason.replace(f' at {address}', ''))}"]
    lines.extend(_describe_ended(values.get("ended", ()), failed, {peer["node"] for peer in values["connected"]}))
    return "\n".join(lines) or "No peers. Give one with `crdtchain peers add URL`."


def _describe_peer(peer: Mapping[str, Any]) -> list[str]:
    way = "dialled from here" if peer.get("dialled") else "dialled from there"
    part = ", keeps a part" if peer.get("partial") else ""
    lines = [f"{peer['address']}  {shorten(peer['node'])}  {way}{part}", f"    {_describe_state(peer)}"]
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


def _describe_state(peer: Mapping[str, Any]) -> str:
    state = f"{'in step' if peer['synced'] else 'catching up'}: it has {peer['ops']:,} ops"
    if peer.get("lacking_here"):
        state += f", {peer['lacking_here']:,} of them are missing here"
    if peer.get("lacking_there"):
        state += f", it lacks {peer['lacking_there']:,} of ours"
    return state


def _describe_ended(
    ended: Sequence[Mapping[str, Any]], failed: Mapping[str, str], connected: AbstractSet[str]
) -> list[str]:
    """Write the last connections that ended, once for each reason and address.

    Left out is what nobody has to know: the second of two connections to one node, and what was just said of an
    address that is not connected.
    """
    latest = {
        (end["address"], end["reason"]): end
        for end in ended
        if not (end["reason"].endswith(ALREADY_CONNECTED) and end["node"] in {None, *connected})
        and failed.get(end["address"]) != end["reason"]
    }
    lines = []
    for end in list(latest.values())[-ENDED_SHOWN:]:
        lines.append(f"{end['address']}{'  ' + shorten(end['node']) if end['node'] else ''}")
        lines.append(f"    ended at {_format_time(end['time'])}: {_explain(end['reason'])}")
    return lines


def _explain(reason: str) -> str:
    """Write why a connection ended: what the other side said is its own word, so "this node" in it is the other one."""
    for prefix in ("the peer closed: ", "refused: "):
        word = reason.removeprefix(prefix)
        if word != reason:
            return "it does not allow this node's key" if word == REFUSED else f"it said: {word}"
    return "its key is not allowed here (`crdtchain peers allow`)" if reason == REFUSED else reason


def _format_time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).astimezone().strftime("%H:%M:%S")
