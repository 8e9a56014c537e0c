"""Job files: what a person writes to post a job, turned into the terms of an op and the files behind them.

A JOB.toml is read strictly: unknown keys, values out of bounds, missing files and deadlines that the network would
refuse are each answered with one sentence, before anything leaves this machine. Files are relative to the job file and
become blobs; the name that a program sees is the last part of the path.

Not here: uploading the blobs and signing the op (the node does); what a docker image is made of (`sandbox.image`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.errors import CrdtchainError, ModelError, UsageError
from crdtchain.learning.schema import FORMATS, ModelSchema
from crdtchain.ops import Data, Job, Kind, ModelSpec, Op, Resources, Task
from crdtchain.params import Params
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.shapes import is_pinned_image, to_plain, validate_body
from node.tables import Table, format_duration, load_toml

LOCAL_IMAGE: Final = "local"
"""Stands for the trainer image of this machine; replaced by its id before posting."""

_TOP: Final = (
    "title", "metric", "bounty", "stake", "pool", "tags", "bid_for", "bid_until", "reveal_for", "reveal_until",
    "verdict_for", "verdict_until", "tolerance", "on_cheat", "max_loss", "editors", "task", "model", "files",
)  # fmt: skip
_TASK: Final = ("runtime", "image", "module", "train", "predict", "params", "resources")
_RESOURCES: Final = ("cpus", "memory_mib", "disk_mib", "seconds", "gpus")
_FILES: Final = ("code", "train", "test_features", "test_labels")
_METRICS: Final = ("log_loss", "error_rate", "mse", "mae")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_TERMS_BYTES_MAX: Final = limits.BLOCK_BYTES_MAX - 4_096
"""What is left of a block for the terms, its header at its longest."""
_PARAM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What a network asks of a job: the constants of its genesis that a job file is checked against."""

    bounty_min: int
    """Credits."""
    delta_ms: int
    tick_ms: int
    faulty_max: int

    @classmethod
    def from_params(cls, params: Params) -> NetworkRules:
        """Take them from a network's constants."""
        return cls(params.bounty_min, params.delta_ms, params.tick_ms, params.faulty_max)

    @property
    def window_ms(self) -> int:
        """The least time between two deadlines: (f + 4) · Δ."""
        return (self.faulty_max + 4) * self.delta_ms


TRY_RULES: Final = NetworkRules(bounty_min=1, delta_ms=1, tick_ms=1, faulty_max=0)
"""Rules for a job that is only tried here: none to speak of."""


@dataclass(frozen=True, slots=True)
class JobDraft:
    """A job ready to be posted.

    Attributes:
        terms: the body of the op.
        code, train, features: name -> file on this machine.
        labels: the file of the test labels.
        blobs: blob id -> file, all that has to be uploaded.
        schema: what a model must look like.
    """

    terms: Job
    code: Mapping[str, Path]
    train: Mapping[str, Path]
    features: Mapping[str, Path]
    labels: Path
    blobs: Mapping[BlobId, Path]
    schema: ModelSchema


def read_job_file(path: Path, rules: NetworkRules, now_ms: int, local_image: str | None = None) -> JobDraft:
    """Read a job file into the terms that are posted and the files behind them.

    Args:
        path: the TOML file; other files are relative to its folder.
        rules: of the network it is to be posted in.
        now_ms: from when `bid_for` counts.
        local_image: the id that `image = "local"` stands for; without it such a file is refused.

    Raises:
        UsageError: one sentence naming the key and what would be right.
    """
    table = Table(load_toml(path, "job file"), "", _TOP)
    task = table.table("task", _TASK)
    model = table.table("model", ("format", "arrays"))
    files = table.table("files", _FILES)
    schema = _read_schema(model)
    code, train = _read_files(files, "code", path, limits.CODE_FILES_MAX), _read_files(files, "train", path)
    features, labels = (
        _read_files(files, "test_features", path),
        _find_file(files, "test_labels", files.text("test_labels"), path),
    )
    blobs = {file: compute_file_id(file) for file in {*code.values(), *train.values(), *features.values(), labels}}

    def link(named: Mapping[str, Path]) -> tuple[tuple[str, Link], ...]:
        return tuple((name, Link(blobs[named[name]])) for name in sorted(named, key=str.encode))

    program = _read_task(task, link(code), local_image)
    bid_until, reveal_until, verdict_until = _read_deadlines(table, rules, now_ms, program.resources.seconds)
    terms = Job(
        title=_read_title(table),
        tags=tuple(sorted(set(table.texts("tags", limits.TAGS_MAX, default=())), key=str.encode)),
        metric=cast(Any, table.choice("metric", _METRICS)),
        tolerance=table.micros("tolerance", _default_tolerance(program.runtime, schema)),
        max_loss=table.micros("max_loss", 0) if "max_loss" in table else None,
        bounty=table.integer("bounty", rules.bounty_min, unit="credits"),
        stake=_read_stake(table),
        pool=table.integer("pool", 0, default=0, unit="credits"),
        on_cheat=_read_on_cheat(table),
        bid_until=bid_until,
        reveal_until=reveal_until,
        verdict_until=verdict_until,
        editors=_read_editors(table),
        task=program,
        data=Data(train=link(train), features=link(features), labels=Link(blobs[labels])),
        model=ModelSpec(
            format=cast(Any, schema.format),
            arrays=tuple((array.name, array.dtype, array.dims) for array in schema.arrays),
        ),
    )
    _check_whole(terms)
    return JobDraft(terms, code, train, features, labels, {cid: file for file, cid in blobs.items()}, schema)


def wants_local_image(path: Path) -> bool:
    """Whether a job file names the trainer image of this machine.

    Raises:
        UsageError: it can't be read.
    """
    task = load_toml(path, "job file").get("task")
    return isinstance(task, dict) and task.get("runtime") == "docker" and task.get("image") == LOCAL_IMAGE


def compute_file_id(path: Path) -> BlobId:
    """Compute the id of a file as a blob: of its bytes up to 1 MiB, else of the list of its chunks.

    Raises:
        UsageError: it can't be read, or is too large.
    """
    try:
        with path.open("rb") as file:
            chunks, size = [], 0
            while data := file.read(limits.CHUNK_BYTES):
                chunks.append(codec.compute_blob_id(data))
                size += len(data)
                if size > limits.BLOB_BYTES_MAX:
                    raise UsageError(
                        f"the file {path} is above {limits.BLOB_BYTES_MAX // 2**20} MiB, the largest blob there is"
                    )
    except OSError as error:
        raise UsageError(f"the file {path} can't be read: {error.strerror}") from None
    return _join_chunks(chunks, size)


def compute_data_id(data: bytes) -> BlobId:
    """Compute the id of bytes as a blob."""
    starts = range(0, len(data), limits.CHUNK_BYTES)
    return _join_chunks(
        [codec.compute_blob_id(data[start : start + limits.CHUNK_BYTES]) for start in starts], len(data)
    )


def _join_chunks(chunks: list[BlobId], size: int) -> BlobId:
    if len(chunks) <= 1:
        return chunks[0] if chunks else codec.compute_blob_id(b"")
    block = codec.encode({"size": size, "chunks": [Link(chunk) for chunk in chunks]})
    return BlobId(codec.OP_CID_PREFIX + sha256(block).digest())


def _read_title(table: Table) -> str:
    title = table.text("title")
    if len(title.encode()) > limits.TITLE_BYTES_MAX:
        raise table.fault("title", f"at most {limits.TITLE_BYTES_MAX} bytes are allowed")
    return title


def _read_on_cheat(table: Table) -> Literal["refund", "next"]:
    return cast(Literal["refund", "next"], table.choice("on_cheat", ("refund", "next"), default="refund"))


def _read_stake(table: Table) -> int:
    stake = table.integer("stake", 0, unit="credits")
    if stake < 1 and _read_on_cheat(table) == "refund":
        raise table.fault("stake", 'with on_cheat = "refund" the least is 1 credit')
    return stake


def _read_editors(table: Table) -> tuple[bytes, ...]:
    return tuple(sorted({codec.parse_did(did) for did in table.texts("editors", limits.EDITORS_MAX, default=())}))


def _read_schema(model: Table) -> ModelSchema:
    arrays = model.items("arrays")
    for name, text in arrays.items():
        if not isinstance(text, str):
            raise UsageError(f'model.arrays.{name} is {text!r}: write type and shape such as "float64[64,10]"')
    try:
        return ModelSchema.parse(model.choice("format", FORMATS), arrays)
    except ModelError as error:
        raise UsageError(f"model: {error}") from None


def _default_tolerance(runtime: str, schema: ModelSchema) -> int:
    """Return what evaluations of one model differ by at most: nothing in wasm, else a rounding of its type."""
    if runtime == "wasm":
        return 0
    return 10 if any(array.dtype == "float32" for array in schema.arrays) else 1


def _read_files(files: Table, key: str, job_file: Path, most: int = limits.DATA_FILES_MAX) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in files.texts(key, most, least=1):
        path = _find_file(files, key, text, job_file)
        if not _FILE_NAME.fullmatch(path.name):
            raise files.fault(key, f"the name {path.name} may only have letters, digits, . _ - and 100 of them")
        if path.name in found:
            raise files.fault(key, f"two files are named {path.name}")
        found[path.name] = path
    return found


def _find_file(files: Table, key: str, text: str, job_file: Path) -> Path:
    path = job_file.parent / text
    if not path.is_file():
        raise files.fault(key, f"there is no file {path}")
    return path


def _read_resources(task: Table) -> Resources:
    table = task.table("resources", _RESOURCES, optional=True)
    return Resources(
        cpus=table.integer("cpus", 1, 1_024, default=1, unit="cores"),
        memory_mib=table.integer("memory_mib", 16, 2**24, default=512, unit="MiB"),
        disk_mib=table.integer("disk_mib", 1, 2**24, default=64, unit="MiB"),
        seconds=table.integer("seconds", 1, 2_592_000, default=300, unit="seconds"),
        gpus=table.integer("gpus", 0, 64, default=0, unit="GPUs"),
    )


def _read_task(task: Table, code: tuple[tuple[str, Link], ...], local_image: str | None) -> Task:
    runtime = task.choice("runtime", ("docker", "wasm"))
    return Task(
        runtime=cast(Any, runtime),
        image=_read_image(task, runtime, {name for name, _ in code}, local_image),
        code=code,
        train=_read_command(task, "train", runtime),
        predict=_read_command(task, "predict", runtime),
        params=_read_params(task),
        resources=_read_resources(task),
    )


def _read_image(task: Table, runtime: str, code: set[str], local_image: str | None) -> str:
    key = "module" if runtime == "wasm" and "module" in task else "image"
    if runtime == "docker" and "module" in task:
        raise task.fault("module", 'a docker job has an image; modules are for runtime = "wasm"')
    if key == "module" and "image" in task:
        raise task.fault("image", "a wasm job has a module and no image")
    if key not in task and runtime == "wasm":
        raise UsageError("task.module is missing: name the .wasm file among files.code")
    image = task.text(key)
    if runtime == "wasm":
        if image not in code:
            raise task.fault(key, f"name one of files.code: {', '.join(sorted(code))}")
        return image
    if image == LOCAL_IMAGE:
        if local_image is None:
            raise task.fault(key, "docker is needed to make the trainer image of this machine; see `crdtchain doctor`")
        return local_image
    if not is_pinned_image(image) or len(image) > 256:
        raise task.fault(key, 'write sha256:<64 hex digits>, repo@sha256:<64 hex digits>, or "local"; a tag may change')
    return image


def _read_command(task: Table, key: str, runtime: str) -> tuple[str, ...]:
    if runtime == "wasm":
        return task.texts(key, 0, default=())
    command = task.texts(key, limits.ARGV_MAX, least=1)
    if any(not 0 < len(word.encode()) <= limits.ARG_BYTES_MAX for word in command):
        raise task.fault(key, f"each word has 1 to {limits.ARG_BYTES_MAX} bytes")
    return command


def _read_params(task: Table) -> dict[str, str | int | bool]:
    params = task.items("params")
    if len(params) > limits.PARAMS_MAX:
        raise UsageError(f"task.params has {len(params)} entries: at most {limits.PARAMS_MAX} are allowed")
    for name, value in params.items():
        if not _PARAM_NAME.fullmatch(name):
            raise UsageError(f"task.params.{name} is no name for a parameter: use letters, digits and _, 64 at most")
        if isinstance(value, float):
            raise UsageError(f'task.params.{name} is {value!r}: write a decimal number in quotes, such as "{value}"')
        if not isinstance(value, (str, int)):
            raise UsageError(f"task.params.{name} is {value!r}: write a text, a whole number, true or false")
        if isinstance(value, int) and abs(value) > limits.INT_MAX:
            raise UsageError(f"task.params.{name} is {value}: whole numbers go to 2^53 - 1")
        if isinstance(value, str) and len(value.encode()) > limits.ARG_BYTES_MAX:
            raise UsageError(f"task.params.{name} is too long: at most {limits.ARG_BYTES_MAX} bytes are allowed")
    return params


def _read_deadlines(table: Table, rules: NetworkRules, now_ms: int, seconds: int) -> tuple[int, int, int]:
    """Return the three deadlines, rounded up to the network's tick."""
    found: list[int] = []
    least = {"bid": 0, "reveal": rules.window_ms, "verdict": rules.window_ms + 2 * seconds * 1_000}
    before = now_ms
    for name in ("bid", "reveal", "verdict"):
        at = _read_deadline(table, name, before, rules.tick_ms)
        if at < before + least[name]:
            key = f"{name}_until" if f"{name}_until" in table else f"{name}_for"
            raise table.fault(key, _explain_least(name, least[name]))
        found.append(at)
        before = at
    return found[0], found[1], found[2]


def _explain_least(name: str, least_ms: int) -> str:
    after = "bidding" if name == "reveal" else "revealing, time to run the program twice"
    return f"the least is {format_duration(least_ms)} after the end of {after}"


def _read_deadline(table: Table, name: str, before_ms: int, tick_ms: int) -> int:
    duration, moment = f"{name}_for", f"{name}_until"
    if duration in table and moment in table:
        raise table.fault(duration, f"write either {duration} or {moment}, not both")
    if duration not in table and moment not in table:
        raise UsageError(f'{duration} is missing: write a length of time such as "10m", or {moment} = a moment')
    at = table.time_ms(moment) if moment in table else before_ms + table.duration_ms(duration)
    if name == "bid" and at <= before_ms:
        raise table.fault(moment if moment in table else duration, "that is past; the least is a moment from now")
    at = -(-at // tick_ms) * tick_ms
    if not 0 <= at <= limits.TIME_MAX_MS:
        raise table.fault(moment if moment in table else duration, "that is too far away")
    return at


def _check_whole(terms: Job) -> None:
    """Check what only the whole shows: sums, size, and once more every bound by the core's own rules."""
    plain = to_plain(terms)
    try:
        msgspec.convert(plain, Job, builtin_types=(bytes,))
        size = len(codec.encode(plain, bounded=True))
        validate_body(_make_unsigned(terms))
    except (msgspec.ValidationError, CrdtchainError) as error:
        raise UsageError(f"the job is refused: {error}") from None
    if size > _TERMS_BYTES_MAX:
        raise UsageError(f"the job's terms have {size} bytes: at most {_TERMS_BYTES_MAX} are allowed")


def _make_unsigned(terms: Job) -> Op:
    """Put terms into an op that nobody signed, for the checks that look at the body alone."""
    return Op(
        id=OpId(b""), author=Author(bytes(32)), seq=0, prev=None, parents=(), time=0, kind=Kind.JOB, body=terms, size=0
    )
