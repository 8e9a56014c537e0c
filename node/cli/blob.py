"""`blob put`, `blob get`: files by their content."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crdtchain.codec import parse_cid
from crdtchain.errors import UsageError
from node.cli.remote import connect
from node.cli.shell import Shell, command, make_group


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = make_group(app, "blob", "Keep and fetch files by their content.")

    @command(group, "put", "blob put model.npz")
    def put(shell: Shell, file: Annotated[Path, typer.Argument(metavar="FILE", help="At most 256 MiB.")]) -> None:
        """Keep a file and offer it to peers; prints its id."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}")

        async def work() -> str:
            async with connect(shell) as client:
                return await client.put_blob(file)

        cid = shell.run(work())
        shell.show({"cid": cid, "size": file.stat().st_size}, cid)

    @command(group, "get", "blob get bafkrei… -o model.npz")
    def get(
        shell: Shell,
        cid: Annotated[str, typer.Argument(metavar="CID", help="The blob's full id.")],
        output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes.")],
    ) -> None:
        """Fetch a blob, from peers if need be, into a file."""
        parse_cid(cid)

        async def work() -> int:
            async with connect(shell) as client:
                return await client.get_blob(cid, output)

        size = shell.run(work())
        shell.show({"cid": cid, "file": str(output), "size": size}, f"{output}: {size} bytes")
