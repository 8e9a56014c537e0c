"""`export` and `import`: a ledger, or part of it, as a CAR file. Both work with and without a running node.

A file begins with genesis, also one with no more than what another side lacks: so it says of which network it is. Its
roots are the heads of what it has. What `import` does is in `importing`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
import typer

from crdtchain import codec, limits
from crdtchain.adapters.car import CarError, CarWriter
from crdtchain.adapters.store import STORE_FILE
from crdtchain.codec import format_cid, parse_cid, parse_did
from crdtchain.errors import StoreError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Attest, Bid, Claim, Job, Kind, Op, Reveal, SignedOp, Stake, Vote
from crdtchain.scalars import BlobId, OpId
from crdtchain.scopes import ScopeIndex, Selector, make_selector
from crdtchain.shapes import decode_op
from crdtchain.sync.delta import compute_delta
from node.cli.importing import import_car
from node.cli.shell import Shell, command, find_one
from node.datadir import BLOBS_FOLDER

STATUS_BYTES_MAX: Final = 16 * 2**20
_LIST_SUFFIX: Final = ".list"


class TheirScope(msgspec.Struct, frozen=True):
    """What a partial replica keeps, in its status."""

    jobs: list[str]
    tags: list[str]
    authors: list[str]
    accounts: list[str]


class TheirStatus(msgspec.Struct, frozen=True):
    """What `export --for` reads of another side's `status --json`."""

    network: str
    heads: list[str]
    sample: list[str] = msgspec.field(default_factory=list)
    scope: TheirScope | None = None


class Choice(msgspec.Struct):
    """What goes into a file."""

    ops: list[SignedOp]
    """In causal order."""
    heads: int = 0
    """Heads that the other side named."""
    unknown_heads: int = 0
    """Those of them that are not here: so the other side holds ops that this one lacks."""


class History:
    """The ops of a data folder by number, in causal order: a graph for `compute_delta`."""

    def __init__(self, ops: Mapping[OpId, SignedOp]) -> None:
        self.ops = list(ops.values())
        self._numbers = {op: number for number, op in enumerate(ops)}

    def find(self, op: OpId) -> int | None:
        """Return the number of an op, or None when it is not here."""
        return self._numbers.get(op)

    def links(self, number: int) -> Sequence[int]:
        """Return what an op links to."""
        return [self._numbers[link] for link in list_links(self.ops[number].op)]


def read_blocks(folder: Path) -> Iterator[bytes]:
    """Yield a data folder's blocks in causal order; it is opened for reading alone, so a node may be running.

    Raises:
        UsageError: there is no ledger.
        StoreError: it can't be read.
    """
    path = folder / STORE_FILE
    if not path.exists():
        raise UsageError(f"{folder} belongs to no network: there is nothing to export")
    still = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    try:
        address = f"file:{quote(str(path.absolute()))}?mode=ro{still}"
        with closing(sqlite3.connect(address, uri=True, timeout=5.0)) as connection:
            for (block,) in connection.execute("SELECT block FROM ops ORDER BY position"):
                yield bytes(block)
    except sqlite3.Error as error:
        raise StoreError(f"the ledger in {folder} can't be read: {error}") from None


def load_ops(folder: Path) -> dict[OpId, SignedOp]:
    """Return a data folder's ops by id, in causal order."""
    decoded = map(decode_op, read_blocks(folder))
    return {signed.op.id: signed for signed in decoded}


def list_links(op: Op) -> tuple[OpId, ...]:
    """Return what an op links to by prev and parents."""
    return op.parents if op.prev is None else (op.prev, *op.parents)


def find_past(ops: Mapping[OpId, SignedOp], tops: Iterable[OpId]) -> set[OpId]:
    """Return all that some ops reach, themselves included."""
    found: set[OpId] = set()
    stack = [top for top in tops if top in ops]
    while stack:
        op = stack.pop()
        if op not in found:
            found.add(op)
            stack.extend(list_links(ops[op].op))
    return found


def find_job_ops(ops: Mapping[OpId, SignedOp], job: OpId) -> set[OpId]:
    """Return all ops that belong to a job: itself, stakes, bids, reveals, votes, attests, claims."""
    found = {job}
    for op, signed in ops.items():
        match signed.op.body:
            case Stake(job=of) | Bid(job=of) | Attest(job=of) | Reveal(bid=of) | Vote(reveal=of) | Claim(of=of):
                if OpId(bytes(of)) in found:
                    found.add(op)
            case _:
                pass
    return found


def find_until(ops: Mapping[OpId, SignedOp], text: str) -> set[OpId]:
    """Return the past of an op, or all that is dated no later than a moment, as is all that it links to.

    Raises:
        UsageError: the text is neither.
    """
    at_ms = parse_moment(text)
    if at_ms is None:
        ids = {format_cid(op): op for op in ops}
        return find_past(ops, [ids[find_one(text, ids, "op")]])
    found: set[OpId] = set()
    for op, signed in ops.items():
        if signed.op.time <= at_ms and all(link in found for link in list_links(signed.op)):
            found.add(op)
    return found


def parse_moment(text: str) -> int | None:
    """Read a moment: milliseconds since the Unix epoch, or a date and time with its zone."""
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        raise UsageError(f"--until is {text}: write the moment with its time zone, such as 2026-12-01T00:00:00Z")
    return round(moment.timestamp() * 1000)


def read_status(path: Path, network: OpId) -> TheirStatus:
    """Read another side's `status --json`.

    Raises:
        UsageError: the file is not that, or of another network.
    """
    what = f"the file {path} is not what `crdtchain status --json` prints"
    try:
        with path.open("rb") as file:
            data = file.read(STATUS_BYTES_MAX + 1)
        if len(data) > STATUS_BYTES_MAX:
            raise UsageError(f"{what}: it has more than {STATUS_BYTES_MAX // 2**20} MiB")
        status = msgspec.json.decode(data, type=TheirStatus)
    except OSError as error:
        raise UsageError(f"the file {path} can't be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{what}: {error}") from None
    if status.network != format_cid(network):
        theirs, ours = status.network[:80], format_cid(network)
        raise UsageError(f"the file {path} is the status of another network, {theirs}; this one is {ours}")
    if not status.heads:
        raise UsageError(f"{what}: it names no heads")
    return status


def read_ids(path: Path, texts: Iterable[str]) -> list[OpId]:
    """Return the ids of a status' list.

    Raises:
        UsageError: one is no id of an op.
    """
    try:
        ids = [OpId(parse_cid(text)) for text in texts]
    except UsageError as error:
        raise UsageError(f"the file {path} names what is no id: {error}") from None
    if not all(map(codec.is_op_id, ids)):
        raise UsageError(f"the file {path} names what is no id of an op")
    return ids


def find_lacked(ops: Mapping[OpId, SignedOp], path: Path) -> Choice:
    """Return what the side whose status a file has lacks, as far as that is known here.

    A head that is not here says nothing about what is; then the status' sample of older ops does. An op too many does
    no harm: the other side knows it.
    """
    history = History(ops)
    status = read_status(path, next(iter(ops)))
    heads = read_ids(path, status.heads)
    known = [history.find(op) for op in (*heads, *read_ids(path, status.sample))]
    unknown_heads = sum(history.find(head) is None for head in heads)
    want = [number for signed in find_tops(history.ops) if (number := history.find(signed.op.id)) is not None]
    lacked = compute_delta(history, want, [0, *(number for number in known if number is not None)])
    if status.scope is not None:
        kept = set(find_scope(history, read_scope(path, status.scope)))
        lacked = [number for number in lacked if number in kept]
    return Choice([history.ops[number] for number in lacked], len(heads), unknown_heads)


def read_scope(path: Path, scope: TheirScope) -> Selector:
    """Return the selector of a partial replica's status.

    Raises:
        UsageError: it names what is none.
    """
    try:
        keys = [[parse_did(text) for text in texts] for texts in (scope.authors, scope.accounts)]
        return make_selector(read_ids(path, scope.jobs), scope.tags, *keys)
    except UsageError as error:
        raise UsageError(f"the file {path} names a scope that is none: {error}") from None


def find_scope(history: History, selector: Selector) -> list[int]:
    """Return what a partial replica would keep of a history."""
    ledger = Ledger(history.ops[0].op)
    for signed in history.ops[1:]:
        ledger.add(signed.op)
    return ScopeIndex(ledger, selector).members


def choose_ops(ops: Mapping[OpId, SignedOp], job: str | None, until: str | None, other: Path | None) -> Choice:
    """Return what is to be exported."""
    choice = Choice(list(ops.values())) if other is None else find_lacked(ops, other)
    chosen = {signed.op.id for signed in choice.ops}
    if job is not None:
        ids = {format_cid(op): op for op, signed in ops.items() if signed.op.kind is Kind.JOB}
        chosen &= find_past(ops, find_job_ops(ops, ids[find_one(job, ids, "job")]))
    if until is not None:
        chosen &= find_until(ops, until)
    choice.ops = [signed for op, signed in ops.items() if op in chosen]
    return choice


def find_tops(ops: Iterable[SignedOp]) -> list[SignedOp]:
    """Return those of some ops to which none of them links, sorted by id."""
    rows = list(ops)
    linked = {link for signed in rows for link in list_links(signed.op)}
    return sorted((row for row in rows if row.op.id not in linked), key=lambda row: row.op.id)


def list_blobs(chosen: Iterable[SignedOp]) -> list[BlobId]:
    """Return the blobs that some ops name, each once."""
    found: dict[BlobId, None] = {}
    for signed in chosen:
        body = signed.op.body
        if isinstance(body, Job):
            named = (*body.task.code, *body.data.train, *body.data.features)
            found.update({BlobId(bytes(link)): None for _, link in named})
            found[BlobId(bytes(body.data.labels))] = None
        elif isinstance(body, Reveal):
            found[BlobId(bytes(body.model))] = None
    return list(found)


def read_blob_sections(folder: Path, blob: BlobId) -> Iterator[tuple[bytes, bytes]]:
    """Yield a blob as sections of a CAR: itself, or the list of its chunks and then they; nothing if it is not here."""
    path = folder / BLOBS_FOLDER / format_cid(blob)
    if not path.exists():
        return
    if codec.is_raw_blob_id(blob):
        yield blob, path.read_bytes()
        return
    yield blob, path.with_name(path.name + _LIST_SUFFIX).read_bytes()
    with path.open("rb") as file:
        while data := file.read(limits.CHUNK_BYTES):
            yield codec.compute_blob_id(data), data


def export(shell: Shell, target: Path, job: str | None, until: str | None, other: Path | None, blobs: bool) -> None:
    """Write ops, and their blobs if wanted, into a CAR."""
    ops = load_ops(shell.data)
    genesis = next(iter(ops.values()))
    choice = choose_ops(ops, job, until, other)
    wanted = list_blobs(choice.ops) if blobs else []
    missing = [blob for blob in wanted if not (shell.data / BLOBS_FOLDER / format_cid(blob)).exists()]
    in_file = [genesis, *(signed for signed in choice.ops if signed is not genesis)]
    with CarWriter(target, [signed.op.id for signed in find_tops(choice.ops or in_file)]) as writer:
        for signed in in_file:
            writer.write(signed.op.id, signed.block)
        for blob in wanted:
            for cid, data in read_blob_sections(shell.data, blob):
                writer.write(cid, data)
    values = {
        "file": str(target), "ops": len(choice.ops), "blobs": len(wanted) - len(missing),
        "missing_blobs": [format_cid(blob) for blob in missing], "bytes": target.stat().st_size,
        "unknown_heads": choice.unknown_heads,
    }  # fmt: skip
    for text in describe_gaps(choice, len(missing)):
        shell.note(text)
    shell.show(values, f"{target}: {len(choice.ops)} ops, {values['blobs']} blobs, {values['bytes']} bytes")


def describe_gaps(choice: Choice, missing_blobs: int) -> Iterator[str]:
    """Yield what people should know about a file."""
    if not choice.ops:
        yield "The other side has everything already: the file has no ops but genesis."
    if choice.unknown_heads:
        yield (
            f"{choice.unknown_heads} of the other side's {choice.heads} heads are not here: it holds ops that this one "
            "lacks. Give it this side's `crdtchain status --json`, so that it can export them."
        )
    if missing_blobs:
        yield f"{missing_blobs} blobs are not here, and so not in the file."


FileArgument = Annotated[Path, typer.Argument(metavar="FILE.car", help="A CAR file, version 1.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""

    @command(app, "export", "export ledger.car --blobs")
    def export_(
        shell: Shell,
        file: FileArgument,
        job: Annotated[str | None, typer.Option(metavar="JOB", help="Only what a job's ops rest on.")] = None,
        until: Annotated[
            str | None, typer.Option(metavar="OP|TIME", help="Only the past of an op, or what is dated by then.")
        ] = None,
        other: Annotated[
            Path | None, typer.Option("--for", metavar="STATUS.json", help="Only what another node's status lacks.")
        ] = None,
        full: Annotated[
            bool, typer.Option("--full", help="Everything; so it is unless one of the others is given.")
        ] = False,
        blobs: Annotated[bool, typer.Option("--blobs", help="Also the files that the ops name.")] = False,
    ) -> None:
        """Write the ledger, or part of it, into a CAR file."""
        if full and (job or until or other):
            raise UsageError("--full does not go with --job, --until or --for")
        export(shell, file, job, until, other, blobs)

    @command(app, "import", "import ledger.car")
    def import_(shell: Shell, file: FileArgument) -> None:
        """Take the ops and blobs of a CAR file; each op is judged like one from a peer."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
        try:
            import_car(shell, file)
        except CarError as error:
            taken = "what came before is taken" if error.position else "nothing was taken"
            raise UsageError(
                f"{file} is no CAR file, or damaged: {error}; {taken}, so copy or export it again"
            ) from None
