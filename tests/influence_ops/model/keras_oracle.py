"""Keras's own numbers: `compute_loss` of the original model, one example at a time, and its gradients."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def one(arrays: Any, row: int) -> Any:
    """A batch of the example in `row`, as a user's program would make it."""

    def take(array: np.ndarray) -> tf.Tensor:
        return tf.constant(array[row : row + 1].tolist()) if array.dtype == object else tf.convert_to_tensor(array[row : row + 1])

    return tf.nest.map_structure(take, arrays)


def losses_and_gradients(model: keras.Model, x: Any, y: Any, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each example without the weights' regularisers, and its gradient by all trainable weights: [B], [B, P] float64."""
    count = len(tf.nest.flatten(x)[0])
    losses, gradients = [], []
    for row in range(count):
        with tf.GradientTape() as tape:
            weight = None if weights is None else tf.convert_to_tensor(weights[row : row + 1])
            outputs = model(one(x, row), training=False)
            total: Any = model.compute_loss(y=one(y, row), y_pred=outputs, sample_weight=weight)
            loss = tf.reduce_sum(total)
            for variable in model.trainable_variables:
                if variable.regularizer is not None:
                    loss -= variable.regularizer(variable)
        values = [variable.value for variable in model.trainable_variables]
        found: Any = tape.gradient(loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients.append(np.concatenate([np.asarray(tf.convert_to_tensor(part), np.float64).ravel() for part in found]))
        losses.append(float(loss))
    return np.array(losses), np.array(gradients)
