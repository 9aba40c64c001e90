"""SOURCE of Adam, AdamW, RMSprop and SGD with momentum: its formula without symmetry, training with a constant P, and refusals."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from beam_influence.influence_ops.curvature.optimizer_steps import check_optimizer
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.network import load_keras_file
from tests.influence_ops.curvature.test_source import (
    CUTS,
    DECAY,
    RATE,
    TEST,
    TRAIN,
    checkpoints,
    data,
    gradients,
    hessian,
    influence,
    model_of,
    path,
    settings,
    trained,
)

SIZE = 15  # weights
STEPS = (8, 24, 40)


@pytest.fixture(autouse=True)
def without_optimizers() -> Iterator[None]:
    """The checkpoints are those of other tests, too."""
    yield
    for part in checkpoints().parts:
        part.network.original.optimizer = None


def give(network: Any, optimizer: Any, steps: int, slots: dict[str, np.ndarray] | None = None) -> None:
    """Compiles a network with an optimizer that has made so many steps; `slots` are of all weights [P]."""
    network.compile(optimizer)
    optimizer.build(network.trainable_variables)
    optimizer._iterations.assign(steps)
    for name, flat in (slots or {}).items():
        for variable, part in zip(getattr(optimizer, name), np.split(flat, [12]), strict=True):
            variable.assign(part.reshape(variable.shape))


def squares(seed: int) -> np.ndarray:
    """v: [P], spread over four decades."""
    return 10 ** np.random.default_rng(seed).uniform(-5, -1, SIZE)


def unrolled(
    scales: list[np.ndarray], decays: np.ndarray, counts: tuple[int, ...], horizons: tuple[float, ...], decay: float
) -> np.ndarray:
    """The formula, by exp(−A) of A = η K (P H + λ) itself: F = A⁻¹ (1 − exp(−A)) η K P. [TEST, TRAIN]."""
    thetas = [path()[cut - 1] for cut in CUTS]
    left, wanted, stop = gradients(thetas[-1], slice(TRAIN, None)), np.zeros((TEST, TRAIN)), len(thetas)
    for count, horizon in zip(reversed(counts), reversed(horizons), strict=True):
        own = slice(stop - count, stop)
        p = 1 / np.mean([1 / scale for scale in scales[own]], axis=0)
        matrix = np.mean([hessian(theta) - (DECAY - decay) * np.eye(SIZE) for theta in thetas[own]], axis=0)
        a = horizon * (p[:, None] * matrix + np.diag(decays))
        forgotten = scipy.linalg.expm(-a)
        mean = np.mean([gradients(theta, slice(TRAIN)) for theta in thetas[own]], axis=0)
        wanted = wanted + left @ np.linalg.solve(a, (np.eye(SIZE) - forgotten) * (horizon * p)) @ mean.T
        left, stop = left @ forgotten, own.start
    return wanted


def adam(number: int) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    v = squares(number)
    return keras.optimizers.Adam(0.01, epsilon=1e-3), {"_velocities": v}, np.sqrt(1 - 0.999 ** STEPS[number]) / (np.sqrt(v) + 1e-3)


def adamw(number: int) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    v, largest = squares(number), squares(number) * 2
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.3, amsgrad=True, beta_2=0.9)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    slots = {"_velocities": v, "_velocity_hats": largest}
    return optimizer, slots, np.sqrt(1 - 0.9 ** STEPS[number]) / (np.sqrt(largest) + 1e-7)


def rmsprop(number: int) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    v, mean = squares(number), 0.5 * np.sqrt(squares(number))
    slots = {"_velocities": v, "_average_gradients": mean}
    return keras.optimizers.RMSprop(0.01, momentum=0.8, centered=True), slots, 5 / np.sqrt(0.75 * v + 1e-7)


def sgd(number: int) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    return keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True, weight_decay=0.3), {}, np.full(SIZE, 10.0)


@pytest.mark.parametrize(("make", "decays"), [(adam, 0), (adamw, 0.3 * (np.arange(SIZE) < 12)), (rmsprop, 0), (sgd, 0.3)])
def test_it_is_the_formula(make: Callable[[int], tuple[Any, dict[str, np.ndarray], np.ndarray]], decays: Any) -> None:
    """Segments of two checkpoints and of one. An optimizer that decays weights by itself has no penalty of the loss beside it."""
    decay = 0.0 if np.any(decays) else DECAY
    model = checkpoints().with_weight_decay(decay)
    scales = []
    for number, part in enumerate(model.parts):
        optimizer, slots, scale = make(number)
        give(part.network.original, optimizer, STEPS[number], slots)
        scales.append(scale)
    found = influence("source_gauss_newton", model, settings("2,1", "12,28", "0.06,0.02"))
    wanted = unrolled(scales, np.broadcast_to(decays, SIZE), (2, 1), (12 * 0.06, 28 * 0.02), decay)
    assert np.abs(found - wanted).max() <= 1e-9 * np.abs(wanted).max()  # float64; expm beside eigenvalues


def test_it_predicts_training_with_constant_scales_that_was_stopped_early() -> None:
    """dℓ(t) / dw_i through steps of η P ∇, P constant, by central differences; the same training without P is far off, as is H⁻¹."""
    v = squares(7)
    scale = 0.03 / (np.sqrt(v) + 1e-7)  # steps near RATE's

    def of(weights: np.ndarray) -> list[np.ndarray]:
        return trained(weights, scale=scale.reshape(5, 3))

    x, y = (array[TRAIN:] for array in data())

    def losses(weights: np.ndarray) -> np.ndarray:
        z = np.concatenate([x, np.ones((TEST, 1))], axis=1) @ of(weights)[-1]
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(TEST), y]

    actual, step = np.empty((TEST, TRAIN)), 1e-5
    for row in range(TRAIN):
        moved = step * np.eye(TRAIN)[row]
        actual[:, row] = -(losses(1 / TRAIN + moved) - losses(1 / TRAIN - moved)) / (2 * step)
    ends = of(np.full(TRAIN, 1 / TRAIN))
    models = [model_of(ends[cut - 1]) for cut in CUTS]
    options = settings("1,1,1", ",".join(map(str, np.diff((0, *CUTS)))), ",".join([str(RATE * 0.03)] * 3))
    for part in models:  # P = 1 / (√v + ε), its correction 1 after so many steps
        give(part.network.original, keras.optimizers.Adam(0.01), 10**6, {"_velocities": v})
    found = influence("source_gauss_newton", type(checkpoints())(models), options)
    one = influence("gauss_newton", models[-1], {}, 0.0)
    error, of_one = (np.linalg.norm(scores - actual) / np.linalg.norm(actual) for scores in (found, one))
    assert error < 0.15 and of_one > 3 * error, (error, of_one)


def test_layers_have_scales_in_their_basis() -> None:
    """Where training has converged it is the inverse of EK-FAC whatever P is; before the first step's end it is η K P, as uᵀ P u."""
    model = model_of(path()[-1])
    give(model.network.original, keras.optimizers.Adam(0.01), 10**6, {"_velocities": squares(3)})
    wanted = influence("ekfac", model, {}, 0.0)
    found = influence("source", model, settings("1", "1000000", "0.01"))
    assert np.abs(found - wanted).max() <= 1e-9 * np.abs(wanted).max()
    scales = 1 / (np.sqrt(np.full(SIZE, 1e-4)) + 1e-7)
    give(model.network.original, keras.optimizers.Adam(0.01), 10**6, {"_velocities": np.full(SIZE, 1e-4)})
    first = influence("source", model, settings("1", "1", "1e-9"))
    wanted = 1e-9 * (gradients(path()[-1], slice(TRAIN, None)) * scales) @ gradients(path()[-1], slice(TRAIN)).T
    assert np.abs(first - wanted).max() <= 1e-5 * np.abs(wanted).max()  # 1 − exp(−s) beside s, s up to 1e-7 · H's eigenvalues


def test_what_makes_other_steps_is_refused() -> None:
    model = model_of(path()[-1])
    network, made = model.network.original, keras.optimizers
    one = settings("1", "5", "0.1")
    cases: list[tuple[Any, int, str]] = [
        (made.Adagrad(), 5, "SOURCE unrolls SGD, Adam, AdamW and RMSprop, and checkpoint 0 was compiled with Adagrad"),
        (made.Adam(clipnorm=1.0), 5, r"Adam\(clipnorm=1.0\), which makes other steps .* set model.optimizer.clipnorm = None"),
        (made.SGD(global_clipnorm=1.0), 5, r"SGD\(global_clipnorm=1.0\)"),
        (made.Adam(use_ema=True), 5, r"Adam\(use_ema=True\), which makes other steps than SOURCE unrolls; use --curvature ekfac"),
        (made.Adam(gradient_accumulation_steps=2), 6, r"Adam\(gradient_accumulation_steps=2\)"),
        (made.Adam(), 0, "checkpoint 0 was saved before the first step, so how far Adam moves each weight is not known"),
        (made.Adam(), -1, "checkpoint 0 is a file of weights alone, so how far Adam"),
        (made.AdamW(weight_decay=0.1), 5, r"AdamW decays weights by itself \(weight_decay=0.1\).* leave --weight_decay 0.02 out"),
        (made.SGD(0.01, momentum=0.9), 5, "segment_rates 0.1 are the checkpoints' learning rates over 1 - 0.9, .* themselves, 0.01"),
    ]
    for optimizer, steps, message in cases:
        give(network, optimizer, steps)
        with pytest.raises(ValueError, match=message):
            influence("source", model, one)
    give(checkpoints().parts[2].network.original, made.Adam(), 5)
    with pytest.raises(ValueError, match="the checkpoints' optimizers are none, none, Adam; save each with its optimizer"):
        influence("source_gauss_newton", checkpoints(), settings("1,1,1", "8,16,16", "1,1,1"))


def test_a_state_that_keras_left_out_is_refused(tmp_path: pathlib.Path) -> None:
    """RMSprop without its state looks like one that made no step; a layer that was frozen in training has no slots in the file."""
    layers = keras.layers
    network: Any = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, trainable=False), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.RMSprop(0.01), loss)
    network.train_on_batch(np.ones((2, 4), np.float32), np.zeros(2, np.int64))
    for layer in network.layers:
        layer.trainable = True
    network.save(tmp_path / "frozen.keras")
    model = InfluenceModel(load_keras_file(str(tmp_path / "frozen.keras")), weights="all")
    with pytest.raises(ValueError, match="checkpoint 0 has the state of an optimizer, 4 arrays, and its model RMSprop with 6"):
        check_optimizer(model, 0)
    network.compile(keras.optimizers.RMSprop(0.01), loss)
    network.train_on_batch(np.ones((2, 4), np.float32), np.zeros(2, np.int64))
    network.save(tmp_path / "whole.keras")
    check_optimizer(InfluenceModel(load_keras_file(str(tmp_path / "whole.keras")), weights="all"), 0)
    network.compile(loss=loss)  # trained in a loop of the user's own: Keras's default optimizer, which has made no step
    network.save(tmp_path / "loss_alone.keras")
    check_optimizer(InfluenceModel(load_keras_file(str(tmp_path / "loss_alone.keras")), weights="all"), 0)
    network.compile(keras.optimizers.Adam(), loss)
    network.save(tmp_path / "before.keras")
    with pytest.raises(ValueError, match="checkpoint 0 was saved before the first step, so how far Adam moves each weight is not known"):
        check_optimizer(InfluenceModel(load_keras_file(str(tmp_path / "before.keras")), weights="all"), 0)


def test_slots_are_the_variables_own() -> None:
    """Whatever the order in which an optimizer was given the weights."""
    model = model_of(path()[-1])
    network = model.network.original
    v = squares(3)
    give(network, keras.optimizers.Adam(0.01), 10, {"_velocities": v})
    wanted = influence("source_gauss_newton", model, settings("1", "5", "0.1"))
    before: Any = network.optimizer
    other: Any = keras.optimizers.Adam(0.01)
    other.build(network.trainable_variables[::-1])
    other._iterations.assign(10)
    for slot, value in zip(other._velocities, before._velocities[::-1], strict=True):
        slot.assign(value)
    network.optimizer = other
    found = influence("source_gauss_newton", model, settings("1", "5", "0.1"))
    np.testing.assert_array_equal(found, wanted)
    other._velocities[0].assign(-tf.ones_like(other._velocities[0]))
    with pytest.raises(ValueError, match="squared gradients of the optimizer Adam has negative"):
        influence("source_gauss_newton", model, settings("1", "5", "0.1"))
