"""The shipped example jobs: their files, and their numpy programs run as the sandbox's contract says."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crdtchain.adapters.models import parse_model, parse_npy, parse_predictions
from crdtchain.learning.schema import ModelSchema
from node.worker.digits import FILES, TRAIN_COUNT, compute_order, make_digits
from node.worker.metrics import compute_loss_micros, test_accuracy

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = EXAMPLES / "digits/data"


def read_job(name: str) -> dict[str, Any]:
    return tomllib.loads((EXAMPLES / name / "job.toml").read_text())


def make_job_folder(folder: Path, **params: str | int) -> dict[str, str]:
    job = read_job("digits")
    for part in ("in/data/train", "in/data/test", "in/model", "out"):
        (folder / part).mkdir(parents=True)
    for name in job["files"]["train"]:
        shutil.copy(EXAMPLES / "digits" / name, folder / "in/data/train")
    for name in job["files"]["test_features"]:
        shutil.copy(EXAMPLES / "digits" / name, folder / "in/data/test")
    (folder / "in/hyperparameters.json").write_text(json.dumps(job["task"]["params"] | params))
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {"JOB_IN": str(folder / "in"), "JOB_OUT": str(folder / "out"), "JOB_SEED": "1", **threads}


def run_program(name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / "digits" / name)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_schema(name: str) -> ModelSchema:
    model = read_job(name)["model"]
    return ModelSchema.parse(model["format"], model["arrays"])


@pytest.mark.parametrize("name", ["digits", "digits-wasm"])
def test_every_file_of_a_job_is_there_and_its_names_are_allowed(name: str) -> None:
    job = read_job(name)
    files = job["files"]
    for file in (*files["code"], *files["train"], *files["test_features"], files["test_labels"]):
        assert (EXAMPLES / name / file).is_file()
        assert Path(file).name.replace("_", "").replace(".", "").isalnum()
    assert read_schema(name).byte_count > 0
    assert all(type(value) in (str, int, bool) for value in job["task"]["params"].values())


def test_the_shipped_data_is_the_split_that_the_script_makes(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    make_digits(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()
    assert sorted(compute_order(1797)) == list(range(1797))
    assert parse_npy((DATA / "digits_train_x.npy").read_bytes(), 2**20).shape == (TRAIN_COUNT, 64)


def test_training_and_predicting_with_numpy_gives_a_good_model(tmp_path: Path) -> None:
    environment = make_job_folder(tmp_path, epochs=60)
    training = run_program("train.py", environment)
    out, err = training.communicate(timeout=120)
    assert (training.returncode, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 61))
    assert lines[-1]["loss"] < lines[0]["loss"]
    model = (tmp_path / "out/model/model.npz").read_bytes()
    assert list(parse_model(model, read_schema("digits"))) == ["bias1", "bias2", "weights1", "weights2"]
    (tmp_path / "in/model/model.npz").write_bytes(model)
    predicting = run_program("predict.py", environment)
    assert predicting.communicate(timeout=60) == ("", "")
    predictions = parse_predictions((tmp_path / "out/predictions.npy").read_bytes(), 2**20)
    labels = np.load(io.BytesIO((DATA / "digits_test_y.npy").read_bytes()))
    assert test_accuracy(predictions, labels) > 0.93
    assert 0 < compute_loss_micros("log_loss", predictions, labels) < 250_000


def test_sigterm_saves_the_best_model_so_far(tmp_path: Path) -> None:
    training = run_program("train.py", make_job_folder(tmp_path, epochs=1_000_000))
    assert training.stdout is not None
    assert json.loads(training.stdout.readline())["epoch"] == 1
    os.kill(training.pid, signal.SIGTERM)
    training.communicate(timeout=30)
    assert training.returncode == 0
    parse_model((tmp_path / "out/model/model.npz").read_bytes(), read_schema("digits"))
