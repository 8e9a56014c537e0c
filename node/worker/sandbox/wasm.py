"""The sandbox that is always there: WebAssembly modules without imports, in a child process of their own.

Theory of operation. A run starts one child (wasm_child.py) with an empty environment, tells it which files to read,
and follows its messages. The program in it has linear memory and arithmetic, and nothing else: no clock, files,
network, threads or randomness but the seed it is given. Its results are the same bits on every machine.

1. Compiling has a deadline of its own; the wall limit starts when the program does. Both are enforced here by
   SIGKILL, whatever the child does.
2. No child outlives its run: not when the run is cancelled, the task is, or this process dies.
3. What the child says is checked again here: file names, sizes, and the total.

In `train` mode a program that works in steps is asked for its best model so far shortly before the wall limit; a
program that doesn't come back from a step in time has timed out. docs/reference/wasm-abi.md is the contract.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crdtchain.errors import SandboxError
from node.worker.sandbox.base import (
    Mode,
    Progress,
    RunResult,
    RunSpec,
    SandboxInfo,
    Status,
)
from node.worker.sandbox.wasm_frame import Kind

COMPILE_S = 60
"""For starting the child, compiling the module and reading the inputs."""

KILL_AFTER_S = 3
"""How long after the wall limit a child may take to say that it stopped."""

MEMORY_BYTES_MAX = 2**32
CACHE_BYTES_MAX = 2**28
STDERR_BYTES_MAX = 65536
LINE_BYTES_MAX = 2**18
ROOT = Path(__file__).parents[3]
START = (
    "import sys; root = {root!r}; root in sys.path or sys.path.insert(0, root)\n"
    "from node.worker.sandbox.wasm_child import main; main()"
)


class _ChildError(Exception):
    """The child broke its protocol, or is broken itself."""


@dataclass(slots=True, eq=False)
class _Run:
    """What is known of a run while its child lives."""

    spec: RunSpec
    child: asyncio.subprocess.Process
    started: float
    running: bool = False
    cancelled: bool = False
    timed_out: bool = False
    stderr: bytes = b""


class WasmSandbox:
    """Runs WebAssembly modules with wasmtime.

    Args:
        cache: a directory of our own for compiled modules; made if absent, readable by its owner only.
    """

    name = "wasm"

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._runs: list[_Run] = []
        self._is_closed = False
        self._version = _find_version()

    async def check(self) -> SandboxInfo:
        """Say whether wasmtime is installed."""
        if self._version is None:
            return SandboxInfo(self.name, usable=False, hint="Install the Python package `wasmtime`.")
        return SandboxInfo(self.name, usable=True, version=self._version)

    async def has_image(self, image: str) -> bool:
        """A wasm job brings its module in `code`: nothing needs fetching."""
        return True

    async def run(
        self,
        spec: RunSpec,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: asyncio.Event | None = None,
    ) -> RunResult:
        """Run the module named by `spec.image` to its end within its limits.

        Raises:
            SandboxError: wasmtime is not installed, or this sandbox was closed.
        """
        if self._is_closed:
            raise SandboxError("this sandbox was closed: make another one")
        if self._version is None:
            raise SandboxError("no WebAssembly engine is installed: install the Python package `wasmtime`")
        started = time.monotonic()
        refusal = find_refusal(spec)
        if refusal is not None:
            result = RunResult(*refusal)
        elif cancel is not None and cancel.is_set():
            result = RunResult(Status.CANCELLED, "The run was cancelled before it started.")
        else:
            result = await self._run_child(spec, started, on_progress, cancel)
        wall_ms = int((time.monotonic() - started) * 1000)
        return replace(result, backend=self.name, version=self._version, wall_ms=wall_ms)

    async def sweep(self) -> int:
        """Remove what the cache need not keep; processes never outlive their run."""
        return await asyncio.to_thread(self._sweep_cache)

    def _sweep_cache(self) -> int:
        """Remove what is half-written and old, and the compiled modules used longest ago beyond the cache's size."""
        count, total = 0, 0
        found = []
        for path in self._cache.iterdir() if self._cache.exists() else ():
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        for used, size, path in sorted(found, reverse=True):
            total += size
            if total > CACHE_BYTES_MAX or (path.suffix == ".part" and time.time() - used > COMPILE_S):
                with contextlib.suppress(OSError):
                    path.unlink()
                    count += 1
        return count

    async def close(self) -> None:
        """Cancel every run that is still going; later ones are refused."""
        self._is_closed = True
        for run in list(self._runs):
            _cancel(run)
            await run.child.wait()

    async def _run_child(
        self,
        spec: RunSpec,
        started: float,
        on_progress: Callable[[Progress], None] | None,
        cancel: asyncio.Event | None,
    ) -> RunResult:
        try:
            request = (json.dumps(make_request(spec, self._cache)) + "\n").encode()
            child = await self._start_child()
        except OSError as error:
            return RunResult(Status.INFRA_ERROR, f"The sandbox's process could not be started: {error}.")
        run = _Run(spec, child, started)
        self._runs.append(run)
        if self._is_closed:  # while the child was started
            _cancel(run)
        helpers = [asyncio.create_task(_collect_stderr(run))]
        if cancel is not None:
            helpers.append(asyncio.create_task(_kill_on(cancel, run)))
        try:
            result = await self._follow(run, request, on_progress)
            return replace(result, log_bytes=len(result.log_tail.encode()))
        finally:
            for helper in helpers:
                helper.cancel()
            _kill(child)
            self._runs.remove(run)
            await asyncio.shield(child.wait())

    async def _start_child(self) -> asyncio.subprocess.Process:
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self._sweep_cache)
        # -I: neither variables nor the current folder decide what is imported.
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", START.format(root=str(ROOT)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={}, cwd=self._cache, start_new_session=True, limit=LINE_BYTES_MAX,
        )  # fmt: skip

    async def _follow(self, run: _Run, request: bytes, on_progress: Callable[[Progress], None] | None) -> RunResult:
        """Talk to the child until it gave its result, died, or ran out of time."""
        assert run.child.stdin is not None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(COMPILE_S) as clock:
                run.child.stdin.write(request)
                with contextlib.suppress(ConnectionError):  # it died: reading tells how
                    await run.child.stdin.drain()
                while (message := await _read_message(run.child)) is not None:
                    match message["type"]:
                        case "running":
                            run.running = True
                            clock.reschedule(loop.time() + run.spec.resources.seconds + KILL_AFTER_S)
                        case "progress":
                            if on_progress is not None and not run.cancelled:
                                on_progress(Progress(int(message["epoch"]), float(message["loss"])))
                        case "result":
                            return await _read_result(run, message)
                        case _:
                            raise _ChildError(str(message.get("text", "an unknown message")))
        except TimeoutError:
            run.timed_out = True
        except (_ChildError, KeyError, TypeError, ValueError, asyncio.IncompleteReadError) as error:
            if not run.cancelled:
                return RunResult(Status.INFRA_ERROR, "The sandbox's process broke down.", log_tail=str(error)[-4096:])
        _kill(run.child)
        await run.child.wait()
        return explain_death(run)


def _find_version() -> str | None:
    try:
        return importlib.metadata.version("wasmtime")
    except importlib.metadata.PackageNotFoundError:
        return None


def find_refusal(spec: RunSpec) -> tuple[Status, str] | None:
    """Why a run can't start, if it can't."""
    if spec.resources.gpus > 0:
        return Status.POLICY_REFUSED, "A WebAssembly program can't use a GPU."
    if spec.image not in spec.code:
        return Status.JOB_ERROR, f"The module {spec.image!r} is not among the job's code files."
    for name, value in spec.params.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return Status.JOB_ERROR, f"The parameter {name} doesn't fit in 64 bits."
    return None


def make_request(spec: RunSpec, cache: Path) -> dict[str, Any]:
    """What the child must know: where the inputs lie, the limits, and which outputs to keep."""
    entries: list[tuple[int, str, str | int]] = [(Kind.TEXT, "mode", spec.mode.value), (Kind.INT, "seed", spec.seed)]
    for name, value in spec.params.items():
        kind = Kind.TEXT if isinstance(value, str) else Kind.BOOL if isinstance(value, bool) else Kind.INT
        entries.append((kind, f"params/{name}", value))
    folders = {"code": spec.code, "data/train": spec.train, "data/test": spec.features, "model": spec.model}
    for folder, files in folders.items():
        for name, path in files.items():
            if (folder, name) != ("code", spec.image):
                entries.append((Kind.FILE, f"{folder}/{name}", str(path.absolute())))
    is_train = spec.mode is Mode.TRAIN
    return {
        "mode": spec.mode.value,
        "module": str(spec.code[spec.image].absolute()),
        "cache": str(cache.absolute()),
        "version": _find_version(),
        "entries": sorted(entries, key=lambda entry: entry[1].encode()),
        "memory_bytes": min(spec.resources.memory_mib * 2**20, MEMORY_BYTES_MAX),
        "output_bytes": spec.resources.disk_mib * 2**20,
        "seconds": spec.resources.seconds,
        "grace_s": min(5.0, spec.resources.seconds / 10),
        "required": [f"model/{name}" for name in spec.expect] if is_train else ["predictions.npy"],
        "optional": ["metrics.json"],
    }


async def _read_message(child: asyncio.subprocess.Process) -> dict[str, Any] | None:
    """The child's next message; None at its end."""
    assert child.stdout is not None
    line = await child.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    if not isinstance(message, dict):
        raise _ChildError("a message is no object")
    return message


async def _read_result(run: _Run, message: dict[str, Any]) -> RunResult:
    assert run.child.stdout is not None
    request = make_request(run.spec, Path())
    allowed = {*request["required"], *request["optional"]}
    sizes = {str(name): int(size) for name, size in message["files"]}
    total = sum(sizes.values())
    if not sizes.keys() <= allowed or total > request["output_bytes"] or min(sizes.values(), default=0) < 0:
        raise _ChildError("it offers files that nobody asked for")
    files = {name: await run.child.stdout.readexactly(size) for name, size in sizes.items()}
    return RunResult(
        Status(message["status"]),
        str(message["reason"]),
        exit_code=message["code"],
        cpu_ms=int(message["cpu_ms"]),
        peak_memory_bytes=int(message["peak"]),
        out_bytes=total,
        log_tail=str(message["log"]),
        files=files,
    )


def explain_death(run: _Run) -> RunResult:
    """Say what a child's end without a result means, and whose fault it is."""
    code = run.child.returncode
    number = -code if code is not None and code < 0 else None
    if run.cancelled:
        return RunResult(Status.CANCELLED, "The run was cancelled.", signal=number)
    if run.timed_out and run.running:
        return RunResult(Status.TIMEOUT, "The program was still running at its wall limit.", signal=number)
    if run.timed_out:
        return RunResult(Status.JOB_ERROR, f"The module took more than {COMPILE_S} s to compile.", signal=number)
    tail = run.stderr.decode(errors="replace")[-4096:]
    if number is None or number in (signal.SIGKILL, signal.SIGTERM):
        return RunResult(
            Status.INFRA_ERROR, "The sandbox's process was ended from outside.", code, number, log_tail=tail
        )
    if number == signal.SIGABRT and not run.running:
        return RunResult(Status.JOB_ERROR, "The module needs too much memory to compile.", signal=number, log_tail=tail)
    if number == getattr(signal, "SIGXCPU", None):
        return RunResult(Status.TIMEOUT, "The program used up its CPU time.", signal=number)
    return RunResult(Status.CRASHED, f"The sandbox's process died of signal {number}.", signal=number, log_tail=tail)


def _kill(child: asyncio.subprocess.Process) -> None:
    # Not child.kill(): Popen polls first, and so may take the exit status away from asyncio's own watcher.
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)


def _cancel(run: _Run) -> None:
    run.cancelled = True
    _kill(run.child)


async def _kill_on(cancel: asyncio.Event, run: _Run) -> None:
    await cancel.wait()
    _cancel(run)


async def _collect_stderr(run: _Run) -> None:
    """Keep the end of what the child writes on standard error, and never let it block there."""
    assert run.child.stderr is not None
    while chunk := await run.child.stderr.read(STDERR_BYTES_MAX):
        run.stderr = (run.stderr + chunk)[-STDERR_BYTES_MAX:]
