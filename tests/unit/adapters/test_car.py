"""CAR files: round trips, foreign framing, and every way to be broken."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.adapters.car import ROOTS_MAX, CarError, export_car, read_car, read_roots, write_car
from crdtchain.adapters.memory_store import MemoryStore
from crdtchain.codec import OP_CID_PREFIX, RAW_CID_PREFIX, compute_blob_id, compute_op_id
from crdtchain.errors import StoreError, UsageError
from tests.builders import World


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.play_job("alice", {"bob": [90]})
    return world


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def section(data: bytes) -> bytes:
    return varint(len(data)) + data


def header(roots: list[bytes] | None = None, version: object = 1) -> bytes:
    links = [cbor2.CBORTag(42, b"\x00" + root) for root in roots or []]
    return section(cbor2.dumps({"roots": links, "version": version}))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def blocks_of(world: World) -> list[tuple[bytes, bytes]]:
    return [(signed.op.id, signed.block) for signed in world.log]


@pytest.mark.asyncio
async def test_an_export_comes_back_whole_genesis_first(tmp_path: Path, world: World) -> None:
    store = MemoryStore()
    await store.open()
    await store.append(world.log, durable=False)
    blob = b"weights" * 1_000

    async def blobs() -> AsyncIterator[tuple[bytes, bytes]]:
        yield compute_blob_id(blob), blob

    path, heads = tmp_path / "ledger.car", world.ledger.dag.head_ids()
    assert await export_car(store, path, heads, blobs()) == len(world.log)
    assert read_roots(path) == tuple(heads)
    assert list(read_car(path)) == [*blocks_of(world), (compute_blob_id(blob), blob)]
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.car"]


def test_the_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    block = b"\x82" + bytes(299)
    path = tmp_path / "one.car"
    assert write_car(path, [compute_op_id(block)], [(compute_op_id(block), block)]) == 1
    assert path.read_bytes() == header([compute_op_id(block)]) + section(compute_op_id(block) + block)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_any_blobs_come_back(tmp_path_factory: pytest.TempPathFactory, blobs: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("car") / "blobs.car"
    pairs = [(bytes(compute_blob_id(blob)), blob) for blob in blobs]
    write_car(path, [], pairs)
    assert list(read_car(path)) == pairs


def test_more_roots_than_a_block_holds_are_cut(tmp_path: Path) -> None:
    roots = [compute_op_id(number.to_bytes(4, "big")) for number in range(ROOTS_MAX + 5)]
    write_car(tmp_path / "roots.car", roots, [])
    assert read_roots(tmp_path / "roots.car") == tuple(roots[:ROOTS_MAX])


OP = b"\x82" + bytes(10)
GOOD = section(compute_op_id(OP) + OP)
START = len(header())


@pytest.mark.parametrize(
    ("data", "position", "text"),
    [
        (b"", 0, "empty"),
        (b"\x80", 0, "within a length"),
        (b"\x05\x00", 0, "within a section"),
        (section(b"\xff"), 0, "can't be read"),
        (section(b"\x01"), 0, "not that of a CAR"),
        (header(version=2), 0, "version 1"),
        (header(version=True), 0, "version 1"),
        (section(cbor2.dumps({"roots": [1], "version": 1})), 0, "not a list of links"),
        (section(cbor2.dumps({"roots": {}, "version": 1})), 0, "not a list of links"),
        (varint(70_000), 0, "at most 65536"),
        (header() + b"\x00", START, "no room for an id"),
        (header() + section(b"\x01\x71\x12\x20" + bytes(31)), START, "no room for an id"),
        (header() + GOOD + section(b"\x12\x20" + bytes(40)), START + len(GOOD), "not a CIDv1"),
        (header() + GOOD[:-1], START, "within a section"),
        (header() + GOOD + b"\xff", START + len(GOOD), "within a length"),
        (header() + b"\xaf\x00" + GOOD[1:], START, "shorter form"),
        (header() + b"\xff" * 10, START, "more than nine bytes"),
        (header() + varint(2**40), START, "at most"),
        (header() + section(OP_CID_PREFIX + bytes(32 + 65_537)), START, "at most 65536"),
        (header() + section(RAW_CID_PREFIX + bytes(32 + 2**20 + 1)), START, "at most"),
        (header() + section(compute_op_id(OP) + OP + b"\x00"), START, "not the one that"),
        (header() + GOOD + section(compute_blob_id(b"a") + b"b"), START + len(GOOD), "not the one that"),
    ],
    ids=range(22),
)
def test_a_broken_file_is_refused_where_it_breaks(tmp_path: Path, data: bytes, position: int, text: str) -> None:
    path = write(tmp_path / "broken.car", data)
    with pytest.raises(CarError, match=text) as caught:
        list(read_car(path))
    assert caught.value.position == position


def test_every_cut_of_a_file_is_noticed_or_falls_between_sections(tmp_path: Path, world: World) -> None:
    path = tmp_path / "whole.car"
    write_car(path, [], blocks_of(world)[:3])
    data = path.read_bytes()
    whole = 0
    for size in range(len(data)):
        try:
            found = list(read_car(write(tmp_path / "cut.car", data[:size])))
        except CarError:
            continue
        whole += 1
        assert found == blocks_of(world)[: len(found)]
    assert whole == 3


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.mktemp("car") / "any.car", header() + data)
    try:
        for cid, block in read_car(path):
            assert sha256(block).digest() == cid[-32:]
    except CarError:
        pass


def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    path, blob = tmp_path / "large.car", bytes(2**20)
    write_car(path, [], ((compute_blob_id(blob), blob) for _ in range(40)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_car(path)) == 40
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        list(read_car(tmp_path / "none.car"))


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "kept.car", b"old")

    def blocks() -> Iterator[tuple[bytes, bytes]]:
        yield compute_op_id(OP), OP
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_car(path, [], blocks())
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["kept.car"]


def test_a_file_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be written"):
        write_car(tmp_path / "no folder" / "x.car", [], [])
