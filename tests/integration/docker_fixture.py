"""What the docker tests share: the daemon, the trainer image, short runs that must leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import pytest_asyncio

from node.worker.sandbox.base import Mode, Progress, Resources, RunResult, RunSpec
from node.worker.sandbox.docker import DockerSandbox
from node.worker.sandbox.docker_spec import LABEL_RUN
from node.worker.sandbox.image import default_cache_dir, ensure_trainer_image


@pytest.fixture(scope="session")
def daemon() -> Any:
    """A plain client of the real daemon; without one the tests are skipped, but on a build server they fail."""
    try:
        client = docker.APIClient(version="auto", timeout=60, **docker.utils.kwargs_from_env())
        client.ping()
    except docker.errors.DockerException as error:
        if os.environ.get("CI"):
            pytest.fail(f"no docker daemon answers: {error}")
        pytest.skip("no docker daemon answers")
    yield client
    client.close()


@pytest.fixture(scope="session")
def trainer_image(daemon: Any) -> str:
    """The id of the trainer image, made once on a machine."""
    return asyncio.run(ensure_trainer_image(default_cache_dir()))


def find_leftovers(daemon: Any, run_id: str) -> list[str]:
    """Name the containers and volumes of a run that are still there."""
    wanted = {"label": f"{LABEL_RUN}={run_id}"}
    containers = [found["Id"] for found in daemon.containers(all=True, filters=wanted)]
    volumes = [found["Name"] for found in daemon.volumes(wanted)["Volumes"] or []]
    return containers + volumes


@dataclass(slots=True)
class Runner:
    """Runs one-file programs in a sandbox, each under a run id of its own."""

    sandbox: DockerSandbox
    daemon: Any
    image: str
    folder: Path

    def spec(self, code: str, mode: Mode = Mode.TRAIN, **changes: Any) -> RunSpec:
        """Describe a run of a program; fields of Resources and of RunSpec can be named."""
        run_id = uuid.uuid4().hex
        path = self.folder / f"{run_id}.py"
        path.write_text(code)
        limits: dict[str, Any] = {"memory_mib": 128, "disk_mib": 8, "seconds": 20}
        limits |= {name: changes.pop(name) for name in list(changes) if name in Resources.__slots__}
        fields: dict[str, Any] = {
            "run_id": run_id,
            "job_id": "try",
            "mode": mode,
            "image": self.image,
            "command": ("python", "/job/in/code/main.py"),
            "params": {},
            "seed": 7,
            "code": {"main.py": path},
        }
        return RunSpec(**(fields | changes), resources=Resources(**limits))

    async def run(
        self,
        code: str,
        mode: Mode = Mode.TRAIN,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: asyncio.Event | None = None,
        **changes: Any,
    ) -> RunResult:
        """Run a program, and check that nothing of it is left."""
        spec = self.spec(code, mode, **changes)
        result = await self.sandbox.run(spec, on_progress, cancel)
        assert find_leftovers(self.daemon, spec.run_id) == []
        assert result.backend == "docker"
        return result


@pytest_asyncio.fixture
async def runner(daemon: Any, trainer_image: str, tmp_path: Path) -> AsyncIterator[Runner]:
    """A sandbox on the real daemon."""
    sandbox = DockerSandbox()
    yield Runner(sandbox, daemon, trainer_image, tmp_path)
    await sandbox.close()
