"""What a run becomes in docker's terms: the hardened container, its environment, its volumes, its input as a tar.

Everything here is a pure function of the run's spec and of what the image declares; docker.py performs it. Each setting
says what it stops. Sources: docker's Engine API 1.41, and the attacks that were tried against it.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.worker.sandbox.base import Mode, RunSpec
from node.worker.sandbox.harvest import ENTRIES_MAX, MIB
from node.worker.sandbox.seccomp import profile_json

JOB_UID = 52737
"""Nobody's user: neither root nor 65534, which owns reserved blocks on some hosts; from Debian's reserved range."""
HOLDER_UID = 52738
SHM_BYTES = 16 * MIB
PIDS_MAX = 256
OPEN_FILES_MAX = 1024
TMP_INODES_MAX = 4096
IMAGE_VOLUMES_MAX = 32
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
NAME_PREFIX = "crdtchain"
LABEL = "crdtchain.sandbox"
LABEL_RUN = "crdtchain.run"
LABEL_OWNER = "crdtchain.owner"
LABEL_EXPIRES = "crdtchain.expires"
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_DIGEST = re.compile(r"[a-z0-9][a-z0-9._/:-]{0,180}@sha256:[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED_PLACES = ("/proc", "/sys", "/dev", "/job", "/sbin", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
_OWN_PLACES = ("/tmp", "/job/in", "/job/out")
_BLOCK = 512
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a run's two containers and two volumes; fixed before anything is created."""

    program: str
    holder: str
    volume_in: str
    volume_out: str


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image declares about itself, of which a container inherits as little as possible."""

    id: str
    path: str
    env_names: tuple[str, ...]
    volumes: tuple[str, ...]


def is_pinned(image: str) -> bool:
    """Whether an image is named by a digest: an image id, or `repo@sha256:…`. A tag is not: it can be moved."""
    return bool(_IMAGE_ID.fullmatch(image) or _IMAGE_DIGEST.fullmatch(image))


def is_image_id(image: str) -> bool:
    """Whether an image is named by its own id, the sha256 of its config."""
    return bool(_IMAGE_ID.fullmatch(image))


def read_image_facts(inspected: Mapping[str, Any]) -> ImageFacts:
    """Read what `docker image inspect` says."""
    config = inspected.get("Config") or {}
    env = dict(entry.partition("=")[::2] for entry in config.get("Env") or [])
    path = env.get("PATH", "")
    usable = 0 < len(path) <= 1024 and path.isprintable()
    return ImageFacts(
        id=str(inspected["Id"]),
        path=path if usable else DEFAULT_PATH,
        env_names=tuple(sorted(env)),
        volumes=tuple(sorted(config.get("Volumes") or {})),
    )


def find_refusal(spec: RunSpec, image: ImageFacts, host: Mapping[str, Any], gpus_allowed: int) -> str | None:
    """Return why this run must not start here, or None. `host` is the daemon's own description."""
    resources = spec.resources
    if resources.cpus > int(host.get("NCPU", 0)):
        return f"The job wants {resources.cpus} cores and this machine has {host.get('NCPU', 0)}."
    if resources.memory_mib * MIB > int(host.get("MemTotal", 0)):
        return f"The job wants {resources.memory_mib} MiB of memory, more than this machine has."
    if resources.gpus > gpus_allowed:
        return f"The job wants {resources.gpus} GPUs and the policy here allows {gpus_allowed}."
    if not spec.command or not all(spec.command):
        return "The job names no program to run."
    if any("\0" in text for text in (*spec.command, spec.job_id)):
        return "The job's command has a NUL character, which no program can be given."
    for names in (spec.code, spec.train, spec.features, spec.model, spec.expect):
        for name in names:
            if not _FILE_NAME.fullmatch(name):
                return f"The job has the file name {name!r}, which is not plain."
    return _find_bad_volume(image)


def _find_bad_volume(image: ImageFacts) -> str | None:
    if len(image.volumes) > IMAGE_VOLUMES_MAX:
        return f"The image declares more than {IMAGE_VOLUMES_MAX} volumes."
    for place in set(image.volumes) - set(_OWN_PLACES):
        reserved = any(place == taken or place.startswith(taken + "/") for taken in _RESERVED_PLACES)
        plain = place.startswith("/") and not place.startswith("//") and posixpath.normpath(place) == place
        if not plain or reserved or place == "/":
            return f"The image declares a volume at {place!r}, where none can be covered."
    return None


def build_environment(spec: RunSpec, image: ImageFacts) -> list[str]:
    """Return the program's whole environment.

    A bare name tells docker to drop a variable: that of the image, or HOSTNAME, which it adds itself.
    """
    threads = str(spec.resources.cpus)
    wanted = {
        "JOB_ID": spec.job_id,
        "JOB_MODE": spec.mode.value,
        "JOB_SEED": str(spec.seed),
        "JOB_IN": "/job/in",
        "JOB_OUT": "/job/out",
        "JOB_DEADLINE_S": str(spec.resources.seconds),
        "HOME": "/tmp",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "PATH": image.path,
    }
    dropped = sorted({"HOSTNAME", *image.env_names} - set(wanted))
    return [f"{name}={value}" for name, value in wanted.items()] + dropped


def _volume_mount(target: str, volume: str, read_only: bool) -> dict[str, object]:
    # NoCopy: else docker fills the volume with whatever the image has at that place.
    return {
        "Type": "volume",
        "Target": target,
        "Source": volume,
        "ReadOnly": read_only,
        "VolumeOptions": {"NoCopy": True},
    }


def _hardening(uid: int, runtime: str | None) -> dict[str, object]:
    """Settings that the program's container and the holder share."""
    settings: dict[str, object] = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", "seccomp=" + profile_json()],
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "OomScoreAdj": 1000,  # when the machine itself runs out of memory, a stranger's job goes first
        "LogConfig": {"Type": "none", "Config": {}},  # the default driver writes to the host's disk without bound
        "RestartPolicy": {"Name": "no"},
        # With no network docker still copies the host's resolver settings into the container.
        "Dns": ["127.0.0.1"],
        "DnsSearch": ["."],
        "DnsOptions": ["ndots:0"],
    }
    if runtime is not None:
        settings["Runtime"] = runtime
    return settings


def build_host_config(spec: RunSpec, image: ImageFacts, names: Names, runtime: str | None) -> dict[str, object]:
    """Return docker's HostConfig of the program's container."""
    resources = spec.resources
    memory_bytes = resources.memory_mib * MIB
    disk_bytes = resources.disk_mib * MIB
    own = f"uid={JOB_UID},gid={JOB_UID}"
    options = f"rw,noexec,nosuid,nodev,size=16m,nr_inodes=1024,mode=0700,{own}"
    tmpfs = {place: options for place in image.volumes if place not in _OWN_PLACES}
    tmpfs["/tmp"] = f"rw,noexec,nosuid,nodev,size={disk_bytes},nr_inodes={TMP_INODES_MAX},mode=0700,{own}"
    config = _hardening(JOB_UID, runtime) | {
        "Init": True,  # reaps children, and takes every process with it when the program ends
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,  # equal to Memory: no swap
        "NanoCpus": resources.cpus * 1_000_000_000,
        "PidsLimit": PIDS_MAX,
        "ShmSize": min(SHM_BYTES, memory_bytes // 4),
        "Tmpfs": tmpfs,
        "Ulimits": [
            {"Name": "nofile", "Soft": OPEN_FILES_MAX, "Hard": OPEN_FILES_MAX},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": disk_bytes, "Hard": disk_bytes},
            {"Name": "msgqueue", "Soft": 0, "Hard": 0},
        ],
        "Mounts": [
            _volume_mount("/job/in", names.volume_in, read_only=True),
            _volume_mount("/job/out", names.volume_out, read_only=False),
        ],
    }
    if resources.gpus:
        config["DeviceRequests"] = [{"Driver": "", "Count": resources.gpus, "Capabilities": [["gpu"]]}]
    return config


def build_holder_host_config(names: Names) -> dict[str, object]:
    """Return the HostConfig of the holder, which does nothing but keep the two volumes mounted."""
    return _hardening(HOLDER_UID, None) | {
        "Memory": 16 * MIB,
        "MemorySwap": 16 * MIB,
        "NanoCpus": 100_000_000,
        "PidsLimit": 4,
        "ShmSize": 64 * 1024,
        "Mounts": [
            _volume_mount("/job/in", names.volume_in, read_only=False),
            _volume_mount("/job/out", names.volume_out, read_only=False),
        ],
    }


def build_container(user: int, argv: list[str], env: list[str], labels: Mapping[str, str]) -> dict[str, object]:
    """Return the part of a container's description that overrides what its image says."""
    return {
        "Hostname": "job",
        "User": f"{user}:{user}",
        "WorkingDir": "/tmp" if user == JOB_UID else "/",
        "Entrypoint": argv,
        "Cmd": [],
        "Env": env,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Labels": dict(labels),
        "AttachStdout": user == JOB_UID,
        "AttachStderr": user == JOB_UID,
        "Tty": False,
        "OpenStdin": False,
    }


def volume_in_options(spec: RunSpec) -> str:
    """Return the mount options of the input volume: root's, and just large enough."""
    sizes = [path.stat().st_size for _, path in list_inputs(spec)]
    pages = sum(-(-size // 4096) for size in sizes)
    size_bytes = (pages + 16) * 4096 + len(spec.job_json) + MIB
    return f"size={size_bytes},nr_inodes={len(sizes) + 32},mode=0555,uid=0,gid=0,nosuid,nodev"


def volume_out_options(spec: RunSpec) -> str:
    """Return the mount options of the output volume: the job's own, with its quota of bytes and of files."""
    size_bytes = spec.resources.disk_mib * MIB
    return f"size={size_bytes},nr_inodes={ENTRIES_MAX},mode=0700,uid={JOB_UID},gid={JOB_UID},noexec,nosuid,nodev"


def list_inputs(spec: RunSpec) -> list[tuple[str, Path]]:
    """Return what a run may see of the host's files, as (place below /job/in, file), sorted."""
    folders: list[tuple[str, Mapping[str, Path]]] = [("code", spec.code)]
    match spec.mode:
        case Mode.TRAIN:
            folders += [("data/train", spec.train)]
        case Mode.PREDICT:
            folders += [("data/test", spec.features), ("model", spec.model)]
    return sorted((f"{folder}/{name}", path) for folder, files in folders for name, path in files.items())


def _header(name: str, size: int, mode: int, uid: int = 0, folder: bool = False) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid = size, mode, uid, uid
    info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def stream_input(spec: RunSpec) -> Iterator[bytes]:
    """Yield the tar that fills /job/in; a file that changes its size meanwhile raises OSError."""
    own = ["data/train"] if spec.mode is Mode.TRAIN else ["data/test", "model"]
    for folder in ["code", "data", *own]:
        yield _header(folder, 0, 0o555, folder=True)
    params = json.dumps(dict(spec.params), sort_keys=True, ensure_ascii=False).encode()
    for name, data in (("job.json", spec.job_json), ("hyperparameters.json", params)):
        yield _header(name, len(data), 0o444) + data + _padding(len(data))
    for name, path in list_inputs(spec):
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            yield _header(name, size, 0o555 if name.startswith("code/") else 0o444)
            left = size
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise OSError(f"{path} shrank while it was read")
                left -= len(chunk)
                yield chunk
        yield _padding(size)
    yield bytes(2 * _BLOCK)


def output_skeleton() -> bytes:
    """Return the tar that gives /job/out its folder `model/`, owned by the program."""
    return _header("model", 0, 0o700, uid=JOB_UID, folder=True) + bytes(2 * _BLOCK)
