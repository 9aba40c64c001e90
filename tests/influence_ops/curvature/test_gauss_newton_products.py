"""Products with the Gauss–Newton matrix equal the matrix, layer by layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch


def _network(kind: str) -> keras.Model:
    layers: dict[str, list[Any]] = {
        "dense": [keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)],
        "conv": [
            keras.layers.Reshape((4, 4, 1)),
            keras.layers.Conv2D(2, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ],
        "norm": [keras.layers.Dense(4), keras.layers.LayerNormalization(), keras.layers.Activation("gelu"), keras.layers.Dense(3)],
        "lstm": [keras.layers.Reshape((4, 4)), keras.layers.LSTM(3), keras.layers.Dense(3)],
        "embedding": [keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(3)],
    }
    keras.utils.set_random_seed(1)
    shape = (4,) if kind == "embedding" else (16,)
    return keras.Sequential([keras.Input(shape, dtype="int32" if kind == "embedding" else "float32"), *layers[kind]])


@pytest.mark.parametrize("kind", ["dense", "conv", "norm", "embedding"])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "squared_error"])
@pytest.mark.parametrize("weighted", [False, True])
def test_products_equal_the_matrix(kind: str, loss: str, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    model = InfluenceModel(_network(kind), loss_function=loss, weights="all")
    inputs = rng.integers(0, 5, (6, 4)) if kind == "embedding" else rng.standard_normal((6, 16))
    labels = rng.integers(0, 3, 6) if loss == "softmax_cross_entropy" else rng.standard_normal((6, 3))
    batch = ExampleBatch(np.array([str(i) for i in range(6)], dtype=object), inputs, labels, weights=rng.random(6) if weighted else None)
    vectors = rng.standard_normal((5, model.size))
    expected = vectors @ model.gauss_newton_sum(batch)
    # Both in float64: they differ by rounding alone.
    np.testing.assert_allclose(model.gauss_newton_products(batch, vectors), expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["dense", "lstm"])
def test_one_example_and_one_vector_and_several(kind: str) -> None:
    """Of a recurrent layer too, whose loop can't be vectorised."""
    rng = np.random.default_rng(0)
    model = InfluenceModel(_network(kind), loss_function="softmax_cross_entropy", weights="all")
    for examples, rows in ((1, 1), (3, 2)):
        ids = np.array([str(i) for i in range(examples)], dtype=object)
        batch = ExampleBatch(ids, rng.standard_normal((examples, 16)), rng.integers(0, 3, examples))
        vectors = rng.standard_normal((rows, model.size))
        expected = vectors @ model.gauss_newton_sum(batch)
        np.testing.assert_allclose(model.gauss_newton_products(batch, vectors), expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())
