"""λ of training that was stopped early, beside closed forms in NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.curvature.stopped_early import MOVED, training_end
from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

_DECAY = 0.01
Case = tuple[InfluenceModel, list[ExampleBatch], np.ndarray]


@pytest.fixture(scope="module")
def regression() -> Case:
    """A linear regression that is not at its minimum, its examples in batches of 4, and their gradients [N, 4]."""
    random = np.random.default_rng(0)
    x, w = random.normal(size=(20, 3)), np.array([1.0, -2.0, 0.5, 0.3])
    y = random.normal(size=20)
    network = keras.Sequential([keras.Input((3,), dtype="float64"), keras.layers.Dense(1, dtype="float64")])
    network.set_weights([w[:3, None], w[3:]])
    model = InfluenceModel(network, loss_function="squared_error", weights="all", weight_decay=_DECAY)
    ids = np.arange(20).astype(str).astype(object)
    batches = [ExampleBatch(ids[s : s + 4], x[s : s + 4], y[s : s + 4, None]) for s in range(0, 20, 4)]
    design = np.concatenate([x, np.ones((20, 1))], axis=1)
    return model, batches, 2 * (design @ w - y)[:, None] * design


def test_the_mean_gradient_and_the_trace_are_those_in_closed_form(regression: Case) -> None:
    model, batches, gradients = regression
    theta = model.parameters()
    found = training_end(model, batches, is_whole=True)
    assert found.damping == pytest.approx(np.linalg.norm(gradients.mean(axis=0) + _DECAY * theta) / (MOVED * np.linalg.norm(theta)))
    design = np.concatenate([np.concatenate([np.asarray(batch.inputs), np.ones((4, 1))], axis=1) for batch in batches])
    assert found.automatic == pytest.approx(0.1 * (2 * np.square(design).sum() / 20 / 4 + _DECAY))  # one output: any sign gives its trace
    assert found.examples == 20


def test_of_a_sample_the_noise_of_batches_is_taken_out(regression: Case) -> None:
    model, batches, gradients = regression
    means = gradients.reshape(5, 4, 4).mean(axis=1) + _DECAY * model.parameters()
    pairs = [means[a] @ means[b] for a in range(5) for b in range(5) if a != b]
    expected = np.sqrt(np.mean(pairs)) / (MOVED * np.linalg.norm(model.parameters()))
    assert training_end(model, batches, is_whole=False).damping == pytest.approx(expected)
    assert training_end(model, batches[:1], is_whole=False).damping == 0  # nothing tells what of it is noise


def test_a_checkpoints_weight_changes_nothing(regression: Case) -> None:
    """λ is added to the curvature, which no checkpoint's weight is in."""
    model, batches, _ = regression
    alone = training_end(model, batches, is_whole=True)
    for parts, weights in (([model], [0.01]), ([model] * 3, None)):
        found = training_end(CheckpointSum(parts, weights), batches, is_whole=True)
        assert found.damping == pytest.approx(alone.damping)
