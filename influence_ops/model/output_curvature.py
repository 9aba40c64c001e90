"""How the loss curves at a network's outputs z: ∂²ℓ/∂z², its root R with R Rᵀ = ∂²ℓ/∂z², and directions along z that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import tensorflow as tf

Likelihood = Literal["categorical", "bernoulli", "normal"]
"""Of labels, position by position; `normal` has the variance of 1/2, whose negative log-likelihood is (y − z)² but for a constant."""


def output_hessian(loss: Callable[[tf.Tensor], tf.Tensor], outputs: tf.Tensor) -> tf.Tensor:
    """∂²ℓ_i/∂z_i²: [B, C, C], C the size of one example's output, of `loss`: outputs -> [B]."""
    with tf.GradientTape() as outer:
        outer.watch(outputs)
        with tf.GradientTape() as inner:
            inner.watch(outputs)
            losses = loss(outputs)
        gradient = inner.gradient(losses, outputs)
    hessian = outer.batch_jacobian(gradient, outputs)
    size = outputs.shape[1:].num_elements() or tf.reduce_prod(tf.shape(outputs)[1:])
    return tf.reshape(hessian, [-1, size, size])


def matrix_root(matrices: tf.Tensor) -> tf.Tensor:
    """R with R Rᵀ = the positive semi-definite part of each matrix: [B, C, C]."""
    # eigh of a matrix with NaN does not return; such an example is rejected by its loss.
    finite = tf.reduce_all(tf.math.is_finite(matrices), axis=[1, 2], keepdims=True)
    values, vectors = tf.linalg.eigh(tf.where(finite, matrices, tf.zeros_like(matrices)))
    return vectors * tf.sqrt(tf.maximum(values, 0))[:, None, :]


def positive_part(matrices: tf.Tensor) -> tf.Tensor:
    """The positive semi-definite part of each matrix: [B, C, C]."""
    roots = matrix_root(matrices)
    return tf.matmul(roots, roots, transpose_b=True)


def root_of_weights(position_weights: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """√w of each position's weight, with an axis of 1 for each that `outputs` has besides."""
    root = tf.sqrt(tf.maximum(position_weights, 0))
    return tf.reshape(root, tf.concat([tf.shape(root), tf.ones([outputs.shape.rank - root.shape.rank], tf.int32)], axis=0))


def root_times(likelihood: Likelihood, outputs: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """R v for v [B, C]: in the shape of the outputs, without the positions' weights.

    (diag(√p) − p √pᵀ)(diag(√p) − p √pᵀ)ᵀ = diag(p) − p pᵀ, the Hessian of the softmax cross-entropy.
    """
    vectors = tf.reshape(vectors, tf.shape(outputs))
    if likelihood == "bernoulli":
        p = tf.sigmoid(outputs)
        return vectors * tf.sqrt(p * (1 - p))
    if likelihood == "normal":
        return vectors * tf.sqrt(tf.constant(2.0, vectors.dtype))
    p = tf.nn.softmax(outputs)
    weighted = tf.sqrt(p) * vectors
    return weighted - p * tf.reduce_sum(weighted, axis=-1, keepdims=True)


def drawn_errors(likelihood: Likelihood, outputs: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
    """∂ℓ/∂z of each position at a label drawn from the prediction by a number in [0, 1): p − e_y, p − y, or 2 (z − y)."""
    if likelihood == "bernoulli":
        p = tf.sigmoid(outputs)
        return p - tf.cast(tf.reshape(drawn, tf.shape(p)) < p, p.dtype)
    if likelihood == "normal":
        inside = tf.clip_by_value(tf.cast(tf.reshape(drawn, tf.shape(outputs)), tf.float64), 1e-16, 1 - 1e-16)
        return tf.cast(tf.math.ndtri(inside) * 2.0**0.5, outputs.dtype)
    p = tf.nn.softmax(outputs)
    below = tf.cumsum(p, axis=-1) <= tf.reshape(drawn, tf.concat([tf.shape(p)[:-1], [1]], axis=0))
    labels = tf.minimum(tf.reduce_sum(tf.cast(below, tf.int32), axis=-1), tf.shape(p)[-1] - 1)
    return p - tf.one_hot(labels, tf.shape(p)[-1], dtype=p.dtype)
