"""`serve`: runs the node, and, if wanted, a worker inside it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated

import typer

from crdtchain.codec import format_cid, format_did
from crdtchain.errors import InvalidOpError, UsageError
from crdtchain.ops import Profile
from crdtchain.views import find_name
from node.cli.init import NAME_FILE, get_passphrase
from node.cli.shell import Shell, command, write_document
from node.cli.work import open_sandboxes, run_inside
from node.config import Settings, load_settings
from node.datadir import TOKEN_FILE
from node.logs import set_up_logs
from node.node import Node
from node.serve import serve as run_node
from node.welcome import welcome
from node.worker.policy import Policy, load_policy


def announce(shell: Shell, node: Node, addresses: dict[str, str]) -> None:
    """Say where the node answers."""
    values = {
        "local": addresses["local"],
        "peer": addresses["peer"] or None,
        "network": format_cid(node.runtime.ledger.params.network),
        "did": format_did(node.author),
        "token_file": str(shell.data / TOKEN_FILE),
    }
    if shell.as_json:
        write_document(values, indent=None)
        return
    shell.note(f"The page is at {addresses['local']}; it asks for the token in {shell.data / TOKEN_FILE}.")
    if addresses["peer"]:
        shell.note(f"Other nodes connect with --peer {addresses['peer']}.")
    shell.note("Stop it with Ctrl-C.")


async def announce_name(shell: Shell, node: Node) -> None:
    """Publish the name that was given to `init`, as soon as this key may sign, unless it is known already."""
    try:
        name = (shell.data / NAME_FILE).read_text("utf-8").strip()
    except OSError:
        return
    ledger = node.runtime.ledger
    while True:
        author = ledger.dag.find_author(node.author)
        if author is not None and find_name(ledger, author) == name:
            return
        try:
            await node.runtime.submit(Profile(name=name, about=""))
            return
        except InvalidOpError:
            # A key that genesis does not name may sign only after its first credits have come.
            await asyncio.sleep(2)


async def run_all(shell: Shell, settings: Settings, policy: Policy | None) -> None:
    """Run the node until a signal ends it, with what goes along."""
    companions: list[asyncio.Task[None]] = []

    def start(node: Node, addresses: dict[str, str]) -> None:
        announce(shell, node, addresses)
        companions.append(asyncio.ensure_future(announce_name(shell, node)))
        if settings.welcome:
            companions.append(asyncio.ensure_future(welcome(node, settings.welcome)))
        if policy is not None:
            companions.append(asyncio.ensure_future(run_inside(shell, node, policy)))

    if policy is not None:
        # A machine without any sandbox is told so before anything starts.
        async with open_sandboxes(policy):
            pass
    try:
        await run_node(shell.data, settings, get_passphrase(), start)
    finally:
        for task in companions:
            task.cancel()
        for task in companions:
            with contextlib.suppress(asyncio.CancelledError, UsageError):
                await task


JobsOption = Annotated[list[str] | None, typer.Option("--jobs", metavar="JOB", help="Keep only this job, by its id.")]
TagsOption = Annotated[
    list[str] | None, typer.Option("--job-tags", metavar="TAG", help="Keep only jobs with this tag.")
]
DiscoverOption = Annotated[
    bool | None, typer.Option("--discover/--no-discover", help="Look for further nodes than those given.")
]
MdnsOption = Annotated[
    bool | None, typer.Option("--mdns/--no-mdns", help="Find nodes on the local network, and be found.")
]
OwnJobsOption = Annotated[bool | None, typer.Option("--own-jobs", help="Keep only jobs that this key posts.")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""

    @command(app, "serve", "serve --listen 0.0.0.0:8471 --peer http://192.0.2.7:8471 --work policy.toml")
    def serve(
        shell: Shell,
        local: Annotated[
            str | None, typer.Option(metavar="HOST:PORT", help="Page and API; keep it on loopback.")
        ] = None,
        listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Peer port, for other nodes.")] = None,
        peer: Annotated[list[str] | None, typer.Option(metavar="URL", help="Another node's peer port.")] = None,
        jobs: JobsOption = None,
        job_tags: TagsOption = None,
        own_jobs: OwnJobsOption = None,
        witness: Annotated[bool | None, typer.Option("--witness", help="Do a witness's duty.")] = None,
        work: Annotated[
            Path | None, typer.Option(metavar="POLICY.toml", help="Also train and judge, by a policy.")
        ] = None,
        welcome: Annotated[int | None, typer.Option(min=0, metavar="CREDITS", help="Invite newcomers with it.")] = None,
        public_url: Annotated[
            str | None, typer.Option(metavar="URL", help="The peer port's address as others reach it.")
        ] = None,
        discover: DiscoverOption = None,
        mdns: MdnsOption = None,
        tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate of the peer port, PEM.")] = None,
        tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Key of the certificate, PEM.")] = None,
        tls_ca: Annotated[
            str | None, typer.Option(metavar="FILE", help="Authorities of peers' certificates, PEM.")
        ] = None,
        path_prefix: Annotated[
            str | None, typer.Option(metavar="PATH", help="Also answer below this path, for a reverse proxy.")
        ] = None,
        trusted_proxy: Annotated[
            list[str] | None, typer.Option(metavar="IP", help="A reverse proxy whose X-Forwarded-For counts.")
        ] = None,
        force_offline: Annotated[
            bool | None,
            typer.Option(
                "--force-offline",
                help="Sign though the data folder looks copied or restored: two copies that sign freeze the account.",
            ),
        ] = None,
        log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
        log_json: Annotated[bool | None, typer.Option("--log-json", help="Log one JSON object a line.")] = None,
    ) -> None:
        """Run the peer node until Ctrl-C; prints the page's address."""
        flags: dict[str, object] = {
            "local": local, "listen": listen, "peers": tuple(peer) if peer else None, "witness": witness,
            "work": None if work is None else str(work), "welcome": welcome, "log_level": log_level,
            "log_json": log_json, "public_url": public_url, "tls_cert": tls_cert, "tls_key": tls_key, "tls_ca": tls_ca,
            "path_prefix": path_prefix, "trusted_proxies": tuple(trusted_proxy) if trusted_proxy else None,
            "jobs": tuple(jobs) if jobs else None, "job_tags": tuple(job_tags) if job_tags else None,
            "own_jobs": own_jobs,
            "discover": discover,
            "mdns": None if mdns is None else "on" if mdns else "off", "force_offline": force_offline,
        }  # fmt: skip
        settings = load_settings(shell.data, flags)
        set_up_logs(settings.log_level, settings.log_json)
        policy = load_policy(Path(settings.work)) if settings.work else None
        shell.run(run_all(shell, settings, policy))
