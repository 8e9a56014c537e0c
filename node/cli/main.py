"""The command line `crdtchain`: all commands put together, and the way from a fault to an exit code."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from node.cli import (
    accounts,
    archive,
    audit,
    blob,
    demo,
    doctor,
    init,
    job_watch,
    jobs,
    keys,
    market,
    network,
    peering,
    scope,
    serve,
    status,
    work,
)
from node.cli.shell import INTERRUPTED, DataOption, DebugOption, JsonOption, expect_document, report, set_globals

app = typer.Typer(
    name="crdtchain",
    help="A market for machine-learning jobs on a signed Merkle-DAG: replicas merge without consensus, "
    "witnesses keep time.",
    epilog="Exit codes: 0 done; 1 the answer is no; 2 wrong usage or input; 3 no node or peer answers; "
    "4 the ledger rejected it; 5 no sandbox, or the sandboxed program failed; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"crdtchain {importlib.metadata.version('crdtchain')}")
        raise typer.Exit


@app.callback()
def take_globals(
    data: DataOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that may also stand behind the command."""
    set_globals(data, as_json, debug)


for module in (demo, init, network, serve, status, peering, doctor, accounts, keys):
    module.add_to(app)
job_watch.add_to(jobs.add_to(app))
for module in (scope, market, blob, work, archive, audit):
    module.add_to(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    set_globals(None, False, False)
    expect_document(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(args=arguments, prog_name="crdtchain", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    if code == INTERRUPTED:
        return report(KeyboardInterrupt())
    return code if isinstance(code, int) else 0


def run() -> None:
    """Run as a program."""
    sys.exit(main())


if __name__ == "__main__":
    run()
