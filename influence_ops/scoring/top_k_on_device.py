"""The first examples of many batches' scores, found where the scores are: on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.scoring.ranking import HALF, MASK


@dataclasses.dataclass(frozen=True)
class First:
    """The first k of each of T rows.

    Attributes:
      scores: all that was looked through, [T, N], on the device.
      values: [T, m], m ≤ k, by their ranking keys; equal ones in the order of their columns.
      columns: where they are: [T, m].
      is_tied: [T]: whether a value that is left out has the key of the last that is not, so that the order of columns, not that of ids,
        has decided.
      has_nan: whether a score is NaN, which has no rank.
    """

    scores: tf.Tensor
    values: np.ndarray
    columns: np.ndarray
    is_tied: np.ndarray
    has_nan: bool

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """All scores of some rows."""
        return tf.gather(self.scores, numbers).numpy()


def first_of(parts: Sequence[tf.Tensor], k: int, descending: bool) -> First | None:
    """The first k of each row of [T, N] float64, given in parts along N, by tables of k that leave the device. None: it has no room."""
    try:
        scores = tf.concat(parts, axis=1)
        values, columns, is_tied, has_nan = _first(scores, tf.constant(k), tf.constant(1.0 if descending else -1.0, tf.float64))
    except tf.errors.ResourceExhaustedError:
        return None
    return First(scores, values.numpy(), columns.numpy(), is_tied.numpy(), bool(has_nan.numpy()))


def first_columns(scores: tf.Tensor, k: int | tf.Tensor, sign: float | tf.Tensor) -> tuple[tf.Tensor, ...]:
    """`values`, `columns`, `is_tied` and `has_nan` of `First`; `sign`: 1 where the largest come first, else −1."""
    bits = tf.bitwise.bitwise_and(tf.bitcast(scores, tf.int64) + HALF, tf.constant(MASK, tf.int64))
    keys = sign * (tf.bitcast(bits, tf.float64) + 0.0)  # as `ranking_key`
    count = tf.shape(scores)[1]
    best, columns = tf.math.top_k(keys, tf.minimum(k + 1, count))  # of equal ones, the first columns
    is_tied = tf.logical_and(count > k, tf.equal(best[:, tf.minimum(k, count) - 1], best[:, -1]))
    values = tf.gather(scores, columns[:, :k], batch_dims=1)
    return values, columns[:, :k], is_tied, tf.reduce_any(tf.math.is_nan(scores))


_first = tf.function(
    first_columns,
    input_signature=[tf.TensorSpec([None, None], tf.float64), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float64)],
    autograph=False,
)
