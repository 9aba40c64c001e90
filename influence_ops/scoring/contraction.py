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

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.any_batch import CompiledForAnyBatch
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Gradients, Layout, OneHot
from beam_influence.influence_ops.model.gradients.blocks import parts_of, positions_of
from beam_influence.influence_ops.scoring.low_rank import Factors, OfBlock, low_rank, search_flops
from beam_influence.influence_ops.scoring.stored_form import EXPECTED_EXAMPLES, TOLERANCE, FactoredSolutions
from beam_influence.influence_ops.scoring.turned import TurnedBlocks, TurnedProducts, turned_flops
from beam_influence.influence_ops.scoring.ways import AT_ONCE, Cost, Gemm, Lookup, LowRank, Rebuilt, Way, built_at_once


class Contraction:
    """Scores of any batch against T solved queries.

    Args:
      layout: of the model.
      solved: [T, P], or factors.
      dtype: in which the solutions are held on the device; one of 16 bits is widened as it is multiplied: see `widened`.
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
        self._compiled = CompiledForAnyBatch(self.of_blocks)
        self._dtype = dtype
        self._examples = examples or EXPECTED_EXAMPLES
        self._tolerance = tolerance
        self._ways: list[Way | _Turned] = []

    @property
    def costs(self) -> list[Cost]:
        """The choices; empty before the first batch, whose positions they depend on."""
        return [way.cost for way in self._ways]

    def scores(self, gradients: Gradients, turned: TurnedBlocks | None = None) -> np.ndarray:
        """`on_device` as an array."""
        return self.on_device(gradients, turned).numpy()

    def on_device(self, gradients: Gradients, turned: TurnedBlocks | None = None) -> tf.Tensor:
        """Σ_p V_tp G_ip: [T, B] float64. `turned`: the batch in the operator's basis, where solutions may be kept in it."""
        self.choose(gradients)
        if not len(gradients) or not self.queries:  # each example of the batch, or each test point of the block, was rejected
            return tf.zeros((self.queries, len(gradients)), tf.float64)
        blocks = gradients.blocks
        if all(isinstance(way, Way) and len(gradients) <= way.at_once(block) for way, block in zip(self._ways, blocks, strict=True)):
            return self._compiled(*blocks, constants=self.tensors)
        return self._total(lambda number: _in_parts(self._ways[number], blocks[number], number, turned))

    @property
    def tensors(self) -> list[tuple[tf.Tensor, ...]]:
        """Of the solutions, on the device, block by block; of one that is not solved, none."""
        return [way.tensors if isinstance(way, Way) else () for way in self._ways]

    def of_blocks(self, tensors: list[tuple[tf.Tensor, ...]], *blocks: Block) -> tf.Tensor:
        """[T, B] of so few examples that nothing is done in parts; `tensors`: those of `tensors`, or what stands for them in a graph."""
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
                self._ways.append(self._choose(layout, block, OfBlock(layout, solved)))
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
            offset, rows = np.asarray(gradients.offset, dtype=np.float64), max(1, AT_ONCE // self._layout.size)
            if isinstance(solved, FactoredSolutions):
                parts = [part.times(self._layout, offset) for part in solved.slices(rows)]
            else:
                parts = [solved[first : first + rows] @ offset for first in range(0, self.queries, rows)]
            self._constant = tf.constant(np.concatenate(parts)) if parts else self._constant
        self._solved = None

    def _of_factors(self, layout: BlockLayout, block: Block, factors: Factors) -> LowRank | Rebuilt:
        positions, rank, queries = positions_of(block), factors[0].shape[1], self.queries
        shape = (layout.rows, layout.columns, positions, queries)
        gemm = 2.0 * layout.size * (positions + queries)
        products = 2.0 * positions * queries * (layout.rows + layout.columns + 1) * rank
        rebuilt = gemm + 2.0 * layout.size * queries * rank / built_at_once(layout)
        if products <= rebuilt:
            return LowRank(Cost(layout.name, shape, "low_rank", rank, products, gemm), factors, self._dtype)
        return Rebuilt(Cost(layout.name, shape, "rebuilt", rank, rebuilt, gemm), layout, factors, self._dtype)

    def _choose(self, layout: BlockLayout, block: Block, matrices: np.ndarray | OfBlock) -> Gemm | LowRank | Lookup:
        queries = self.queries
        positions = positions_of(block)
        shape = (layout.rows, layout.columns, positions, queries)
        build = 0 if layout.kind == "materialised" else 2 * positions * (layout.size if isinstance(block, Factored) else layout.columns)
        gemm = float(build + 2 * layout.size * queries)
        if isinstance(block, OneHot):
            lookup = 2.0 * positions * queries * layout.columns
            if lookup < gemm:
                return Lookup(Cost(layout.name, shape, "lookup", 0, lookup, gemm), matrices[:], self._dtype)
        if isinstance(block, Factored) and self._tolerance > 0 and queries:
            of_rank_one = 2.0 * positions * queries * (layout.rows + layout.columns + 1)
            most = min(int(gemm / of_rank_one), layout.rows, layout.columns)
            if most and search_flops(layout.rows, layout.columns, queries, most) < 0.5 * self._examples * gemm:
                factors = low_rank(matrices, most, self._tolerance, np.dtype(tf.as_dtype(self._dtype).as_numpy_dtype))
                if factors is not None:
                    rank = factors[0].shape[1]
                    cost = Cost(layout.name, shape, "low_rank", rank, rank * of_rank_one, gemm)
                    return LowRank(cost, factors, self._dtype)
        return Gemm(Cost(layout.name, shape, "gemm", 0, gemm, gemm), layout, matrices[:], self._dtype)


@dataclasses.dataclass(frozen=True)
class _Turned:
    cost: Cost
    products: TurnedProducts


def _at_once(way: Way | _Turned, block: Block, tensors: tuple[tf.Tensor, ...]) -> tf.Tensor:
    assert isinstance(way, Way)
    return way.scores(block, *tensors)


def _in_parts(way: Way | _Turned, block: Block, number: int, turned: TurnedBlocks | None) -> tf.Tensor:
    if isinstance(way, _Turned):
        assert turned is not None
        return way.products.scores(*turned.of(number))
    parts = [way.scores(part, *way.tensors) for _, part in parts_of(block, way.at_once(block) or len(block[0]))]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)
