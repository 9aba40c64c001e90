"""How derivatives are traced and compiled, and how often a scoring batch waits for the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.autograph.impl import api

from beam_influence.influence_ops.curvature import FinishOptions, fit
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

COUNT, FEATURES, CLASSES = 12, 5, 3


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((FEATURES,)), dense(4, "tanh"), dense(4, "relu"), dense(CLASSES)])


def batch() -> ExampleBatch:
    rng = np.random.default_rng(0)
    ids = np.array([f"file:{row}" for row in range(COUNT)], dtype=object)
    return ExampleBatch(ids, rng.normal(size=(COUNT, FEATURES)).astype(np.float32), rng.integers(0, CLASSES, COUNT))


def squared(labels: Any, outputs: Any) -> Any:
    return tf.reduce_sum(tf.square(tf.one_hot(tf.reshape(labels, [-1]), CLASSES, dtype=outputs.dtype) - outputs), axis=1)


def squared_if(labels: Any, outputs: Any) -> Any:
    losses = squared(labels, outputs)
    if tf.reduce_max(losses) < 0:  # a tensor: only AutoGraph can make sense of it
        losses = 2 * losses
    return losses


def test_no_source_is_rewritten_for_a_loss_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_convert_actual", lambda *_: pytest.fail("AutoGraph rewrote a function"))
    model = InfluenceModel(network(), loss_function="softmax_cross_entropy", weights="all")
    assert np.isfinite(model.losses_and_gradients(batch())[0]).all()


def test_a_loss_with_an_if_on_a_tensor() -> None:
    found, wanted = (InfluenceModel(network(), loss_function=loss).losses_and_gradients(batch()) for loss in (squared_if, squared))
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(np.asarray(found[1]), np.asarray(wanted[1]))


def test_blocks_of_mixed_precision_are_as_wide_as_the_weights() -> None:
    """A layer in halves beside one in float32: the check for finite gradients and K-FAC's sums take both."""
    half = keras.layers.Dense(4, "tanh", dtype="mixed_float16")
    mixed = keras.Sequential([keras.Input((FEATURES,)), half, keras.layers.Dense(CLASSES, dtype="float32")])
    mixed.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model = InfluenceModel(mixed, weights="all", precision="native")
    blocks = model.loss_blocks(batch())
    assert {part.dtype for block in blocks for part in block} == {tf.float32}
    fitted = fit(model, Ekfac(), lambda: [batch()], FinishOptions(damping=0.1))
    assert all(np.isfinite(array).all() for array in fitted.arrays.values())


def test_labels_of_any_type() -> None:
    """Training examples' as integers, test points' as doubles, as pandas has them where one was missing."""
    model, one = InfluenceModel(network(), loss_function="softmax_cross_entropy", weights="all"), batch()
    losses, _ = model.losses_and_gradients(one)
    for dtype in (np.int32, np.uint8, np.float64):
        again, _ = model.losses_and_gradients(dataclasses.replace(one, labels=np.asarray(one.labels).astype(dtype)))
        np.testing.assert_array_equal(again, losses)


def test_texts_of_different_lengths_with_a_mask() -> None:
    """Strings that are split in the model, a layer whose gradients are built example by example; compared with Keras's tape by `check`."""
    texts = np.array(["good film", "bad", "a good and long film", "so bad"], dtype=object)
    words = keras.layers.TextVectorization(output_sequence_length=4)
    words.adapt(tf.constant(list(texts)))
    layers = [keras.Input((), dtype="string"), words, keras.layers.Embedding(12, 3, mask_zero=True), keras.layers.GlobalAveragePooling1D()]
    text: Any = keras.Sequential([*layers, keras.layers.Dense(1, "sigmoid")])
    text.compile(loss="binary_crossentropy")
    found = InfluenceModel(text, weights="all").check(ExampleBatch(np.arange(4).astype(str).astype(object), texts, np.array([1, 0, 1, 0])))
    assert found.examples == 4 and found.gradient < 1e-6


def test_an_open_length_may_be_another_one_in_each_batch() -> None:
    """Test points are padded to their own longest; Keras's tape."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((None,), dtype="int32"), keras.layers.Embedding(9, 3), keras.layers.GRU(2), keras.layers.Dense(1)]
    network: Any = keras.Sequential(layers)
    network.compile(loss="mse")
    model = InfluenceModel(network, weights="all")
    for length in (7, 5, 7):
        tokens = np.random.default_rng(length).integers(0, 9, (4, length)).astype(np.int32)
        ids = np.array([f"file:{row}" for row in range(4)], object)
        found = np.asarray(model.losses_and_gradients(ExampleBatch(ids, tokens, np.ones(4, np.float32)))[1])
        for row in range(4):
            with tf.GradientTape() as tape:
                loss = network.compute_loss(y=tf.ones((1, 1)), y_pred=network(tokens[row : row + 1]))
            parts: Any = tape.gradient(loss, [variable.value for variable in network.trainable_variables])
            wanted = np.concatenate([np.ravel(tf.convert_to_tensor(part)) for part in parts])
            np.testing.assert_allclose(found[row], wanted, rtol=2e-4, atol=1e-5)


def test_merged_lora_is_refused() -> None:
    """Keras's `save` leaves both matrices 0."""
    model = network()
    model.layers[0].enable_lora(2)
    InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all")
    model.layers[0].lora_kernel_a.assign(tf.zeros((FEATURES, 2)))
    with pytest.raises(ValueError, match="LoRA matrices of the layer 'dense.*' are 0: Keras merges them"):
        InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all")


def test_an_array_that_is_filled_again() -> None:
    """As a loader does that gives every batch in one buffer."""
    model, first = InfluenceModel(network(), loss_function="softmax_cross_entropy"), batch()
    other = dataclasses.replace(first, inputs=np.asarray(first.inputs)[::-1].copy())
    wanted = model.losses(other)
    buffer = np.array(first.inputs)
    model.losses(dataclasses.replace(first, inputs=buffer))
    buffer[...] = other.inputs
    np.testing.assert_array_equal(model.losses(dataclasses.replace(first, inputs=buffer)), wanted)
