"""SOURCE by solves over the data, against its formula from `source_gauss_newton`'s own matrices in NumPy; and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import CheckpointSum, FinishOptions, FirstOrderInfluenceCalculator
from beam_influence.influence_ops.calculator.passes import UnrolledByPasses
from beam_influence.influence_ops.curvature import curvature_by_name, fit
from beam_influence.influence_ops.curvature.segments import from_facts
from beam_influence.influence_ops.curvature.source_gauss_newton_cg import SegmentPreconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.query_solver import to_multiply
from beam_influence.influence_ops.scoring.segment_solver import begin, solutions

TRAIN, TEST = 40, 6
NAME = "source_gauss_newton_cg"


@functools.cache
def rows(first: int, last: int) -> ExampleBatch:
    random = np.random.default_rng(5)
    x, y = random.normal(size=(TRAIN + TEST, 5)), random.integers(0, 3, TRAIN + TEST)
    return ExampleBatch(np.arange(TRAIN + TEST)[first:last].astype(str).astype(object), x[first:last], y[first:last])


def batches() -> list[ExampleBatch]:
    return [rows(0, 23), rows(23, TRAIN)]


@functools.cache
def checkpoints(optimizer: Any, count: int) -> CheckpointSum:
    """A network of two layers at several points, with the slots of the optimizer; it need not have been trained."""
    parts = []
    for number in range(count):
        random = np.random.default_rng(number)
        network: Any = keras.Sequential(
            [keras.Input((5,), dtype="float64"), keras.layers.Dense(4, "tanh", dtype="float64"), keras.layers.Dense(3, dtype="float64")]
        )
        network.set_weights([random.normal(size=weight.shape) for weight in network.get_weights()])
        network.compile(optimizer())
        network.optimizer.build(network.trainable_variables)
        network.optimizer.iterations.assign(100 * (number + 1))
        for variable in getattr(network.optimizer, "_velocities", []):
            variable.assign(10 ** random.uniform(-5, -1, variable.shape))
        parts.append(InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", weight_decay=0.02))
    return CheckpointSum(parts, np.arange(1.0, count + 1).tolist())


def rational(model: ExplainedModel, settings: dict[str, Any], damping: float, gradients: np.ndarray) -> np.ndarray:
    """F and exp(−η K M) as one damped inverse, M from `source_gauss_newton`'s eigenvectors: [T, C·P]."""
    dense = fit(model, curvature_by_name("source_gauss_newton", settings=settings), batches, FinishOptions(damping))
    segments, weights = from_facts(dense.meta)
    size = model.parts[0].size
    left, found = gradients[:, -size:] / weights[-1], np.empty_like(gradients)
    for segment in reversed(range(len(segments.counts))):
        vectors, values, roots = (dense.arrays[f"{name}-{segment}"] for name in ("vectors", "eigenvalues", "roots"))
        horizon = segments.horizons[segment]
        inverse = (vectors / (values + 1 / horizon)) @ vectors.T
        for checkpoint in segments.checkpoints(segment):
            own = (left * roots) @ inverse * roots / segments.counts[segment]
            found[:, checkpoint * size : (checkpoint + 1) * size] = own / weights[checkpoint]
        left = (left * roots) @ inverse / horizon / roots
    return found


def adam() -> Any:
    return keras.optimizers.Adam(0.01, epsilon=1e-3)


def momentum() -> Any:
    return keras.optimizers.SGD(0.01, momentum=0.9)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (momentum, {"segments": "1", "segment_steps": "30", "segment_rates": "0.06"}),
        (adam, {"segments": "1,1", "segment_steps": "12,28", "segment_rates": "0.06,0.02"}),
    ],
)
def test_it_is_the_damped_inverse(optimizer: Any, settings: dict[str, Any]) -> None:
    """To the tolerance; and two passes bring it nearer than `source`, which no pass gives."""
    model = checkpoints(optimizer, sum(map(int, settings["segments"].split(","))))
    tests, train = (np.asarray(model.losses_and_gradients(batch)[1], np.float64) for batch in (rows(TRAIN, TRAIN + TEST), rows(0, TRAIN)))
    wanted = rational(model, settings, 0.01, tests) @ train.T
    operator = fit(model, curvature_by_name(NAME, settings=settings), batches, FinishOptions(0.01)).bind(model)
    solvers = [UnrolledByPasses.over(operator, model, batches, passes, 1e-10) for passes in (0, 2, 200)]
    errors = [np.abs(solver.apply(tests) @ train.T - wanted).max() / np.abs(wanted).max() for solver in solvers]
    assert errors[0] > errors[1] and errors[2] < 1e-8, errors
    assert [len(solver.residuals) for solver in solvers] == [0, TEST, TEST]
    assert max(solvers[2].residuals) < 1e-10 < min(solvers[1].residuals) < max(solvers[1].residuals) < 1


def test_queries_that_need_no_pass() -> None:
    """Of zeros, and of no query at all: all segments are passed at once."""
    settings = {"segments": "1,1", "segment_steps": "12,28", "segment_rates": "0.06,0.02"}
    model = checkpoints(momentum, 2)
    operator = fit(model, curvature_by_name(NAME, settings=settings), batches, FinishOptions()).bind(model)
    assert isinstance(operator, SegmentPreconditioner)
    for right in (np.zeros((2, model.size)), np.zeros((0, 1))):
        state = begin(model, operator, right, 3, 1e-6)
        unrolled, residuals, unsolved = solutions(state)
        assert unrolled.shape == (len(right), model.size) and not unrolled.any() and not residuals.any() and unsolved == 0
        assert not len(to_multiply(state))


def test_the_class() -> None:
    """Through a data set: the scores of the formula; vectors of training examples, and saving it, are refused."""
    settings = {"segments": "1", "segment_steps": "30", "segment_rates": "0.06"}
    model, train, test = checkpoints(momentum, 1), rows(0, TRAIN), rows(TRAIN, TRAIN + TEST)
    pairs = [tuple(map(np.asarray, (batch.inputs, batch.labels))) for batch in (train, test)]
    data, tests = (tf.data.Dataset.from_tensor_slices(pair).batch(23) for pair in pairs)
    curvature = curvature_by_name(NAME, settings=settings)
    calculator = FirstOrderInfluenceCalculator(model, data, curvature, passes=60, tolerance=1e-9)
    found = [values for _, each in calculator.estimate_influence_values_in_batches(tests, data) for _, values in each]
    gradients = [np.asarray(model.losses_and_gradients(batch)[1], np.float64) for batch in (test, train)]
    wanted = rational(model, settings, 0.0, gradients[0]) @ gradients[1].T
    assert np.abs(np.concatenate(found, axis=1) - wanted).max() < 1e-7 * np.abs(wanted).max()
    with pytest.raises(ValueError, match=f"a {NAME} curvature is of test points and gives no influence vectors"):
        calculator.compute_influence_vector(data)
    with pytest.raises(ValueError, match=f"{NAME} solves over a data set, which can not be saved; save a 'source' curvature"):
        calculator.save_curvature("nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FinishOptions(leave_one_out=True), f"use curvature gauss_newton or exact, not {NAME}"),
        (FinishOptions(0.0, rcond=1e-6), f"rcond is of one matrix's eigenvalues; {NAME} takes only a damping"),
    ],
)
def test_what_it_can_not_do_is_refused(options: FinishOptions, message: str) -> None:
    settings = {"segments": "1", "segment_steps": "30", "segment_rates": "0.06"}
    with pytest.raises(ValueError, match=message):
        fit(checkpoints(momentum, 1), curvature_by_name(NAME, settings=settings), batches, options)
    with pytest.raises(ValueError, match=f"the error of --curvature {NAME} is not known from one run"):
        curvature_by_name(NAME, settings=settings).refuse_errors(3)
