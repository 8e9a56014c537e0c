"""One run in docker, from its volumes to its removal.

The order of things: two tmpfs volumes; a holder that keeps them mounted; the input is copied in; the program's
container is made, attached to and started; it ends, or is ended; its output is read; everything is removed.

Invariants:

1. Names are fixed before anything is made, so that removal finds even what a lost answer left behind.
2. Who stops a program is written down before it is stopped: the first reason counts.
3. A `DaemonError` anywhere makes the run INFRA_ERROR.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node.worker.sandbox import docker_spec as shape
from node.worker.sandbox.base import Mode, Progress, RunResult, RunSpec, Status
from node.worker.sandbox.docker_api import Daemon, DaemonError
from node.worker.sandbox.docker_logs import LogReader
from node.worker.sandbox.harvest import (
    ENTRIES_MAX,
    MIB,
    Harvest,
    HarvestError,
    TornStreamError,
    allowed_names,
    harvest,
    missing_names,
)

_log = logging.getLogger(__name__)

GRACE_SECONDS_MAX = 5.0
KILL_WAIT_SECONDS = 20.0
DRAIN_SECONDS = 5.0
COPY_BYTES_PER_SECOND_MIN = 4 * MIB
TRY_AGAIN = 75
_SIGKILL, _SIGTERM, _SIGXFSZ = 9, 15, 25
_METER_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program's container ended."""

    code: int
    oom: bool
    stopped: Status | None

    @property
    def signal(self) -> int | None:
        """The signal that ended the program; its init reports it as 128 + number."""
        number = self.code - 128
        return number if 0 < number <= 64 else None


class DockerRun:
    """A run's state and steps. `execute` is called once; `remove` always."""

    def __init__(
        self,
        daemon: Daemon,
        spec: RunSpec,
        image: shape.ImageFacts,
        labels: Mapping[str, str],
        runtime: str | None,
    ) -> None:
        token = secrets.token_hex(8)
        self.names = shape.Names(
            *(f"{shape.NAME_PREFIX}-{token}-{part}" for part in ("program", "holder", "in", "out"))
        )
        self._daemon, self._spec, self._image = daemon, spec, image
        self._labels, self._runtime = dict(labels), runtime
        self._reader = LogReader()
        self._stopped: Status | None = None
        self.began = False
        self._wall_ms = self._cpu_ms = self._peak_bytes = self._out_bytes = 0

    async def execute(
        self, holder_image: str, on_progress: Callable[[Progress], None] | None, cancel: asyncio.Event | None
    ) -> RunResult:
        """Run the program to its end.

        Raises:
            DaemonError: trouble of the machine.
        """
        await self._prepare(holder_image)
        if cancel is not None and cancel.is_set():
            return self._result(Status.CANCELLED, "The run was cancelled before it began.", None)
        ended = await self._run_program(on_progress, cancel)
        return await self._conclude(ended)

    # --- before -------------------------------------------------------------------------------------------------------

    async def _prepare(self, holder_image: str) -> None:
        """Make volumes, holder and program, and copy the input in."""
        spec, names = self._spec, self.names
        try:
            options_in = await self._daemon.in_thread(lambda: shape.volume_in_options(spec))
        except OSError as error:
            raise DaemonError(f"A file of the job can't be read: {error}") from error
        await asyncio.gather(
            self._create_volume(names.volume_in, options_in),
            self._create_volume(names.volume_out, shape.volume_out_options(spec)),
        )
        holder = shape.build_container(shape.HOLDER_UID, ["/hold"], ["PATH", "HOSTNAME"], self._labels)
        await self._create(names.holder, holder_image, holder, shape.build_holder_host_config(names))
        await asyncio.gather(self._fill(), self._create_program())

    async def _fill(self) -> None:
        """Start the holder and copy the input in: volumes are tmpfs, so they last only while mounted."""
        names = self.names
        await self._daemon.call("start", names.holder)
        total = sum(path.stat().st_size for _, path in shape.list_inputs(self._spec))
        seconds = self._daemon.call_seconds + total / COPY_BYTES_PER_SECOND_MIN
        await asyncio.gather(
            self._daemon.call("put_archive", names.holder, "/job/in", shape.stream_input(self._spec), seconds=seconds),
            self._daemon.call("put_archive", names.holder, "/job/out", shape.output_skeleton()),
        )

    async def _create_program(self) -> None:
        env = shape.build_environment(self._spec, self._image)
        program = shape.build_container(shape.JOB_UID, list(self._spec.command), env, self._labels)
        host_config = shape.build_host_config(self._spec, self._image, self.names, self._runtime)
        await self._create(self.names.program, self._image.id, program, host_config)

    async def _create_volume(self, name: str, options: str) -> None:
        driver_opts = {"type": "tmpfs", "device": "tmpfs", "o": options}
        await self._daemon.call("create_volume", name, "local", driver_opts, self._labels)

    async def _create(self, name: str, image: str, container: dict[str, object], host_config: object) -> None:
        # The plain config, not create_container: that one adds the operator's proxies from ~/.docker/config.json.
        config = container | {"Image": image, "HostConfig": host_config}
        await self._daemon.call("create_container_from_config", config, name)

    # --- while it runs ------------------------------------------------------------------------------------------------

    async def _run_program(self, on_progress: Callable[[Progress], None] | None, cancel: asyncio.Event | None) -> Exit:
        """Start the program, watch it to its end, and stop it where it breaks a limit."""
        stream = await self._attach()
        logs = asyncio.ensure_future(self._daemon.in_thread(self._log_pump(stream, on_progress), 1e9))
        tasks: list[asyncio.Future[Any]] = [logs]
        try:
            await self._daemon.call("start", self.names.program)
            begun = time.monotonic()
            self.began = True
            waiter = asyncio.create_task(self._wait())
            tasks += [waiter, asyncio.create_task(self._meter())]
            cancelled = asyncio.create_task(cancel.wait()) if cancel is not None else None
            tasks += [cancelled] if cancelled is not None else []
            code = await self._watch(begun, waiter, logs, cancelled)
            self._wall_ms = int((time.monotonic() - begun) * 1000)
            with contextlib.suppress(TimeoutError, DaemonError):
                await asyncio.wait_for(asyncio.shield(logs), DRAIN_SECONDS)
            if self._reader.over:
                self._stopped = self._stopped or Status.LOG_LIMIT
            return Exit(code, await self._find_oom(code), self._stopped)
        finally:
            sock = _find_socket(stream)
            _shut(sock)
            await asyncio.wait({logs}, timeout=1.0)  # the reader must be gone before its socket is
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            stream.close()
            sock.close()

    async def _watch(
        self,
        begun: float,
        waiter: asyncio.Task[int],
        logs: asyncio.Future[None],
        cancelled: asyncio.Task[Any] | None,
    ) -> int:
        """Return the exit code; ask the program to stop shortly before its limit, and end it at its limit."""
        limit = float(self._spec.resources.seconds)
        kill_at = begun + limit
        term_at = kill_at - min(GRACE_SECONDS_MAX, limit / 10)
        asked = False
        while True:
            now = time.monotonic()
            watched = {
                task for task in (waiter, logs, cancelled) if task is not None and (task is waiter or not task.done())
            }
            await asyncio.wait(watched, timeout=(kill_at if asked else term_at) - now, return_when="FIRST_COMPLETED")
            now = time.monotonic()
            if waiter.done():
                return waiter.result()
            if self._reader.over:
                return await self._kill(Status.LOG_LIMIT, waiter)
            if cancelled is not None and cancelled.done():
                return await self._kill(Status.CANCELLED, waiter)
            if now >= kill_at:
                return await self._kill(Status.TIMEOUT, waiter)
            if now >= term_at and not asked:
                asked, self._stopped = True, Status.TIMEOUT
                await self._signal("SIGTERM")

    async def _kill(self, reason: Status, waiter: asyncio.Task[int]) -> int:
        """End the program now; if it can't be ended, the machine is at fault."""
        self._stopped = self._stopped or reason
        await self._signal("SIGKILL")
        await asyncio.wait({waiter}, timeout=KILL_WAIT_SECONDS)
        if not waiter.done():
            raise DaemonError("The program could not be killed.")
        return waiter.result()

    async def _signal(self, name: str) -> None:
        try:
            await self._daemon.call("kill", self.names.program, name)
        except DaemonError as error:
            if error.code not in (404, 409):  # it ended by itself meanwhile
                raise

    async def _attach(self) -> Any:
        """Attach before the start, so that not a byte is missed."""
        params = {"stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
        stream = await self._daemon.call("attach_socket", self.names.program, params)
        _find_socket(stream).settimeout(None)
        return stream

    def _log_pump(self, stream: Any, on_progress: Callable[[Progress], None] | None) -> Callable[[], None]:
        """Return the blocking work that reads all output, up to the cap."""
        loop = asyncio.get_running_loop()
        read: Callable[[int], bytes] = getattr(stream, "recv", None) or stream.read

        def pump() -> None:
            while not self._reader.over:
                data = read(64 * 1024)
                if not data:
                    return
                for progress in self._reader.feed(data):
                    if on_progress is not None:
                        loop.call_soon_threadsafe(on_progress, progress)
            # A reader that stays but reads no more would keep the daemon from ending the container.
            _shut(_find_socket(stream))

        return pump

    async def _wait(self) -> int:
        """Return the program's exit code. The daemon is asked anew from time to time, so that a hung one is noticed."""
        while True:
            try:
                answer = await self._daemon.call("wait", self.names.program, seconds=2 * self._daemon.call_seconds)
                return int(answer["StatusCode"])
            except DaemonError as error:
                if error.code is not None:
                    raise
            state = (await self._daemon.call("inspect_container", self.names.program))["State"]
            if not state["Running"]:
                return int(state["ExitCode"])
            await asyncio.sleep(0.2)

    async def _find_oom(self, code: int) -> bool:
        """Whether the memory limit ended the program. The daemon hears of it some moments after the exit."""
        for delay in (0.0, 0.05, 0.15, 0.3):
            await asyncio.sleep(delay)
            state = (await self._daemon.call("inspect_container", self.names.program))["State"]
            if state["OOMKilled"] or code != 128 + _SIGKILL or self._stopped is not None:
                return bool(state["OOMKilled"])
        return False

    async def _meter(self) -> None:
        """Sample CPU time and memory: docker keeps neither after the end, so short bursts can be missed."""
        delays = iter(_METER_SECONDS)
        delay = next(delays)
        while True:
            await asyncio.sleep(delay)
            delay = next(delays, delay)
            try:
                sample = await self._daemon.call("stats", self.names.program, stream=False, one_shot=True)
            except DaemonError:
                return
            memory = sample.get("memory_stats", {})
            cpu_ns = sample.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)
            self._peak_bytes = max(self._peak_bytes, memory.get("max_usage", 0), memory.get("usage", 0))
            self._cpu_ms = max(self._cpu_ms, cpu_ns // 1_000_000)

    # --- after --------------------------------------------------------------------------------------------------------

    async def _conclude(self, ended: Exit) -> RunResult:
        """Judge how the program ended and read what it left."""
        match ended.stopped:
            case Status.LOG_LIMIT:
                return self._result(Status.LOG_LIMIT, "The program printed more than 1 MiB.", ended)
            case Status.CANCELLED:
                return self._result(Status.CANCELLED, "The run was cancelled.", ended)
        if ended.code == 0 and (ended.stopped is None or self._spec.mode is Mode.TRAIN):
            return await self._deliver(ended)
        if ended.stopped is Status.TIMEOUT:
            seconds = self._spec.resources.seconds
            return self._result(Status.TIMEOUT, f"The program did not finish within {seconds} seconds.", ended)
        if ended.oom:
            memory_mib = self._spec.resources.memory_mib
            return self._result(Status.OOM, f"The program needed more than {memory_mib} MiB of memory.", ended)
        return await self._explain_failure(ended)

    async def _deliver(self, ended: Exit) -> RunResult:
        """Read the output of a program that says it is done."""
        try:
            found = await self._harvest()
        except HarvestError as error:
            return self._result(error.status, f"Refused: {error.reason}.", ended)
        missing = missing_names(self._spec, found)
        if missing:
            return self._result(Status.BAD_OUTPUT, f"The program did not write {missing[0]}.", ended)
        found.files.pop("failure", None)
        return self._result(Status.OK, "", ended, found.files)

    async def _explain_failure(self, ended: Exit) -> RunResult:
        """Tell a full disk, a crash, and the program's own failure apart, in its own words where it has some."""
        if ended.signal in (_SIGKILL, _SIGTERM) and not await self._daemon.is_alive():
            raise DaemonError("The docker daemon went away, and the program with it.")
        found = Harvest()
        full = ended.signal == _SIGXFSZ
        try:
            found = await self._harvest()
            full = full or self._is_full(found)
        except HarvestError as error:
            full = full or error.status is Status.OUTPUT_LIMIT
        if full:
            disk_mib = self._spec.resources.disk_mib
            return self._result(Status.OUTPUT_LIMIT, f"The program filled its {disk_mib} MiB of disk.", ended)
        if ended.signal is not None:
            return self._result(Status.CRASHED, f"The program was ended by signal {ended.signal}.", ended)
        said = _printable(found.files.get("failure", b""))
        if ended.code == TRY_AGAIN:
            return self._result(Status.JOB_ERROR, said or "The program asks to be tried again.", ended)
        return self._result(Status.JOB_ERROR, said or f"The program failed with exit code {ended.code}.", ended)

    def _is_full(self, found: Harvest) -> bool:
        quota = self._spec.resources.disk_mib * MIB
        return found.total_bytes >= quota - quota // 64 or found.entries >= ENTRIES_MAX - 8

    async def _harvest(self) -> Harvest:
        """Read /job/out through the holder; the program's container has ended, so nothing changes it any more."""
        spec = self._spec
        total_max = spec.resources.disk_mib * MIB
        seconds = self._daemon.call_seconds + total_max / COPY_BYTES_PER_SECOND_MIN
        chunks, _ = await self._daemon.call("get_archive", self.names.holder, "/job/out", MIB)
        try:
            found = await self._daemon.in_thread(lambda: harvest(chunks, allowed_names(spec), total_max), seconds)
        except TornStreamError as error:
            raise DaemonError(f"Reading the output failed: {error}") from error
        finally:
            chunks.close()
        self._out_bytes = found.total_bytes
        return found

    def _result(
        self, status: Status, reason: str, ended: Exit | None, files: Mapping[str, bytes] | None = None
    ) -> RunResult:
        return RunResult(
            status=status,
            reason=reason,
            exit_code=None if ended is None else ended.code,
            signal=None if ended is None else ended.signal,
            files=files or {},
            **self.figures(),
        )

    def figures(self) -> dict[str, Any]:
        """What was measured so far, as fields of a RunResult."""
        return {
            "wall_ms": self._wall_ms,
            "cpu_ms": self._cpu_ms,
            "peak_memory_bytes": self._peak_bytes,
            "out_bytes": self._out_bytes,
            "log_bytes": self._reader.log_bytes,
            "log_tail": self._reader.tail,
        }

    async def remove(self) -> None:
        """Remove everything of this run, whether or not it was made. What can't be removed is left to the sweep."""
        names = self.names
        steps = [
            ("remove_container", (names.program, names.holder), {"v": True, "force": True}),
            ("remove_volume", (names.volume_in, names.volume_out), {"force": True}),
        ]
        for method, targets, options in steps:
            calls = [self._daemon.call(method, name, **options) for name in targets]
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(outcome, BaseException) and getattr(outcome, "code", None) != 404:
                    _log.warning("something of run %s was not removed: %s", self._spec.run_id, outcome)


def _find_socket(stream: Any) -> Any:
    """The socket under an attached stream: the stream itself where the daemon is reached over TLS."""
    return getattr(stream, "_sock", stream)


def _shut(sock: Any) -> None:
    """Tell the daemon that nobody listens any more, which also wakes the thread that reads."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _printable(data: bytes) -> str:
    """A program's own words as one line for people."""
    text = data.decode("utf-8", "replace")
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:500]
