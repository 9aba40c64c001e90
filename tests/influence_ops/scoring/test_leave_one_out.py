"""Predicted changes of the loss against the real ones: softmax regression on digits, retrained without each example.

Measured (480 train, 80 test, 160 removals, λ = 0.01, float64), Pearson's r of the predicted and the actual change:
`exact`, first order: 0.9981 over all pairs, 0.9991 as the mean over test points; slope of actual on predicted 1.123.
`gauss_newton`, newton removal: 0.9997 over all pairs, 0.9998 as the mean over test points; slope 1.019.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from beam_influence import InfluenceModel, compute_in_memory
from beam_influence.influence_ops.scoring.scores import Removal, ScoreOptions
from tests.influence_ops import reference

pytestmark = pytest.mark.slow

LAM = 0.01
TRAIN, TEST, REMOVED = 480, 80, 160
CLASSES = 10
CONVERGED = 1e-10  # a loss is then off by about 1e-10 / λ · |∇ℓ| = 1e-8 · |∇ℓ| at most; changes are of the order 1e-3


class Retrained(NamedTuple):
    """The optimum, the data, and the losses [T, REMOVED] that the test points gained by each removal."""

    theta: np.ndarray
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    actual: np.ndarray


def _probabilities(theta: np.ndarray, a: np.ndarray) -> np.ndarray:
    z = a @ theta
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _gradient(theta: np.ndarray, a: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """Of mean cross-entropy + λ/2 ‖θ‖²: [D, C]."""
    return a.T @ (_probabilities(theta, a) - one_hot) / len(a) + LAM * theta


def _hessian(theta: np.ndarray, a: np.ndarray) -> np.ndarray:
    """[D·C, D·C], kernel[d, c] at d·C + c, the bias last."""
    p = _probabilities(theta, a)
    blocks = np.empty((a.shape[1], CLASSES, a.shape[1], CLASSES))
    for c in range(CLASSES):
        for d in range(CLASSES):
            blocks[:, c, :, d] = (a * (p[:, c] * ((c == d) - p[:, d]))[:, None]).T @ a / len(a)
    size = a.shape[1] * CLASSES
    return blocks.reshape(size, size) + LAM * np.eye(size)


def _optimum(a: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """The weights [D, C] at which |gradient| < 1e-10, by Newton steps."""
    theta = np.zeros((a.shape[1], CLASSES))
    for _ in range(50):
        gradient = _gradient(theta, a, one_hot)
        if np.linalg.norm(gradient) < CONVERGED:
            return theta
        theta = theta - np.linalg.solve(_hessian(theta, a), gradient.ravel()).reshape(theta.shape)
    raise AssertionError("not converged")


def _optima_without_one(theta: np.ndarray, a: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """The optimum without example i, for i below REMOVED: [D, REMOVED, C], each to |gradient| < 1e-10.

    All are moved at once, by steps that share the full optimum's Hessian. The objective is strictly convex: however
    it is reached, the point where the gradient vanishes is the optimum.
    """
    inverse = np.linalg.inv(_hessian(theta, a))
    thetas = np.repeat(theta[:, None, :], REMOVED, axis=1)
    removed = np.arange(REMOVED)
    for _ in range(300):
        z = np.tensordot(a, thetas, 1)
        p = np.exp(z - z.max(2, keepdims=True))
        errors = p / p.sum(2, keepdims=True) - one_hot[:, None, :]
        errors[removed, removed] = 0
        gradients = np.tensordot(a.T, errors, 1) / (len(a) - 1) + LAM * thetas
        flat = gradients.transpose(0, 2, 1).reshape(-1, REMOVED)
        if np.linalg.norm(flat, axis=0).max() < CONVERGED:
            return thetas
        thetas -= (inverse @ flat).reshape(len(thetas), CLASSES, REMOVED).transpose(0, 2, 1)
    raise AssertionError("not converged")


def _losses(theta: np.ndarray, a: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    return -np.log((_probabilities(theta, a) * one_hot).sum(axis=1))


@functools.cache
def retrained() -> Retrained:
    data, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))[: TRAIN + TEST]
    x, y = np.asarray(data)[order] / 16, np.asarray(target)[order]
    a, one_hot = np.concatenate([x, np.ones((len(x), 1))], axis=1), np.eye(CLASSES)[y]
    a_test, one_hot_test = a[TRAIN:], one_hot[TRAIN:]
    a, one_hot = a[:TRAIN], one_hot[:TRAIN]
    theta = _optimum(a, one_hot)
    without = _optima_without_one(theta, a, one_hot)
    before = _losses(theta, a_test, one_hot_test)
    after = np.stack([_losses(without[:, i], a_test, one_hot_test) for i in range(REMOVED)], axis=1)
    actual = after - before[:, None]
    return Retrained(theta, x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:], actual)


@functools.cache
def predict(curvature: str, removal: Removal) -> np.ndarray:
    """The `loss_change` column: [TEST, REMOVED]."""
    case = retrained()
    inputs = keras.Input((case.x.shape[1],), dtype="float64")
    # In float64 from the start: a model of float32 would round the optimum's weights.
    network = keras.Model(inputs, keras.layers.Dense(CLASSES, dtype="float64")(inputs))
    network.set_weights([case.theta[:-1], case.theta[-1]])
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weight_decay=LAM)
    train = reference.batches(case.x, case.y, 97)
    test = reference.batches(case.x_test, case.y_test, 33, "test")
    options = ScoreOptions(removal=removal)
    result = compute_in_memory(model, curvature, train, test, damping=0.0, options=options, outputs=("scores",))
    pairs = result.tables["scores"]
    changes = np.full((TEST, TRAIN), np.nan)
    columns = (pairs[name].to_pylist() for name in ("test_id", "train_id", "loss_change"))
    for test_id, train_id, change in zip(*columns, strict=True):
        changes[int(test_id.removeprefix("test:")), int(train_id.removeprefix("train:"))] = change
    assert np.isfinite(changes).all()
    return changes[:, :REMOVED]


def correlations(predicted: np.ndarray, actual: np.ndarray) -> tuple[float, float, float]:
    """r over all pairs, the mean over test points of r over removals, and the slope of actual on predicted."""
    pooled = np.corrcoef(predicted.ravel(), actual.ravel())[0, 1]
    each = [np.corrcoef(p, q)[0, 1] for p, q in zip(predicted, actual, strict=True)]
    slope = np.polyfit(predicted.ravel(), actual.ravel(), 1)[0]
    return float(pooled), float(np.mean(each)), float(slope)


def test_first_order_influence_predicts_retraining():
    pooled, mean, _ = correlations(predict("exact", "first_order"), retrained().actual)
    assert mean >= 0.998  # what the mission asks for: the order of the training examples at one test point
    # Pooled, each example's missing factor of about 1/(1 - leverage) shows between test points as well.
    assert pooled >= 0.997


def test_newton_removal_predicts_retraining():
    pooled, mean, slope = correlations(predict("gauss_newton", "newton"), retrained().actual)
    # Only the losses' third derivatives along the step are left out.
    assert mean >= 0.9995
    assert pooled >= 0.9995
    assert slope == pytest.approx(1, abs=0.03)


def test_newton_removal_is_one_newton_step():
    """The Woodbury identity and the weight n/(n − 1), against the step itself without the example."""
    case = retrained()
    a, one_hot = np.concatenate([case.x, np.ones((TRAIN, 1))], axis=1), np.eye(CLASSES)[case.y]
    a_test, one_hot_test = np.concatenate([case.x_test, np.ones((TEST, 1))], axis=1), np.eye(CLASSES)[case.y_test]
    errors = _probabilities(case.theta, a_test) - one_hot_test
    test_gradients = (a_test[:, :, None] * errors[:, None, :]).reshape(TEST, -1)
    predicted = predict("gauss_newton", "newton")
    for i in range(3):
        others = np.delete(a, i, 0)
        step = -np.linalg.solve(_hessian(case.theta, others), _gradient(case.theta, others, np.delete(one_hot, i, 0)).ravel())
        wanted = test_gradients @ step
        # Solved with the inverse of a matrix of condition 1e3; |gradient| < 1e-10 stands for 0 in the formula: 1e-10 · 1/λ · n.
        assert np.abs(predicted[:, i] - wanted).max() < 1e-6 * np.abs(wanted).max()
