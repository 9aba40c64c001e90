"""Factored per-example gradients equal the tape's, for every kind of layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.gradients import Factored
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from tests.influence_ops.model.gradient_models import MATERIALISED, NETWORKS, Subclassed, Tied, low_rank_adapters

_SIZE = 5


def network(kind: str) -> keras.Model:
    """A network with no weight at its initial value: biases and scales matter."""
    keras.utils.set_random_seed(3)
    model = low_rank_adapters() if kind == "lora" else NETWORKS[kind]()
    if isinstance(model, (Subclassed, Tied)):
        model(np.zeros((1, 4), dtype=np.int32) if isinstance(model, Tied) else np.zeros((1, 6)))
    rng = np.random.default_rng(4)
    model.set_weights([w + 0.3 * np.abs(rng.standard_normal(w.shape)) for w in model.get_weights()])
    return model


def examples(model: keras.Model, kind: str) -> ExampleBatch:
    """Random examples; token 2 occurs twice in each sequence."""
    rng = np.random.default_rng(5)
    ids = np.array([str(i) for i in range(_SIZE)], dtype=object)
    if kind in ("lora", "embedding", "tied", "lstm-stacked-both-ways") or kind.startswith("reversible"):
        inputs = rng.integers(0, 7, (_SIZE, 4))
        inputs[:, 1] = inputs[:, 3] = 2
        inputs[0, 2:] = 0
    elif kind == "subclassed":
        inputs = rng.standard_normal((_SIZE, 6))
    else:
        inputs = rng.standard_normal((_SIZE, *(size or 5 for size in model.inputs[0].shape[1:])))
    return ExampleBatch(ids, inputs, rng.integers(0, 3, _SIZE), weights=rng.random(_SIZE))


def by_tape(explained: InfluenceModel, batch: ExampleBatch) -> np.ndarray:
    """∇(w_i ℓ_i), an example a time, by the plain tape: [B, P]."""
    rows = []
    assert batch.weights is not None
    for row in range(len(batch)):
        variables = [variable.value for variable in explained.variables]
        with tf.GradientTape() as tape:
            outputs = explained.model(tf.constant(np.asarray(batch.inputs)[row : row + 1]), training=False)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(np.asarray(batch.labels)[row : row + 1], outputs)
            loss = batch.weights[row] * tf.reduce_sum(loss)
        gradients: Any = tape.gradient(loss, variables)
        rows.append(np.concatenate([np.asarray(tf.convert_to_tensor(g)).ravel() for g in gradients]))
    return np.array(rows)


@pytest.mark.parametrize("kind", NETWORKS)
def test_equal_the_tape(kind: str) -> None:
    model = network(kind)
    batch = examples(model, kind)
    explained = InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all")
    losses, gradients = explained.losses_and_gradients(batch)
    expected = by_tape(explained, batch)
    # Both in float64, with other orders of summation.
    np.testing.assert_allclose(np.asarray(gradients), expected, rtol=1e-9, atol=1e-11 * np.abs(expected).max())
    assert len(explained.weights_without_factors) == MATERIALISED.get(kind, 0)
    assert len(losses) == _SIZE and sum(layout.size for layout in gradients.layout.blocks) == explained.size


def test_factors_of_lora_equal_the_tape() -> None:
    model = network("lora")
    batch = examples(model, "lora")
    explained = InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all", precision="native")
    found, expected = np.asarray(explained.losses_and_gradients(batch)[1]), by_tape(explained, batch)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())  # float32
    assert explained.weights_without_factors == []
    shapes = [(block.kind, block.rows, block.columns) for block in explained.layout().blocks]
    assert {("one_hot", 7, 2), ("factored", 5, 4), ("factored", 6, 2), ("factored", 2, 5)} <= set(shapes)


@pytest.mark.parametrize("kind", ["separable", "conv2d", "embedding"])
def test_a_batch_of_one(kind: str) -> None:
    model = network(kind)
    batch = examples(model, kind)
    explained = InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all")
    whole = np.asarray(explained.losses_and_gradients(batch)[1])
    last = np.asarray(explained.losses_and_gradients(batch.select(np.array([_SIZE - 1])))[1])
    np.testing.assert_allclose(last[0], whole[-1], rtol=1e-9, atol=1e-11 * np.abs(whole).max())
    directions = tf.ones_like(explained.packed_outputs(batch))
    along = [np.asarray(part) for block in explained.output_blocks(batch, directions) for part in block]
    alone = explained.output_blocks(batch.select(np.array([_SIZE - 1])), directions[-1:])
    for part, wanted in zip([np.asarray(part) for block in alone for part in block], along, strict=True):
        np.testing.assert_allclose(part[0], wanted[-1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["dense", "attention", "einsum-swapped", "conv2d", "embedding"])
def test_matrices_and_back(kind: str) -> None:
    model = network(kind)
    explained = InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all")
    layout = explained.layout()
    flat = np.random.default_rng(0).standard_normal((3, explained.size))
    back = np.zeros_like(flat)
    for block in layout.blocks:
        matrices = block.matrices(flat)
        assert matrices.shape == (3, block.rows, block.columns)
        block.write(matrices, back)
    np.testing.assert_array_equal(back, flat)


def test_only_watched_layers_are_covered() -> None:
    explained = InfluenceModel(network("dense-over-sequence"), loss_function="softmax_cross_entropy", weights="dense")
    batch = examples(network("dense-over-sequence"), "dense-over-sequence")
    whole = np.asarray(explained.losses_and_gradients(batch)[1])
    first = InfluenceModel(network("dense-over-sequence"), loss_function="softmax_cross_entropy", start_layer=0, last_layer=0)
    found = np.asarray(first.losses_and_gradients(batch)[1])
    np.testing.assert_allclose(found, whole[:, : first.size], rtol=1e-12, atol=1e-15)


def test_a_kernel_with_its_own_penalty_is_a_block_of_its_own() -> None:
    layout = InfluenceModel(network("dense-penalised-kernel"), loss_function="softmax_cross_entropy", weights="all").layout()
    assert [(block.rows, block.columns) for block in layout.blocks] == [(6, 5), (1, 5), (6, 3)]


def test_select_and_finite() -> None:
    model = network("dense-over-sequence")
    batch = examples(model, "dense-over-sequence")
    inputs = np.array(batch.inputs)
    inputs[2, 0, 0] = np.nan
    explained = InfluenceModel(model, loss_function="softmax_cross_entropy", weights="all")
    gradients = explained.losses_and_gradients(ExampleBatch(batch.ids, inputs, batch.labels))[1]
    assert gradients.finite().tolist() == [True, True, False, True, True]
    kept = np.array([0, 3, 4])
    np.testing.assert_array_equal(np.asarray(gradients.select(kept)), np.asarray(gradients)[kept])
    assert isinstance(gradients.blocks[0], Factored)


def test_a_product_that_overflows_is_not_finite() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    explained = InfluenceModel(model, loss_function="squared_error", precision="native")
    batch = ExampleBatch(np.array(["a", "b"], dtype=object), np.array([[1e30, 0], [1, 1]]), np.array([1e9, 1.0]))
    assert explained.losses_and_gradients(batch)[1].finite().tolist() == [False, True]


def test_layers_are_left_as_they_were() -> None:
    explained = InfluenceModel(network("dense"), loss_function="softmax_cross_entropy", weights="all")
    before = [dict(vars(layer)) for layer in explained.model.layers]
    explained.losses_and_gradients(examples(network("dense"), "dense"))
    for layer, attributes in zip(explained.model.layers, before, strict=True):
        assert "call" not in vars(layer)
        assert vars(layer).get("activation") is attributes.get("activation")
