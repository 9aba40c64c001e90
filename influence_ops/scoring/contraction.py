"""The inner products of training gradients with solved queries, block by block, each in the cheapest way.

A solved query v = (H + λI)⁻¹ ∇ℓ(t) is a matrix V_t [I, O] in each block of the layout. Its product with the gradient
Σ_s a_s ⊗ g_s of an example is

    gemm      Σ_io (Σ_s a_s ⊗ g_s)_io V_t,io        the gradient is built, then one matrix product for all queries
    low_rank  Σ_s Σ_r (a_s · l_tr) (g_s · r_tr)      V_t ≈ Σ_r l_tr ⊗ r_tr: two small matrix products, nothing is built
    lookup    Σ_s V_t[id_s] · g_s                    an embedding: only the rows of its tokens are read
    rebuilt   as gemm                                V_t is kept as Σ_r l_tr ⊗ r_tr and built for each batch, some queries at a time
    turned    Σ_io W_io a_t,i g_t,o G_io             V_t is not solved; all in the operator's basis: see `turned`

A query of one position is of rank 1, and so is its K-FAC solution without damping. Damping breaks that, but
1/(λ_A λ_S + λ) is close to a sum of few products: the singular value decomposition of V_t finds the shortest one for
any curvature.
"""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.any_batch import CompiledForAnyBatch
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Gradients, Layout, OneHot
from beam_influence.influence_ops.model.gradients.blocks import materialise, parts_of, positions_of
from beam_influence.influence_ops.scoring.low_rank import Factors, low_rank, search_flops
from beam_influence.influence_ops.scoring.stored_form import EXPECTED_EXAMPLES, TOLERANCE, FactoredSolutions
from beam_influence.influence_ops.scoring.turned import TurnedBlocks, TurnedProducts, turned_flops

_AT_ONCE = 1 << 25  # numbers in memory at once: 256 MB of float64

Way = Literal["gemm", "low_rank", "lookup", "rebuilt", "turned"]


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
    way: Way
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


class Contraction:
    """Scores of any batch against T solved queries.

    Args:
      layout: of the model.
      solved: [T, P], or factors.
      dtype: of the computation.
      examples: about how many training examples will be scored: whether looking for a low rank pays; 0: not known, as of `identity`,
        which is fitted to none.
      tolerance: see `TOLERANCE`; 0: only exact ways.

    Attributes:
      queries: T.
    """

    def __init__(
        self, layout: Layout, solved: np.ndarray | FactoredSolutions, dtype: str, examples: int, tolerance: float = TOLERANCE
    ):
        self._layout = layout
        self.queries = len(solved)
        self._solved: np.ndarray | FactoredSolutions | None = solved
        self._constant = tf.zeros(self.queries, tf.float64)
        self._compiled = CompiledForAnyBatch(self._of_blocks)
        self._dtype = dtype
        self._examples = examples or EXPECTED_EXAMPLES
        self._tolerance = tolerance
        self._ways: list[_Way | _Turned] = []

    @property
    def costs(self) -> list[Cost]:
        """The choices; empty before the first batch, whose positions they depend on."""
        return [way.cost for way in self._ways]

    def scores(self, gradients: Gradients, turned: TurnedBlocks | None = None) -> np.ndarray:
        """Σ_p V_tp G_ip: [T, B] float64. `turned`: the batch in the operator's basis, where solutions may be kept in it."""
        self.choose(gradients)
        if not len(gradients) or not self.queries:  # each example of the batch, or each test point of the block, was rejected
            return np.zeros((self.queries, len(gradients)))
        blocks = gradients.blocks
        if all(isinstance(way, _Way) and len(gradients) <= way.at_once(block) for way, block in zip(self._ways, blocks, strict=True)):
            return self._compiled(*blocks, constants=[way.tensors for way in self._ways if isinstance(way, _Way)]).numpy()
        return self._total(lambda number: _in_parts(self._ways[number], blocks[number], number, turned)).numpy()

    def _of_blocks(self, tensors: list[tuple[tf.Tensor, ...]], *blocks: Block) -> tf.Tensor:
        return self._total(lambda number: _at_once(self._ways[number], blocks[number], tensors[number]))

    def _total(self, scores: Callable[[int], tf.Tensor]) -> tf.Tensor:
        """[T, B] from the [B, T] of each block. Added up on the device, so that the host waits once."""
        total = self._constant[None]
        for number in range(len(self._ways)):
            with tf.control_dependencies([total]):  # one after the other: else the gradients of all are built at once
                total += tf.cast(scores(number), tf.float64)
        return tf.transpose(total)

    def choose(self, gradients: Gradients) -> None:
        """Chooses each block's way by the positions of a first batch, and lets go of the solutions as they were given."""
        if self._solved is None:
            return
        solved = self._solved
        for number, (layout, block) in enumerate(zip(self._layout.blocks, gradients.blocks, strict=True)):
            if isinstance(solved, np.ndarray):
                self._ways.append(self._choose(layout, block, layout.matrices(solved)))
            elif number in solved.turned:
                left, right = solved.parts[number]
                gemm = 2.0 * layout.size * (positions_of(block) + self.queries)
                shape = (layout.rows, layout.columns, positions_of(block), self.queries)
                cost = Cost(layout.name, shape, "turned", 0, turned_flops(layout, block, self.queries), gemm)
                self._ways.append(_Turned(cost, TurnedProducts(layout, left, right, self._dtype)))
            elif len(part := solved.parts[number]) == 2:
                self._ways.append(self._of_factors(layout, block, (part[0], part[1])))
            else:
                self._ways.append(self._choose(layout, block, part[0]))
        for cost in self.costs:
            logging.getLogger(__name__).info("scores of %s", cost)
        if gradients.offset is not None:
            offset, rows = np.asarray(gradients.offset, dtype=np.float64), max(1, _AT_ONCE // self._layout.size)
            if isinstance(solved, FactoredSolutions):
                parts = [part.times(self._layout, offset) for part in solved.slices(rows)]
            else:
                parts = [solved[first : first + rows] @ offset for first in range(0, self.queries, rows)]
            self._constant = tf.constant(np.concatenate(parts)) if parts else self._constant
        self._solved = None

    def _of_factors(self, layout: BlockLayout, block: Block, factors: Factors) -> _LowRank | _Rebuilt:
        positions, rank, queries = positions_of(block), factors[0].shape[1], self.queries
        shape = (layout.rows, layout.columns, positions, queries)
        gemm = 2.0 * layout.size * (positions + queries)
        products = 2.0 * positions * queries * (layout.rows + layout.columns + 1) * rank
        rebuilt = gemm + 2.0 * layout.size * queries * rank / built_at_once(layout)
        if products <= rebuilt:
            return _LowRank(Cost(layout.name, shape, "low_rank", rank, products, gemm), factors, self._dtype)
        return _Rebuilt(Cost(layout.name, shape, "rebuilt", rank, rebuilt, gemm), layout, factors, self._dtype)

    def _choose(self, layout: BlockLayout, block: Block, matrices: np.ndarray) -> _Gemm | _LowRank | _Lookup:
        queries = self.queries
        positions = positions_of(block)
        shape = (layout.rows, layout.columns, positions, queries)
        build = 0 if layout.kind == "materialised" else 2 * positions * (layout.size if isinstance(block, Factored) else layout.columns)
        gemm = float(build + 2 * layout.size * queries)
        if isinstance(block, OneHot):
            lookup = 2.0 * positions * queries * layout.columns
            if lookup < gemm:
                return _Lookup(Cost(layout.name, shape, "lookup", 0, lookup, gemm), matrices, self._dtype)
        if isinstance(block, Factored) and self._tolerance > 0 and queries:
            of_rank_one = 2.0 * positions * queries * (layout.rows + layout.columns + 1)
            most = min(int(gemm / of_rank_one), layout.rows, layout.columns)
            if most and search_flops(layout.rows, layout.columns, queries, most) < 0.5 * self._examples * gemm:
                factors = low_rank(matrices, most, self._tolerance)
                if factors is not None:
                    rank = factors[0].shape[1]
                    cost = Cost(layout.name, shape, "low_rank", rank, rank * of_rank_one, gemm)
                    return _LowRank(cost, factors, self._dtype)
        return _Gemm(Cost(layout.name, shape, "gemm", 0, gemm, gemm), layout, matrices, self._dtype)


def built_at_once(layout: BlockLayout) -> int:
    """How many of a block's matrices are built at once."""
    return max(1, _AT_ONCE // layout.size)


class _Way(abc.ABC):
    """How the scores of one block are computed.

    Attributes:
      cost: why so.
      tensors: of the solutions, on the device.
    """

    cost: Cost
    tensors: tuple[tf.Tensor, ...]

    @abc.abstractmethod
    def at_once(self, block: Block) -> int:
        """How many examples are scored at once, so that no more than `_AT_ONCE` numbers are in memory; 0: not in one compiled function."""

    @abc.abstractmethod
    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        """[B, T] of so many examples; `tensors`: the way's own, or what stands for them in a graph."""


def _at_once(way: _Way | _Turned, block: Block, tensors: tuple[tf.Tensor, ...]) -> tf.Tensor:
    assert isinstance(way, _Way)
    return way.scores(block, *tensors)


def _on_device(array: np.ndarray, dtype: str) -> tf.Tensor:
    """The array as a tensor; NumPy converts and arranges it, which takes TensorFlow several times as long."""
    return tf.constant(np.ascontiguousarray(array, dtype=tf.as_dtype(dtype).as_numpy_dtype))


def _in_parts(way: _Way | _Turned, block: Block, number: int, turned: TurnedBlocks | None) -> tf.Tensor:
    if isinstance(way, _Turned):
        assert turned is not None
        return way.products.scores(*turned.of(number))
    parts = [way.scores(part, *way.tensors) for _, part in parts_of(block, way.at_once(block) or len(block[0]))]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)


class _Gemm(_Way):
    def __init__(self, cost: Cost, layout: BlockLayout, matrices: np.ndarray, dtype: str):
        self.cost = cost
        self._layout = layout
        self.tensors = (_on_device(matrices.reshape(len(matrices), -1).T, dtype),)

    def at_once(self, block: Block) -> int:
        return built_at_once(self._layout)

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        (queries,) = tensors
        return tf.matmul(tf.reshape(materialise(self._layout, block), [-1, self._layout.size]), queries)


class _Rebuilt(_Way):
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
            columns = []
            for first in range(0, len(lefts), rows):
                left, right = lefts[first : first + rows], rights[first : first + rows]
                columns.append(tf.matmul(gradients, tf.reshape(tf.matmul(left, right, transpose_a=True), [-1, size]), transpose_b=True))
            parts.append(tf.concat(columns, axis=1))
        return tf.concat(parts, axis=0)


class _LowRank(_Way):
    def __init__(self, cost: Cost, factors: Factors, dtype: str):
        self.cost = cost
        self._queries, self._rank = factors[0].shape[:2]
        self.tensors = tuple(_on_device(each.reshape(-1, each.shape[2]).T, dtype) for each in factors)

    def at_once(self, block: Block) -> int:
        return max(1, _AT_ONCE // max(1, positions_of(block) * self._queries * self._rank))

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        assert isinstance(block, Factored)
        a, g = block
        left = tf.matmul(tf.reshape(a, [-1, a.shape[2]]), tensors[0])
        right = tf.matmul(tf.reshape(g, [-1, g.shape[2]]), tensors[1])
        return tf.reduce_sum(tf.reshape(left * right, [-1, a.shape[1], self._queries, self._rank]), axis=[1, 3])


@dataclasses.dataclass(frozen=True)
class _Turned:
    cost: Cost
    products: TurnedProducts


class _Lookup(_Way):
    def __init__(self, cost: Cost, matrices: np.ndarray, dtype: str):
        self.cost = cost
        self.tensors = (_on_device(matrices.transpose(1, 0, 2), dtype),)  # [I, T, O]

    def at_once(self, block: Block) -> int:
        _, queries, columns = self.tensors[0].shape
        return max(1, _AT_ONCE // (positions_of(block) * int(queries or 1) * int(columns or 1)))

    def scores(self, block: Block, *tensors: tf.Tensor) -> tf.Tensor:
        assert isinstance(block, OneHot)
        rows = tf.gather(tensors[0], block.ids)  # [b, S, T, O]
        return tf.einsum("bsto,bso->bt", rows, block.errors)
