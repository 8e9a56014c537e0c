"""Fetching one blob from all who have it at once, chunk by chunk.

Theory of operation: what is small, a list of chunks or a blob of one chunk, is asked of one source after the other,
without waiting long for a silent one (`race`). Of a blob of many chunks every source then gets one chunk at a time
(`Fetch`). When no chunk is left to hand out, whoever is idle asks for those that others have been at for longer than
it would need itself: so the slowest source holds nobody up, and a silent one costs nothing but its own chunk.

Invariant: nothing counts before its hash was compared with the id. Who sends other bytes is never asked again for the
blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

from crdtchain.errors import NoPeerError, PeerError
from node.blobs.files import Part, convert_error
from node.blobs.progress import Meter
from node.blobs.sources import Source

T = TypeVar("T")

HEDGE_S: Final = 1.0
"""So long a source may be silent before the next one is asked too."""
CHUNK_S: Final = 80.0
"""So long a source may take for a chunk."""
STEAL_S: Final = 0.3
"""A chunk that another source has been at for at least so long may be asked of a second one."""
RETRY_S: Final = 3.0
"""After so long a source that went away, or had nothing, may be asked again."""
RECONNECT_S: Final = 20.0
"""A fetch goes on so long without any source when one that delivered has gone away: lines break, and come back."""
_POLL_S: Final = 0.1


class Faults:
    """Why no source has delivered, and who lied."""

    def __init__(self, liars: set[str]) -> None:
        """`liars`: names that are not asked; those found are added."""
        self.reasons: dict[str, str] = {}
        self.liars = liars

    def note(self, source: Source, error: PeerError) -> None:
        """Take note of a source's fault."""
        self.reasons[source.address] = str(error)
        if not isinstance(error, NoPeerError):
            self.liars.add(source.name)
            source.reject(str(error))

    def describe(self) -> str:
        """Return all reasons, for people; empty without one."""
        shown = "; ".join(f"{address}: {reason}" for address, reason in list(self.reasons.items())[:8])
        return f" ({shown})" if shown else ""


async def race(
    sources: Sequence[Source], read: Callable[[Source], Awaitable[T]], faults: Faults, hedge_s: float = HEDGE_S
) -> T | None:
    """Return what the first source delivers, or None when none does; the next is asked when one fails or is silent."""
    waiting = list(sources)
    under_way: dict[asyncio.Task[T], Source] = {}
    try:
        while waiting or under_way:
            if waiting:
                source = waiting.pop(0)
                under_way[asyncio.ensure_future(_run(read, source))] = source
            done, _ = await asyncio.wait(
                under_way, timeout=hedge_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                source = under_way.pop(task)
                try:
                    return task.result()
                except PeerError as error:
                    faults.note(source, error)
        return None
    finally:
        await _end(under_way)


async def _run(read: Callable[[Source], Awaitable[T]], source: Source) -> T:
    return await read(source)


async def _end(tasks: Iterable[asyncio.Task[T]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Fetch:
    """Fills one part; `find` returns the sources that there are now."""

    def __init__(self, part: Part, find: Callable[[], Sequence[Source]], meter: Meter, faults: Faults) -> None:
        self._part = part
        self._find = find
        self._meter = meter
        self._faults = faults
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, float] = {}
        """Sources that failed, and when they may be asked again."""
        self._under_way: dict[int, dict[str, float]] = {}
        """Chunk to the sources that are at it, and since when."""
        self._changed = asyncio.Event()
        self._was_lost = False
        """Whether a source that delivered has gone away: it may come back."""
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Fetch what is missing.

        Raises:
            NoPeerError: nobody who is connected has it, or not all of it.
            StoreFullError, StoreError: it can't be written.
        """
        alive_s, came = time.monotonic(), 0
        try:
            while self._part.missing and self._failure is None:
                self._start_workers()
                if self._meter.came > came:
                    came, alive_s = self._meter.came, time.monotonic()
                if not self._workers and (not self._was_lost or time.monotonic() - alive_s > RECONNECT_S):
                    raise NoPeerError("no connected peer has the blob" + self._faults.describe())
                await self._wait()
        finally:
            await _end(self._workers.values())
        if self._failure is not None:
            raise self._failure

    def _start_workers(self) -> None:
        now_s = time.monotonic()
        for source in self._find():
            name = source.name
            if name in self._workers or name in self._faults.liars or self._resting.get(name, 0.0) > now_s:
                continue
            task = asyncio.create_task(self._work(source))
            self._workers[name] = task
            task.add_done_callback(partial(self._end_worker, name))

    def _end_worker(self, name: str, task: asyncio.Task[None]) -> None:
        del self._workers[name]
        if not task.cancelled():
            self._failure = self._failure or task.exception()
        self._stir()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await self._changed.wait()

    async def _work(self, source: Source) -> None:
        """Fetch chunk after chunk from one source, until nothing is missing or the source fails.

        While one chunk is checked and written, the next one is under way.
        """
        needs_s, checking = 0.0, None
        try:
            while self._part.missing and self._failure is None and source.name not in self._faults.liars:
                index = self._pick(source, needs_s)
                if index is None:
                    await self._wait()
                    continue
                started_s = time.monotonic()
                data = await self._read(source, index, started_s)
                needs_s = time.monotonic() - started_s
                if checking is not None:
                    await checking
                checking = asyncio.create_task(self._check(source, index, data))
        except PeerError as error:
            self._faults.note(source, error)
            self._was_lost = self._was_lost or (needs_s > 0 and isinstance(error, NoPeerError))
            self._resting[source.name] = time.monotonic() + RETRY_S
        finally:
            if checking is not None:
                await checking

    def _pick(self, source: Source, needs_s: float) -> int | None:
        """Return the next chunk for a source, or None while there is nothing for it to do."""
        free = min((index for index in self._part.missing if index not in self._under_way), default=None)
        if free is not None:
            return free
        late_s = time.monotonic() - max(needs_s, STEAL_S)
        late = [
            (max(since.values()), index)
            for index, since in self._under_way.items()
            if index in self._part.missing and source.name not in since
        ]
        at_s, index = min(late, default=(late_s + 1, -1))
        return index if at_s <= late_s else None

    async def _read(self, source: Source, index: int, now_s: float) -> bytes:
        """Return what a source sends as a chunk."""
        layout = self._part.layout
        start, size = layout.span(index)
        self._under_way.setdefault(index, {})[source.name] = now_s
        try:
            async with asyncio.timeout(CHUNK_S):
                return await source.read(layout.blob, start, size, layout.size)
        except BaseException as error:
            self._leave(source, index)
            if isinstance(error, TimeoutError):
                raise NoPeerError("it is too slow") from None
            raise

    async def _check(self, source: Source, index: int, data: bytes) -> None:
        """Write a chunk if it is the right one, and else never ask its source again."""
        try:
            is_right = await asyncio.to_thread(self._part.take, index, data)
        except OSError as error:
            self._failure = convert_error(error)
            return
        finally:
            self._leave(source, index)
        if not is_right:
            self._faults.note(source, PeerError("the peer sent a chunk that is not the one of the blob"))
        elif index in self._part.missing:
            self._part.missing.discard(index)
            self._meter.add(len(data), source.name)
        self._stir()

    def _leave(self, source: Source, index: int) -> None:
        """Note that a source is not at a chunk any more."""
        at_it = self._under_way[index]
        del at_it[source.name]
        if not at_it:
            del self._under_way[index]
