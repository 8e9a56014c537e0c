"""Train a small network on the digits, with numpy alone.

The sandbox's contract is all there is: inputs below JOB_IN, the model below JOB_OUT, a seed, one JSON line of
progress an epoch, and the best model so far when SIGTERM says that time is up. A part of the training rows is held
out; the model with the lowest loss on them is the one that is saved.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

JOB_IN = Path(os.environ.get("JOB_IN", "/job/in"))
JOB_OUT = Path(os.environ.get("JOB_OUT", "/job/out"))
Array = npt.NDArray[Any]


class TimeIsUp(Exception):
    """SIGTERM: save what there is, and stop."""


def on_sigterm(number: int, frame: object) -> None:
    raise TimeIsUp


def forward(x: Array, model: dict[str, Array]) -> tuple[Array, Array]:
    """The hidden layer and the class probabilities of some rows."""
    layer = np.maximum(x @ model["weights1"] + model["bias1"], 0)
    logits = layer @ model["weights2"] + model["bias2"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return layer, powers / powers.sum(axis=1, keepdims=True)


def compute_loss(x: Array, y: Array, model: dict[str, Array]) -> float:
    _, shares = forward(x, model)
    return float(-np.log(np.maximum(shares[np.arange(len(y)), y], 1e-12)).mean())


def compute_gradient(x: Array, y: Array, model: dict[str, Array], l2: float) -> dict[str, Array]:
    layer, delta = forward(x, model)
    delta[np.arange(len(y)), y] -= 1
    delta /= len(y)
    back = (delta @ model["weights2"].T) * (layer > 0)
    return {
        "bias1": back.sum(axis=0),
        "bias2": delta.sum(axis=0),
        "weights1": x.T @ back + l2 * model["weights1"],
        "weights2": layer.T @ delta + l2 * model["weights2"],
    }


class Adam:
    """The optimiser of Kingma and Ba (2015), with its usual constants."""

    def __init__(self, model: dict[str, Array]) -> None:
        self.first = {name: np.zeros_like(values) for name, values in model.items()}
        self.second = {name: np.zeros_like(values) for name, values in model.items()}
        self.steps = 0

    def update(self, model: dict[str, Array], gradient: dict[str, Array], rate: float) -> None:
        self.steps += 1
        scale = rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for name, slope in gradient.items():
            self.first[name] += 0.1 * (slope - self.first[name])
            self.second[name] += 0.001 * (slope * slope - self.second[name])
            model[name] -= scale * self.first[name] / (np.sqrt(self.second[name]) + 1e-8)


def make_model(rng: np.random.Generator, inputs: int, hidden: int, classes: int) -> dict[str, Array]:
    return {
        "bias1": np.zeros(hidden),
        "bias2": np.zeros(classes),
        "weights1": rng.normal(0, np.sqrt(2 / inputs), (inputs, hidden)),
        "weights2": rng.normal(0, np.sqrt(1 / hidden), (hidden, classes)),
    }


def train(params: dict[str, Any], rng: np.random.Generator, best: dict[str, Array]) -> None:
    """Fill `best` with the best model so far, from the first epoch on."""
    x = np.load(JOB_IN / "data/train/digits_train_x.npy", allow_pickle=False) * float(params["scale"])
    y = np.load(JOB_IN / "data/train/digits_train_y.npy", allow_pickle=False).astype(np.int64)
    order = rng.permutation(len(y))
    held = len(y) * int(params["holdout_percent"]) // 100
    held_x, held_y, x, y = x[order[:held]], y[order[:held]], x[order[held:]], y[order[held:]]
    epochs, batch, noise = int(params["epochs"]), int(params["batch"]), float(params["noise"])
    model = make_model(rng, x.shape[1], int(params["hidden"]), int(params["classes"]))
    best.update({name: values.copy() for name, values in model.items()})
    lowest, adam = np.inf, Adam(model)
    for epoch in range(epochs):
        rate = float(params["learning_rate"]) * (1 - epoch / epochs)
        order = rng.permutation(len(y))
        noisy = x + rng.uniform(-noise, noise, x.shape)
        for start in range(0, len(y), batch):
            rows = order[start : start + batch]
            adam.update(model, compute_gradient(noisy[rows], y[rows], model, float(params["l2"])), rate)
        loss = compute_loss(held_x, held_y, model) if held else compute_loss(x, y, model)
        print(json.dumps({"epoch": epoch + 1, "loss": loss}), flush=True)
        if loss < lowest:
            lowest = loss
            best.update({name: values.copy() for name, values in model.items()})


def main() -> int:
    params = json.loads((JOB_IN / "hyperparameters.json").read_text())
    rng = np.random.default_rng(int(os.environ["JOB_SEED"]))
    best: dict[str, Array] = {}
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        train(params, rng, best)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except TimeIsUp:
        print("time is up: saving the best model so far", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not best:
        (JOB_OUT / "failure").write_text("the time was up before the first epoch")
        return 1
    (JOB_OUT / "model").mkdir(parents=True, exist_ok=True)
    np.savez(
        JOB_OUT / "model/model.npz",
        bias1=best["bias1"],
        bias2=best["bias2"],
        weights1=best["weights1"],
        weights2=best["weights2"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
