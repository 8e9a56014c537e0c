"""Strangers' training code in docker containers.

What is set and what each setting stops is in docker_spec.py; the course of a run is in docker_run.py; this file is the
backend itself: whether there is a daemon, which images it has, and what earlier runs left behind.

Leftovers are found by labels. Each thing carries the process that made it and the moment by which its run must be
over; it is swept when that process is gone or that moment has passed, so several nodes can share one daemon.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from crdtchain.errors import SandboxError
from node.worker.sandbox import docker_spec as shape
from node.worker.sandbox.base import Progress, RunResult, RunSpec, SandboxInfo, Status
from node.worker.sandbox.docker_api import CALL_SECONDS, Daemon, DaemonError
from node.worker.sandbox.docker_archive import ensure_holder_image
from node.worker.sandbox.docker_run import DockerRun

INSTALL_HINT = "Install Docker Engine 20.10 or newer, start it, and let this user reach it (group docker)."
EXPIRY_MARGIN_SECONDS = 900
START_ATTEMPTS = 2
API_MIN = (1, 41)


class DockerSandbox:
    """The docker backend.

    Args:
        base_url: the daemon, e.g. `unix:///var/run/docker.sock`; without it DOCKER_HOST and its like decide.
        runtime: an OCI runtime's name; "auto" takes gVisor (`runsc`) where the daemon offers it.
        gpus_allowed: how many GPUs the policy here grants a run at most.
        call_seconds: the deadline of each short call to the daemon.
    """

    name = "docker"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        runtime: str = "auto",
        gpus_allowed: int = 0,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._daemon = Daemon(base_url, call_seconds)
        self._runtime_wanted = runtime
        self._gpus_allowed = gpus_allowed
        self._host: dict[str, Any] | None = None
        self._holder_image: str | None = None
        self._holder_lock = asyncio.Lock()

    async def check(self) -> SandboxInfo:
        """Say whether docker can run jobs here, without raising."""
        try:
            version = await self._daemon.call("version")
            host = await self._daemon.call("info")
        except (DaemonError, SandboxError) as error:
            return SandboxInfo(self.name, usable=False, hint=f"{error} {INSTALL_HINT}")
        text = str(version.get("Version", "unknown"))
        if tuple(int(part) for part in str(version.get("ApiVersion", "0.0")).split(".")) < API_MIN:
            return SandboxInfo(self.name, usable=False, version=text, hint=INSTALL_HINT)
        if host.get("OSType") != "linux":
            return SandboxInfo(self.name, usable=False, version=text, hint="Switch docker to Linux containers.")
        if not any("name=seccomp" in option for option in host.get("SecurityOptions") or []):
            return SandboxInfo(self.name, usable=False, version=text, hint="This docker has no seccomp: update it.")
        missing = [name for name in ("MemoryLimit", "PidsLimit", "CpuCfsQuota") if host.get(name) is False]
        if missing:
            hint = f"This kernel can't limit {', '.join(missing)}: turn on its memory, pids and cpu cgroups."
            return SandboxInfo(self.name, usable=False, version=text, hint=hint)
        return SandboxInfo(self.name, usable=True, version=text)

    async def has_image(self, image: str) -> bool:
        """Whether the daemon has this image. False for a tag, whatever the daemon has: a tag can be moved."""
        if not shape.is_pinned(image):
            return False
        try:
            return await self._find_image(image) is not None
        except DaemonError:
            return False

    async def run(
        self,
        spec: RunSpec,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: asyncio.Event | None = None,
    ) -> RunResult:
        """Run the program to its end within its limits.

        Raises:
            SandboxError: the docker package is missing, or the daemon's architecture is unknown.
        """
        try:
            result = await self._run(spec, on_progress, cancel)
        except DaemonError as error:
            result = RunResult(Status.INFRA_ERROR, f"Docker: {error}")
        return replace(result, backend=self.name, version=self._version())

    async def _run(
        self, spec: RunSpec, on_progress: Callable[[Progress], None] | None, cancel: asyncio.Event | None
    ) -> RunResult:
        if not shape.is_pinned(spec.image):
            return RunResult(Status.POLICY_REFUSED, f"The image {spec.image[:80]!r} is not pinned by a sha256.")
        host = await self._describe_host()
        image = await self._find_image(spec.image)
        if image is None:
            return RunResult(Status.INFRA_ERROR, f"The image {spec.image} is not on this machine.")
        refusal = shape.find_refusal(spec, image, host, self._gpus_allowed)
        if refusal is not None:
            return RunResult(Status.POLICY_REFUSED, refusal)
        holder_image = await self._get_holder_image(str(host.get("Architecture", "")))
        for attempts_left in reversed(range(START_ATTEMPTS)):
            run = DockerRun(self._daemon, spec, image, self._labels(spec), self._choose_runtime(host))
            try:
                return await run.execute(holder_image, on_progress, cancel)
            except DaemonError as error:
                # Under load runc now and then fails to start a good container: make another one.
                if attempts_left and error.code == 500 and not run.began:
                    continue
                return RunResult(Status.INFRA_ERROR, f"Docker: {error}", **run.figures())
            finally:
                # Shielded: a caller that gives up on the run must not leave its containers behind.
                await _finish(run.remove())
        raise AssertionError("the last attempt returns")

    async def sweep(self) -> int:
        """Remove what runs of dead processes, or runs long over, left behind; returns how many things.

        Raises:
            SandboxError: the daemon does not answer.
        """
        try:
            return await self._sweep()
        except DaemonError as error:
            raise SandboxError(f"Docker could not be cleaned up: {error}") from error

    async def _sweep(self) -> int:
        removed = 0
        wanted = {"label": [shape.LABEL]}
        for container in await self._daemon.call("containers", all=True, filters=wanted):
            names = container.get("Names") or []
            ours = any(name.startswith(f"/{shape.NAME_PREFIX}-") for name in names)  # an image's labels are inherited
            if ours and _is_leftover(container.get("Labels") or {}):
                removed += await self._remove("remove_container", container["Id"], v=True, force=True)
        for volume in (await self._daemon.call("volumes", wanted)).get("Volumes") or []:
            if _is_leftover(volume.get("Labels") or {}):
                removed += await self._remove("remove_volume", volume["Name"], force=True)
        return removed

    async def _remove(self, method: str, target: str, **options: bool) -> int:
        try:
            await self._daemon.call(method, target, **options)
        except DaemonError as error:
            if error.code in (404, 409):  # somebody else was faster, or is just about it
                return 0
            raise
        return 1

    async def close(self) -> None:
        """Close the connections to the daemon."""
        await self._daemon.close()

    def _version(self) -> str:
        return str((self._host or {}).get("ServerVersion", ""))

    async def _describe_host(self) -> dict[str, Any]:
        if self._host is None:
            self._host = dict(await self._daemon.call("info"))
        return self._host

    async def _find_image(self, image: str) -> shape.ImageFacts | None:
        try:
            found = await self._daemon.call("inspect_image", image)
        except DaemonError as error:
            if error.code in (400, 404):
                return None
            raise
        # The daemon may know a repository by a shorter name, so only the digests are compared.
        digest = image.rpartition("@")[2]
        repo_digests = {name.rpartition("@")[2] for name in found.get("RepoDigests") or []}
        known = {found["Id"]} if shape.is_image_id(image) else repo_digests
        return shape.read_image_facts(found) if digest in known else None

    async def _get_holder_image(self, machine: str) -> str:
        async with self._holder_lock:
            if self._holder_image is None or await self._find_image(self._holder_image) is None:
                self._holder_image = await ensure_holder_image(self._daemon, machine)
            return self._holder_image

    def _choose_runtime(self, host: dict[str, Any]) -> str | None:
        if self._runtime_wanted != "auto":
            return self._runtime_wanted
        return "runsc" if "runsc" in (host.get("Runtimes") or {}) else None

    def _labels(self, spec: RunSpec) -> dict[str, str]:
        expires = int(time.time()) + spec.resources.seconds + EXPIRY_MARGIN_SECONDS
        return {
            shape.LABEL: "1",
            shape.LABEL_RUN: spec.run_id,
            shape.LABEL_OWNER: describe_process(os.getpid()) or "unknown",
            shape.LABEL_EXPIRES: str(expires),
        }


async def _finish(work: Any) -> None:
    """Do all of the work, even when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def describe_process(pid: int) -> str | None:
    """Name a process for ever: boot, pid namespace, pid, start time. None where it is gone or can't be named."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return f"{boot} {namespace} {pid} {started}"


def _is_leftover(labels: dict[str, str]) -> bool:
    """Whether the run that made a thing is over: its time has passed, or its process, one of this machine, is gone."""
    expires = labels.get(shape.LABEL_EXPIRES, "")
    if not expires.isdecimal() or int(expires) < time.time():
        return True
    owner, mine = labels.get(shape.LABEL_OWNER, ""), describe_process(os.getpid())
    if mine is None or owner.split()[:2] != mine.split()[:2]:
        return False
    return describe_process(int(owner.split()[2])) != owner
