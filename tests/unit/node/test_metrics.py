"""Losses: against scikit-learn, against sums done by hand, and everything that is refused."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics  # type: ignore[import-untyped,unused-ignore]

from crdtchain.errors import ModelError
from node.worker.metrics import METRICS, check_labels, compute_loss_micros, test_accuracy


def make_probabilities(seed: int, rows: int, columns: int) -> npt.NDArray[Any]:
    powers = np.exp(np.random.default_rng(seed).normal(0, 3, (rows, columns)))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@given(st.integers(0, 2**32 - 1), st.integers(2, 200), st.integers(2, 12))
def test_the_losses_are_those_of_scikit_learn(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, labels = make_probabilities(seed, rows, columns), rng.integers(0, columns, rows)
    expected = sklearn_metrics.log_loss(labels, predictions, labels=range(columns))
    assert abs(compute_loss_micros("log_loss", predictions, labels) - expected * 1e6) <= 0.5001
    accuracy = sklearn_metrics.accuracy_score(labels, predictions.argmax(axis=1))
    assert abs(compute_loss_micros("error_rate", predictions, labels) - (1 - accuracy) * 1e6) <= 0.5001
    assert test_accuracy(predictions, labels) == pytest.approx(accuracy, abs=1e-12)
    guesses, truth = rng.normal(0, 10, (rows, columns)), rng.normal(0, 10, (rows, columns))
    expected = sklearn_metrics.mean_squared_error(truth, guesses)
    assert abs(compute_loss_micros("mse", guesses, truth) - expected * 1e6) <= 0.501
    expected = sklearn_metrics.mean_absolute_error(truth[:, 0], guesses[:, 0])
    assert abs(compute_loss_micros("mae", guesses[:, 0], truth[:, :1]) - expected * 1e6) <= 0.501


def test_values_known_by_hand() -> None:
    half = np.full((4, 2), 0.5)
    assert compute_loss_micros("log_loss", half, np.array([0, 1, 0, 1])) == 693147
    assert compute_loss_micros("error_rate", half, np.array([0, 1, 1, 1])) == 750000  # the first of equals is taken
    assert compute_loss_micros("error_rate", np.array([3, 1, 2]), np.array([3, 1, 1])) == 333333
    assert compute_loss_micros("mse", np.array([1.0, 2.0]), np.array([1, 4])) == 2_000_000
    assert compute_loss_micros("mae", np.array([1.0, 2.0]), np.array([1, 4])) == 1_000_000


def test_a_certain_and_wrong_prediction_is_clipped_at_a_millionth_of_a_millionth() -> None:
    assert compute_loss_micros("log_loss", np.array([[1.0, 0.0]]), np.array([1])) == 27_631_021
    assert compute_loss_micros("log_loss", np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_rounding_is_half_to_even() -> None:
    # 2^-7 * 10^6 = 7812.5 and 3 * 2^-7 * 10^6 = 23437.5 are exact in binary.
    assert compute_loss_micros("mae", np.array([0.0078125]), np.array([0.0])) == 7812
    assert compute_loss_micros("mae", np.array([0.0234375]), np.array([0.0])) == 23438


def test_the_order_of_rows_never_matters() -> None:
    predictions, labels = make_probabilities(1, 5000, 10), np.random.default_rng(1).integers(0, 10, 5000)
    for metric in ("log_loss", "error_rate"):
        assert compute_loss_micros(metric, predictions, labels) == compute_loss_micros(
            metric, predictions[::-1].copy(), labels[::-1].copy()
        )


def test_rows_are_renormalised_within_the_tolerance_and_refused_beyond() -> None:
    labels = np.array([0, 1])
    exact = compute_loss_micros("log_loss", np.array([[0.8, 0.2], [0.3, 0.7]]), labels)
    near = np.array([[0.8, 0.2], [0.3, 0.7]]) * (1 + 9e-7)
    assert compute_loss_micros("log_loss", near, labels) == exact
    with pytest.raises(ModelError, match="sums to"):
        compute_loss_micros("log_loss", near * (1 + 2e-7), labels)


@pytest.mark.parametrize(
    ("metric", "predictions", "labels"),
    [
        ("f1", [[1.0]], [0]),
        ("log_loss", [[np.nan, 1.0]], [0]),
        ("log_loss", [[np.inf, 1.0]], [0]),
        ("log_loss", [[1.1, -0.1]], [0]),
        ("log_loss", [[5.0, 5.0]], [0]),
        ("log_loss", [0.5], [0]),
        ("log_loss", [[0.5, 0.5]], [2]),
        ("log_loss", [[0.5, 0.5]], [-1]),
        ("log_loss", [[0.5, 0.5]], [0.5]),
        ("log_loss", [[0.5, 0.5]], [0, 1]),
        ("log_loss", [[0.5, 0.5]], [[0]]),
        ("error_rate", [[0.5, 0.5]], [0, 1]),
        ("error_rate", [1, 2], [[1], [2]]),
        ("error_rate", [], []),
        ("mse", [1.0, 2.0], [1.0]),
        ("mse", [[1.0, 2.0]], [1.0, 2.0]),
        ("mse", [1e300], [0]),
        ("mae", [1e300, 1e300], [-1.7e308, -1.7e308]),
        ("mae", [np.nan], [0]),
        ("mae", [1e10], [0]),
    ],
)
def test_what_is_no_prediction_is_refused(metric: str, predictions: list[Any], labels: list[Any]) -> None:
    with pytest.raises(ModelError):
        compute_loss_micros(metric, np.array(predictions), np.array(labels))


@pytest.mark.parametrize("metric", METRICS)
def test_losses_are_integers_and_never_negative(metric: str) -> None:
    one = np.array([[1.0 + 5e-7, 0.0]])
    labels = np.array([0]) if metric in ("log_loss", "error_rate") else one
    loss = compute_loss_micros(metric, one, labels)
    assert type(loss) is int
    assert loss == 0


@pytest.mark.parametrize(
    ("metric", "labels", "is_good"),
    [
        ("log_loss", [0, 1, 9], True),
        ("log_loss", [0.5], False),
        ("error_rate", [-1], False),
        ("error_rate", [[1]], False),
        ("error_rate", [], False),
        ("mse", [[0.5]], True),
        ("mse", [np.nan], False),
        ("mae", ["a"], False),
    ],
)
def test_labels_are_checked_by_themselves(metric: str, labels: list[Any], is_good: bool) -> None:
    if is_good:
        check_labels(metric, np.array(labels))
    else:
        with pytest.raises(ModelError, match="labels"):
            check_labels(metric, np.array(labels))
