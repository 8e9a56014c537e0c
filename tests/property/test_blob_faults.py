"""Blobs from peers that fail in any way: whatever they do, what is taken is right, and one honest peer is enough."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crdtchain.errors import NoPeerError
from crdtchain.scalars import BlobId
from tests.integration.blob_ports import CHUNK, Answer, Line, name_blob, open_blobs

DATA = os.urandom(2 * CHUNK + 300_000)
BLOB, LIST = name_blob(DATA)
FAULTS = ("honest", "lies", "lies late", "wrong size", "has nothing", "goes away", "lies about the list", "is silent")


class Faulty(Line):
    """A peer with one fault, from its `at`-th piece on."""

    def __init__(self, name: str, fault: str, at: int) -> None:
        super().__init__(name, None if fault == "has nothing" else DATA, LIST)
        self._fault = fault
        self._at = at
        self.change = {
            "lies": lambda piece, total: (total, bytes(len(piece))),
            "lies late": self._lie_late,
            "wrong size": lambda piece, total: (total + 1, piece),
            "lies about the list": lambda piece, total: (total, piece if total == len(DATA) else bytes(len(piece))),
        }.get(fault, self.change)

    def _lie_late(self, piece: bytes, total: int) -> tuple[int, bytes]:
        return total, bytes(len(piece)) if len(self.asked) > self._at else piece

    async def ask_piece(self, blob: BlobId, offset: int, hops: int, is_list: bool) -> Answer:
        if len(self.asked) >= self._at and self._fault == "goes away":
            self.drop("the connection broke")
            raise NoPeerError("the connection ended")
        if len(self.asked) >= self._at and self._fault == "is silent":
            await asyncio.sleep(3_600)
        return await super().ask_piece(blob, offset, hops, is_list)


async def fetch(folder: Path, lines: list[Faulty]) -> bytes | None:
    async with open_blobs(folder) as blobs:
        blobs.find_links = lambda: [line for line in lines if not line.dropped]
        try:
            async with asyncio.timeout(60):
                await blobs.ensure(BLOB)
        except NoPeerError:
            assert blobs.find_size(BLOB) is None
            return None
        return await blobs.read(BLOB)


PEERS = st.lists(st.tuples(st.sampled_from(FAULTS), st.integers(0, 12)), min_size=1, max_size=5)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PEERS, st.integers(0, 4))
def test_one_honest_peer_is_enough(faults: list[tuple[str, int]], place: int) -> None:
    kinds = [*faults[:place], ("honest", 0), *faults[place:]]
    lines = [Faulty(f"peer-{number}", fault, at) for number, (fault, at) in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(fetch(Path(folder), lines)) == DATA
    assert not any(line.dropped for line, (fault, _) in zip(lines, kinds) if fault in ("honest", "is silent"))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PEERS.filter(lambda faults: all(fault not in ("is silent", "goes away") for fault, _ in faults)))
def test_whatever_peers_do_wrong_bytes_are_never_taken(faults: list[tuple[str, int]]) -> None:
    lines = [Faulty(f"peer-{number}", fault, at) for number, (fault, at) in enumerate(faults)]
    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(fetch(Path(folder), lines)) in (None, DATA)
