"""The docker sandbox when the machine is in trouble, and what it removes of dead processes' runs: on a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.worker.sandbox.base import RunResult, Status
from node.worker.sandbox.docker import DockerSandbox, describe_process
from node.worker.sandbox.docker_spec import LABEL_RUN
from tests.integration.docker_fixture import Runner, daemon, find_leftovers, runner, trainer_image

__all__ = ["daemon", "runner", "trainer_image"]  # fixtures
pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
SLEEP = "import time; print('up', flush=True); time.sleep(60)"


# --- trouble of the machine -------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_missing_image_or_file_is_nobodys_fault(runner: Runner, tmp_path: Path) -> None:
    assert (await runner.run("", image="sha256:" + "0" * 64)).status is Status.INFRA_ERROR
    assert (await runner.run("", train={"x": tmp_path / "gone"})).status is Status.INFRA_ERROR


class Wire:
    """A socket between the sandbox and the real daemon that can be cut or frozen."""

    def __init__(self, path: Path, target: str) -> None:
        self.path, self._target = path, target
        self.frozen = False
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.frozen:
                    return
                writer.write(data)
                await writer.drain()
            writer.close()

    def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def wired(runner: Runner, path: Path) -> AsyncIterator[tuple[Wire, Runner]]:
    """A runner whose calls go through a wire; what it can't remove any more is removed by hand."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        pytest.skip("the daemon is not on a local socket")
    wire = Wire(path / "wire.sock", host.removeprefix("unix://"))
    await wire.open()
    sandbox = DockerSandbox(f"unix://{wire.path}", call_seconds=1.5)
    try:
        yield wire, Runner(sandbox, runner.daemon, runner.image, runner.folder)
    finally:
        wire.cut()
        await sandbox.close()


async def _break_off(runner: Runner, wire_runner: Runner, breaks: Any) -> tuple[RunResult, float]:
    spec = wire_runner.spec(SLEEP)
    task = asyncio.create_task(wire_runner.sandbox.run(spec))
    wanted = {"label": f"{LABEL_RUN}={spec.run_id}"}
    while not task.done() and len(await asyncio.to_thread(runner.daemon.containers, filters=wanted)) < 2:
        await asyncio.sleep(0.1)
    breaks()
    begun = time.monotonic()
    result = await task
    for container in runner.daemon.containers(all=True, filters=wanted):
        runner.daemon.remove_container(container["Id"], force=True)
    for volume in runner.daemon.volumes(wanted)["Volumes"]:
        runner.daemon.remove_volume(volume["Name"], force=True)
    return result, time.monotonic() - begun


@pytest.mark.asyncio
async def test_a_daemon_that_dies_is_nobodys_fault(runner: Runner, tmp_path: Path) -> None:
    async with wired(runner, tmp_path) as (wire, wire_runner):
        result, seconds = await _break_off(runner, wire_runner, wire.cut)
    assert result.status is Status.INFRA_ERROR and seconds < 8, result


@pytest.mark.asyncio
async def test_a_daemon_that_hangs_is_nobodys_fault(runner: Runner, tmp_path: Path) -> None:
    async with wired(runner, tmp_path) as (wire, wire_runner):
        result, seconds = await _break_off(runner, wire_runner, lambda: setattr(wire, "frozen", True))
    assert result.status is Status.INFRA_ERROR and "in time" in result.reason.lower() and seconds < 15, result


# --- leftovers --------------------------------------------------------------------------------------------------------

DYING = """
import asyncio, sys
from pathlib import Path
from node.worker.sandbox.base import Mode, Resources, RunSpec
from node.worker.sandbox.docker import DockerSandbox
async def main():
    code = {"main.py": Path(sys.argv[2])}
    await DockerSandbox().run(RunSpec(sys.argv[3], "try", Mode.TRAIN, sys.argv[1], ("python", "/job/in/code/main.py"),
                                      {}, Resources(), 0, code=code), lambda _: print("started", flush=True))
asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_a_sweep_removes_what_a_dead_process_left_and_nothing_else(runner: Runner, daemon: Any) -> None:
    code = 'import time; print(\'{"epoch": 0, "loss": 0}\', flush=True); time.sleep(4)'
    alive, dead = runner.spec(code), runner.spec(SLEEP.replace("up", '{"epoch": 0, "loss": 0}'))
    argv = [sys.executable, "-c", DYING, runner.image, str(dead.code["main.py"]), dead.run_id]
    started = asyncio.Event()
    task = asyncio.create_task(runner.sandbox.run(alive, lambda _: started.set()))
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"started\n"
        assert describe_process(process.pid) is not None
        process.send_signal(signal.SIGKILL)
    await started.wait()
    assert len(find_leftovers(daemon, dead.run_id)) == 4
    sweeper = DockerSandbox()
    assert await sweeper.sweep() >= 4
    await sweeper.close()
    assert find_leftovers(daemon, dead.run_id) == []
    assert (await task).status is Status.OK
