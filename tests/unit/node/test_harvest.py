"""Reading a stranger's output from a tar: what is taken, what is refused, and whose fault a torn stream is."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.worker.sandbox.base import Mode, Resources, RunSpec, Status
from node.worker.sandbox.harvest import (
    ENTRIES_MAX,
    HarvestError,
    TornStreamError,
    allowed_names,
    harvest,
    missing_names,
)

ALLOWED = {"model/m": 100, "metrics.json": 10}


def make_tar(*members: tuple[str, bytes, bytes], close: bool = True) -> bytes:
    """Make a tar of (name, type, content); a link's content is its target."""
    out = io.BytesIO()
    tar = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
    for name, kind, content in members:
        info = tarfile.TarInfo(name)
        info.type = kind
        if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info.linkname = content.decode()
            tar.addfile(info)
        else:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if close:
        tar.close()
        return out.getvalue()[: -(-tar.offset // 512) * 512]
    return out.getvalue()


def folder(name: str) -> tuple[str, bytes, bytes]:
    return name, tarfile.DIRTYPE, b""


def file(name: str, content: bytes = b"x") -> tuple[str, bytes, bytes]:
    return name, tarfile.REGTYPE, content


def test_allowed_files_are_taken_and_others_are_passed_over() -> None:
    tar = make_tar(folder("out/"), folder("out/model/"), file("out/model/m", b"weights"), file("out/scratch", b"abc"))
    found = harvest([tar], ALLOWED, 1000)
    assert found.files == {"model/m": b"weights"}
    assert (found.total_bytes, found.entries) == (10, 4)


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=8))
def test_it_does_not_matter_how_the_stream_is_cut(sizes: list[int]) -> None:
    tar = make_tar(folder("out/"), file("out/metrics.json", b"{}"), file("out/model/m", bytes(range(100))))

    def chunks() -> Iterator[bytes]:
        at = number = 0
        while at < len(tar):
            yield tar[at : at + sizes[number % len(sizes)]]
            at += sizes[number % len(sizes)]
            number += 1

    assert harvest(chunks(), ALLOWED, 1000).files == {"metrics.json": b"{}", "model/m": bytes(range(100))}


@pytest.mark.parametrize(
    "member",
    [
        ("out/model/m", tarfile.SYMTYPE, b"/etc/passwd"),
        ("out/scratch", tarfile.SYMTYPE, b"model"),
        ("out/model/m", tarfile.LNKTYPE, b"out/other"),
        ("out/pipe", tarfile.FIFOTYPE, b""),
        ("out/disk", tarfile.BLKTYPE, b""),
        ("out/tty", tarfile.CHRTYPE, b""),
        ("out/hole", tarfile.GNUTYPE_SPARSE, b""),
        ("out/strange", b"Z", b""),
        file("out/../etc/passwd"),
        file("/out/model/m"),
        file("elsewhere/model/m"),
        file("out//model/m"),
        file("out/./model/m"),
    ],
)
def test_anything_but_plain_files_makes_the_output_bad(member: tuple[str, bytes, bytes]) -> None:
    with pytest.raises(HarvestError) as caught:
        harvest([make_tar(folder("out/"), member, file("out/model/m"))], ALLOWED, 1000)
    assert caught.value.status is Status.BAD_OUTPUT


def test_a_repeated_name_makes_the_output_bad() -> None:
    with pytest.raises(HarvestError, match="twice") as caught:
        harvest([make_tar(file("out/model/m", b"a"), file("out/model/m", b"b"))], ALLOWED, 1000)
    assert caught.value.status is Status.BAD_OUTPUT


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
def test_a_file_may_be_as_large_as_its_bound(size: int, fits: bool) -> None:
    tar = make_tar(file("out/metrics.json", bytes(size)))
    if fits:
        assert harvest([tar], ALLOWED, 1000).files == {"metrics.json": bytes(size)}
        return
    with pytest.raises(HarvestError) as caught:
        harvest([tar], ALLOWED, 1000)
    assert caught.value.status is Status.OUTPUT_LIMIT


@pytest.mark.parametrize(("size", "fits"), [(500, True), (501, False)])
def test_all_files_together_may_be_as_large_as_the_quota(size: int, fits: bool) -> None:
    tar = make_tar(file("out/a", bytes(500)), file("out/b", bytes(size)))
    if fits:
        assert harvest([tar], ALLOWED, 1000).total_bytes == 1000
        return
    with pytest.raises(HarvestError) as caught:
        harvest([tar], ALLOWED, 1000)
    assert caught.value.status is Status.OUTPUT_LIMIT


def test_a_terabyte_is_refused_at_its_header_without_reading_on() -> None:
    info = tarfile.TarInfo("out/model/m")
    info.size = 1 << 40
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        yield info.tobuf(tarfile.GNU_FORMAT)
        while True:
            read += 1
            yield bytes(1 << 16)

    with pytest.raises(HarvestError) as caught:
        harvest(chunks(), {"model/m": 1 << 50}, 1 << 20)
    assert caught.value.status is Status.OUTPUT_LIMIT and read <= 4


def test_too_many_files_are_refused() -> None:
    tar = make_tar(*(file(f"out/{number}", b"") for number in range(ENTRIES_MAX + 2)))
    with pytest.raises(HarvestError) as caught:
        harvest([tar], ALLOWED, 1000)
    assert caught.value.status is Status.OUTPUT_LIMIT


def test_passing_over_a_large_file_needs_little_memory() -> None:
    tar = make_tar(file("out/scratch", bytes(32 << 20)))
    chunks = (tar[at : at + 65536] for at in range(0, len(tar), 65536))
    tracemalloc.start()
    assert harvest(chunks, ALLOWED, 64 << 20).files == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@given(st.data())
def test_a_stream_that_breaks_off_is_not_the_jobs_fault(data: st.DataObject) -> None:
    tar = make_tar(folder("out/"), file("out/model/m", b"weights"), file("out/metrics.json", b"{}"))
    cut = data.draw(st.integers(0, len(tar) - 1025))
    with pytest.raises(TornStreamError):
        harvest([tar[:cut]], ALLOWED, 1000)


@given(st.binary(max_size=3000))
def test_garbage_gives_a_typed_error(garbage: bytes) -> None:
    with pytest.raises((TornStreamError, HarvestError)):
        harvest([garbage], ALLOWED, 1000)


@given(st.integers(0, 511), st.integers(0, 255))
def test_a_spoilt_header_gives_a_typed_error_or_the_same_files(at: int, value: int) -> None:
    tar = bytearray(make_tar(file("out/model/m", b"weights")))
    tar[at] = value
    try:
        found = harvest([bytes(tar)], ALLOWED, 1000)
    except (TornStreamError, HarvestError):
        return
    assert found.files == {"model/m": b"weights"}


def test_each_mode_delivers_its_own_files() -> None:
    train = RunSpec("r", "j", Mode.TRAIN, "", (), {}, Resources(disk_mib=1), 0, expect=("a.npz", "b.npz"))
    predict = RunSpec("r", "j", Mode.PREDICT, "", (), {}, Resources(disk_mib=1), 0, expect=("a.npz",))
    assert set(allowed_names(train)) == {"metrics.json", "failure", "model/a.npz", "model/b.npz"}
    assert set(allowed_names(predict)) == {"metrics.json", "failure", "predictions.npy"}
    assert allowed_names(train)["model/a.npz"] == 1 << 20
    found = harvest([make_tar(file("out/model/b.npz"))], allowed_names(train), 1 << 20)
    assert missing_names(train, found) == ["model/a.npz"] and missing_names(predict, found) == ["predictions.npy"]
