"""What a job's program works with: its files, fetched once, and the runs that are made of them.

Invariants:

1. A run's spec follows from the signed terms; only the seed and, when training, a shorter wall limit are the worker's.
2. Labels are never in a spec: they stay in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crdtchain.codec import Link, format_cid, format_did
from crdtchain.learning.schema import ModelSchema
from crdtchain.ops import Job
from crdtchain.scalars import Author, BlobId, OpId
from crdtchain.shapes import to_plain
from node.jobfile import JobDraft
from node.worker.market import Market
from node.worker.sandbox.base import Mode, Resources, RunSpec

TRY_ID = "try"
"""Stands for the id of a job that is not posted yet."""


@dataclass(frozen=True, slots=True)
class Materials:
    """The files of a job on this machine.

    Attributes:
        job_id: the job's CID as text, or `TRY_ID`.
        terms: the job's terms.
        schema: what a model must look like.
        code, train, features: name -> file.
        labels: the bytes of an npy file; read by this process only.
    """

    job_id: str
    terms: Job
    schema: ModelSchema
    code: Mapping[str, Path]
    train: Mapping[str, Path]
    features: Mapping[str, Path]
    labels: bytes

    def make_train_spec(self, run_id: str, seed: int, seconds: int | None = None) -> RunSpec:
        """Make the spec of a training run; `seconds` may shorten the wall limit of the terms."""
        return self._make_spec(run_id, Mode.TRAIN, seed, seconds)

    def make_predict_spec(self, run_id: str) -> RunSpec:
        """Make the spec of an evaluation, to which `evaluate` adds the model."""
        return self._make_spec(run_id, Mode.PREDICT, 0, None)

    def _make_spec(self, run_id: str, mode: Mode, seed: int, seconds: int | None) -> RunSpec:
        task, is_train = self.terms.task, mode is Mode.TRAIN
        granted = task.resources
        resources = Resources(
            cpus=granted.cpus,
            memory_mib=granted.memory_mib,
            disk_mib=granted.disk_mib,
            seconds=min(granted.seconds, seconds or granted.seconds),
            gpus=granted.gpus,
        )
        return RunSpec(
            run_id=run_id,
            job_id=self.job_id,
            mode=mode,
            image=task.image,
            command=tuple(task.train if is_train else task.predict),
            params=dict(task.params),
            resources=resources,
            seed=seed,
            job_json=make_job_json(self.job_id, self.terms, resources),
            code=self.code,
            train=self.train if is_train else {},
            features={} if is_train else self.features,
            expect=(self.schema.file_name,) if is_train else (),
        )


def make_job_json(job_id: str, terms: Job, resources: Resources) -> bytes:
    """Write the signed terms and the granted resources as the program reads them."""
    granted = {name: getattr(resources, name) for name in ("cpus", "memory_mib", "disk_mib", "seconds", "gpus")}
    return json.dumps({"id": job_id, "terms": to_json(to_plain(terms)), "resources": granted}, sort_keys=True).encode()


def to_json(value: Any) -> Any:
    """Turn plain values of the codec into JSON: links as `{"/": CID}`, keys as did:key."""
    match value:
        case Link():
            return {"/": format_cid(value)}
        case bytes():
            return format_did(Author(value)) if len(value) == 32 else value.hex()
        case list():
            return [to_json(item) for item in value]
        case dict():
            return {name: to_json(item) for name, item in value.items()}
        case _:
            return value


def make_schema(terms: Job) -> ModelSchema:
    """Return what a job's terms say a model looks like."""
    return ModelSchema.from_terms(terms.model.format, terms.model.arrays)


def use_draft(draft: JobDraft) -> Materials:
    """Take the files of a job that is only tried."""
    return Materials(
        TRY_ID, draft.terms, draft.schema, draft.code, draft.train, draft.features, draft.labels.read_bytes()
    )


async def fetch_materials(market: Market, job: OpId, terms: Job, folder: Path) -> Materials | None:
    """Fetch all files of a job into a folder; None when one can't be had now."""
    files: dict[BlobId, Path] = {}
    links = {BlobId(link) for _, link in (*terms.task.code, *terms.data.train, *terms.data.features)}
    for blob in sorted({*links, BlobId(terms.data.labels)}):
        path = folder / format_cid(blob)
        if not path.exists():
            data = await market.get_blob(blob)
            if data is None:
                return None
            write_whole(path, data)
        files[blob] = path

    def name(named: Iterable[tuple[str, Link]]) -> dict[str, Path]:
        return {name: files[BlobId(link)] for name, link in named}

    return Materials(
        job_id=format_cid(job),
        terms=terms,
        schema=make_schema(terms),
        code=name(terms.task.code),
        train=name(terms.data.train),
        features=name(terms.data.features),
        labels=files[BlobId(terms.data.labels)].read_bytes(),
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there wholly, or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data)
    partial.replace(path)
