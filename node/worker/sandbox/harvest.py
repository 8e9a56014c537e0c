"""Read what a program left in `/job/out`, out of a tar stream, without ever unpacking it.

The tar itself comes from the container engine; the tree in it was made by a stranger. Invariants:

1. Nothing is written to a disk, and no link is followed: bytes go from the stream to memory.
2. Only regular members are kept, and only those whose exact names are on the allow-list; any link, device, fifo or
   repeated name makes the whole output bad, wherever it lies. Other regular files and folders are passed over.
3. A size is believed only to refuse: a member or a total above its bound ends the reading at its header
   (a sparse file of a terabyte fits into any quota).
4. A stream that ends without the tar's end marker is the machine's fault (`TornStreamError`), never the job's.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from node.worker.sandbox.base import Mode, RunSpec, Status

MIB = 1024 * 1024
METRICS_BYTES_MAX = 64 * 1024
FAILURE_BYTES_MAX = 4 * 1024
ENTRIES_MAX = 4096
"""Files and folders below /job/out: also the inode quota of that volume."""
_END_MARKER = bytes(1024)


class HarvestError(Exception):
    """The output breaks a rule of the contract; `status` is BAD_OUTPUT or OUTPUT_LIMIT."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class TornStreamError(Exception):
    """The stream broke off or is no tar: trouble of the engine."""


@dataclass(slots=True)
class Harvest:
    """What was found: kept files, and the count and apparent size of everything."""

    files: dict[str, bytes] = field(default_factory=dict)
    total_bytes: int = 0
    entries: int = 0


class _Reader(io.RawIOBase):
    """The chunks of a stream as a file that remembers how it ended."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._rest = b""
        self.tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        parts: list[bytes] = []
        wanted = size if size >= 0 else 1 << 62
        while wanted > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            piece, self._rest = self._rest[:wanted], self._rest[wanted:]
            parts.append(piece)
            wanted -= len(piece)
            self.tail = (self.tail + piece[-1024:])[-1024:]
        return b"".join(parts)

    def drain(self) -> None:
        while self.read(MIB):
            pass


def allowed_names(spec: RunSpec) -> dict[str, int]:
    """Return the names below `/job/out` that a run may deliver, each with its size bound in bytes."""
    disk_bytes = spec.resources.disk_mib * MIB
    names = {"metrics.json": METRICS_BYTES_MAX, "failure": FAILURE_BYTES_MAX}
    match spec.mode:
        case Mode.TRAIN:
            names |= {f"model/{name}": disk_bytes for name in spec.expect}
        case Mode.PREDICT:
            names["predictions.npy"] = disk_bytes
    return names


def required_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the names below `/job/out` without which a run has no result."""
    if spec.mode is Mode.PREDICT:
        return ("predictions.npy",)
    return tuple(f"model/{name}" for name in spec.expect)


def harvest(chunks: Iterable[bytes], allowed: Mapping[str, int], total_bytes_max: int, root: str = "out") -> Harvest:
    """Read a tar of the output folder.

    Args:
        chunks: the tar, as the engine sends it; its names begin with `root`.
        allowed: name below `root` -> bound of its size in bytes.
        total_bytes_max: bound of all regular files together, in bytes.
        root: the name of the folder that was asked for.

    Raises:
        HarvestError: the output breaks a rule.
        TornStreamError: the stream is not a whole tar.
    """
    reader = _Reader(chunks)
    found = Harvest()
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=reader, mode="r|", bufsize=64 * 1024) as tar:
            for member in tar:
                _take(tar, member, found, seen, allowed, total_bytes_max, root)
        reader.drain()
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:
        raise TornStreamError(f"the output stream is no whole tar: {error}") from error
    if reader.tail != _END_MARKER:
        raise TornStreamError("the output stream broke off before its end")
    return found


def _take(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    found: Harvest,
    seen: set[str],
    allowed: Mapping[str, int],
    total_bytes_max: int,
    root: str,
) -> None:
    """Judge one member, and keep it if its name is allowed."""
    name = _name_below(member.name, root)
    found.entries += 1
    if found.entries > ENTRIES_MAX + 1:
        raise HarvestError(Status.OUTPUT_LIMIT, f"the output has more than {ENTRIES_MAX} files and folders")
    if name in seen:
        raise HarvestError(Status.BAD_OUTPUT, f"the output has {name!r} twice")
    seen.add(name)
    if member.isdir():
        return
    if not member.isreg() or member.issparse():
        raise HarvestError(Status.BAD_OUTPUT, f"{name!r} in the output is not a plain file")
    found.total_bytes += member.size
    if member.size > allowed.get(name, total_bytes_max) or found.total_bytes > total_bytes_max:
        raise HarvestError(Status.OUTPUT_LIMIT, f"{name!r} in the output is larger than allowed")
    if name in allowed:
        content = tar.extractfile(member)
        data = b"" if content is None else content.read(member.size)
        if len(data) != member.size:
            raise TornStreamError("the output stream broke off within a file")
        found.files[name] = data


def _name_below(name: str, root: str) -> str:
    """Strip the folder that was asked for; refuse names that no honest tree can have."""
    parts = name.rstrip("/").split("/")
    if parts[0] != root or any(part in ("", ".", "..") for part in parts):
        raise HarvestError(Status.BAD_OUTPUT, f"the output has the impossible name {name!r}")
    return "/".join(parts[1:])


def missing_names(spec: RunSpec, found: Harvest) -> list[str]:
    """Return the required names that were not delivered, in order."""
    return [name for name in required_names(spec) if name not in found.files]
