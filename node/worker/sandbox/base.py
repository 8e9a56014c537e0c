"""The contract between the worker and every sandbox: one spec in, one result out.

A sandbox runs a job's program in one of two modes. `train` sees code and training data and
writes a model; `predict` sees code, one model and test features, never labels, and writes
predictions. Everything about a run is in its `RunSpec`; everything that came of it is in its
`RunResult`. A backend never raises for what the program did; it raises `SandboxError` only when
it cannot be used at all.

Invariants:

1. A run ends by itself: every state of it has an owner and a deadline.
2. Nothing of the host (environment, files, network) reaches the program, unless the spec names it.
3. Trouble of the machine is `INFRA_ERROR`, and is blamed on nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Mode(StrEnum):
    """What a job's program is asked to do."""

    TRAIN = "train"
    PREDICT = "predict"


class Status(StrEnum):
    """How a run ended."""

    OK = "ok"
    BAD_OUTPUT = "bad_output"
    JOB_ERROR = "job_error"
    TIMEOUT = "timeout"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    LOG_LIMIT = "log_limit"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    POLICY_REFUSED = "policy_refused"
    INFRA_ERROR = "infra_error"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use. Units are in the names; `cpus` are whole cores."""

    cpus: int = 1
    memory_mib: int = 512
    disk_mib: int = 64
    seconds: int = 300
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a job's program.

    Attributes:
        run_id: unique on this machine; used as a label, so that leftovers can be found.
        job_id: the job's CID as text, or "try" before it is posted.
        mode: what the program is asked to do.
        image: docker: an image id `sha256:…` or `repo@sha256:…`; wasm: the name of the module in `code`.
        command: argv in the container; empty for wasm.
        params: the job's typed hyperparameters.
        resources: the hard limits.
        seed: given to the program as JOB_SEED, 0 … 2^31 - 1.
        job_json: the bytes of `/job/in/job.json`.
        code, train, features: file name -> file on the host, copied to `code/`, `data/train/`, `data/test/`.
        model: for predict, file name -> file on the host, copied to `model/`.
        expect: names that the harvest takes from `/job/out/model/` in train mode (exact names).
    """

    run_id: str
    job_id: str
    mode: Mode
    image: str
    command: tuple[str, ...]
    params: Mapping[str, str | int | bool]
    resources: Resources
    seed: int
    job_json: bytes = b"{}"
    code: Mapping[str, Path] = field(default_factory=dict)
    train: Mapping[str, Path] = field(default_factory=dict)
    features: Mapping[str, Path] = field(default_factory=dict)
    model: Mapping[str, Path] = field(default_factory=dict)
    expect: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """One JSON line of the program's stdout: an epoch and an advisory loss."""

    epoch: int
    loss: float
    fields: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What came of a run.

    `files` maps paths below `/job/out` (`model/NAME`, `predictions.npy`, `metrics.json`) to bytes; it is
    empty unless the status is `OK` (a train run that was stopped by SIGTERM at its wall limit and then
    exited 0 counts as OK). `reason` is one sentence for people.
    """

    status: Status
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    wall_ms: int = 0
    cpu_ms: int = 0
    peak_memory_bytes: int = 0
    out_bytes: int = 0
    log_bytes: int = 0
    log_tail: str = ""
    backend: str = ""
    version: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """Whether a backend can run here, its version, and, if not, what to install."""

    backend: str
    usable: bool
    version: str = ""
    hint: str = ""


class Sandbox(Protocol):
    """One way of running strangers' code."""

    name: str

    async def check(self) -> SandboxInfo:
        """Say whether this backend can run here, without raising."""
        ...

    async def has_image(self, image: str) -> bool:
        """Whether a run with this image could start without fetching anything."""
        ...

    async def run(
        self,
        spec: RunSpec,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: asyncio.Event | None = None,
    ) -> RunResult:
        """Run the program to its end within its limits.

        Raises:
            SandboxError: the backend can't be used at all.
        """
        ...

    async def sweep(self) -> int:
        """Remove what earlier runs left behind; returns how many things."""
        ...

    async def close(self) -> None:
        """Release what the backend holds."""
        ...
