"""Ops: what people, workers and witnesses sign.

A block is the DAG-CBOR array `[op, sig]`; `op` is a map of a header and one body. Here are the shapes (frozen
structs, a docstring under each field). The checks that need nothing but the op itself, and the way from bytes to an
`Op` and back, are in `crdtchain.shapes`; rules that need an op's past in `crdtchain.ledger.rules`; signatures in
`crdtchain.signing`.

Source: protocol sections 2, 3 and 7. Not here: the notebook's `edit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from crdtchain import limits
from crdtchain.codec import Link
from crdtchain.scalars import Author, OpId

Amount = Annotated[int, Meta(ge=0, le=limits.INT_MAX)]
"""Credits, losses, sizes: 0 … 2^53 - 1."""
Positive = Annotated[int, Meta(ge=1, le=limits.INT_MAX)]
TimeMs = Annotated[int, Meta(ge=0, le=limits.TIME_MAX_MS)]
KeyBytes = Annotated[bytes, Meta(min_length=32, max_length=32)]
DigestBytes = Annotated[bytes, Meta(min_length=32, max_length=32)]
FileName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
ParamName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]


class Kind(StrEnum):
    """What an op does."""

    GENESIS = "genesis"
    TRANSFER = "transfer"
    JOB = "job"
    STAKE = "stake"
    BID = "bid"
    REVEAL = "reveal"
    VOTE = "vote"
    BEAT = "beat"
    ATTEST = "attest"
    CLAIM = "claim"
    PROFILE = "profile"


VALUE_KINDS: Final = frozenset({Kind.JOB, Kind.STAKE, Kind.TRANSFER, Kind.CLAIM})
"""Kinds that move credits on their author's chain, and are certified."""
DEADLINE_KINDS: Final = frozenset({Kind.BID, Kind.REVEAL, Kind.VOTE})
"""Kinds that are on time, late, or open."""


class Body(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all bodies."""


class Genesis(Body, frozen=True, forbid_unknown_fields=True):
    """The op that founds a network; its id names it."""

    name: str
    """Shown to people, 1 … 100 bytes."""
    witnesses: Annotated[tuple[KeyBytes, ...], Meta(min_length=1, max_length=limits.WITNESSES_MAX)]
    """The keys whose chains are the clock; unique."""
    grants: Annotated[tuple[tuple[KeyBytes, Positive], ...], Meta(max_length=limits.GRANTS_MAX)]
    """First credits, keys unique and sorted."""
    elector_min: Positive
    """Credits that make an account an elector."""
    verdict_min: Positive
    """Votes without which nobody is a cheat or missing."""
    bounty_min: Positive
    """Least bounty, credits."""
    delta_ms: Positive
    """Δ: the time in which witnesses reach each other, skew included."""
    tick_ms: Positive
    """Deadlines are multiples of this; at least delta_ms."""
    expiry_ms: Positive
    """A job undecided for so long after verdict_until is refunded."""


class Transfer(Body, frozen=True, forbid_unknown_fields=True):
    """Credits for another key, which claims them."""

    to: KeyBytes
    """Who may claim; passes the key rule, not the author."""
    amount: Positive
    """Credits."""
    memo: str | None
    """For people, ≤ 200 bytes."""


class Resources(Body, frozen=True, forbid_unknown_fields=True):
    """What one run of a job's program may use."""

    cpus: Annotated[int, Meta(ge=1, le=1_024)]
    """Whole cores."""
    memory_mib: Annotated[int, Meta(ge=16, le=2**24)]
    """Memory and tmpfs together, MiB."""
    disk_mib: Annotated[int, Meta(ge=1, le=2**24)]
    """All that the program writes, MiB."""
    seconds: Annotated[int, Meta(ge=1, le=2_592_000)]
    """Wall clock, s."""
    gpus: Annotated[int, Meta(ge=0, le=64)]
    """Whole devices."""


class Task(Body, frozen=True, forbid_unknown_fields=True):
    """The program of a job."""

    runtime: Literal["docker", "wasm"]
    """Which kind of sandbox runs it."""
    image: Annotated[str, Meta(min_length=1, max_length=256)]
    """docker: `sha256:…` or `repo@sha256:…`; wasm: the module's name among `code`."""
    code: Annotated[tuple[tuple[FileName, Link], ...], Meta(min_length=1, max_length=limits.CODE_FILES_MAX)]
    """Files below /job/in/code, sorted by name."""
    train: Annotated[tuple[str, ...], Meta(max_length=limits.ARGV_MAX)]
    """argv that trains; empty for wasm."""
    predict: Annotated[tuple[str, ...], Meta(max_length=limits.ARGV_MAX)]
    """argv that predicts; empty for wasm."""
    params: Annotated[Mapping[ParamName, str | int | bool], Meta(max_length=limits.PARAMS_MAX)]
    """Hyperparameters, passed as they are."""
    resources: Resources
    """Limits of one run."""


class Data(Body, frozen=True, forbid_unknown_fields=True):
    """The data of a job, as blobs."""

    train: Annotated[tuple[tuple[FileName, Link], ...], Meta(min_length=1, max_length=limits.DATA_FILES_MAX)]
    """Files below /job/in/data/train, sorted by name."""
    features: Annotated[tuple[tuple[FileName, Link], ...], Meta(min_length=1, max_length=limits.DATA_FILES_MAX)]
    """Test features, files below /job/in/data/test, sorted by name."""
    labels: Link
    """Test labels: read by nodes, never by a sandbox."""


class ModelSpec(Body, frozen=True, forbid_unknown_fields=True):
    """What a revealed model must look like."""

    format: Literal["npz", "npy", "safetensors", "raw"]
    """How the arrays are stored."""
    arrays: Annotated[
        tuple[tuple[FileName, str, Annotated[tuple[Positive, ...], Meta(max_length=limits.DIMS_MAX)]], ...],
        Meta(min_length=1, max_length=limits.ARRAYS_MAX),
    ]
    """(name, dtype, dimensions), sorted by name."""


class Job(Body, frozen=True, forbid_unknown_fields=True):
    """The terms of a job; posting it puts bounty and pool in escrow."""

    title: str
    """Shown to people, 1 … 200 bytes."""
    tags: Annotated[tuple[str, ...], Meta(max_length=limits.TAGS_MAX)]
    """Sorted, unique, each 1 … 50 bytes."""
    metric: Literal["log_loss", "error_rate", "mse", "mae"]
    """How predictions become a loss."""
    tolerance: Amount
    """A model may measure so much above its announced loss, micros."""
    max_loss: Amount | None
    """Bids above it are not examined, micros."""
    bounty: Positive
    """For the winner, credits."""
    stake: Amount
    """What a worker puts down, credits."""
    pool: Amount
    """For the voters, credits."""
    on_cheat: Literal["refund", "next"]
    """What a cheat verdict leads to."""
    bid_until: TimeMs
    reveal_until: TimeMs
    verdict_until: TimeMs
    editors: Annotated[tuple[KeyBytes, ...], Meta(max_length=limits.EDITORS_MAX)]
    """Keys that may edit all of the notebook; sorted, unique."""
    task: Task
    data: Data
    model: ModelSpec


class Stake(Body, frozen=True, forbid_unknown_fields=True):
    """Puts down the job's stake, which lets the author bid."""

    job: Link


class Bid(Body, frozen=True, forbid_unknown_fields=True):
    """Announces a loss, and commits to the model that has it."""

    job: Link
    loss: Amount
    """Announced loss, micros."""
    commit: DigestBytes
    """sha256("crdtchain/bid:" ‖ author ‖ the model's CID)."""


class Reveal(Body, frozen=True, forbid_unknown_fields=True):
    """Shows the model behind one's bid."""

    bid: Link
    model: Link
    """The blob."""
    size: Amount
    """Of the blob, bytes."""


class Vote(Body, frozen=True, forbid_unknown_fields=True):
    """An elector's verdict on a revealed model."""

    reveal: Link
    verdict: Literal["valid", "cheat", "missing"]
    loss: Amount | None
    """Measured loss, micros."""


class Beat(Body, frozen=True, forbid_unknown_fields=True):
    """A witness's word that it has its past."""


class Record(Body, frozen=True, forbid_unknown_fields=True):
    """The outcome of a job: what a certificate certifies."""

    winner: Link | None
    """The winning bid."""
    cheats: Annotated[tuple[KeyBytes, ...], Meta(max_length=limits.EXAMINED_MAX)]
    """Authors, sorted; among the forfeits."""
    forfeits: Annotated[tuple[KeyBytes, ...], Meta(max_length=limits.FORFEITS_MAX)]
    """Authors who lose their stake, sorted."""
    votes: Annotated[tuple[Link, ...], Meta(max_length=limits.VOTES_MAX)]
    """Votes that agreed with the verdicts, sorted: they share pool and forfeited stakes."""
    expired: bool
    """The job could not be decided in time: everything else is empty."""


class Attest(Body, frozen=True, forbid_unknown_fields=True):
    """A witness's signature under an outcome."""

    job: Link
    record: Record


class Claim(Body, frozen=True, forbid_unknown_fields=True):
    """Takes all that a decided job, or a transfer, has for the author."""

    of: Link


class Profile(Body, frozen=True, forbid_unknown_fields=True):
    """How people call an author."""

    name: str
    """≤ 100 bytes."""
    about: str
    """≤ 1,000 bytes."""


BODIES: Final[Mapping[Kind, type[Body]]] = {
    Kind.GENESIS: Genesis,
    Kind.TRANSFER: Transfer,
    Kind.JOB: Job,
    Kind.STAKE: Stake,
    Kind.BID: Bid,
    Kind.REVEAL: Reveal,
    Kind.VOTE: Vote,
    Kind.BEAT: Beat,
    Kind.ATTEST: Attest,
    Kind.CLAIM: Claim,
    Kind.PROFILE: Profile,
}


class Op(Struct, frozen=True):
    """One decoded op. `id` is the CID of its whole block."""

    id: OpId
    author: Author
    seq: int
    prev: OpId | None
    parents: tuple[OpId, ...]
    time: int
    """As the author claims, ms since the Unix epoch."""
    kind: Kind
    body: Body
    size: int
    """Of the block, bytes."""


class SignedOp(Struct, frozen=True):
    """An op with its block, whose signature is still to be verified."""

    op: Op
    block: bytes

    @property
    def payload(self) -> bytes:
        """The encoded `op`: what, behind prefix and network, is signed."""
        return self.block[1:-66]

    @property
    def signature(self) -> bytes:
        """The 64 bytes at the block's end."""
        return self.block[-64:]


class Header(Struct, frozen=True, forbid_unknown_fields=True):
    """The signed map as it stands in a block, its body not yet looked at."""

    v: Literal[1]
    author: KeyBytes
    seq: Amount
    prev: Link | None
    parents: Annotated[tuple[Link, ...], Meta(max_length=limits.WITNESS_PARENTS_MAX)]
    time: TimeMs
    kind: Kind
    body: dict[str, object]
