"""What the local port shows without a token: a page of one sentence, health, metrics. Nothing secret."""

from __future__ import annotations

from aiohttp import web

from node.counters import render_gauge
from node.guards import Guards
from node.server.ws import NODE

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>crdtchain</title>
<p>This is a crdtchain node; its API is under /api/v1 and described in <a href="openapi.json">openapi.json</a>.</p>
</html>
"""


async def handle_page(request: web.Request) -> web.Response:
    """Answer the page."""
    return web.Response(text=_PAGE, content_type="text/html")


async def handle_health(request: web.Request) -> web.Response:
    """Answer 200 while the node can sign and store, else 503."""
    runtime = request.app[NODE].runtime
    is_well = not runtime.writer.is_full and not runtime.duty_stopped
    return web.json_response({"ok": is_well}, status=200 if is_well else 503)


async def handle_metrics(request: web.Request) -> web.Response:
    """Answer counters and gauges in the text format of Prometheus."""
    node = request.app[NODE]
    runtime, ledger = node.runtime, node.runtime.ledger
    rows: list[tuple[str, str, str, int]] = [
        ("crdtchain_ops", "gauge", "Ops in the ledger.", len(ledger)),
        ("crdtchain_heads", "gauge", "Heads of the ledger.", len(ledger.dag.heads)),
        ("crdtchain_waiting_ops", "gauge", "Ops that wait for links.", len(runtime.replica.waiting)),
        ("crdtchain_jobs", "gauge", "Jobs in the ledger.", len(ledger.jobs.jobs)),
        ("crdtchain_peers", "gauge", "Connected peers.", len(node.peers.ready())),
        ("crdtchain_blob_bytes", "gauge", "Bytes of blobs here.", node.blobs.total_bytes),
        ("crdtchain_stored_ops_total", "counter", "Ops stored since the start.", runtime.writer.stored_count),
        ("crdtchain_rejected_ops", "gauge", "Ops rejected lately.", len(runtime.rejected)),
        ("crdtchain_disk_full", "gauge", "1 while the disk refuses writes.", int(runtime.writer.is_full)),
        ("crdtchain_witness_stopped", "gauge", "1 when a witness stopped its duty.", int(bool(runtime.duty_stopped))),
    ]
    parts = [render_gauge(name, text, value, kind) for name, kind, text, value in rows]
    guards = getattr(node, "guards", None)
    if isinstance(guards, Guards):
        parts.append(guards.counters.render())
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return web.Response(body="".join(parts).encode(), headers=headers)
