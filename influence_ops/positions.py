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
    dtype = losses.dtype
    mean = reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight")
    found = tf.ones_like(losses)
    if mask is not None:
        kept = tf.cast(mask, dtype)
        if reduction in ("sum_over_batch_size", "mean"):
            kept *= tf.math.divide_no_nan(_sum_of_each(tf.ones_like(kept)), _sum_of_each(kept))
        found = found * _with_rank(kept, losses)
    if weights is not None:
        found = found * _with_rank(tf.cast(weights, dtype), losses)
    if mean:
        total = _sum_of_each(found if reduction == "mean_with_sample_weight" else tf.ones_like(losses))
        found = tf.math.divide_no_nan(found, total)
    return found


def _sum_of_each(values: tf.Tensor) -> tf.Tensor:
    """The sum over everything but the first axis, which keeps its rank."""
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank or 1)), keepdims=True)


def _with_rank(values: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    missing = losses.shape.rank - values.shape.rank
    if missing < 0:  # one loss for several positions: each of them has it
        return tf.reduce_mean(values, axis=list(range(losses.shape.rank, values.shape.rank)))
    return tf.reshape(values, [*tf.unstack(tf.shape(values)), *[1] * missing])
