"""The shipped module: built from its source, byte for byte, and the same bits in another engine."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from node.worker.sandbox.base import Mode, Resources, RunSpec, Status
from node.worker.sandbox.wasm import WasmSandbox, make_request
from node.worker.sandbox.wasm_build import MODULE, TRAINER_SHA256, build_module
from node.worker.sandbox.wasm_child import read_entries
from node.worker.sandbox.wasm_frame import decode_frame, encode_frame

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples/digits/data"
PARAMS: dict[str, str | int | bool] = {"batch": 32, "epochs": 5, "hidden": 32, "noise": "0.25", "scale": "0.0625"}
needs_v8 = pytest.mark.skipif(shutil.which("node") is None, reason="no V8: install Node.js")


def read_vector(name: str) -> bytes:
    text = (ROOT / "docs/reference/wasm-abi.md").read_text()
    match = re.search(rf"```hex {name}\n([0-9a-f\n]+)```", text)
    assert match is not None
    return bytes.fromhex(match[1])


def make_train_spec() -> RunSpec:
    return RunSpec(
        "run", "try", Mode.TRAIN, MODULE.name, (), PARAMS, Resources(memory_mib=64, seconds=60), 1,
        code={MODULE.name: MODULE},
        train={name: DATA / name for name in ("digits_train_x.npy", "digits_train_y.npy")},
        expect=("model.raw",),
    )  # fmt: skip


def run_in_v8(folder: Path, mode: str, frame: bytes) -> bytes:
    path = folder / "input.frame"
    path.write_bytes(frame)
    script = Path(__file__).parent / "wasm_v8.cjs"
    return subprocess.run(["node", script, MODULE, mode, path], capture_output=True, check=True, timeout=120).stdout


def test_the_committed_module_is_the_pinned_one_and_small() -> None:
    module = MODULE.read_bytes()
    assert hashlib.sha256(module).hexdigest() == TRAINER_SHA256
    assert len(module) < 64 * 1024
    assert re.search(rb"clang|/home|/tmp|trainer", module) is None


def test_the_source_builds_to_the_committed_module() -> None:
    pytest.importorskip("ziglang")
    assert build_module() == MODULE.read_bytes()


def test_the_documented_input_frame_is_what_the_host_writes() -> None:
    vector = read_vector("input")
    entries = decode_frame(vector, 2**20)
    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert encode_frame(entries) == vector


@pytest.mark.asyncio
async def test_the_documented_predictions_come_out_of_the_sandbox(tmp_path: Path) -> None:
    inputs = {entry.name: bytes(entry.data) for entry in decode_frame(read_vector("input"), 2**20)}
    for name in ("data/test/t_x.npy", "model/model.raw"):
        (tmp_path / Path(name).name).write_bytes(inputs[name])
    spec = RunSpec(
        "run", "try", Mode.PREDICT, MODULE.name, (), {"scale": "0.5", "hidden": 0, "unused": True},
        Resources(memory_mib=16, seconds=10), 7,
        code={MODULE.name: MODULE},
        features={"t_x.npy": tmp_path / "t_x.npy"},
        model={"model.raw": tmp_path / "model.raw"},
    )  # fmt: skip
    assert encode_frame(read_entries(make_request(spec, tmp_path))) == read_vector("input")
    result = await WasmSandbox(tmp_path / "cache").run(spec)
    (expected,) = decode_frame(read_vector("output"), 2**20)
    assert (result.status, dict(result.files)) == (Status.OK, {expected.name: expected.data})


@pytest.mark.asyncio
async def test_the_documented_model_comes_out_of_the_sandbox(tmp_path: Path) -> None:
    result = await WasmSandbox(tmp_path / "cache").run(make_train_spec())
    assert hashlib.sha256(result.files["model/model.raw"]).digest() == read_vector("model")


@needs_v8
def test_v8_gives_the_documented_predictions(tmp_path: Path) -> None:
    assert run_in_v8(tmp_path, "predict", read_vector("input")) == read_vector("output")


@needs_v8
def test_v8_trains_the_same_model_bit_for_bit(tmp_path: Path) -> None:
    frame = encode_frame(read_entries(make_request(make_train_spec(), tmp_path)))
    (model,) = decode_frame(run_in_v8(tmp_path, "train", bytes(frame)), 2**20)
    assert model.name == "model/model.raw"
    assert hashlib.sha256(model.data).digest() == read_vector("model")
