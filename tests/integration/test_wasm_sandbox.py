"""The WebAssembly sandbox on real processes: what works, every status, and an attack for each limit."""

import asyncio
import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime

from crdtchain.errors import SandboxError
from crdtchain.learning.schema import ModelSchema
from node.worker.evaluate import evaluate
from node.worker.metrics import compute_loss_micros
from node.worker.sandbox.base import Mode, Progress, Resources, RunSpec, Status
from node.worker.sandbox.wasm import WasmSandbox

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples/digits/data"
TRAINER = ROOT / "examples/digits-wasm/trainer.wasm"
PARAMS: dict[str, str | int | bool] = {"epochs": 12, "hidden": 32, "batch": 32, "scale": "0.0625", "noise": "0.25"}
SCHEMA = ModelSchema.parse(
    "raw",
    {"bias1": "float64[32]", "bias2": "float64[10]", "weights1": "float64[64,32]", "weights2": "float64[32,10]"},
)

ALLOC = """
  (global $top (mut i32) (i32.const 65536))
  (func (export "alloc") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.and (i32.add (i32.add (local.get $at) (local.get $size)) (i32.const 15)) (i32.const -16)))
    (local.get $at))
"""
NO_OUTPUT = """
  (func (export "output_ptr") (result i32) (i32.const 0))
  (func (export "output_len") (result i32) (i32.const 0))
"""


def make_module(train: str, extra: str = "", output: str = NO_OUTPUT, pages: int = 4, alloc: str = ALLOC) -> str:
    function = f'(func (export "train") (param i32 i32) (result i32) {train})'
    return f'(module (memory (export "memory") {pages}) {alloc} {output} {extra} {function})'


SPIN = "(loop $again (br $again)) (i32.const 0)"


class Bench:
    """A sandbox, and short ways to run things in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sandbox = WasmSandbox(folder / "cache")

    def write_module(self, code: bytes | str) -> Path:
        data = code if isinstance(code, bytes) else bytes(wasmtime.wat2wasm(code))
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:16]}.wasm"
        path.write_bytes(data)
        return path

    def make_spec(self, code: bytes | str, seconds: int = 5, memory_mib: int = 16, disk_mib: int = 1) -> RunSpec:
        resources = Resources(memory_mib=memory_mib, disk_mib=disk_mib, seconds=seconds)
        module = {"m.wasm": self.write_module(code)}
        return RunSpec("run", "try", Mode.TRAIN, "m.wasm", (), {}, resources, 1, code=module, expect=("model.raw",))

    def make_digits(self, mode: Mode, seed: int = 1, model: bytes = b"") -> RunSpec:
        (self.folder / "model.raw").write_bytes(model)
        return RunSpec(
            "run", "try", mode, "trainer.wasm", (), PARAMS, Resources(memory_mib=64, disk_mib=4, seconds=60), seed,
            code={"trainer.wasm": TRAINER},
            train={name: DATA / name for name in ("digits_train_x.npy", "digits_train_y.npy")},
            features={"digits_test_x.npy": DATA / "digits_test_x.npy"} if mode is Mode.PREDICT else {},
            model={"model.raw": self.folder / "model.raw"} if mode is Mode.PREDICT else {},
            expect=("model.raw",) if mode is Mode.TRAIN else (),
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def find_children(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, children.read_text().split())
    return [child for child in found if b"wasm_child" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wasm_number(value: int) -> bytes:
    """LEB128, as in a module's bytes."""
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


async def wait_until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)
    return value


@pytest.fixture(autouse=True)
def no_child_is_left() -> Any:
    yield
    assert find_children(os.getpid()) == []


@pytest.mark.asyncio
async def test_the_sandbox_says_what_it_is(bench: Bench) -> None:
    info = await bench.sandbox.check()
    assert (info.backend, info.usable, info.version.split(".")[0].isdigit()) == ("wasm", True, True)
    assert await bench.sandbox.has_image("trainer.wasm")


@pytest.mark.asyncio
async def test_the_digits_are_trained_predicted_and_judged(bench: Bench) -> None:
    seen: list[Progress] = []
    trained = await bench.sandbox.run(bench.make_digits(Mode.TRAIN), seen.append)
    assert (trained.status, trained.exit_code, list(trained.files)) == (Status.OK, 0, ["model/model.raw"])
    assert trained.cpu_ms > 0 and trained.wall_ms > 0 and trained.peak_memory_bytes >= 2**20
    assert (seen[-1].epoch, seen[-1].loss < 0.3) == (12, True)
    assert [one.epoch for one in seen] == sorted({one.epoch for one in seen})
    model = trained.files["model/model.raw"]
    assert len(model) == trained.out_bytes == SCHEMA.byte_count
    labels = (DATA / "digits_test_y.npy").read_bytes()
    spec = bench.make_digits(Mode.PREDICT, model=b"something else: evaluate must not read this file")
    judged = await evaluate(bench.sandbox, spec, "log_loss", labels, model, SCHEMA)
    assert judged.status is Status.OK and judged.result is not None
    predictions = np.load(io.BytesIO(judged.result.files["predictions.npy"]))
    assert judged.loss_micros == compute_loss_micros("log_loss", predictions, np.load(io.BytesIO(labels)))
    assert 0 < judged.loss_micros < 300_000 and judged.accuracy is not None and judged.accuracy > 0.9


@pytest.mark.asyncio
async def test_the_same_seed_gives_the_same_bits_and_another_seed_others(bench: Bench) -> None:
    first = await bench.sandbox.run(bench.make_digits(Mode.TRAIN, seed=1))
    cached = list((bench.folder / "cache").iterdir())
    assert len(cached) == 1 and cached[0].name.startswith(hashlib.sha256(TRAINER.read_bytes()).hexdigest())
    again = await bench.sandbox.run(bench.make_digits(Mode.TRAIN, seed=1))
    other = await bench.sandbox.run(bench.make_digits(Mode.TRAIN, seed=2))
    assert first.files == again.files
    assert first.files != other.files and other.status is Status.OK


@pytest.mark.asyncio
async def test_a_damaged_cache_is_compiled_again_and_never_run(bench: Bench) -> None:
    await bench.sandbox.run(bench.make_digits(Mode.TRAIN))
    (cached,) = (bench.folder / "cache").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert (await bench.sandbox.run(bench.make_digits(Mode.TRAIN))).status is Status.OK
    assert cached.read_bytes() == whole
    assert cached.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.asyncio
async def test_the_output_frame_is_harvested_by_name(bench: Bench) -> None:
    frame = (
        b"CCWF" + (1).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(4)
        + b"".join(n.to_bytes(4, "little") for n in (1, 64, 15, 96, 8, 0, 1, 79, 7, 96, 8, 0))
        + b"model/model.rawoutside" + bytes(10) + b"\1\2\3\4\5\6\7\x08"
    )  # fmt: skip
    text = "".join(f"\\{byte:02x}" for byte in frame)
    output = f'(data (i32.const 0) "{text}") (func (export "output_ptr") (result i32) (i32.const 0))'
    output += f'(func (export "output_len") (result i32) (i32.const {len(frame)}))'
    result = await bench.sandbox.run(bench.make_spec(make_module("(i32.const 0)", output=output)))
    assert (result.status, result.files) == (Status.OK, {"model/model.raw": b"\1\2\3\4\5\6\7\x08"})


IMPORTS = '(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))'
BIG_OUTPUT = """(func (export "output_ptr") (result i32) (i32.const 0))
  (func (export "output_len") (result i32) (i32.const 1048577))"""
OUTSIDE = """(func (export "output_ptr") (result i32) (i32.const 262140))
  (func (export "output_len") (result i32) (i32.const 64))"""
FAILURE = """(data (i32.const 16) "no \\ff\\0arows") (func (export "output_ptr") (result i32) (i32.const 16))
  (func (export "output_len") (result i32) (i32.const 9))"""
GROW_ALL = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) "
ATTACKS: dict[str, tuple[bytes | str, Status, str]] = {
    "garbage": (b"not a module", Status.JOB_ERROR, "not valid WebAssembly"),
    "empty": (b"", Status.JOB_ERROR, "not valid WebAssembly"),
    "truncated": (TRAINER.read_bytes()[:5000], Status.JOB_ERROR, "not valid WebAssembly"),
    "too large": (bytes(9 * 2**20), Status.JOB_ERROR, "larger than"),
    "imports": (IMPORTS, Status.JOB_ERROR, "imports (wasi_snapshot_preview1.fd_write)"),
    "no exports": ("(module)", Status.JOB_ERROR, "doesn't export its memory"),
    "no train": ('(module (memory (export "memory") 1))', Status.JOB_ERROR, "`alloc`"),
    "threads": ('(module (memory (export "memory") 1 1 shared))', Status.JOB_ERROR, "not valid"),
    "two memories": ("(module (memory 1) (memory 1))", Status.JOB_ERROR, "not valid"),
    "infinite loop": (make_module(SPIN), Status.TIMEOUT, "wall limit"),
    "infinite start": (make_module("(i32.const 0)", f"(func $s {SPIN} drop) (start $s)"), Status.TIMEOUT, "wall limit"),
    "infinite output": (make_module("(i32.const 0)", output=f'(func (export "output_ptr") (result i32) {SPIN}) '
                        '(func (export "output_len") (result i32) (i32.const 0))'), Status.TIMEOUT, "wall limit"),
    "endless steps": (make_module("(i32.const 1)", '(func (export "step") (result i32) (i32.const 1))'),
                      Status.TIMEOUT, "more steps"),
    "no step": (make_module("(i32.const 1)"), Status.JOB_ERROR, "`step`"),
    "trap": (make_module("unreachable"), Status.CRASHED, "unreachable"),
    "division": (make_module("(i32.div_s (i32.const 1) (i32.const 0))"), Status.CRASHED, "division"),
    "out of bounds": (make_module("(i32.load (i32.const -8))"), Status.CRASHED, "out of bounds"),
    "recursion": (make_module("(call $f)", "(func $f (result i32) (i32.add (call $f) (i32.const 1)))"),
                  Status.CRASHED, "stack overflow"),
    "memory bomb": (make_module(GROW_ALL + "(i32.const -2)"), Status.OOM, "too small"),
    "memory bomb with a trap": (make_module(GROW_ALL + "unreachable"), Status.OOM, "at the limit"),
    "huge memory": (make_module("(i32.const 0)", pages=65536), Status.OOM, "more than its limits"),
    "huge table": (make_module("(i32.const 0)", "(table 4000000000 funcref)"), Status.OOM, "more than its limits"),
    "no room": (make_module("(i32.const 0)", alloc='(func (export "alloc") (param i32) (result i32) (i32.const 0))'),
                Status.OOM, "no room"),
    "bad room": (make_module("(i32.const 0)", alloc='(func (export "alloc") (param i32) (result i32) (i32.const -16))'),
                 Status.JOB_ERROR, "out of bounds"),
    "no output": (make_module("(i32.const 0)"), Status.BAD_OUTPUT, "no frame"),
    "big output": (make_module("(i32.const 0)", output=BIG_OUTPUT, pages=32), Status.OUTPUT_LIMIT, "1048577"),
    "outside": (make_module("(i32.const 0)", output=OUTSIDE), Status.BAD_OUTPUT, "outside"),
    "failure": (make_module("(i32.const -1)", output=FAILURE), Status.JOB_ERROR, "The program failed: no \ufffd"),
    "odd code": (make_module("(i32.const 77)"), Status.JOB_ERROR, "code 77"),
}  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_ends_with_its_status_and_leaves_the_sandbox_usable(bench: Bench, attack: str) -> None:
    code, status, words = ATTACKS[attack]
    started = time.monotonic()
    result = await bench.sandbox.run(bench.make_spec(code, seconds=1))
    assert (result.status, words in result.reason) == (status, True), result
    assert result.files == {} and result.backend == "wasm"
    assert time.monotonic() - started < 6


@pytest.mark.asyncio
async def test_the_model_so_far_is_kept_when_the_time_is_up(bench: Bench) -> None:
    spec = bench.make_digits(Mode.TRAIN)
    spec = replace(spec, params=PARAMS | {"epochs": 1_000_000}, resources=replace(spec.resources, seconds=2))
    result = await bench.sandbox.run(spec)
    assert (result.status, len(result.files["model/model.raw"])) == (Status.OK, SCHEMA.byte_count)
    assert 1500 < result.wall_ms < 4000


@pytest.mark.asyncio
async def test_memory_stays_bounded_while_a_bomb_runs(bench: Bench) -> None:
    touch = "(local $i i32) (loop $more (drop (memory.grow (i32.const 64))) (local.set $i (i32.const 0)) "
    touch += (
        "(memory.fill (i32.const 0) (i32.const 7) (i32.shl (memory.size) (i32.const 16))) (br $more)) (i32.const 0)"
    )
    run = asyncio.create_task(bench.sandbox.run(bench.make_spec(make_module(touch), seconds=2, memory_mib=64)))
    (pid,) = await wait_until(lambda: find_children(os.getpid()))
    peak = 0
    while not run.done():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")))
        await asyncio.sleep(0.02)
    assert (await run).status is Status.TIMEOUT
    assert 64 * 1024 < peak < 200 * 1024  # KiB: the program's 64 MiB and the interpreter


@pytest.mark.asyncio
async def test_a_run_can_be_cancelled_at_any_time(bench: Bench) -> None:
    spec = bench.make_spec(make_module(SPIN), seconds=60)
    for delay in (0.0, 0.05, 0.5):
        cancel = asyncio.Event()
        run = asyncio.create_task(bench.sandbox.run(spec, cancel=cancel))
        await asyncio.sleep(delay)
        cancel.set()
        result = await asyncio.wait_for(run, 3)
        assert result.status is Status.CANCELLED
    assert (await bench.sandbox.run(spec, cancel=cancel)).status is Status.CANCELLED


@pytest.mark.asyncio
async def test_a_cancelled_task_leaves_no_process(bench: Bench) -> None:
    run = asyncio.create_task(bench.sandbox.run(bench.make_spec(make_module(SPIN), seconds=60)))
    await wait_until(lambda: find_children(os.getpid()))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert find_children(os.getpid()) == []


@pytest.mark.asyncio
async def test_the_loop_stays_free_while_programs_run(bench: Bench) -> None:
    run = asyncio.create_task(bench.sandbox.run(bench.make_spec(make_module(SPIN), seconds=2)))
    worst, last = 0.0, time.monotonic()
    while not run.done():
        await asyncio.sleep(0.01)
        now = time.monotonic()
        worst, last = max(worst, now - last), now
    assert worst < 1


@pytest.mark.asyncio
async def test_a_frozen_child_is_killed_at_the_wall_limit(bench: Bench) -> None:
    run = asyncio.create_task(bench.sandbox.run(bench.make_spec(make_module(SPIN), seconds=1)))
    (pid,) = await wait_until(lambda: find_children(os.getpid()))
    await asyncio.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    result = await asyncio.wait_for(run, 8)
    assert (result.status, result.signal) == (Status.TIMEOUT, signal.SIGKILL)


@pytest.mark.asyncio
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, Status.INFRA_ERROR), (signal.SIGABRT, Status.CRASHED)])
async def test_a_dead_child_is_told_apart_by_its_signal(bench: Bench, number: int, status: Status) -> None:
    run = asyncio.create_task(bench.sandbox.run(bench.make_spec(make_module(SPIN), seconds=30)))
    (pid,) = await wait_until(lambda: find_children(os.getpid()))
    await asyncio.sleep(0.3)
    os.kill(pid, number)
    result = await asyncio.wait_for(run, 5)
    assert (result.status, result.signal) == (status, number)


@pytest.mark.asyncio
async def test_the_child_has_no_environment_and_may_write_no_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    run = asyncio.create_task(bench.sandbox.run(bench.make_spec(make_module(SPIN), seconds=30)))
    (pid,) = await wait_until(lambda: find_children(os.getpid()))
    await wait_until(lambda: "Max file size             0 " in Path(f"/proc/{pid}/limits").read_text())
    assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@pytest.mark.asyncio
async def test_the_child_dies_with_a_killed_worker(bench: Bench) -> None:
    module = bench.write_module(make_module(SPIN))
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from node.worker.sandbox.wasm import WasmSandbox; from node.worker.sandbox.base import *\n"
        "spec = RunSpec('r', 'try', Mode.TRAIN, 'm', (), {}, Resources(seconds=60), 1, code={'m': Path(sys.argv[1])})\n"
        "asyncio.run(WasmSandbox(Path(sys.argv[2])).run(spec))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script, str(module), str(bench.folder / "cache")], cwd=ROOT)
    (child,) = await wait_until(lambda: find_children(worker.pid))
    await asyncio.sleep(0.3)
    worker.kill()
    worker.wait()
    await wait_until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), 5)


@pytest.mark.asyncio
async def test_closing_ends_every_run(bench: Bench) -> None:
    spec = bench.make_spec(make_module(SPIN), seconds=60)
    runs = [asyncio.create_task(bench.sandbox.run(spec)) for _ in range(3)]
    await wait_until(lambda: len(find_children(os.getpid())) == 3)
    await bench.sandbox.close()
    for result in await asyncio.gather(*runs):
        assert result.status is Status.CANCELLED
    with pytest.raises(SandboxError):
        await bench.sandbox.run(spec)


@pytest.mark.asyncio
async def test_sweeping_removes_only_old_leftovers(bench: Bench) -> None:
    cache = bench.folder / "cache"
    await bench.sandbox.run(bench.make_digits(Mode.TRAIN))
    for name, age in (("old.1.part", 3600), ("new.2.part", 0)):
        (cache / name).write_bytes(b"half")
        os.utime(cache / name, (time.time() - age, time.time() - age))
    assert await bench.sandbox.sweep() == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".compiled", ".part"]


@pytest.mark.asyncio
async def test_the_cache_forgets_what_was_used_longest_ago(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = bench.folder / "cache"
    await bench.sandbox.run(bench.make_digits(Mode.TRAIN))
    (first,) = cache.iterdir()
    os.utime(first, (0, 0))
    await bench.sandbox.run(bench.make_spec(make_module("unreachable")))
    monkeypatch.setattr("node.worker.sandbox.wasm.CACHE_BYTES_MAX", first.stat().st_size)
    assert await bench.sandbox.sweep() == 1
    assert first not in set(cache.iterdir()) and len(list(cache.iterdir())) == 1


@pytest.mark.asyncio
async def test_a_module_that_is_too_costly_to_compile_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = b"\x03\x40" * 100_000 + b"\x0b" * 100_000  # nesting makes the compiler use memory with its square
    body = b"\0" + loops + b"\x41\0\x0b"
    size = wasm_number(len(body))
    code = b"\x01" + size + body
    module = b"\0asm\1\0\0\0\x01\x05\x01\x60\x00\x01\x7f\x03\x02\x01\x00\x0a" + wasm_number(len(code)) + code
    result = await bench.sandbox.run(bench.make_spec(module, seconds=1))
    assert (result.status, "memory to compile" in result.reason) == (Status.JOB_ERROR, True), result
    monkeypatch.setattr("node.worker.sandbox.wasm.COMPILE_S", 0.5)
    result = await bench.sandbox.run(bench.make_spec(module, seconds=1))
    assert (result.status, "to compile" in result.reason) == (Status.JOB_ERROR, True), result
    assert result.wall_ms < 3000


@pytest.mark.asyncio
async def test_what_the_sandbox_can_not_grant_is_refused(bench: Bench) -> None:
    spec = bench.make_spec(make_module("(i32.const 0)"))
    gpu = await bench.sandbox.run(replace(spec, resources=replace(spec.resources, gpus=1)))
    assert gpu.status is Status.POLICY_REFUSED
    assert (await bench.sandbox.run(replace(spec, image="other.wasm"))).status is Status.JOB_ERROR
    assert (await bench.sandbox.run(replace(spec, params={"n": 2**63}))).status is Status.JOB_ERROR
    assert (await bench.sandbox.run(replace(spec, code={"m.wasm": bench.folder / "gone"}))).status is Status.INFRA_ERROR
    big = bench.folder / "big"
    big.write_bytes(bytes(17 * 2**20))
    assert (await bench.sandbox.run(replace(spec, train={"big": big}))).status is Status.OOM


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_model_with_a_value_that_is_no_number_is_never_run(bench: Bench, value: float) -> None:
    model = np.zeros(SCHEMA.byte_count // 8)
    model[7] = value
    labels = (DATA / "digits_test_y.npy").read_bytes()
    spec = bench.make_digits(Mode.PREDICT)
    judged = await evaluate(bench.sandbox, spec, "log_loss", labels, model.tobytes(), SCHEMA)
    assert (judged.status, judged.loss_micros, judged.result) == (Status.BAD_OUTPUT, None, None)
    assert "not finite" in judged.reason


@pytest.mark.asyncio
async def test_a_huge_but_finite_model_gets_bad_output_or_a_loss_but_never_nan(bench: Bench) -> None:
    model = np.full(SCHEMA.byte_count // 8, 1e308)
    labels = (DATA / "digits_test_y.npy").read_bytes()
    judged = await evaluate(bench.sandbox, bench.make_digits(Mode.PREDICT), "log_loss", labels, model.tobytes(), SCHEMA)
    assert judged.status is Status.BAD_OUTPUT
    assert "not finite" in judged.reason and judged.result is not None
