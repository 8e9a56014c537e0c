"""The one sandbox that a demonstration runs in."""

from __future__ import annotations

from pathlib import Path

from crdtchain.errors import SandboxError
from node.worker.sandbox.base import Sandbox


def make_sandbox(runtime: str, folder: Path) -> Sandbox:
    """Make the one sandbox of the demonstration.

    Raises:
        SandboxError: a package is missing.
    """
    if runtime == "wasm":
        from node.worker.sandbox.wasm import WasmSandbox

        return WasmSandbox(folder / "wasm-cache")
    try:
        from node.worker.sandbox.docker import DockerSandbox
    except ImportError:
        raise SandboxError("the Python package `docker` is not installed: install it, or use --runtime wasm") from None
    return DockerSandbox()
