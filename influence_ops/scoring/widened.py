"""Products with numbers that are held in 16 bits, in sums of at least float32.

TensorFlow rounds the product of two matrices of bfloat16 to bfloat16 (on a CPU its sums are in float32, and are rounded then): scores
would have two or three digits and many would be equal. So numbers are widened just before they are multiplied, some at a time.
"""

from __future__ import annotations

import tensorflow as tf

AT_ONCE = 1 << 20
"""How many numbers are widened at once: 4 MB of float32, which a processor's cache holds."""


def sum_dtype(dtype: tf.DType) -> tf.DType:
    """In what numbers of a dtype are added up: float32 where it has fewer bits."""
    return dtype if dtype.size >= tf.float32.size else tf.float32


def widened_product(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`left` [B, K] times `right` [K, T], known in K and T, in the `sum_dtype` of `left`: [B, T]."""
    dtype = sum_dtype(left.dtype)
    left = tf.cast(left, dtype)
    if right.dtype == dtype:
        return tf.matmul(left, right)
    depth, columns = (int(size or 0) for size in right.shape)
    rows = max(1, AT_ONCE // max(1, columns))
    whole = depth // rows

    def add(number: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first = number * rows
        part = tf.slice(right, [first, 0], [rows, columns])
        inputs = tf.slice(left, [0, first], [-1, rows])
        return number + 1, total + tf.matmul(inputs, tf.cast(part, dtype))

    total = tf.matmul(left[:, whole * rows :], tf.cast(right[whole * rows :], dtype))
    if whole:
        total = tf.while_loop(lambda number, _: number < whole, add, (tf.constant(0), total), parallel_iterations=1)[1]
    return total
