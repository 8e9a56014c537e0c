"""A ledger as bytes, and back: so that a start costs a tenth of a replay.

A snapshot is a cache. It is believed only when it is whole, of this version and of the network at hand; whether it
fits the ops that are stored is checked by whoever opens both. Anything else is refused, and the state is rebuilt from
the ops.

Theory of operation:

1. The op table and the witnesses' marks are dumped as columns; the statements of witnesses and the balances as columns
   as well; bodies as they are, by kind. The indexes of jobs follow from the bodies and are rebuilt by the same code
   that built them.
2. `MAGIC` names the format, and is changed with it. A digest of the content stands in front of it, the names of the op
   kinds, in the order of their numbers, and a sample of this machine's integers are in it.

Not here: files, and what to do when a snapshot is refused (`crdtchain.adapters.opening`).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import sha256
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from crdtchain.codec import Link
from crdtchain.crdts.first_seen import FirstSeen
from crdtchain.crdts.multimap import GrowOnlyMultiMap
from crdtchain.dag import KINDS
from crdtchain.errors import StoreError
from crdtchain.ledger.settlement import compute_digest
from crdtchain.ledger.state import Ledger
from crdtchain.ops import (
    Attest,
    Beat,
    Bid,
    Body,
    Claim,
    Job,
    Kind,
    Op,
    Profile,
    Record,
    Reveal,
    Stake,
    Transfer,
    Vote,
)
from crdtchain.scalars import OpId

MAGIC: Final = b"crdtchain/snapshot/1\n"
_DIGEST_BYTES: Final = 32
_INTEGERS: Final = array("i", [1, -2]).tobytes() + array("q", [3, -4]).tobytes()
"""Equal only on machines whose arrays have the same sizes and byte order."""

K = TypeVar("K", int, "tuple[int, int]", "tuple[int, bytes]")
V = TypeVar("V", int, bytes, "tuple[int, int]", "tuple[int, bytes]")


class SnapshotError(StoreError):
    """A snapshot that can't be used; the state has to be rebuilt from the ops."""


class _Bodies(Struct, array_like=True):
    """The bodies of all ops but genesis, beats and attests: those of each kind in the order of their ops."""

    transfers: list[Transfer]
    jobs: list[Job]
    stakes: list[Stake]
    bids: list[Bid]
    reveals: list[Reveal]
    votes: list[Vote]
    claims: list[Claim]
    profiles: list[Profile]


class _Content(Struct, array_like=True):
    network: bytes
    count: int
    kinds: list[str]
    integers: bytes
    columns: dict[str, bytes]
    """The op table's."""
    marks: list[tuple[bytes, dict[int, list[int]]]]
    """By witness."""
    acknowledgements: list[tuple[int, list[int]]]
    attests: list[tuple[tuple[int, bytes], list[int]]]
    records: list[tuple[int, list[bytes]]]
    accused: list[tuple[int, list[tuple[int, bytes]]]]
    equivocations: list[tuple[tuple[int, int], list[int]]]
    changes: bytes
    """What each value op adds or takes, in the order of the ops; 8 bytes each."""
    balances: bytes
    """The balance after each value op, likewise."""
    record_bodies: list[Record]
    bodies: _Bodies


_BODY_FIELDS: Final[Mapping[Kind, str]] = {
    Kind.TRANSFER: "transfers",
    Kind.JOB: "jobs",
    Kind.STAKE: "stakes",
    Kind.BID: "bids",
    Kind.REVEAL: "reveals",
    Kind.VOTE: "votes",
    Kind.CLAIM: "claims",
    Kind.PROFILE: "profiles",
}


def dump_ledger(ledger: Ledger) -> bytes:
    """Return all derived state of a ledger as bytes that `load_ledger` takes."""
    witnesses, values = ledger.witnesses, _value_ops(ledger)
    content = _Content(
        network=bytes(ledger.params.network),
        count=len(ledger),
        kinds=[kind.value for kind in KINDS],
        integers=_INTEGERS,
        columns=ledger.dag.dump(),
        marks=[marks.dump() for marks in witnesses.marks],
        acknowledgements=_dump_map(witnesses.acknowledgements),
        attests=_dump_map(witnesses.attests),
        records=_dump_map(witnesses.records),
        accused=_dump_map(witnesses.accused),
        equivocations=_dump_map(witnesses.known_equivocations),
        changes=array("q", map(ledger.accounts.changes.get, values)).tobytes(),
        balances=array("q", map(ledger.accounts.balances.get, values)).tobytes(),
        record_bodies=list(ledger.records.values()),
        bodies=_dump_bodies(ledger),
    )
    data = msgspec.msgpack.encode(content, enc_hook=_encode_link)
    return MAGIC + sha256(data).digest() + data


def load_ledger(genesis: Op, data: bytes) -> Ledger:
    """Return the ledger that `dump_ledger` was given.

    Raises:
        SnapshotError: the data is cut short, altered, of another version or machine, or of another network.
    """
    content = _read_content(genesis, data)
    ledger = Ledger(genesis)
    try:
        ledger.dag.restore(content.columns)
        if len(ledger) != content.count or ledger.dag.ids[0] != genesis.id:
            raise ValueError("the op table is another one's")
        _load_witnesses(ledger, content)
        _load_accounts(ledger, content)
        _load_jobs(ledger, content)
    except (ValueError, LookupError, StopIteration) as error:
        raise SnapshotError(f"the snapshot does not fit itself: {error}") from error
    return ledger


def _read_content(genesis: Op, data: bytes) -> _Content:
    if not data.startswith(MAGIC):
        raise SnapshotError("the snapshot is of another version, or none")
    start = len(MAGIC) + _DIGEST_BYTES
    encoded = memoryview(data)[start:]
    if sha256(encoded).digest() != data[len(MAGIC) : start]:
        raise SnapshotError("the snapshot is cut short or was altered")
    try:
        content = msgspec.msgpack.decode(encoded, type=_Content, dec_hook=_decode_link)
    except msgspec.DecodeError as error:
        raise SnapshotError(f"the snapshot is of another version: {error}") from error
    if content.kinds != [kind.value for kind in KINDS] or content.integers != _INTEGERS:
        raise SnapshotError("the snapshot is of another version or machine")
    if content.network != genesis.id:
        raise SnapshotError("the snapshot is another network's")
    return content


def _encode_link(value: object) -> bytes:
    if isinstance(value, Link):
        return bytes(value)
    raise NotImplementedError(f"no form for {type(value).__name__}")


def _decode_link(target: type, value: object) -> object:
    if target is Link and isinstance(value, bytes):
        return Link(value)
    raise ValueError(f"no {target.__name__} in a {type(value).__name__}")


def _value_ops(ledger: Ledger) -> list[int]:
    return [number for number, last in enumerate(ledger.dag.last_values) if number == last]


def _dump_map(mapping: GrowOnlyMultiMap[K, V]) -> list[tuple[K, list[V]]]:
    return [(key, list(values)) for key, values in mapping.items()]


def _load_map(into: GrowOnlyMultiMap[K, V], rows: list[tuple[K, list[V]]]) -> None:
    for key, values in rows:
        for value in values:
            into.add(key, value)


def _dump_bodies(ledger: Ledger) -> _Bodies:
    lists: dict[str, list[Body]] = {field: [] for field in _BODY_FIELDS.values()}
    for number in range(1, len(ledger)):
        field = _BODY_FIELDS.get(ledger.dag.kind(number))
        if field is not None:
            lists[field].append(ledger.jobs.bodies[number])
    return _Bodies(**lists)  # type: ignore[arg-type]


def _load_witnesses(ledger: Ledger, content: _Content) -> None:
    witnesses = ledger.witnesses
    if len(content.marks) != len(witnesses.marks):
        raise ValueError("the marks are of other witnesses")
    witnesses.marks[:] = [FirstSeen.load(first, more) for first, more in content.marks]
    _load_map(witnesses.acknowledgements, content.acknowledgements)
    _load_map(witnesses.attests, content.attests)
    _load_map(witnesses.records, content.records)
    _load_map(witnesses.accused, content.accused)
    _load_map(witnesses.known_equivocations, content.equivocations)
    for author, seq in witnesses.known_equivocations:
        witnesses.equivocated_seqs.append_new(author, seq)
    for record in content.record_bodies:
        ledger.records[compute_digest(record)] = record


def _load_accounts(ledger: Ledger, content: _Content) -> None:
    changes, balances = array("q"), array("q")
    changes.frombytes(content.changes)
    balances.frombytes(content.balances)
    for op, change, balance in zip(_value_ops(ledger), changes, balances, strict=True):
        ledger.accounts.changes.write(op, change)
        ledger.accounts.balances.write(op, balance)


def _load_jobs(ledger: Ledger, content: _Content) -> None:
    dag, jobs = ledger.dag, ledger.jobs
    bodies = {kind: iter(getattr(content.bodies, field)) for kind, field in _BODY_FIELDS.items()}
    attested = {op: key for key, ops in ledger.witnesses.attests.items() for op in ops}
    beat = Beat()
    for number in range(1, len(dag)):
        kind = dag.kind(number)
        body: Body = beat
        if kind is Kind.ATTEST:
            job, digest = attested[number]
            body = Attest(job=Link(dag.ids[job]), record=ledger.records[digest])
        elif kind is not Kind.BEAT:
            body = next(bodies[kind])
        if body is not beat:
            jobs.add(number, _make_op(ledger, number, kind, body))
    if any(next(rest, None) is not None for rest in bodies.values()):
        raise ValueError("there are more bodies than ops")


def _make_op(ledger: Ledger, number: int, kind: Kind, body: Body) -> Op:
    """Return an op for the indexes, which read nothing of it but the body."""
    dag = ledger.dag
    return Op(
        id=OpId(dag.ids[number]),
        author=dag.author_key(number),
        seq=dag.chains.seq(number),
        prev=None,
        parents=(),
        time=dag.times[number],
        kind=kind,
        body=body,
        size=0,
    )
