"""Container images made from files in memory or on disk, bit for bit the same each time, and loaded without a registry.

An image is one layer (a tar with sorted names, mtime 0, root's ids) and a config; its id is the sha256 of the config,
which names the sha256 of the layer. What docker loads is compared with both. The holder, a container that only keeps
two volumes mounted, is such an image too: one static program of some 150 bytes that sleeps for ever.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import secrets
import struct
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from crdtchain.errors import SandboxError
from node.worker.sandbox.docker_api import Daemon, DaemonError

LOAD_SECONDS = 300.0
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_LOAD_ADDRESS = 0x400000
_ELF_HEADER_BYTES = 64 + 56


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of a layer: a path on this machine, bytes, a link to another name, or (all None) a folder."""

    path: Path | None = None
    data: bytes | None = None
    link: str | None = None
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """What identifies an image: its id, and the sha256 of its layers in order."""

    id: str
    layers: tuple[str, ...]


def find_architecture(machine: str | None = None) -> str:
    """Return docker's word for a machine's architecture (default: this one's).

    Raises:
        SandboxError: no image can be made for it.
    """
    name = machine or platform.machine()
    try:
        return _ARCHITECTURES[name.lower()]
    except KeyError:
        raise SandboxError(f"No trainer image can be made for the architecture {name}.") from None


class _HashingFile(io.RawIOBase):
    """A file to write to that keeps the sha256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        self.sha256.update(data)
        return self._file.write(data)


def _with_parents(files: Mapping[str, Source]) -> dict[str, Source]:
    """Add the folders that the names imply."""
    whole: dict[str, Source] = {}
    for name in files:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            whole.setdefault("/".join(parts[:depth]), Source())
    return whole | dict(files)


def write_layer(file: IO[bytes], files: Mapping[str, Source]) -> str:
    """Write a layer's tar; returns its digest, `sha256:…`. Names are relative to the image's root."""
    out = _HashingFile(file)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
        for name, source in sorted(_with_parents(files).items()):
            _add_entry(tar, name, source)
    return "sha256:" + out.sha256.hexdigest()


def _add_entry(tar: tarfile.TarFile, name: str, source: Source) -> None:
    info = tarfile.TarInfo(name)
    data = source.path.read_bytes() if source.path is not None else source.data
    if data is not None:
        info.size, info.mode = len(data), 0o755 if source.executable else 0o644
    elif source.link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, source.link, 0o777
    else:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(info, io.BytesIO(data or b""))


def write_archive(target: Path, files: Mapping[str, Source], config: Mapping[str, object], architecture: str) -> Image:
    """Write what `docker load` reads: manifest, config and one layer. The file appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=target.parent) as layer:
        digest = write_layer(layer, files)
        described = {
            "architecture": architecture,
            "config": dict(config),
            "created": "1970-01-01T00:00:00Z",
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "crdtchain"}],
            "os": "linux",
            "rootfs": {"diff_ids": [digest], "type": "layers"},
        }
        config_bytes = json.dumps(described, sort_keys=True, separators=(",", ":")).encode()
        config_id = hashlib.sha256(config_bytes).hexdigest()
        layer_name = digest.removeprefix("sha256:") + "/layer.tar"
        manifest = [{"Config": f"{config_id}.json", "Layers": [layer_name], "RepoTags": None}]
        draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in ((f"{config_id}.json", config_bytes), ("manifest.json", json.dumps(manifest).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(layer_name)
            info.size = layer.seek(0, io.SEEK_END)
            layer.seek(0)
            tar.addfile(info, layer)
        draft.replace(target)
    return Image("sha256:" + config_id, (digest,))


async def is_loaded(daemon: Daemon, image: Image) -> bool:
    """Whether the daemon has exactly this image."""
    try:
        found = await daemon.call("inspect_image", image.id)
    except DaemonError as error:
        if error.code == 404:
            return False
        raise
    return found["Id"] == image.id and tuple(found["RootFS"]["Layers"]) == image.layers


async def load(daemon: Daemon, archive: Path, image: Image) -> None:
    """Load an archive and check that what came of it is what was meant.

    Raises:
        DaemonError: the daemon went away or refused it.
        SandboxError: the daemon made another image of it.
    """
    with archive.open("rb") as file:
        await daemon.call("load_image", file, seconds=LOAD_SECONDS)
    if not await is_loaded(daemon, image):
        raise SandboxError(f"Docker made another image of {archive.name}: remove it and try again.")


def holder_program(architecture: str) -> bytes:
    """Return a static ELF program that sleeps until it is killed: the only file in the holder's image.

    x86-64: `again: mov eax, 34 (pause); syscall; jmp again`.
    AArch64: `again: x0..x4 = 0; x8 = 73 (ppoll); svc 0; b again`.
    """
    if architecture == "amd64":
        code, machine = bytes.fromhex("b8 22000000 0f05 ebf7"), 62
    else:
        words = (0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0xD2800928, 0xD4000001, 0x17FFFFF9)
        code, machine = struct.pack("<8I", *words), 183
    size = _ELF_HEADER_BYTES + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    start = _LOAD_ADDRESS + _ELF_HEADER_BYTES
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return header + segment + code


async def ensure_holder_image(daemon: Daemon, machine: str) -> str:
    """Return the id of the holder's image, loading it where it is missing. `machine`: the daemon's architecture."""
    architecture = find_architecture(machine)
    files = {"hold": Source(data=holder_program(architecture), executable=True)}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "holder.tar"
        image = write_archive(archive, files, {"Entrypoint": ["/hold"]}, architecture)
        if not await is_loaded(daemon, image):
            await load(daemon, archive, image)
    return image.id
