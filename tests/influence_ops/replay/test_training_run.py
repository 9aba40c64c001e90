"""The derivative through a training, beside a closed form and beside finite differences of trainings."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.batch_order import BatchOrder, epoch_order
from beam_influence.influence_ops.replay.keras_training import compare_first_steps, compare_with_trained
from beam_influence.influence_ops.replay.training_run import TrainingRun, as_checkpoint
from beam_influence.influence_ops.replay.training_step import TrainingStep

MEMORY = 1 << 20


def examples(x, y, weights=None) -> ExampleBatch:
    return ExampleBatch(np.array([f"e{place}" for place in range(len(x))], dtype=object), x, y, weights)


def make_run(model: keras.Model, batch: ExampleBatch, order: BatchOrder, memory: int = MEMORY) -> TrainingRun:
    return TrainingRun.of(TrainingStep(InfluenceModel(model, weights="."), model.optimizer), batch, order, memory)


def derivative(run: TrainingRun, test: ExampleBatch) -> tuple[np.ndarray, np.ndarray]:
    checkpoints = {number: as_checkpoint(state) for number, state in run.forward()}
    return run.backward(checkpoints.__getitem__, test)


def test_one_step_on_a_quadratic_is_its_closed_form():
    rng = np.random.default_rng(0)
    x, y, t, u = rng.normal(size=(5, 3)), rng.normal(size=(5, 1)), rng.normal(size=(2, 3)), rng.normal(size=(2, 1))
    model = keras.Sequential([keras.Input((3,), dtype="float64"), keras.layers.Dense(1, use_bias=False, dtype="float64")])
    model.compile(optimizer=keras.optimizers.SGD(0.25), loss="mse")  # a learning rate that float32 has exactly
    start = np.asarray(model.get_weights()[0], np.float64)
    run = make_run(model, examples(x, y), BatchOrder.of_fit(5, 5, 1, None))
    losses, found = derivative(run, examples(t, u))
    end = start - 0.25 * 2 / 5 * x.T @ (x @ start - y)
    np.testing.assert_allclose(losses, ((t @ end - u) ** 2)[:, 0], rtol=1e-12)
    by_end = 2 * (t @ end - u) * t  # of each test loss, [T, 3]
    by_weight = -0.25 * 2 / 5 * (x @ start - y) * x  # of the weights after the step by w, [n, 3]
    np.testing.assert_allclose(found, by_end @ by_weight.T, rtol=1e-12)


@pytest.fixture(scope="module")
def trained():
    """AdamW with a schedule, batch normalisation, a regulariser, sample weights, an input that is always 0, a smaller last batch."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(23, 4)), rng.integers(0, 3, 23)
    x[:, 3] = 0
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(4, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01))
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.BatchNormalization(momentum=0.7), keras.layers.Dense(3)])
    rate: Any = keras.optimizers.schedules.CosineDecay(0.05, 9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.AdamW(rate, weight_decay=0.1), loss=loss)
    batch = examples(x, y, rng.uniform(0.5, 2, 23))
    return model, make_run(model, batch, BatchOrder.of_fit(23, 8, 3, 7)), batch.select(np.arange(3))


def test_derivative_is_that_of_trainings(trained):
    _, run, test = trained
    _, found = derivative(run, test)
    step = 1e-5
    for place in (0, 22):
        changed = [np.where(np.arange(23) == place, 1 + sign * step, 1.0) for sign in (1, -1)]
        above, below = (run.test_losses(run.last_state(weights), test) for weights in changed)
        # Central differences are right to the square of the step, and to the rounding of the losses over it.
        np.testing.assert_allclose(found[:, place], (above - below) / (2 * step), rtol=1e-5, atol=1e-9)


def test_replay_ends_where_fit_ends(trained):
    model, run, _ = trained
    *_, (steps, last) = run.forward()
    assert (steps, run.segment) == (9, 3)
    assert compare_first_steps(run) < 1e-4
    assert model.optimizer.iterations == 0
    batch, other = run.examples, keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.compile(optimizer=keras.optimizers.AdamW(model.optimizer._learning_rate, weight_decay=0.1), loss=model.loss, run_eagerly=True)
    for epoch in range(3):
        order = epoch_order(23, 7, epoch)
        kept = np.asarray(batch.weights)[order]
        x, y = np.asarray(batch.inputs)[order], np.asarray(batch.labels)[order]
        other.fit(x, y, batch_size=8, verbose="0", sample_weight=kept, shuffle=False)
    assert compare_with_trained(run, last, other) < 1e-4  # Keras computes in float32
    assert compare_with_trained(run, last, model) == pytest.approx(1, abs=10)


def test_batches_of_the_users_own():
    order = BatchOrder.of_ids([["b", "a"], ["b"]], ["a", "b", "c"])
    assert [order.of_step(step).tolist() for step in range(2)] == [[1, 0], [1]]
    for batches, message in (([["d"]], "step 0 .* 'd'"), ([["a"], []], "step 1 .* no examples"), ([], "no batches")):
        with pytest.raises(ValueError, match=message):
            BatchOrder.of_ids(batches, ["a", "b"])
    with pytest.raises(ValueError, match="have the id 'a'"):
        BatchOrder.of_ids([["a"]], ["a", "b", "a"])


@pytest.mark.parametrize(
    ("layer", "optimizer", "message"),
    [
        (keras.layers.GRU(2), "sgd", "is recurrent"),
        (keras.layers.Flatten(), "adam", "is an Embedding, whose gradient Keras gives Adam one token after the other"),
        (keras.layers.Flatten(), "lion", "Lion moves weights by signs"),
    ],
)
def test_what_can_not_be_gone_through_is_refused(layer, optimizer, message):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(5, 2), layer, keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match=message):
        TrainingStep(InfluenceModel(model, weights="all"), model.optimizer)


def test_batches_that_are_no_lists_of_ids():
    assert len(BatchOrder.of_ids([(name for name in "ab")], ["a", "b"])) == 1
    with pytest.raises(ValueError, match="step 0 of the batches is the text 'ab', not a list of ids"):
        BatchOrder.of_ids("ab".split(), ["a", "b"])
