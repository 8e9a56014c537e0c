"""The docker daemon as something that may die or hang: every call runs in a thread and has a deadline.

The docker SDK is blocking and untyped; both end here. A call that fails or takes too long raises `DaemonError`, which
the sandbox turns into `INFRA_ERROR`; what the daemon refuses by a status code keeps that code.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from crdtchain.errors import CrdtchainError, SandboxError

CALL_SECONDS = 30.0
"""How long one short call may take. It is both the socket's timeout and our own."""
_THREADS_MAX = 64
T = TypeVar("T")


class DaemonError(SandboxError):
    """The docker daemon refused a call, broke it off, or did not answer in time.

    Attributes:
        code: the daemon's HTTP status, or None if there was no answer.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


def _load_sdk() -> Any:
    try:
        return importlib.import_module("docker")
    except ImportError as error:
        raise SandboxError("The docker package is missing: install it with `pip install docker`.") from error


class Daemon:
    """A connection to a docker daemon.

    Args:
        base_url: e.g. `unix:///var/run/docker.sock`; without it DOCKER_HOST and its like decide.
        call_seconds: the deadline of each short call.
    """

    def __init__(self, base_url: str | None = None, call_seconds: float = CALL_SECONDS) -> None:
        self.call_seconds = call_seconds
        self._base_url = base_url
        self._client: Any = None
        self._lock = asyncio.Lock()
        # Not the loop's own pool: each run keeps two threads waiting, and would starve everybody else there.
        self._threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="docker")

    async def in_thread(self, work: Callable[[], T], seconds: float | None = None) -> T:
        """Run blocking work in a thread, turning every failure of the daemon into a `DaemonError`."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, _translate, work)
        try:
            async with asyncio.timeout(seconds or self.call_seconds):
                return await future
        except TimeoutError:
            raise DaemonError("The docker daemon did not answer in time.") from None

    async def call(self, method: str, *args: Any, seconds: float | None = None, **kwargs: Any) -> Any:
        """Call a method of the SDK's low-level client.

        Raises:
            DaemonError: the daemon refused, went away, or took longer than `seconds`.
            SandboxError: the SDK is not installed.
        """
        client = await self._connect()
        return await self.in_thread(lambda: getattr(client, method)(*args, **kwargs), seconds)

    async def is_alive(self) -> bool:
        """Whether the daemon answers on a new connection (an old one outlives a daemon that is shutting down)."""
        try:
            await self.in_thread(lambda: self._open().close(), min(self.call_seconds, 10.0))
        except DaemonError:
            return False
        return True

    async def _connect(self) -> Any:
        async with self._lock:
            if self._client is None:
                self._client = await self.in_thread(self._open)
            return self._client

    def _open(self) -> Any:
        sdk = _load_sdk()
        where = {"base_url": self._base_url} if self._base_url else sdk.utils.kwargs_from_env()
        client = sdk.APIClient(version="auto", timeout=self.call_seconds, max_pool_size=_THREADS_MAX, **where)
        client.trust_env = False
        return client

    async def close(self) -> None:
        """Close the connections; threads that still wait end with their socket's timeout."""
        if self._client is not None:
            client, self._client = self._client, None
            await asyncio.to_thread(client.close)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _translate(work: Callable[[], T]) -> T:
    """Run work; name the daemon's troubles `DaemonError`."""
    try:
        return work()
    except (CrdtchainError, TypeError, AttributeError, NameError):
        raise
    except OSError as error:  # requests' exceptions are OSErrors too
        response = getattr(error, "response", None)
        code = getattr(response, "status_code", None)
        raise DaemonError(_first_line(error), code) from error
    except Exception as error:
        sdk = _load_sdk()
        http = importlib.import_module("urllib3.exceptions")
        if isinstance(error, sdk.errors.DockerException | http.HTTPError):
            raise DaemonError(_first_line(error), getattr(error, "status_code", None)) from error
        raise


def _first_line(error: Exception) -> str:
    """The daemon's own words, short enough for a person."""
    text = str(getattr(error, "explanation", None) or error) or type(error).__name__
    return text.splitlines()[0][:300]
