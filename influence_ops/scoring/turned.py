"""Scores against test points that a K-FAC or EK-FAC operator has not solved, in its basis: exact, and without an array of T × P numbers.

In the basis U_A ⊗ U_S of a layer (`curvature.kronecker`) the solution of a test point whose gradient there is a_t ⊗ g_t is (a_t ⊗ g_t) ∘ W,
W = 1/(Λ + s). U_A and U_S are orthogonal, so its product with a training gradient G_i is that of the turned ones:

    Σ_io a_t,i g_t,o W_io G_i,io

2·I·O operations, as many as the product with a solution takes, from I + O numbers in place of I·O. The solution's way back from the
basis, 2·I·O·(I + O) operations for each test point, is not taken; a training example's factors are turned, 2·(I² + O²) a position.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.curvature.kronecker import KroneckerPreconditioner
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Gradients
from beam_influence.influence_ops.model.gradients.blocks import materialise, parts_of, positions_of

_AT_ONCE = 1 << 22  # numbers in memory at once, some times over


class TurnedBlocks:
    """The gradients of a batch in an operator's basis, each block turned once for all test points."""

    def __init__(self, gradients: Gradients, operator: KroneckerPreconditioner):
        self._gradients = gradients
        self._operator = operator
        self._found: dict[int, tuple[Block, tf.Tensor]] = {}

    def of(self, number: int) -> tuple[Block, tf.Tensor]:
        """A block, turned, and its W [I, O]."""
        if number not in self._found:
            self._found[number] = self._operator.turned(number, self._gradients.blocks[number])
        return self._found[number]


def turned_flops(layout: BlockLayout, block: Block, queries: int) -> float:
    """What an example's scores take, its turning with them."""
    positions = positions_of(block)
    turning = 2.0 * positions * (layout.rows**2 + layout.columns**2)
    return turning + 2.0 * layout.size * (queries + (positions if positions > 1 else 0))


class TurnedProducts:
    """The scores of a block.

    Args:
      layout: of the block.
      left, right: a_t [T, 1, I] and g_t [T, 1, O] in the operator's basis.
      dtype: in which both are held.
    """

    def __init__(self, layout: BlockLayout, left: np.ndarray, right: np.ndarray, dtype: str):
        self._layout = layout
        self._held = tuple(tf.constant(each[:, 0].astype(tf.as_dtype(dtype).as_numpy_dtype)) for each in (left, right))

    def scores(self, block: Block, weights: tf.Tensor) -> tf.Tensor:
        """[B, T] from the batch's block and W, both of `TurnedBlocks`."""
        layout, queries = self._layout, len(self._held[0])
        left, right = (tf.cast(each, weights.dtype) for each in self._held)
        if isinstance(block, Factored) and positions_of(block) == 1:
            rows = max(1, _AT_ONCE // (max(queries, 1) * max(layout.rows, layout.columns)))
            parts = [self._of_one_position(a[:, 0], g[:, 0], weights, left, right) for _, (a, g) in parts_of(block, rows)]
        else:
            rows = max(1, _AT_ONCE // (layout.size + max(queries, 1) * layout.columns))
            # Of G_i ∘ W [B, I, O].
            matrices = (materialise(layout, part) * weights for _, part in parts_of(block, rows))
            parts = [tf.reduce_sum(tf.matmul(left, each) * right, axis=2) for each in matrices]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def _of_one_position(self, a: tf.Tensor, g: tf.Tensor, weights: tf.Tensor, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """One product with W of the a_t ∘ a_i of all pairs."""
        of_pairs = tf.matmul(tf.reshape(a[:, None] * left, [-1, self._layout.rows]), weights)
        of_pairs = tf.reshape(of_pairs, [-1, len(left), self._layout.columns])
        return tf.reduce_sum(of_pairs * (g[:, None] * right), axis=2)
