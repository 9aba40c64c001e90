"""Models and losses that `test_users_files` names by import path, as a user's own module would hold them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.influence_ops.model.forgetful_layer import Forgetful

layers = keras.layers


def absolute(labels: Any, outputs: Any) -> Any:
    """A loss of the user's, that no file can hold."""
    return tf.reduce_mean(tf.abs(labels - outputs) ** 1.5, axis=-1)


def _filled(model: keras.Model, loss: Any, **options: Any) -> keras.Model:
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, weight.shape) for weight in model.get_weights()])
    model.compile(loss=loss, **options)
    return model


def with_lambda() -> keras.Model:
    body = [layers.Dense(4, "tanh"), layers.Lambda(lambda x: x * 0.5), layers.Dense(2)]
    return _filled(keras.Sequential([keras.Input((3,), name="x"), *body]), absolute)


def forgetful() -> keras.Model:
    return _filled(keras.Sequential([keras.Input((3,), name="x"), layers.Dense(4, "tanh"), Forgetful(3.0), layers.Dense(2)]), "mse")


def autoencoder() -> keras.Model:
    inputs = keras.Input((4, 4, 1), name="x")
    return _filled(keras.Model(inputs, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(inputs)), "mse")


def segmentation() -> keras.Model:
    inputs = keras.Input((4, 4, 1), name="x")
    return _filled(keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax")(inputs)), "sparse_categorical_crossentropy")


def tagger() -> keras.Model:
    inputs = keras.Input((5,), name="x", dtype="int32")
    tags = layers.Dense(3, "softmax")(layers.LSTM(4, return_sequences=True)(layers.Embedding(6, 3, mask_zero=True)(inputs)))
    return _filled(keras.Model(inputs, tags), "sparse_categorical_crossentropy")


def two_outputs() -> keras.Model:
    inputs = keras.Input((3,), name="x")
    hidden = layers.Dense(4, "tanh")(inputs)
    outputs = {"price": layers.Dense(1, name="price")(hidden), "kind": layers.Dense(3, "softmax", name="kind")(hidden)}
    losses = {"price": "mse", "kind": "sparse_categorical_crossentropy"}
    return _filled(keras.Model(inputs, outputs), losses, loss_weights={"price": 0.3, "kind": 2.0})


def normalised() -> keras.Model:
    inputs = keras.Input((3,), name="x")
    normalise = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 1.0, 0.25])
    return _filled(keras.Model(inputs, layers.Dense(2)(layers.Dense(4, "tanh")(normalise(inputs)))), "mse")
