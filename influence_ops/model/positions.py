"""The losses of an example's positions as one number: masks, weights and reductions, as Keras has them for a batch of one.

See `keras.losses.Loss.__call__`, `apply_mask` and `reduce_weighted_values`.
"""

from __future__ import annotations

import tensorflow as tf


def example_losses(
    losses: tf.Tensor, mask: tf.Tensor | None, weights: tf.Tensor | None, reduction: str = "sum_over_batch_size"
) -> tf.Tensor:
    """Each example's losses [B, ...] as one number: [B]."""
    if losses.shape.rank == 1 and mask is None and weights is None:
        return losses
    weighted = losses * position_weights(losses, mask, weights, reduction)
    return tf.reduce_sum(weighted, axis=list(range(1, weighted.shape.rank or 1)))


def position_weights(losses: tf.Tensor, mask: tf.Tensor | None, weights: tf.Tensor | None, reduction: str) -> tf.Tensor:
    """[B, ...]: 1 over the number of positions, of those that are not masked, times `weights`; without that division in a sum.

    Args:
      losses: [B, ...].
      mask, weights: for each position, or for the first of their axes.
      reduction: Keras's name.
    """
    dtype, mean = losses.dtype, reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight")
    factor: tf.Tensor | None = None
    if mask is not None:
        factor = tf.cast(mask, dtype)
        if reduction in ("sum_over_batch_size", "mean"):
            factor *= tf.math.divide_no_nan(_sum_of_each(tf.ones_like(factor)), _sum_of_each(factor))
    if weights is not None:
        weights = tf.cast(weights, dtype)
        rank = max(weights.shape.rank, 0 if factor is None else factor.shape.rank)
        factor = _with_rank(weights, rank) if factor is None else _with_rank(factor, rank) * _with_rank(weights, rank)
    found = tf.ones_like(losses)
    if factor is not None:
        surplus = list(range(losses.shape.rank, factor.shape.rank))  # one loss for several positions: each of them has it
        factor = tf.reduce_mean(factor, axis=surplus) if mean else tf.reduce_sum(factor, axis=surplus)
        found *= _with_rank(factor, losses.shape.rank)
    if mean:
        total = _sum_of_each(found if reduction == "mean_with_sample_weight" else tf.ones_like(losses))
        found = tf.math.divide_no_nan(found, total)
    return found


def _sum_of_each(values: tf.Tensor) -> tf.Tensor:
    """The sum over everything but the first axis, which keeps its rank."""
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank or 1)), keepdims=True)


def _with_rank(values: tf.Tensor, rank: int) -> tf.Tensor:
    """With axes of length 1 at the end."""
    return tf.reshape(values, [*tf.unstack(tf.shape(values)), *[1] * (rank - values.shape.rank)])
