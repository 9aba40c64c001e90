"""Products that oneDNN computes wrong: they are found in a graph, and a model that has them is computed another way."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.gradients import layer_rules
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.wrong_products import WrongProductError, refuse_wrong_products
from beam_influence.influence_ops.reading.example_batch import ExampleBatch


def graph_of(left: tuple[int | None, ...], right: tuple[int, ...], dtype: tf.DType = tf.float32) -> tf.Graph:
    specs = [tf.TensorSpec(shape, dtype) for shape in (left, right)]
    return tf.function(lambda a, b: tf.matmul(a, b), autograph=False).get_concrete_function(*specs).graph


def test_they_are_found_by_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    for left, right in [((64, 1, 8, 6), (6, 6)), ((None, 1, 8, 6), (1, 6, 6)), ((64, 1, 8, 6), (1, 1, 6, 6))]:
        with pytest.raises(WrongProductError):
            refuse_wrong_products(graph_of(left, right))
    for left, right in [((64, 8, 6), (6, 6)), ((64, 2, 8, 6), (6, 6)), ((64, 1, 8, 6), (64, 1, 6, 6))]:
        refuse_wrong_products(graph_of(left, right))
    refuse_wrong_products(graph_of((64, 1, 8, 6), (6, 6), tf.float64))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    refuse_wrong_products(graph_of((64, 1, 8, 6), (6, 6)))


def test_attention_without_factors_in_float32(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where its projections have no factors, and are vectorised, TensorFlow would end the process. Keras's tape, one example at a time."""
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    monkeypatch.delitem(layer_rules.RULES, keras.layers.EinsumDense)
    keras.utils.set_random_seed(0)
    inputs: Any = keras.Input((5, 6))
    attention: Any = keras.layers.MultiHeadAttention(2, 3)
    model: Any = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(attention(inputs, inputs))))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(6, 5, 6)).astype(np.float32)
    y = np.arange(6) % 2
    explained = InfluenceModel(model, weights="all", precision="native")
    with caplog.at_level(logging.WARNING):
        found = explained.losses_and_gradients(ExampleBatch(np.array([f"f:{row}" for row in range(6)], object), x, y))[1].dense().numpy()
    assert "TF_ENABLE_ONEDNN_OPTS=0" in caplog.text
    for row in range(6):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=y[row : row + 1], y_pred=model(x[row : row + 1]))
        parts: Any = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        wanted = np.concatenate([np.ravel(part) for part in parts])
        assert found[row] == pytest.approx(wanted, rel=1e-4, abs=1e-6)  # float32
