"""What `import` does: the ops and blobs of a CAR file, given to the running node or taken into the data folder.

Invariants:

1. A file of another network changes nothing; a file that breaks off leaves what came before the break.
2. Whatever a file claims, memory holds some blocks, the largest blob, and bounded lists for the report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from crdtchain import codec, limits
from crdtchain.adapters.car import read_car
from crdtchain.adapters.keys import sodium_verifier
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_cid, parse_cid
from crdtchain.errors import DecodeError, InvalidOpError, NoPeerError, RuleError, UsageError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Kind, SignedOp
from crdtchain.scalars import BlobId, OpId
from crdtchain.shapes import decode_op
from crdtchain.verify import verify_op
from node.blobs import Blobs, decode_chunk_list
from node.cli.remote import connect
from node.cli.shell import Shell
from node.client import NodeClient
from node.config import load_settings
from node.datadir import BLOBS_FOLDER, GENESIS_FILE, validate_genesis, write_private
from node.ledger_file import open_ledger

WAITING: Final = "waiting"
NOTES_MAX: Final = limits.WAITING_OPS_MAX
"""So many ops are named in a report; further ones are counted."""
SHOWN: Final = 20


class Imported(Struct):
    """What an import did: counts, and what was refused or waits, up to `NOTES_MAX` of each."""

    added: int = 0
    known: int = 0
    waiting: int = 0
    blobs: int = 0
    rejected_count: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)
    missing: dict[str, None] = field(default_factory=dict)
    """What waiting ops link to, and is neither here nor in the file."""
    _held: set[str] = field(default_factory=set)

    def reject(self, op: bytes, error: InvalidOpError) -> None:
        """Note an op that breaks a rule."""
        self.rejected_count += 1
        if len(self.rejected) < NOTES_MAX:
            self.rejected.append({"op": format_cid(op), "rule": error.code, "text": str(error)})

    def wait(self, op: bytes, missing: Iterable[str]) -> None:
        """Note an op whose links are not all here."""
        self.waiting += 1
        for link in missing:
            if link not in self._held and len(self.missing) < NOTES_MAX:
                self.missing[link] = None
        if len(self._held) < NOTES_MAX:
            self._held.add(format_cid(op))

    def to_json(self) -> dict[str, object]:
        """Return the report as plain values."""
        names = ("added", "known", "waiting", "blobs", "rejected")
        return {name: getattr(self, name) for name in names} | {"missing": list(self.missing)}

    def describe(self) -> Iterator[str]:
        """Yield the report for people."""
        yield f"{self.added} ops added, {self.known} known, {self.waiting} waiting, {self.blobs} blobs"
        if self.waiting:
            links = list(self.missing)
            yield f"{self.waiting} ops wait for others that are neither here nor in the file:"
            yield from (f"  {link}" for link in links[:SHOWN])
            if len(links) > SHOWN:
                yield f"  and {len(links) - SHOWN} more"
            yield (
                "Give what `crdtchain status --json` prints to who wrote the file, and import what `crdtchain export "
                "FILE.car --for STATUS.json` makes of it there; or run the node with a peer that has them. Then import "
                "this file again."
            )


class BlobAssembler:
    """Puts chunks behind the list that names them together again."""

    def __init__(self) -> None:
        self._expected: list[BlobId] = []
        self._parts: list[bytes] = []

    def take(self, cid: bytes, block: bytes) -> bytes | None:
        """Take a section that is no op; returns a whole blob when there is one.

        Raises:
            UsageError: it is neither raw bytes nor a list of chunks.
        """
        if not codec.is_raw_blob_id(cid):
            try:
                _, self._expected = decode_chunk_list(block)
            except DecodeError as error:
                raise UsageError(
                    f"the file holds {format_cid(cid)}, neither an op nor part of a blob: {error}"
                ) from None
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


def read_sections(file: Path, network: OpId | None, where: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the sections of a CAR; a genesis among them has to be the network's.

    Raises:
        CarError: the file is no CAR, or damaged.
        UsageError: it is of another network.
    """
    for cid, block in read_car(file):
        if network is not None and cid != network and is_op_block(cid, block) and _is_genesis(block):
            raise UsageError(
                f"the file is of another network, {format_cid(cid)}; {where} belongs to {format_cid(network)}"
            )
        yield cid, block


def _is_genesis(block: bytes) -> bool:
    try:
        return decode_op(block).op.kind is Kind.GENESIS
    except InvalidOpError:
        return False


async def import_online(client: NodeClient, file: Path, where: Path) -> Imported:
    """Hand the blocks of a CAR to the running node."""
    network = OpId(parse_cid((await client.network())["network"]))
    done, blobs = Imported(), BlobAssembler()
    for cid, block in read_sections(file, network, where):
        if is_op_block(cid, block):
            try:
                answer = await client.submit_block(block)
            except RuleError as error:
                done.reject(cid, error)
                continue
            if answer["status"] == WAITING:
                done.wait(cid, answer["missing"])
            else:
                done.known += answer["status"] == "known"
                done.added += answer["status"] != "known"
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
        self._fresh: list[SignedOp] = []
        self.done = Imported()

    async def run(self, file: Path) -> Imported:
        """Import a file; ops whose links are missing are left out and counted as waiting."""
        if await self._store.count():
            self._ledger = await open_ledger(self._store, self._folder)
        quota = load_settings(self._folder).blob_quota_mib * 2**20
        blobs, assembler = Blobs(self._folder / BLOBS_FOLDER, self._store.blobs, quota), BlobAssembler()
        await blobs.open()
        network = None if self._ledger is None else self._ledger.params.network
        try:
            for cid, block in read_sections(file, network, self._folder):
                if is_op_block(cid, block):
                    await self._take(OpId(cid), block)
                elif (whole := assembler.take(cid, block)) is not None:
                    await blobs.put_bytes(whole)
                    self.done.blobs += 1
        finally:
            # What came before a fault of the file was judged, and stays.
            await self._store_fresh()
        return self.done

    async def _take(self, op: OpId, block: bytes) -> None:
        if self._ledger is not None and op in self._ledger:
            self.done.known += 1
            return
        try:
            signed = decode_op(block)
            if self._ledger is None:
                await self._found(signed)
            else:
                verify_op(signed, self._ledger.params.network, sodium_verifier)
                if missing := self._ledger.dag.missing(signed.op):
                    self.done.wait(op, map(format_cid, missing))
                    return
                self._ledger.add(signed.op)
        except InvalidOpError as error:
            self.done.reject(op, error)
            return
        self.done.added += 1
        self._fresh.append(signed)
        if len(self._fresh) >= limits.BATCH_OPS_MAX:
            await self._store_fresh()

    async def _store_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        if fresh:
            await self._store.append(fresh, durable=True)

    async def _found(self, signed: SignedOp) -> None:
        """Begin with a genesis.

        Raises:
            UsageError: the file begins with another op.
        """
        if signed.op.kind is not Kind.GENESIS:
            raise UsageError("the file does not begin with a genesis, and this folder belongs to no network")
        validate_genesis(signed)
        self._ledger = Ledger(signed.op)
        await asyncio.to_thread(write_private, self._folder / GENESIS_FILE, signed.block)


async def import_file(shell: Shell, file: Path) -> Imported:
    """Take a CAR: by the running node, or else into the data folder."""
    try:
        async with connect(shell) as client:
            return await import_online(client, file, shell.data)
    except NoPeerError:
        pass
    shell.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = SqliteStore(shell.data)
    await store.open()
    try:
        return await OfflineImport(shell.data, store).run(file)
    finally:
        await store.close()


def import_car(shell: Shell, file: Path) -> None:
    """Import a CAR and say what came of it.

    Raises:
        RuleError: ops in it break a rule.
    """
    done = shell.run(import_file(shell, file))
    shell.show(done.to_json(), "\n".join(done.describe()))
    if done.rejected:
        first = done.rejected[0]
        hint = "" if first["rule"] != "signature" else "; is the file of this network?"
        count = done.rejected_count
        raise RuleError(first["rule"], f"{count} ops were rejected, the first, {first['op']}: {first['text']}{hint}")
