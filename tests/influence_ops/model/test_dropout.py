"""A network with units dropped for good is the network in NumPy without them; what can't be drawn once is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.dropout import KeptUnits, with_dropped_units
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

layers = keras.layers
BATCH = 5


def network(rate: float = 0.4) -> Any:
    keras.utils.set_random_seed(0)
    normalise = layers.Normalization()
    normalise.adapt(np.random.default_rng(1).normal(2, 3, (50, 6)))
    hidden = [layers.Dense(8, activation="tanh"), layers.Dropout(rate, name="first"), layers.Dense(3)]
    model: Any = keras.Sequential([keras.Input((6,)), normalise, *hidden])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_losses_and_gradients_are_those_of_what_is_left() -> None:
    model = network()
    made = with_dropped_units(model, 3)
    (units,) = [layer for layer in made.layers if isinstance(layer, KeptUnits)]
    kept = np.asarray(units._factors)
    assert 0 < (kept == 0).sum() < 8 and np.allclose(kept[kept > 0], 1 / 0.6)
    x, y = np.random.default_rng(0).normal(2, 3, (BATCH, 6)), np.arange(BATCH) % 3
    explained = InfluenceModel(made, weights="all")
    assert explained.dtype == "float64"  # the copy keeps the units, too
    losses, gradients = explained.losses_and_gradients(ExampleBatch(np.arange(BATCH).astype(str).astype(object), x, y))
    mean, variance = (np.asarray(value, np.float64).ravel() for value in (model.layers[0].mean, model.layers[0].variance))
    w1, b1, w2, b2 = (np.asarray(value, np.float64) for value in model.get_weights()[-4:])
    normed = (x - mean) / np.sqrt(variance)
    hidden = np.tanh(normed @ w1 + b1)
    logits = (hidden * kept) @ w2 + b2
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(losses, -np.log(p[np.arange(BATCH), y]), rtol=1e-6)  # the normalisation is kept in float32
    wrong = p - np.eye(3)[y]
    back = (wrong @ w2.T) * kept * (1 - hidden**2)
    wanted = [np.einsum("bi,bo->bio", normed, back), back, np.einsum("bi,bo->bio", hidden * kept, wrong), wrong]
    np.testing.assert_allclose(np.asarray(gradients), np.concatenate([part.reshape(BATCH, -1) for part in wanted], axis=1), atol=1e-6)


def test_a_seed_is_a_member_and_the_model_stays() -> None:
    model, x = network(), np.ones((1, 6), np.float32)
    before = np.asarray(model(x))
    first, again, other = (with_dropped_units(model, seed) for seed in (0, 0, 1))
    assert np.array_equal(first(x), again(x)) and not np.array_equal(first(x), other(x))
    assert np.array_equal(model(x), before) and any(isinstance(layer, layers.Dropout) for layer in model.layers)
    prints = [InfluenceModel(each, weights="all").fingerprint() for each in (model, first, again, other)]
    assert prints[1] == prints[2] and len(set(prints)) == 3


def test_units_do_not_depend_on_the_name_that_a_layer_gets() -> None:
    """Keras numbers the names of layers on in a process, when a function makes the model again."""
    first, again = (with_dropped_units(functional(layers.Dense(20, use_bias=False), layers.Dropout(0.5))(), 0) for _ in range(2))
    masks = [next(layer for layer in made.layers if isinstance(layer, KeptUnits)) for made in (first, again)]
    assert masks[0].name != masks[1].name and np.array_equal(np.asarray(masks[0]._factors), np.asarray(masks[1]._factors))


def functional(*middle: Any) -> Callable[[], Any]:
    def make() -> Any:
        inputs = keras.Input((4, 2))
        value = inputs
        for layer in middle:
            value = layer(value)
        return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(value)))

    return make


def attention() -> Any:
    inputs = keras.Input((4, 2))
    return keras.Model(inputs, layers.Dense(1)(layers.Flatten()(layers.MultiHeadAttention(1, 2, dropout=0.1)(inputs, inputs))))


class Subclassed(keras.Model):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(0.0), "has no layer keras.layers.Dropout with a rate above 0, so that all members would be the same"),
        (functional(layers.Dropout(0.5), layers.LSTM(2, dropout=0.1)), r"\(LSTM\) drops in another way than keras.layers.Dropout"),
        (lambda: attention(), "'dropout.*' drops inside of another layer|MultiHeadAttention.* in another way"),
        (functional(layers.GaussianDropout(0.5)), r"\(GaussianDropout\) drops in another way"),
        (functional(layers.Dropout(0.5, noise_shape=(None, None, 1))), r"\(Dropout\) drops in another way"),
        (functional(layers.Dropout(0.5, activity_regularizer="l2")), r"\(Dropout\) drops in another way"),
        (functional(layers.Reshape((4, 2, 1)), layers.SpatialDropout2D(0.5, "channels_first")), r"\(SpatialDropout2D\) drops in another"),
        (functional(layers.Dense(1), layers.Dropout(0.99)), "--dropout_seed 7 drops all 1 units of the layer"),
        (Subclassed, "--dropout_seed 7 needs a Sequential or functional model, .* not Subclassed"),
    ],
)
def test_what_can_not_be_drawn_once_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_dropped_units(make(), 7)
