"""Losses: one table of metrics, from predictions and labels to integer micro-losses.

Every node computes the loss of a revealed model by itself, so a metric must give one number everywhere: float64
throughout, means by `math.fsum` (correctly rounded, so the order of summing can't matter), and exact half-even
rounding to millionths. Lower is better, and no metric is negative.

- `log_loss`: the mean of -ln p(label); predictions are rows of probabilities that sum to 1 within 1e-6 and are then
  renormalised; p is clipped from below at 1e-12.
- `error_rate`: the share of rows whose largest prediction (the first of equals) is not the label; predictions that
  are one column are labels themselves.
- `mse`, `mae`: the mean square and mean absolute difference over all elements.

Numbers that are not finite, shapes that don't fit, and probabilities that are none are a `ModelError`: bad output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from crdtchain.errors import ModelError
from crdtchain.scalars import Micros

Matrix = npt.NDArray[np.float64]

PROBABILITY_MIN = 1e-12
SUM_TOLERANCE = 1e-6
LOSS_MICROS_MAX = 2**53 - 1
"""The largest loss an op can carry."""


def _mean(values: Matrix) -> float:
    return math.fsum(values.ravel().tolist()) / values.size


def _class_labels(labels: Matrix, class_count: int) -> npt.NDArray[np.int64]:
    if labels.ndim != 1 or np.any(labels != np.floor(labels)) or labels.min() < 0 or labels.max() >= class_count:
        raise ModelError(f"the labels must be one column of whole numbers from 0 to {class_count - 1}")
    return labels.astype(np.int64)


def _compute_log_loss(predictions: Matrix, labels: Matrix) -> float:
    if predictions.ndim != 2 or len(predictions) != len(labels):
        raise ModelError(f"log_loss needs {len(labels)} rows of probabilities, not shape {predictions.shape}")
    if predictions.min() < 0:
        raise ModelError("a probability is negative")
    sums = np.array([math.fsum(row) for row in predictions.tolist()])
    if np.any(np.abs(sums - 1) > SUM_TOLERANCE):
        worst = int(np.argmax(np.abs(sums - 1)))
        raise ModelError(f"row {worst} of the probabilities sums to {sums[worst]:.9g}, not to 1")
    chosen = predictions[np.arange(len(labels)), _class_labels(labels, predictions.shape[1])] / sums
    # A share of 1 may come out above it by one rounding; a loss is never negative.
    return _mean(-np.log(np.clip(chosen, PROBABILITY_MIN, 1.0)))


def _compute_error_rate(predictions: Matrix, labels: Matrix) -> float:
    if len(predictions) != len(labels):
        raise ModelError(f"error_rate needs {len(labels)} predictions, not {len(predictions)}")
    if predictions.ndim == 2 and predictions.shape[1] > 1:
        wrong = np.argmax(predictions, axis=1) != _class_labels(labels, predictions.shape[1])
    elif labels.ndim == 1:
        wrong = predictions.reshape(-1) != labels
    else:
        raise ModelError("error_rate needs labels of one column")
    return float(Fraction(int(np.count_nonzero(wrong)), len(labels)))


def _compute_differences(predictions: Matrix, labels: Matrix) -> Matrix:
    def drop_column(values: Matrix) -> Matrix:
        return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values

    predictions, labels = drop_column(predictions), drop_column(labels)
    if predictions.shape != labels.shape:
        raise ModelError(f"the predictions have shape {predictions.shape}, the labels {labels.shape}")
    return predictions - labels


def _compute_mse(predictions: Matrix, labels: Matrix) -> float:
    return _mean(np.square(_compute_differences(predictions, labels)))


def _compute_mae(predictions: Matrix, labels: Matrix) -> float:
    return _mean(np.abs(_compute_differences(predictions, labels)))


METRICS: dict[str, Callable[[Matrix, Matrix], float]] = {
    "log_loss": _compute_log_loss,
    "error_rate": _compute_error_rate,
    "mse": _compute_mse,
    "mae": _compute_mae,
}


CLASS_METRICS = ("log_loss", "error_rate")
"""Metrics whose labels are numbers of classes."""


def _to_matrix(values: npt.NDArray[Any], what: str) -> Matrix:
    if values.ndim not in (1, 2) or values.size == 0:
        raise ModelError(f"the {what} must be a column or a matrix with at least one number")
    if values.dtype.kind not in "fiub":
        raise ModelError(f"the {what} must be numbers, not {values.dtype}")
    matrix = values.astype(np.float64)
    if not np.all(np.isfinite(matrix)):
        raise ModelError(f"the {what} contain a value that is not finite")
    return matrix


def check_labels(metric: str, labels: npt.NDArray[Any]) -> None:
    """Refuse labels that no predictions could be judged by: the poster's fault, not a model's.

    Raises:
        ModelError: not finite numbers, or for metrics about classes no column of whole numbers from 0 on.
    """
    truth = _to_matrix(labels, "labels")
    if metric in CLASS_METRICS:
        _class_labels(truth, 2**31)


def compute_loss_micros(metric: str, predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Micros:
    """Compute the loss of predictions in millionths.

    Args:
        metric: a key of `METRICS`.
        predictions: shape [rows] or [rows, columns]; any real type.
        labels: shape [rows], or for mse and mae also [rows, columns].

    Raises:
        ModelError: the predictions are not what the metric needs, or not finite, or the loss is beyond 2^53 - 1.
    """
    compute = METRICS.get(metric)
    if compute is None:
        raise ModelError(f"unknown metric {metric!r}; use one of {', '.join(METRICS)}")
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            loss = compute(_to_matrix(predictions, "predictions"), _to_matrix(labels, "labels"))
        except OverflowError:  # fsum of finite numbers beyond the range of a float
            loss = math.inf
    if not math.isfinite(loss) or loss * 1e6 > LOSS_MICROS_MAX:
        raise ModelError("the loss is too large to be a number")
    return Micros(round(Fraction(loss) * 1_000_000))


def test_accuracy(predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """The share of rows that are right, 0 … 1: for people, not for the ledger.

    Raises:
        ModelError: the predictions or labels are not what `error_rate` needs.
    """
    return 1.0 - _compute_error_rate(_to_matrix(predictions, "predictions"), _to_matrix(labels, "labels"))


test_accuracy.__test__ = False  # type: ignore[attr-defined]  # its name is no test's, whatever pytest thinks
