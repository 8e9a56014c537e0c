"""Which files of this machine make a Python with numpy: what the trainer image holds.

The interpreter, its standard library and numpy go below `/usr/local`, wherever they live here; the shared libraries
they need go where this machine's C library lies, since that is where its loader looks first. Left out is what no job
needs: tests, pip, idle, tkinter, headers, static libraries, and compiled files, which are made anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from crdtchain.errors import SandboxError
from node.worker.sandbox.docker_archive import Source

PREFIX = "usr/local"
_SKIPPED_FOLDERS = frozenset(
    {
        *("__pycache__", "dist-packages", "ensurepip", "idle_test", "idlelib", "include", "lib2to3", "pydoc_data"),
        *("site-packages", "test", "tests", "tkinter", "turtledemo"),
    }
)
_SKIPPED_SUFFIXES = frozenset((".a", ".c", ".exe", ".f90", ".h", ".o", ".pxd", ".pyc", ".pyi", ".pyo", ".pyx"))
_SKIPPED_NAMES = re.compile(r"(_tkinter|_ctypes_test|_test\w*|_xx\w*|xx\w*)\.(.*\.)?so|turtle\.py|config-.*")
_LDD_LINE = re.compile(r"^\s*(?:(\S+) => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)

# Compiled as for the image's own paths, marked as "never check the source", and marshalled in format 2: later formats
# mark shared objects by their reference counts, which differ from run to run.
_COMPILE = """
import importlib.util, json, marshal, sys
for source, target, place in json.load(sys.stdin):
    data = open(source, "rb").read()
    try:
        code = compile(data, place, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        continue
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(data)
    with open(target, "wb") as file:
        file.write(head + marshal.dumps(code, 2))
"""


def describe_host() -> str:
    """Return the versions that decide what the image holds, as a file name."""
    return f"python-{sys.version.split()[0]}-numpy-{metadata.version('numpy')}"


def collect(work: Path) -> dict[str, Source]:
    """Return the files of the image, by their names in it.

    Args:
        work: an empty folder for compiled files; it must last until the image is written.

    Raises:
        SandboxError: this machine's Python can't be packed.
    """
    if sys.platform != "linux":
        raise SandboxError("The trainer image can only be made on Linux: pull one, or build examples/trainer-image.")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = f"{PREFIX}/lib/{version}"
    files = dict(_walk(Path(sysconfig.get_path("stdlib")), library))
    # Beside the standard library: the one folder that is on the path of every distribution's Python.
    files |= dict(_find_numpy(library))
    interpreter = Path(os.path.realpath(sys.executable))
    libraries = _find_shared(
        [interpreter, *(item.path for item in files.values() if item.path and _is_shared(item.path))]
    )
    files |= _place_shared(libraries)
    files |= dict(_compile(files, work))
    files[f"{PREFIX}/bin/{version}"] = Source(path=interpreter, executable=True)
    for name in ("python", "python3"):
        files[f"{PREFIX}/bin/{name}"] = Source(link=version)
    for folder in ("tmp", "job/in", "job/out", "proc", "sys", "dev", "etc"):
        files.setdefault(folder, Source())
    return files


def _walk(folder: Path, place: str) -> Iterator[tuple[str, Source]]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not _is_skipped(name))
        for name in sorted(names):
            path = Path(here, name)
            if not _is_skipped(name) and path.is_file():
                yield f"{place}/{path.relative_to(folder).as_posix()}", Source(path=path, executable=_is_shared(path))


def _is_skipped(name: str) -> bool:
    return Path(name).suffix in _SKIPPED_SUFFIXES or _SKIPPED_NAMES.fullmatch(name) is not None


def _is_shared(path: Path) -> bool:
    return ".so" in path.suffixes


def _find_numpy(library: str) -> Iterator[tuple[str, Source]]:
    """numpy, and the libraries that its wheel brings along in a folder beside it."""
    try:
        root = Path(str(metadata.distribution("numpy").locate_file("")))
    except metadata.PackageNotFoundError:
        raise SandboxError("numpy is missing: install it with `pip install numpy`.") from None
    for name in ("numpy", "numpy.libs"):
        if (root / name).is_dir():
            yield from _walk(root / name, f"{library}/{name}")


def _find_shared(programs: Iterable[Path]) -> dict[str, Path]:
    """Return the shared libraries that programs need, by the path or bare name they are asked for."""
    try:
        answer = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"Finding Python's shared libraries with ldd failed: {error}") from error
    found = {name or path: Path(path) for name, path in _LDD_LINE.findall(answer.stdout)}
    return {name: path for name, path in found.items() if "numpy.libs" not in path.parts}


def _place_shared(libraries: dict[str, Path]) -> dict[str, Source]:
    """Put the loader at its own path and all else beside the C library."""
    home = next((path.parent for name, path in libraries.items() if name.startswith("libc.")), Path("/lib"))
    placed: dict[str, Source] = {}
    for name, path in libraries.items():
        place = Path(name) if name.startswith("/") else home / name
        placed[str(place).lstrip("/")] = Source(path=Path(os.path.realpath(path)), executable=True)
    return placed


def _compile(files: dict[str, Source], work: Path) -> Iterator[tuple[str, Source]]:
    """Compile all Python files in one fresh process, so that the same sources give the same bytes."""
    jobs: list[tuple[str, str, str]] = []
    made: dict[str, Path] = {}
    tag = sys.implementation.cache_tag
    for number, (place, source) in enumerate(sorted(files.items())):
        if source.path is not None and place.endswith(".py"):
            folder, _, name = place.rpartition("/")
            target = work / f"{number}.pyc"
            jobs.append((str(source.path), str(target), f"/{place}"))
            made[f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"] = target
    with tempfile.TemporaryDirectory() as elsewhere:
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _COMPILE],
            input=json.dumps(jobs),
            text=True,
            check=True,
            cwd=elsewhere,
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        )
    for place, target in made.items():
        if target.exists():
            yield place, Source(path=target)
