"""The trainer image: a Python with numpy for docker, made from this machine's own, without any registry.

The same machine gives the same image, bit for bit, so its id can stand in a job. On another machine it is another
image: a job that is meant for many machines names an image that its poster publishes (see examples/trainer-image).

    python -m node.worker.sandbox.image        prints the image's id
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from crdtchain.errors import CrdtchainError
from node.worker.sandbox import image_tree
from node.worker.sandbox.docker_api import Daemon
from node.worker.sandbox.docker_archive import Image, find_architecture, is_loaded, load, write_archive
from node.worker.sandbox.docker_spec import DEFAULT_PATH

BUILDER_VERSION = 2
"""Raised whenever the builder would make other bytes of the same files."""


def build_trainer_image(target: Path) -> Image:
    """Write the trainer image's archive to a file; some ten seconds of work.

    Raises:
        SandboxError: this machine's Python can't be packed.
    """
    config = {"Cmd": ["python"], "Env": [f"PATH={DEFAULT_PATH}"]}
    with tempfile.TemporaryDirectory() as work:
        return write_archive(target, image_tree.collect(Path(work)), config, find_architecture())


def _read_note(path: Path) -> Image | None:
    """Read which image an archive in the cache holds."""
    try:
        note = json.loads(path.read_text())
        return Image(str(note["id"]), tuple(map(str, note["layers"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def ensure_trainer_image(cache_dir: Path, progress: Callable[[str], None] | None = None) -> str:
    """Return the id of the trainer image, which the daemon then has; made once for each Python and numpy.

    Args:
        cache_dir: where archives are kept, one of some 100 MB for each pair of versions.
        progress: told what takes a while.

    Raises:
        SandboxError: this machine's Python can't be packed, or docker made another image of it.
        DaemonError: the docker daemon does not answer.
    """
    tell = progress or (lambda text: None)
    name = f"trainer-{BUILDER_VERSION}-{image_tree.describe_host()}-{find_architecture()}"
    archive, note = cache_dir / f"{name}.tar", cache_dir / f"{name}.json"
    daemon = Daemon()
    try:
        image = _read_note(note) if archive.exists() else None
        if image is None:
            tell("Making the trainer image from this machine's Python and numpy …")
            image = await asyncio.to_thread(build_trainer_image, archive)
            note.write_text(json.dumps({"id": image.id, "layers": image.layers}))
        if not await is_loaded(daemon, image):
            tell("Loading the trainer image into docker …")
            await load(daemon, archive, image)
        return image.id
    finally:
        await daemon.close()


def default_cache_dir() -> Path:
    """Return where archives are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crdtchain" / "images"


def main() -> int:
    """Print the id of the trainer image."""
    cache_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else default_cache_dir()
    try:
        print(asyncio.run(ensure_trainer_image(cache_dir, lambda text: print(text, file=sys.stderr))))
    except CrdtchainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
