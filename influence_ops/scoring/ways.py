"""The ways in which a block's scores are computed; see `contraction`."""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, OneHot
from beam_influence.influence_ops.model.gradients.blocks import materialise, parts_of, positions_of
from beam_influence.influence_ops.scoring.low_rank import Factors
from beam_influence.influence_ops.scoring.widened import sum_dtype, widened_product

AT_ONCE = 1 << 25
"""Numbers in memory at once: 256 MB of float64."""

WayName = Literal["gemm", "low_rank", "lookup", "rebuilt", "turned"]


@dataclasses.dataclass(frozen=True)
class Cost:
    """The estimate by which a block's contraction was chosen.

    Attributes:
      block: the block's name.
      shape: I, O, the positions S, and the queries T.
      way: what was chosen.
      rank: of `low_rank` and `rebuilt`; 0 otherwise.
      flops: of each training example, for the chosen way.
      gemm_flops: what `gemm` would take.
    """

    block: str
    shape: tuple[int, int, int, int]
    way: WayName
    rank: int
    flops: float
    gemm_flops: float

    def __str__(self) -> str:
        rows, columns, positions, queries = self.shape
        rank = f" of rank {self.rank}" if self.rank else ""
        return (
            f"{self.block}: [{rows}, {columns}], {positions} positions, {queries} queries: {self.way}{rank}, "
            f"{self.flops:.3g} flops an example ({self.flops / self.gemm_flops:.2g} of gemm's)"
        )


def built_at_once(layout: BlockLayout) -> int:
    """How many of a block's matrices are built at once."""
    return max(1, AT_ONCE // layout.size)


class Way(abc.ABC):
    """How the scores of one block are computed.

    Attributes:
      cost: why so.
      tensors: of the solutions, on the device.
    """

    cost: Cost
    tensors: tuple[tf.Tensor, ...]

    @abc.abstractmethod
    def at_once(self, block: Block) -> int:
        """How many examples are scored at once, so that no more than `AT_ONCE` numbers are in memory; 0: not in one compiled function."""

    @abc.abstractmethod
    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        """[B, T] of so many examples; `tensors`: the way's own, or what stands for them in a graph."""


def _on_device(array: np.ndarray, dtype: str) -> tf.Tensor:
    """The array as a tensor; NumPy converts and arranges it, which takes TensorFlow several times as long."""
    return tf.constant(np.ascontiguousarray(array, dtype=tf.as_dtype(dtype).as_numpy_dtype))


class Gemm(Way):
    def __init__(self, cost: Cost, layout: BlockLayout, matrices: np.ndarray, dtype: str):
        self.cost = cost
        self._layout = layout
        self.tensors = (_on_device(matrices.reshape(len(matrices), -1).T, dtype),)

    def at_once(self, block: Block) -> int:
        return built_at_once(self._layout)

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        (queries,) = tensors
        return widened_product(tf.reshape(materialise(self._layout, block), [-1, self._layout.size]), queries)


class Rebuilt(Way):
    def __init__(self, cost: Cost, layout: BlockLayout, factors: Factors, dtype: str):
        self.cost = cost
        self._layout = layout
        self.tensors = tuple(_on_device(each, dtype) for each in factors)

    def at_once(self, block: Block) -> int:
        return 0  # a graph might build the matrices of all queries at once

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        (lefts, rights), rows, size = tensors, built_at_once(self._layout), self._layout.size
        parts = []
        for _, part in parts_of(block, rows):
            gradients = tf.reshape(materialise(self._layout, part), [-1, size])
            gradients = tf.cast(gradients, sum_dtype(gradients.dtype))
            columns = []
            for first in range(0, len(lefts), rows):
                left, right = (tf.cast(each[first : first + rows], gradients.dtype) for each in (lefts, rights))
                columns.append(tf.matmul(gradients, tf.reshape(tf.matmul(left, right, transpose_a=True), [-1, size]), transpose_b=True))
            parts.append(tf.concat(columns, axis=1))
        return tf.concat(parts, axis=0)


class LowRank(Way):
    def __init__(self, cost: Cost, factors: Factors, dtype: str):
        self.cost = cost
        self._queries, self._rank = factors[0].shape[:2]
        self.tensors = tuple(_on_device(each.reshape(-1, each.shape[2]).T, dtype) for each in factors)

    def at_once(self, block: Block) -> int:
        return max(1, AT_ONCE // max(1, positions_of(block) * self._queries * self._rank))

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        assert isinstance(block, Factored)
        a, g = block
        left = widened_product(tf.reshape(a, [-1, a.shape[2]]), tensors[0])
        right = widened_product(tf.reshape(g, [-1, g.shape[2]]), tensors[1])
        return tf.reduce_sum(tf.reshape(left * right, [-1, a.shape[1], self._queries, self._rank]), axis=[1, 3])


class Lookup(Way):
    def __init__(self, cost: Cost, matrices: np.ndarray, dtype: str):
        self.cost = cost
        self.tensors = (_on_device(matrices.transpose(1, 0, 2), dtype),)  # [I, T, O]

    def at_once(self, block: Block) -> int:
        _, queries, columns = self.tensors[0].shape
        return max(1, AT_ONCE // (positions_of(block) * int(queries or 1) * int(columns or 1)))

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        assert isinstance(block, OneHot)
        rows = tf.gather(tensors[0], block.ids)  # [b, S, T, O]
        dtype = sum_dtype(block.errors.dtype)
        return tf.einsum("bsto,bso->bt", tf.cast(rows, dtype), tf.cast(block.errors, dtype))
