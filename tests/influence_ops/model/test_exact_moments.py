"""Second derivatives through normalisation layers against finite differences in float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.exact_moments import exact_moments
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

# Central differences of exact gradients with a step of 1e-5: an error of about 1e-10 of the largest entry.
FINITE_DIFFERENCES = 1e-7


def hessian_by_differences(model: InfluenceModel, batch: ExampleBatch, step: float = 1e-5) -> np.ndarray:
    """Σ_i ∇²ℓ(z_i) [P, P] from the gradients at moved weights."""
    rows = []
    for variable in model.variables:
        value = variable.value.numpy()
        for index in np.ndindex(value.shape):
            moved = []
            for sign in (1, -1):
                other = value.copy()
                other[index] += sign * step
                variable.assign(other)
                moved.append(np.asarray(model.losses_and_gradients(batch)[1]).sum(axis=0))
            variable.assign(value)
            rows.append((moved[0] - moved[1]) / (2 * step))
    return np.array(rows)


@pytest.mark.parametrize(
    "normalization",
    [
        keras.layers.LayerNormalization,
        lambda: keras.layers.GroupNormalization(groups=2),
        keras.layers.BatchNormalization,  # in inference mode
        keras.layers.UnitNormalization,
    ],
    ids=["layer", "group", "batch", "unit"],
)
def test_the_hessian_is_exact(normalization: Any) -> None:
    keras.utils.set_random_seed(4)
    inputs = keras.Input((3,))
    hidden = normalization()(keras.layers.Dense(4, activation="tanh")(inputs))
    model = InfluenceModel(
        keras.Model(inputs, keras.layers.Dense(2)(hidden)), weights="all", loss_function="softmax_cross_entropy"
    )
    generator = np.random.default_rng(5)
    batch = ExampleBatch(np.arange(6).astype(str).astype(object), generator.normal(size=(6, 3)), generator.integers(0, 2, 6))
    exact = model.hessian_sum(batch)
    expected = hessian_by_differences(model, batch)
    assert np.abs(exact - expected).max() < FINITE_DIFFERENCES * np.abs(expected).max()
    vectors = generator.normal(size=(3, model.size))
    products = model.hessian_vector_products(batch, vectors)
    assert np.abs(products - vectors @ exact).max() < 1e-12 * np.abs(products).max()


def test_values_are_tensorflows_own() -> None:
    x = tf.constant(np.random.default_rng(6).normal(size=(4, 3, 2)))
    original = tf.nn.moments
    given: list[dict[str, Any]] = [{"axes": [0]}, {"axes": [1, 2], "keepdims": True}, {"axes": -1}]
    for arguments in given:
        with exact_moments():
            found = tf.nn.moments(x, **arguments)
        for mine, theirs in zip(found, original(x, **arguments), strict=True):
            assert mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-14, atol=0)
    assert tf.nn.moments is original


def test_it_is_undone_after_an_error() -> None:
    original = tf.nn.moments
    with pytest.raises(RuntimeError), exact_moments(), exact_moments():
        raise RuntimeError
    assert tf.nn.moments is original
