"""SOURCE against its formula in NumPy, and against training itself: the derivative of a test loss by an example's weight."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import CheckpointSum, FinishOptions, FirstOrderInfluenceCalculator, InfluenceModel
from beam_influence.influence_ops.curvature import curvature_by_name, fit
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

CLASSES, FEATURES, TRAIN, TEST = 3, 4, 40, 6
RATE, DECAY = 0.2, 0.02
CUTS = (8, 24, 40)  # the steps at which checkpoints are taken; the last is where training stops


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    y = random.integers(0, CLASSES, TRAIN + TEST)
    x = random.normal(size=(TRAIN + TEST, FEATURES)) + np.eye(CLASSES, FEATURES)[y]
    return x, y


def batch(rows: slice) -> ExampleBatch:
    x, y = data()
    return ExampleBatch(np.arange(TRAIN + TEST)[rows].astype(str).astype(object), x[rows], y[rows])


def gradients(theta: np.ndarray, rows: slice) -> np.ndarray:
    """∇ℓ of softmax regression: [N, P]; θ [FEATURES + 1, CLASSES], the last row the bias."""
    x, y = (array[rows] for array in data())
    a = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    p = np.exp(a @ theta)
    p /= p.sum(axis=1, keepdims=True)
    return np.einsum("nd,nc->ndc", a, p - np.eye(CLASSES)[y]).reshape(len(x), -1)


def hessian(theta: np.ndarray) -> np.ndarray:
    a = np.concatenate([data()[0][:TRAIN], np.ones((TRAIN, 1))], axis=1)
    p = np.exp(a @ theta)
    p /= p.sum(axis=1, keepdims=True)
    middle = p[:, :, None] * np.eye(CLASSES) - p[:, :, None] * p[:, None, :]
    return np.einsum("nd,ncb,ne->dceb", a, middle, a).reshape(theta.size, theta.size) / TRAIN + DECAY * np.eye(theta.size)


def trained(weights: np.ndarray, steps: int = CUTS[-1], scale: np.ndarray | float = 1.0) -> list[np.ndarray]:
    """θ after each of the steps of gradient descent on Σ w_i ℓ_i + R, from 0; the gradient is multiplied by `scale`, elementwise."""
    theta = np.zeros((FEATURES + 1, CLASSES))
    found = []
    for _ in range(steps):
        mean = (weights[:, None] * gradients(theta, slice(TRAIN))).sum(axis=0)
        theta = theta - RATE * scale * (mean.reshape(theta.shape) + DECAY * theta)
        found.append(theta)
    return found


def model_of(theta: np.ndarray) -> InfluenceModel:
    network = keras.Sequential([keras.Input((FEATURES,), dtype="float64"), keras.layers.Dense(CLASSES, dtype="float64")])
    network.set_weights([theta[:-1], theta[-1]])
    return InfluenceModel(network, loss_function="softmax_cross_entropy", weight_decay=DECAY)


@functools.cache
def path() -> tuple[np.ndarray, ...]:
    return tuple(trained(np.full(TRAIN, 1 / TRAIN)))


@functools.cache
def checkpoints() -> CheckpointSum:
    return CheckpointSum([model_of(path()[cut - 1]) for cut in CUTS], [0.3, 2, 0.5])


def settings(counts: str, steps: str, rates: str) -> dict[str, Any]:
    return {"segments": counts, "segment_steps": steps, "segment_rates": rates}


def influence(name: str, model: Any, options: dict[str, Any], damping: float | str = "auto") -> np.ndarray:
    """[TEST, TRAIN]."""
    operator = fit(model, curvature_by_name(name, settings=options), lambda: [batch(slice(TRAIN))], FinishOptions(damping)).bind(model)
    tests = np.asarray(model.losses_and_gradients(batch(slice(TRAIN, None)))[1], dtype=np.float64)
    return operator.apply(tests) @ np.asarray(model.losses_and_gradients(batch(slice(TRAIN)))[1], dtype=np.float64).T


def function(matrix: np.ndarray, of: Any) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * of(values)) @ vectors.T


def test_it_is_the_formula() -> None:
    """Segments of two checkpoints and of one; the weights of checkpoints do not matter."""
    thetas, horizons = [path()[cut - 1] for cut in CUTS], (RATE * 12, 2 * RATE * 28)
    of_segments = (thetas[:2], thetas[2:])
    matrices = [np.mean([hessian(theta) for theta in some], axis=0) + 0.01 * np.eye(15) for some in of_segments]
    means = [np.mean([gradients(theta, slice(TRAIN)) for theta in some], axis=0) for some in of_segments]
    test = gradients(thetas[-1], slice(TRAIN, None))
    own = [function(m, lambda s, h=h: (1 - np.exp(-h * s)) / s) for m, h in zip(matrices, horizons, strict=True)]
    wanted = test @ (own[1] @ means[1].T + function(matrices[1], lambda s: np.exp(-horizons[1] * s)) @ own[0] @ means[0].T)
    found = influence("source_gauss_newton", checkpoints(), settings("2,1", "12,28", f"{RATE},{2 * RATE}"), 0.01)
    assert np.abs(found - wanted).max() <= 1e-9 * np.abs(wanted).max()  # float64, in another order


def test_it_predicts_training_that_was_stopped_early() -> None:
    """dℓ(t) / dw_i of gradient descent itself by central differences; one checkpoint's H⁻¹ is far off."""
    x, y = (array[TRAIN:] for array in data())

    def losses(weights: np.ndarray) -> np.ndarray:
        theta = trained(weights)[-1]
        z = np.concatenate([x, np.ones((TEST, 1))], axis=1) @ theta
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(TEST), y]

    actual, step = np.empty((TEST, TRAIN)), 1e-5
    for row in range(TRAIN):
        moved = step * np.eye(TRAIN)[row]
        actual[:, row] = -(losses(1 / TRAIN + moved) - losses(1 / TRAIN - moved)) / (2 * step)
    steps = ",".join(map(str, np.diff((0, *CUTS))))
    found = influence("source_gauss_newton", checkpoints(), settings("1,1,1", steps, ",".join([str(RATE)] * 3)))
    one = influence("gauss_newton", model_of(path()[-1]), {}, 0.0)
    error, of_one = (np.linalg.norm(scores - actual) / np.linalg.norm(actual) for scores in (found, one))
    assert error < 0.15 and of_one > 3 * error, (error, of_one)


@pytest.mark.parametrize("name", ["source", "source_gauss_newton"])
def test_where_training_has_converged_it_is_the_inverse(name: str) -> None:
    model = model_of(trained(np.full(TRAIN, 1 / TRAIN), 8000)[-1])
    plain = {"source": "ekfac", "source_gauss_newton": "gauss_newton"}[name]
    found, wanted = influence(name, model, settings("1", "8000", str(RATE))), influence(plain, model, {}, 0.0)
    assert np.abs(found - wanted).max() <= 1e-9 * np.abs(wanted).max()  # exp(−30) of the weakest direction is left


def test_layers_are_unrolled_one_by_one() -> None:
    """EK-FAC of one layer whose inputs are one number is the Gauss–Newton matrix's diagonal in its basis: as the formula has it."""
    network = keras.Sequential([keras.Input((1,), dtype="float64"), keras.layers.Dense(1, use_bias=False, dtype="float64")])
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, 1)), random.normal(size=(9, 1))
    rows = ExampleBatch(np.arange(9).astype(str).astype(object), x, y)
    parts = []
    for weight in (0.3, 0.8):
        clone: Any = keras.models.clone_model(network)
        clone.set_weights([np.array([[weight]])])
        parts.append(InfluenceModel(clone, loss_function="squared_error", weights="all"))
    model = CheckpointSum(parts)
    options = {**settings("1,1", "10,20", "0.1,0.05"), "fisher": "expected"}
    operator = fit(model, curvature_by_name("source", settings=options), lambda: [rows], FinishOptions()).bind(model)
    curvature = 2 * np.mean(x**2)
    left = np.exp(-curvature)  # both horizons are 1
    wanted = np.array([left, 1]) * (1 - left) / curvature / (1 / 2)  # each of the two weighs 1/2
    assert np.allclose(operator.apply(np.array([[5.0, 1.0]]))[0], wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "segment_rates is needed: a number for each segment"),
        ({"segment_rates": "0.1"}, "segment_steps is needed"),
        ({"segment_rates": "0.1,x", "segment_steps": "1,2"}, "segment_rates '0.1,x' must be numbers above 0"),
        ({"segment_rates": "0.1", "segment_steps": "1.5"}, "segment_steps '1.5' must be whole numbers above 0"),
        ({"segment_rates": "0.1", "segment_steps": "1,2"}, "segment_steps '1,2' must be 1 numbers, one for each of --segment_rates '0.1'"),
        ({"segment_rates": "0.1", "segment_steps": "1", "segments": "0"}, "segments '0' must be whole numbers above 0"),
    ],
)
def test_wrong_settings(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curvature_by_name("source_gauss_newton", settings=options)


def test_wrong_models() -> None:
    one = settings("1", "5", "0.1")
    with pytest.raises(ValueError, match="segments 1 are of 1 checkpoints, and the model has 3"):
        influence("source", checkpoints(), one)


def test_the_class_solves_test_points() -> None:
    """The operator is not symmetric: what the class gives is the formula's, and vectors of training examples are refused."""
    options = settings("1,1,1", "8,16,16", "0.2,0.2,0.2")
    wanted = influence("source_gauss_newton", checkpoints(), options)
    x, y = data()
    train, tests = (tf.data.Dataset.from_tensor_slices((x[rows], y[rows])).batch(23) for rows in (slice(TRAIN), slice(TRAIN, None)))
    calculator = FirstOrderInfluenceCalculator(checkpoints(), train, curvature_by_name("source_gauss_newton", settings=options))
    found = [values for _, rows in calculator.estimate_influence_values_in_batches(tests, train) for _, values in rows]
    assert np.abs(np.concatenate(found, axis=1) - wanted).max() <= 1e-9 * np.abs(wanted).max()  # float64, in another order
    of_group = calculator.estimate_influence_values_group(train, tests)
    assert np.isclose(np.asarray(of_group)[0, 0], wanted.sum(), rtol=1e-9, atol=1e-9 * np.abs(wanted).sum())
    for ask in (lambda: calculator.compute_influence_vector(train), lambda: calculator.compute_influence_vector_group(train)):
        with pytest.raises(ValueError, match="a source_gauss_newton curvature is of test points and gives no influence vectors"):
            ask()
