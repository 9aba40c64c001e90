"""Second derivatives of networks whose layers are computed in another way for them: loops as lines of steps, convolutions in groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import InfluenceModel
from beam_influence.influence_ops.model.gradients.unrolled import unrolled
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from tests.influence_ops.model.test_derivatives import perturbed, relative

layers = keras.layers
EXACT = 1e-9  # float64, beside TensorFlow's own derivatives of the loop
STEP, DIFFERENCES = 1e-5, 1e-6


def tagger(*recurrent: keras.layers.Layer) -> keras.Model:
    """Tokens, 0 of them padding, on either side."""
    x = tokens = keras.Input((3,), dtype="int32")
    x = layers.Embedding(6, 3, mask_zero=True)(x)
    for layer in recurrent:
        x = layer(x)
    return keras.Model(tokens, layers.Dense(2)(x))


def in_groups(*convolutions: keras.layers.Layer, shape: tuple[int, ...]) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *convolutions, layers.Flatten(), layers.Dense(2)])


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "bidirectional": lambda: tagger(layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True))),
    "zeros": lambda: tagger(layers.GRU(2, return_sequences=True, go_backwards=True, zero_output_for_mask=True)),
    "conv1d": lambda: in_groups(layers.Conv1D(4, 3, groups=2, strides=2, padding="causal"), shape=(7, 2)),
    "conv2d": lambda: in_groups(layers.Conv2D(2, 2, activation="tanh"), layers.Conv2D(4, 2, groups=2), shape=(4, 4, 1)),
}


def examples(model: keras.Model) -> ExampleBatch:
    random = np.random.default_rng(1)
    shape = model.inputs[0].shape[1:]
    x: np.ndarray = random.standard_normal((6, *shape))
    if model.inputs[0].dtype == "int32":
        x = random.integers(1, 6, (6, *shape)).astype(np.int32)
        x[0, 2:] = x[1, :1] = x[2, 1:] = 0
    labels = random.integers(0, 2, (6, *model.outputs[0].shape[1:-1]))
    return ExampleBatch(np.array([str(row) for row in range(6)], dtype=object), x, labels)


def wanted_sums(model: InfluenceModel, batch: ExampleBatch) -> tuple[np.ndarray, np.ndarray]:
    """Σ JᵀHJ by Jacobians of the network in its loops, and Σ ∇²ℓ by differences of the gradient."""
    network, variables = model.model, model.variables
    x, labels = tf.constant(np.asarray(batch.inputs)), tf.constant(np.asarray(batch.labels))

    @tf.function
    def pulled(row: tf.Tensor, direction: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(direction * tf.reshape(network(x[row][None], training=False), [-1]))
        return flat(tape.gradient(total, [variable.value for variable in variables]))

    @tf.function
    def gradient() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = network(x, training=False)
            losses: Any = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=True)
            mask = getattr(outputs, "_keras_mask", None)
            weights = tf.ones_like(losses) if mask is None else tf.cast(mask, losses.dtype)
            of_each = tf.reduce_sum(weights, axis=-1, keepdims=True) if losses.shape.rank > 1 else 1
            total = tf.reduce_sum(weights * losses / of_each)
        return flat(tape.gradient(total, [variable.value for variable in variables]))

    def flat(parts: list[Any]) -> tf.Tensor:
        return tf.concat([tf.reshape(tf.convert_to_tensor(part), [-1]) for part in parts], axis=0)

    gauss_newton = np.zeros((model.size, model.size))
    for row, root in enumerate(np.asarray(model.output_curvature_root(batch))):
        factors = np.stack([pulled(tf.constant(row), tf.constant(column)) for column in root.reshape(len(root), -1).T])
        gauss_newton += factors.T @ factors
    columns = []
    for variable in variables:
        value = np.array(variable.value)
        for place in np.ndindex(value.shape):
            sides = []
            for step in (STEP, -STEP):
                value[place] += step
                variable.assign(value)
                value[place] -= step
                sides.append(np.asarray(gradient()))
            columns.append((sides[0] - sides[1]) / (2 * STEP))
        variable.assign(value)
    return gauss_newton, np.stack(columns)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives_are_those_of_the_network(name: str) -> None:
    model = InfluenceModel(perturbed(NETWORKS[name]()), weights="all", loss_function="softmax_cross_entropy", precision="float64")
    batch = examples(model.model)
    model.check(batch)
    gauss_newton, hessian = wanted_sums(model, batch)
    assert relative(model.gauss_newton_sum(batch), gauss_newton) < EXACT
    if name != "zeros":  # to trace them takes seconds
        assert relative(model.hessian_sum(batch), hessian) < DIFFERENCES


@keras.saving.register_keras_serializable("tests")
class Counted(layers.RNN):
    """It gives something else where it is no loop."""

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        last: Any
        outputs: Any
        last, outputs, states = super().inner_loop(sequences, initial_state, mask, training)
        return last, outputs + 0.1 * tf.cast(self.unroll, outputs.dtype), states


def test_a_layer_that_differs_step_by_step_is_refused() -> None:
    model = InfluenceModel(
        tagger(Counted(layers.SimpleRNNCell(2), return_sequences=True)), weights="all", loss_function="softmax_cross_entropy"
    )
    with pytest.raises(ValueError, match="other outputs step by step than in its loop"):
        model.check(examples(model.model))


def test_unrolled_leaves_no_trace() -> None:
    network = tagger(layers.Bidirectional(layers.LSTM(2, return_sequences=True)))
    x = tf.constant(np.asarray(examples(network).inputs))
    before = network(x)
    with unrolled(network):
        np.testing.assert_allclose(network(x), before, rtol=1e-5)
    np.testing.assert_array_equal(network(x), before)
