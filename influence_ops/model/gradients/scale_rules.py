"""Rules of layers that scale and shift: normalisations and PReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from beam_influence.influence_ops.model.gradients.cover import Cover, Joined, Watched, bias_everywhere, materialised, positions, summed


def _scaled(scale: Any, shift: Any, normalised: Callable[[tf.Tensor], tf.Tensor], watched: Watched) -> list[Cover]:
    """γ and β of z = γ·x̂ + β over the last axis."""

    of_scale = [summed(scale, (0,), lambda x, g: positions(normalised(x) * g))] if watched(scale) else []
    return [*of_scale, *bias_everywhere(shift, watched)]


def layer_normalization(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """x̂ by the moments of the last axis."""
    if getattr(layer, "rms_scaling", False) or len(layer.axis) != 1:
        return []

    def normalised(x: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + layer.epsilon)

    return _scaled(layer.gamma, layer.beta, normalised, watched)


def rms_normalization(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """x̂ by the root mean square of the last axis."""

    def normalised(x: tf.Tensor) -> tf.Tensor:
        return x / tf.sqrt(tf.reduce_mean(tf.square(x), axis=-1, keepdims=True) + layer.epsilon)

    return _scaled(layer.scale, None, normalised, watched)


def batch_normalization(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """x̂ by the moving moments."""

    def normalised(x: tf.Tensor) -> tf.Tensor:
        return (x - layer.moving_mean.value) / tf.sqrt(layer.moving_variance.value + layer.epsilon)

    return _scaled(layer.gamma, layer.beta, normalised, watched)


def group_normalization(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """x̂ by the moments of each group of channels, over all positions."""

    def normalised(x: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(x)
        groups = tf.reshape(x, [shape[0], -1, layer.groups, x.shape[-1] // layer.groups])
        mean, variance = tf.nn.moments(groups, axes=[1, 3], keepdims=True)
        return tf.reshape((groups - mean) / tf.sqrt(variance + layer.epsilon), shape)

    return _scaled(layer.gamma, layer.beta, normalised, watched)


def prelu(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """z = max(x, 0) − α max(−x, 0), α shared along some axes."""
    shared = [int(axis) for axis in layer.shared_axes or ()]

    def gradient(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        each = -tf.nn.relu(-x) * g
        return tf.reduce_sum(each, axis=shared, keepdims=True) if shared else each

    return materialised(layer.alpha, gradient, watched)


def unknown(layer: Any, watched: Watched, joined: Joined) -> list[Cover]:
    """A layer that no rule knows, with one weight of its own: a root-mean-square norm's scale [D], or a table of positions [T, D].

    Both are written anew in many libraries. Whether the layer is one of them is seen when its block is tried.
    """
    own = layer.trainable_variables
    if len(own) != 1:
        return []
    if len(own[0].shape) == 1:

        def normalised(x: tf.Tensor) -> tf.Tensor:
            mean = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
            return x / tf.sqrt(mean + float(getattr(layer, "epsilon", 1e-6)))

        return _scaled(own[0], None, normalised, watched)

    def added(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        unused: Any = int(own[0].shape[0]) - tf.shape(g)[1]
        return tf.pad(g, [[0, 0], [0, unused], [0, 0]])

    return materialised(own[0], added, watched) if len(own[0].shape) == 2 else []
