"""Models and losses that the tests name as `module:function`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def digits_model() -> keras.Model:
    """The architecture of `digits_job`, with weights that every process draws anew."""
    inputs = keras.Input((64,), name="image")
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    penalty = keras.regularizers.L2(1e-3)
    outputs = keras.layers.Dense(10, activation="softmax", kernel_regularizer=penalty, bias_regularizer=penalty)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    return model


def two_outputs() -> keras.Model:
    """Two inputs, two outputs, BatchNorm and Dropout; the same weights in every process."""
    keras.utils.set_random_seed(8)
    left, right = keras.Input((3,), name="left"), keras.Input((2, 2), name="right")
    hidden = keras.layers.Concatenate()([left, keras.layers.Flatten()(right)])
    hidden = keras.layers.BatchNormalization(name="normalization")(keras.layers.Dense(5, activation="tanh")(hidden))
    hidden = keras.layers.Dropout(0.5)(hidden)
    outputs = {"kind": keras.layers.Dense(3, name="kind")(hidden), "size": keras.layers.Dense(1, name="size")(hidden)}
    return keras.Model([left, right], outputs)


def joint_loss(labels: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Cross-entropy of `kind` + half the squared error of `size`."""
    kinds = tf.one_hot(labels["kind"], 3, dtype=outputs["kind"].dtype)
    return tf.nn.softmax_cross_entropy_with_logits(kinds, outputs["kind"]) + 0.5 * tf.square(outputs["size"][:, 0] - labels["size"])


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model without declared inputs."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.dense = keras.layers.Dense(10)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.dense(inputs)


def subclassed() -> keras.Model:
    model = Subclassed()
    model(tf.zeros([1, 64]))
    return model


def wrapped() -> keras.Model:
    """A subclassed model with declared inputs, its weights the same in every process."""
    keras.utils.set_random_seed(9)
    inputs = keras.Input((64,), name="image")
    return keras.Model(inputs, Subclassed()(inputs))


def no_model() -> int:
    return 3
