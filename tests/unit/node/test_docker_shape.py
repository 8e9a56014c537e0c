"""What a run becomes in docker's terms, what a program prints, and images made from files: without a daemon."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import struct
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.errors import SandboxError
from node.worker.sandbox import docker_spec as shape
from node.worker.sandbox.base import Mode, Progress, Resources, RunSpec
from node.worker.sandbox.docker_archive import Source, find_architecture, holder_program, write_archive
from node.worker.sandbox.docker_logs import LINE_BYTES_MAX, LogReader, parse_progress
from node.worker.sandbox.seccomp import build_profile

SPEC = RunSpec("r", "job", Mode.TRAIN, "sha256:" + "a" * 64, ("python",), {"b": True, "a": 1}, Resources(), 5)
IMAGE = shape.ImageFacts("sha256:" + "a" * 64, "/bin", ("PATH", "LEAK"), ())
HOST = {"NCPU": 2, "MemTotal": 8 << 30}
NAMES = shape.Names("p", "h", "i", "o")


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        ("sha256:" + "a" * 64, True),
        ("python@sha256:" + "0" * 64, True),
        ("registry.example:5000/team/python@sha256:" + "0" * 64, True),
        ("python", False),
        ("python:3.11", False),
        ("python:latest", False),
        ("a" * 64, False),
        ("sha256:" + "a" * 63, False),
        ("sha256:" + "A" * 64, False),
        ("sha256:" + "a" * 64 + "\n", False),
        ("python@sha256:short", False),
        ("", False),
    ],
)
def test_only_digests_pin_an_image(image: str, pinned: bool) -> None:
    assert shape.is_pinned(image) is pinned


@pytest.mark.parametrize(
    "place", ["/", "/proc", "/proc/x", "/sys/fs", "/dev", "relative", "/a/../b", "/a/", "//a", "/job", "/job/in/code"]
)
def test_volumes_that_can_not_be_covered_are_refused(place: str) -> None:
    assert "volume" in str(shape.find_refusal(SPEC, replace(IMAGE, volumes=(place,)), HOST, 0))


def test_a_sound_run_is_not_refused() -> None:
    assert (
        shape.find_refusal(SPEC, replace(IMAGE, volumes=("/data", "/var/lib/db", "/tmp", "/job/out")), HOST, 0) is None
    )


def test_variables_of_the_image_are_dropped_by_name() -> None:
    env = shape.build_environment(SPEC, IMAGE)
    assert {"LEAK", "HOSTNAME"} == {entry for entry in env if "=" not in entry}
    assert "PATH=/bin" in env and "JOB_SEED=5" in env


def test_the_container_is_hardened() -> None:
    config = shape.build_host_config(SPEC, replace(IMAGE, volumes=("/data",)), NAMES, None)
    assert config["Memory"] == config["MemorySwap"] == 512 << 20
    assert config["NetworkMode"] == "none" and config["ReadonlyRootfs"] is True and config["CapDrop"] == ["ALL"]
    assert "DeviceRequests" not in config and "Runtime" not in config and "Binds" not in config
    tmpfs = config["Tmpfs"]
    assert isinstance(tmpfs, dict) and set(tmpfs) == {"/tmp", "/data"}
    graphic = replace(SPEC, resources=Resources(gpus=1))
    assert "DeviceRequests" in shape.build_host_config(graphic, IMAGE, NAMES, "runsc")


def test_dangerous_calls_are_not_in_the_filter() -> None:
    profile = build_profile()
    rules = profile["syscalls"]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO" and isinstance(rules, list)
    allowed = {name for rule in rules if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    denied = (
        "io_uring_setup memfd_create execveat ptrace keyctl bpf userfaultfd unshare mount setns clone3 chroot splice"
    )
    assert not allowed & set(denied.split()) and {"read", "execve", "futex"} <= allowed


def test_a_mode_sees_its_own_input(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    files = {"f": path}
    for mode, places in (
        (Mode.TRAIN, {"code/f", "data/train/f"}),
        (Mode.PREDICT, {"code/f", "data/test/f", "model/f"}),
    ):
        spec = replace(SPEC, mode=mode, code=files, train=files, features=files, model=files, job_json=b"[]")
        with tarfile.open(fileobj=io.BytesIO(b"".join(shape.stream_input(spec)))) as tar:
            members = {member.name: member for member in tar if member.isreg()}
            params = tar.extractfile("hyperparameters.json")
            assert params is not None and params.read() == b'{"a": 1, "b": true}'
        assert set(members) == places | {"job.json", "hyperparameters.json"}
        assert all(member.uid == 0 and member.mode & 0o222 == 0 for member in members.values())


# --- logs -------------------------------------------------------------------------------------------------------------


def frame(stream: int, payload: bytes) -> bytes:
    return struct.pack(">B3xL", stream, len(payload)) + payload


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_frames_are_read_however_they_are_cut(sizes: list[int]) -> None:
    data = (
        frame(1, b'{"epoch": 1, "lo')
        + frame(2, b"warning\n")
        + frame(1, b'ss": 0.5}\nnot json\n{"epoch": 2, "loss": 1}\n')
    )
    reader, heard, at, number = LogReader(), [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        heard += reader.feed(data[at : at + size])
        at, number = at + size, number + 1
    assert heard == [Progress(1, 0.5), Progress(2, 1.0)]
    assert reader.log_bytes == len(data) - 24 and not reader.over


def test_the_cap_is_counted_over_both_streams() -> None:
    reader = LogReader(bytes_max=10)
    reader.feed(frame(1, b"x" * 5) + frame(2, b"y" * 5))
    assert (reader.over, reader.tail) == (False, "xxxxxyyyyy")
    reader.feed(frame(2, b"z"))
    assert (reader.over, reader.tail) == (True, "xxxxxyyyyyz")


def test_the_tail_can_not_drive_a_terminal() -> None:
    reader = LogReader()
    reader.feed(frame(2, "é\x1b[31m\x9b\u202e\ttab\nline".encode() + b"\xff"))
    assert reader.tail == "é�[31m��\ttab\nline�"


@pytest.mark.parametrize(
    "line",
    [
        b"", b"plain", b"[]", b"1", b'{"epoch": 1}', b'{"loss": 1}', b'{"epoch": "1", "loss": 1}',
        b'{"epoch": 1.0, "loss": 1}',
        b'{"epoch": true, "loss": 1}', b'{"epoch": 1, "loss": false}', b'{"epoch": 1, "loss": NaN}',
        b'{"epoch": 1, "loss": -Infinity}', b'{"epoch": 1, "loss": 1e400}', b'{"epoch": -1, "loss": 1}',
        b'{"epoch": 2147483648, "loss": 1}', b'{"epoch": 1, "loss": ' + b"9" * 400 + b"}", b'{"a":' * 600, b"\xff{",
        b'{"epoch": ' + b"9" * 5000 + b', "loss": 1}',
    ],
)  # fmt: skip
def test_other_lines_are_not_progress(line: bytes) -> None:
    assert parse_progress(line) is None


def test_small_plain_fields_come_along() -> None:
    line = {
        "epoch": 1,
        "loss": 2,
        "accuracy": 0.5,
        "phase": "warm",
        "list": [1],
        "flag": True,
        "x" * 65: 1,
        "t": "a\x1b",
    }
    assert parse_progress(json.dumps(line).encode()) == Progress(1, 2.0, {"accuracy": 0.5, "phase": "warm"})


@given(st.binary(max_size=2000))
def test_no_bytes_can_raise(data: bytes) -> None:
    reader = LogReader()
    reader.feed(data)
    reader.feed(frame(1, data + b"\n"))
    assert isinstance(reader.tail, str)


def test_a_line_without_end_is_not_kept() -> None:
    reader = LogReader()
    for _ in range(100):
        assert reader.feed(frame(1, b"x" * LINE_BYTES_MAX)) == []
    assert reader.feed(frame(1, b'\n{"epoch": 3, "loss": 1}\n')) == [Progress(3, 1.0)]


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_archive_is_the_same_each_time_and_names_its_own_hash(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"1")
    files = {"b/c": Source(data=b"2", executable=True), "a": Source(path=tmp_path / "data"), "l": Source(link="a")}
    first = write_archive(tmp_path / "1.tar", files, {}, "amd64")
    (tmp_path / "data").touch()
    second = write_archive(tmp_path / "2.tar", dict(reversed(files.items())), {}, "amd64")
    assert first == second and (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as archive:
        contents = {member.name: archive.extractfile(member) for member in archive}
        data = {name: file.read() for name, file in contents.items() if file is not None}
    manifest = json.loads(data["manifest.json"])[0]
    assert manifest["RepoTags"] is None
    assert first.id == "sha256:" + hashlib.sha256(data[manifest["Config"]]).hexdigest()
    assert first.layers == ("sha256:" + hashlib.sha256(data[manifest["Layers"][0]]).hexdigest(),)
    with tarfile.open(fileobj=io.BytesIO(data[manifest["Layers"][0]])) as layer:
        members = list(layer)
    assert [member.name for member in members] == ["a", "b", "b/c", "l"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_an_unknown_architecture_is_said() -> None:
    assert find_architecture("aarch64") == "arm64"
    with pytest.raises(SandboxError, match="sparc64"):
        find_architecture("sparc64")


@pytest.mark.skipif(platform.system() != "Linux", reason="an ELF program for Linux")
def test_the_holder_program_waits_until_it_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "hold"
    program.write_bytes(holder_program(find_architecture()))
    program.chmod(0o755)
    with subprocess.Popen([program]) as process:
        time.sleep(0.1)
        assert process.poll() is None
        process.kill()
        assert process.wait() == -9
