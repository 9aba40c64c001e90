"""How solved test points are kept: as numbers, in each layer as a sum of few products of factors, or unsolved in the operator's basis.

A solved query is a matrix V_t [I, O] in each block of the layout. Σ_r l_tr ⊗ r_tr takes r·(I + O) numbers in place of I·O. In the basis of
a K-FAC or EK-FAC operator the part of a layer that is used at one position is (a_t ⊗ g_t) ∘ W, W the same for all: I + O numbers tell it
exactly. Training gradients are turned into that basis then, in place of solutions out of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Literal

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.curvature.kronecker import KroneckerPreconditioner
from beam_influence.influence_ops.curvature.solved_block import Quotients, SolvedBlock
from beam_influence.influence_ops.model.gradients import BlockLayout, Gradients, Layout
from beam_influence.influence_ops.scoring.low_rank import search_flops, shortest, truncated, with_rank

TOLERANCE = 1e-7
"""The default of the largest relative error ‖V − Σ_r l ⊗ r‖ / ‖V‖ in a block."""
EXPECTED_EXAMPLES = 50_000
"""How many training examples are scored where it is not known, as of `identity`, which is fitted to none."""
_AT_ONCE = 1 << 25  # numbers in float64: 256 MiB
_TURNED_AT_ONCE = 1 << 20  # numbers in float64, some times over
FLOAT32_ROUNDING = 2.0**-24
"""The largest relative error of a number that is rounded to float32."""


@dataclasses.dataclass(frozen=True)
class FactoredSolutions:
    """T solved test points.

    Attributes:
      parts: for each block of the layout l [T, r, I] and r [T, r, O]; or alone V [T, I, O], where factors are no shorter.
      error: the largest ‖v − what is kept of it‖ / ‖v‖ of any of them.
      turned: the blocks, by number, whose l and r (r = 1) are a_t and g_t in the operator's basis: see `scoring.turned`.
    """

    parts: tuple[tuple[np.ndarray, ...], ...]
    error: float = 0.0
    turned: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.parts[0][0])

    def times(self, layout: Layout, vector: np.ndarray) -> np.ndarray:
        """The inner products with a vector [P]: [T] float64."""
        total = np.zeros(len(self))
        for block, part in zip(layout.blocks, self.parts, strict=True):
            (matrix,) = block.matrices(vector[None])
            if len(part) == 1:
                total += part[0].reshape(len(self), -1) @ matrix.ravel()
            else:
                total += np.einsum("tri,tri->t", part[0], part[1] @ matrix.T)
        return total

    def slices(self, size: int) -> Iterator[FactoredSolutions]:
        """The same in runs of `size` test points (the last may be shorter)."""
        for first in range(0, len(self), size):
            parts = tuple(tuple(array[first : first + size] for array in part) for part in self.parts)
            yield dataclasses.replace(self, parts=parts)

    @classmethod
    def concatenate(cls, solutions: Iterable[FactoredSolutions]) -> FactoredSolutions:
        """All of them, in order; of the same blocks `turned`. Another block has as many products as any of them needs, or is whole where it
        is for one of them."""
        known = list(solutions)
        by_block = zip(*(each.parts for each in known), strict=True)
        parts = tuple(tuple(np.concatenate(arrays) for arrays in zip(*_alike(parts), strict=True)) for parts in by_block)
        return cls(parts, max(each.error for each in known), known[0].turned)


def _alike(parts: tuple[tuple[np.ndarray, ...], ...]) -> list[tuple[np.ndarray, ...]]:
    """The parts of one block with as many products each, or all whole."""
    if all(len(part) == 2 for part in parts):
        rank = max(part[0].shape[1] for part in parts)
        return [with_rank((part[0], part[1]), rank) for part in parts]
    return [part if len(part) == 1 else (part[0].transpose(0, 2, 1) @ part[1],) for part in parts]


@dataclasses.dataclass(frozen=True)
class StoredForm:
    """How they are kept.

    Attributes:
      dtype: of the numbers.
      rank: r, the most products in a layer's sum; None: as `factors` says.
      tolerance: the relative error ‖V − Σ_r l ⊗ r‖ / ‖V‖ below which no more products are taken.
      factors: without a rank, whether a layer is kept as the fewest products whose error is below the tolerance, where these are shorter
        than its matrix; found for each block of test points.
      points: where above 0, a layer that the operator gives as `Quotients` is kept as these in its basis if that takes less time than
        turning the solutions of so many test points back, or if memory is short.
      is_short: whether all solutions, whole, are more than there is memory for.
    """

    dtype: Literal["float64", "float32"] = "float64"
    rank: int | None = None
    tolerance: float = 0.0
    factors: bool = False
    points: int = 0
    is_short: bool = False

    @property
    def is_factored(self) -> bool:
        """Whether any layer may be kept as factors."""
        return self.factors or self.rank is not None or self.points > 0

    def rank_of(self, block: BlockLayout) -> int:
        """The most products that the block's matrix is kept as; 0 where it is kept as it is."""
        if block.kind != "factored" or (self.rank is None and not self.factors):
            return 0
        shorter = (block.size - 1) // (block.rows + block.columns)  # more products are no shorter than the matrix
        return shorter if self.rank is None else self.rank if self.rank <= shorter else 0

    def numbers(self, layout: Layout, at_one_position: Collection[int] = ()) -> int:
        """How many numbers a test point takes; without a rank, at most.

        Args:
          at_one_position: blocks of which the operator gives `Quotients`.
        """
        if self.rank is None:
            turned = [block for number, block in enumerate(layout.blocks) if number in at_one_position and self._is_surely_turned(block)]
            return layout.size - sum(block.size - block.rows - block.columns for block in turned)
        return sum(self.rank_of(block) * (block.rows + block.columns) or block.size for block in layout.blocks)

    def of(self, layout: Layout, solved: np.ndarray) -> np.ndarray | FactoredSolutions:
        """Solved test points [T, P] in this form."""
        if not self.is_factored:
            return solved.astype(self.dtype, copy=False)
        return self.of_blocks(layout, (SolvedBlock(block.matrices(solved)) for block in layout.blocks))

    def whole_by_blocks(self, gradients: Gradients, preconditioner: Preconditioner) -> np.ndarray:
        """Test points' solutions [T, P] of an operator that `solves_blocks`: of factors, which takes half of what `apply` does."""
        solved = np.empty((len(gradients), gradients.layout.size), dtype=self.dtype)
        for block, found in zip(gradients.layout.blocks, preconditioner.solve_blocks(gradients), strict=True):
            step = max(1, _TURNED_AT_ONCE // block.size)
            for first in range(0, len(solved), step):
                rows = slice(first, first + step)
                block.write(found.turned_back(rows), solved[rows])
        return solved

    def of_gradients(self, gradients: Gradients, preconditioner: Preconditioner) -> FactoredSolutions:
        """Test points, of whose gradients no more are built at once than `_AT_ONCE` numbers."""
        by_block, count = preconditioner.solves_blocks and gradients.offset is None, len(gradients)
        size = max(block.size for block in gradients.layout.blocks) if by_block else gradients.layout.size
        found, rows = [], max(1, _AT_ONCE // size)
        examples = preconditioner.examples or EXPECTED_EXAMPLES if isinstance(preconditioner, KroneckerPreconditioner) else None
        for first in range(0, max(count, 1), rows):
            part = gradients.select(np.arange(first, min(first + rows, count)))
            found.append(self.of_blocks(gradients.layout, preconditioner.solve_blocks(part), examples))
        return FactoredSolutions.concatenate(found)

    def of_blocks(self, layout: Layout, solved: Iterable[SolvedBlock], examples: int | None = None) -> FactoredSolutions:
        """Solved test points as factors, from each block of the layout in turn; `examples`: about how many training examples will be
        scored, where these can be turned into the operator's basis."""
        parts, turned, lost, squares = [], [], 0.0, 0.0
        for number, (block, found) in enumerate(zip(layout.blocks, solved, strict=True)):
            if examples and isinstance(found.matrices, Quotients) and self._keeps_turned(block, examples):
                turned.append(number)
                part, missing = _turned(found.matrices, self.dtype)
            else:
                part, missing = self._part(block, found)
            parts.append(part)
            lost = lost + missing
            squares = squares + found.squares()
        lengths = np.sqrt(squares)
        errors = np.divide(np.sqrt(lost), lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return FactoredSolutions(tuple(parts), float(errors.max(initial=0.0)), tuple(turned))

    def _is_surely_turned(self, block: BlockLayout) -> bool:
        return self.points > 0 and self.is_short and self.tolerance <= TOLERANCE and block.rows + block.columns < block.size

    def _keeps_turned(self, block: BlockLayout, examples: int) -> bool:
        """Whether a layer's quotients are kept as they are: shorter than its matrix, and quicker or without another way."""
        rows, columns = block.rows, block.columns
        if not self.points or rows + columns >= block.size:
            return False
        # A product costs (I + O) / (I·O) of what an example's whole score does: many examples pay for the search for the fewest.
        most = self.rank_of(block) // 2
        if self.tolerance > TOLERANCE and most and search_flops(rows, columns, 1, most) < examples * block.size:
            return False
        # Turning back: two products in float64, which is half as fast, for each test point; turning: two for each training example.
        return self.is_short or examples * (rows**2 + columns**2) < 2.0 * self.points * block.size * (rows + columns)

    def _part(self, block: BlockLayout, solved: SolvedBlock) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """What is kept of a block, and the squared norm of what is lost of each matrix."""
        factors = None
        if rank := self.rank_of(block):
            if self.rank is None:
                left_over = self.tolerance**2 - (FLOAT32_ROUNDING**2 if self.dtype == "float32" else 0.0)
                factors = shortest(solved.matrices, rank, max(left_over, 0.0) ** 0.5)
            else:
                factors = with_rank(truncated(solved.matrices, rank, self.tolerance), rank)
        if factors is None:
            whole = solved.turned_back()
            kept = np.ascontiguousarray(whole, dtype=self.dtype)
            return (kept,), np.linalg.norm(whole - kept, axis=(1, 2)) ** 2
        pairs = list(zip(factors, (solved.inputs, solved.errors), strict=True))
        stored = tuple(np.ascontiguousarray(each @ side.T if side.size else each, dtype=self.dtype) for each, side in pairs)
        exact = [each.astype(np.float64, copy=False) for each in stored]
        left, right = (each @ side if side.size else each for each, (_, side) in zip(exact, pairs, strict=True))
        return stored, solved.squared_distances(left, right)


def _turned(quotients: Quotients, dtype: str) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """a and g as they are kept, and the squared norm of what is lost of each (a ⊗ g) ∘ W, by the triangle inequality."""
    left, right = (each.astype(dtype) for each in (quotients.left, quotients.right))
    of_left = Quotients(quotients.left - left, quotients.right, quotients.weights)
    of_right = Quotients(left.astype(np.float64), quotients.right - right, quotients.weights)
    return (left[:, None], right[:, None]), (np.sqrt(of_left.squares) + np.sqrt(of_right.squares)) ** 2


WHOLE = StoredForm()
"""Every number, in float64."""
