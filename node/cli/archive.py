"""`export` and `import`: a ledger, or part of it, as a CAR file. Both work with and without a running node."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer

from crdtchain import codec, limits
from crdtchain.adapters.car import CarWriter, read_car
from crdtchain.adapters.keys import sodium_verifier
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.adapters.store import STORE_FILE
from crdtchain.codec import format_cid, parse_cid
from crdtchain.errors import InvalidOpError, NoPeerError, RuleError, StoreError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Attest, Bid, Claim, Job, Kind, Op, Reveal, SignedOp, Stake, Vote
from crdtchain.scalars import BlobId, OpId
from crdtchain.shapes import decode_op
from crdtchain.verify import verify_op
from node.blobs import Blobs, decode_chunk_list
from node.cli.remote import connect
from node.cli.shell import Shell, command, find_one
from node.client import NodeClient
from node.config import load_settings
from node.datadir import BLOBS_FOLDER, GENESIS_FILE, validate_genesis, write_private
from node.ledger_file import open_ledger

WAITING: Final = "waiting"
_LIST_SUFFIX: Final = ".list"


@dataclass
class Imported:
    """What an import did: counts, and ops that were refused."""

    added: int = 0
    known: int = 0
    waiting: int = 0
    blobs: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)

    def reject(self, op: bytes, error: InvalidOpError) -> None:
        """Note an op that breaks a rule."""
        self.rejected.append({"op": format_cid(op), "rule": error.code, "text": str(error)})


# -- out --


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


def read_heads(path: Path) -> list[OpId]:
    """Return the heads of another node's `status --json`.

    Raises:
        UsageError: the file is not that.
    """
    try:
        status = json.loads(path.read_text("utf-8"))
        return [OpId(parse_cid(head)) for head in status["heads"]]
    except OSError as error:
        raise UsageError(f"the file {path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"the file {path} is not what `crdtchain status --json` prints") from None


def choose_ops(ops: Mapping[OpId, SignedOp], job: str | None, until: str | None, other: Path | None) -> list[SignedOp]:
    """Return the ops to be exported, in causal order."""
    chosen = set(ops)
    if job is not None:
        ids = {format_cid(op): op for op, signed in ops.items() if signed.op.kind is Kind.JOB}
        chosen &= find_past(ops, find_job_ops(ops, ids[find_one(job, ids, "job")]))
    if until is not None:
        chosen &= find_until(ops, until)
    if other is not None:
        chosen -= find_past(ops, read_heads(other))
    return [signed for op, signed in ops.items() if op in chosen]


def find_roots(chosen: Iterable[SignedOp]) -> list[bytes]:
    """Return the heads of some ops: those to which none of them links."""
    rows = list(chosen)
    linked = {link for signed in rows for link in list_links(signed.op)}
    return sorted(signed.op.id for signed in rows if signed.op.id not in linked)


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


def export(
    shell: Shell, target: Path, choose: Callable[[Mapping[OpId, SignedOp]], list[SignedOp]], blobs: bool
) -> None:
    """Write chosen ops, and their blobs if wanted, into a CAR."""
    chosen = choose(load_ops(shell.data))
    if not chosen:
        shell.note("The other side has everything already: the file has no ops.")
    wanted = list_blobs(chosen) if blobs else []
    missing = [blob for blob in wanted if not (shell.data / BLOBS_FOLDER / format_cid(blob)).exists()]
    with CarWriter(target, find_roots(chosen)) as writer:
        for signed in chosen:
            writer.write(signed.op.id, signed.block)
        for blob in wanted:
            for cid, data in read_blob_sections(shell.data, blob):
                writer.write(cid, data)
    if missing:
        shell.note(f"{len(missing)} blobs are not here, and so not in the file.")
    values = {
        "file": str(target), "ops": len(chosen), "blobs": len(wanted) - len(missing),
        "missing_blobs": [format_cid(blob) for blob in missing], "bytes": target.stat().st_size,
    }  # fmt: skip
    shell.show(values, f"{target}: {len(chosen)} ops, {len(wanted) - len(missing)} blobs, {values['bytes']} bytes")


# -- in --


class BlobAssembler:
    """Puts chunks behind the list that names them together again."""

    def __init__(self) -> None:
        self._expected: list[BlobId] = []
        self._parts: list[bytes] = []

    def take(self, cid: bytes, block: bytes) -> bytes | None:
        """Take a section that is no op; returns a whole blob when there is one."""
        if not codec.is_raw_blob_id(cid):
            _, self._expected = decode_chunk_list(block)
            self._parts = []
            return None
        if not self._expected or cid != self._expected[len(self._parts)]:
            return block
        self._parts.append(block)
        if len(self._parts) < len(self._expected):
            return None
        whole, self._expected, self._parts = b"".join(self._parts), [], []
        return whole


def is_op_block(cid: bytes, block: bytes) -> bool:
    """Whether a section is an op: an array of two, where a list of chunks is a map."""
    return codec.is_op_id(cid) and block[:1] == b"\x82"


async def import_online(client: NodeClient, file: Path) -> Imported:
    """Hand the blocks of a CAR to the running node."""
    done, blobs = Imported(), BlobAssembler()
    for cid, block in read_car(file):
        if is_op_block(cid, block):
            try:
                answer = await client.submit_block(block)
            except RuleError as error:
                done.reject(cid, error)
                continue
            done.waiting += answer["status"] == WAITING
            done.known += answer["status"] == "known"
            done.added += answer["status"] not in (WAITING, "known")
        elif (whole := blobs.take(cid, block)) is not None:
            await client.put_blob(whole)
            done.blobs += 1
    return done


class OfflineImport:
    """Takes the blocks of a CAR into a data folder in which no node runs."""

    def __init__(self, folder: Path, store: SqliteStore) -> None:
        self._folder = folder
        self._store = store
        self._ledger: Ledger | None = None
        self.done = Imported()

    async def run(self, file: Path) -> Imported:
        """Import a file; ops whose links are missing are left out and counted as waiting."""
        if await self._store.count():
            self._ledger = await open_ledger(self._store, self._folder)
        quota = load_settings(self._folder).blob_quota_mib * 2**20
        blobs, assembler = Blobs(self._folder / BLOBS_FOLDER, self._store.blobs, quota), BlobAssembler()
        await blobs.open()
        for cid, block in read_car(file):
            if is_op_block(cid, block):
                await self._take(OpId(cid), block)
            elif (whole := assembler.take(cid, block)) is not None:
                await blobs.put_bytes(whole)
                self.done.blobs += 1
        return self.done

    async def _take(self, op: OpId, block: bytes) -> None:
        if self._ledger is not None and op in self._ledger:
            self.done.known += 1
            return
        try:
            signed = decode_op(block)
            if signed.op.kind is Kind.GENESIS:
                await self._found(signed)
            elif self._ledger is None:
                raise UsageError("the file does not begin with a genesis, and this folder belongs to no network")
            elif self._ledger.dag.missing(signed.op):
                self.done.waiting += 1
                return
            else:
                verify_op(signed, self._ledger.params.network, sodium_verifier)
                self._ledger.add(signed.op)
        except InvalidOpError as error:
            self.done.reject(op, error)
            return
        await self._store.append([signed], durable=False)
        self.done.added += 1

    async def _found(self, signed: SignedOp) -> None:
        """Begin with a genesis.

        Raises:
            UsageError: the folder belongs to another network.
        """
        if self._ledger is not None:
            there = format_cid(self._ledger.params.network)
            raise UsageError(f"the file is of another network; {self._folder} belongs to {there}")
        validate_genesis(signed)
        self._ledger = Ledger(signed.op)
        await asyncio.to_thread(write_private, self._folder / GENESIS_FILE, signed.block)


async def import_file(shell: Shell, file: Path) -> Imported:
    """Take a CAR: by the running node, or else into the data folder."""
    try:
        async with connect(shell) as client:
            return await import_online(client, file)
    except NoPeerError:
        pass
    shell.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = SqliteStore(shell.data)
    await store.open()
    try:
        return await OfflineImport(shell.data, store).run(file)
    finally:
        await store.close()


def _import(shell: Shell, file: Path) -> None:
    done = shell.run(import_file(shell, file))
    text = f"{done.added} ops added, {done.known} known, {done.waiting} waiting, {done.blobs} blobs"
    shell.show(asdict(done), text)
    if done.rejected:
        first = done.rejected[0]
        count = len(done.rejected)
        raise RuleError(first["rule"], f"{count} ops were rejected, the first, {first['op']}: {first['text']}")


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
        export(shell, file, lambda ops: choose_ops(ops, job, until, other), blobs)

    @command(app, "import", "import ledger.car")
    def import_(shell: Shell, file: FileArgument) -> None:
        """Take the ops and blobs of a CAR file; each op is judged like one from a peer."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
        _import(shell, file)
