"""How solved test points are kept: as numbers, or in each layer as a sum of few products of factors.

A solved query is a matrix V_t [I, O] in each block of the layout. Σ_r l_tr ⊗ r_tr takes r·(I + O) numbers in place of I·O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from beam_influence.influence_ops.model.gradients import BlockLayout, Layout
from beam_influence.influence_ops.scoring.low_rank import truncated, with_rank

FLOAT32_ROUNDING = 2.0**-24
"""The largest relative error of a number that is rounded to float32."""


@dataclasses.dataclass(frozen=True)
class FactoredSolutions:
    """T solved test points.

    Attributes:
      parts: for each block of the layout l [T, r, I] and r [T, r, O]; or alone V [T, I, O], where factors are no shorter.
      error: the largest ‖v − what is kept of it‖ / ‖v‖ of any of them.
    """

    parts: tuple[tuple[np.ndarray, ...], ...]
    error: float = 0.0

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
            yield FactoredSolutions(tuple(tuple(array[first : first + size] for array in part) for part in self.parts), self.error)

    @classmethod
    def concatenate(cls, solutions: Iterable[FactoredSolutions]) -> FactoredSolutions:
        """All of them, in order."""
        known = list(solutions)
        by_block = zip(*(each.parts for each in known), strict=True)
        parts = tuple(tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)) for parts in by_block)
        return cls(parts, max(each.error for each in known))


@dataclasses.dataclass(frozen=True)
class StoredForm:
    """How they are kept.

    Attributes:
      dtype: of the numbers.
      rank: r, the most products in a layer's sum; None: no factors.
      tolerance: the relative error ‖V − Σ_r l ⊗ r‖ / ‖V‖ below which no more products are taken.
    """

    dtype: Literal["float64", "float32"] = "float64"
    rank: int | None = None
    tolerance: float = 0.0

    def rank_of(self, block: BlockLayout) -> int:
        """r; 0 where the block's matrix is kept as it is."""
        of_factors = self.rank is not None and block.kind == "factored" and self.rank * (block.rows + block.columns) < block.size
        return self.rank if of_factors and self.rank is not None else 0

    def numbers(self, layout: Layout) -> int:
        """How many numbers a test point takes."""
        return sum(self.rank_of(block) * (block.rows + block.columns) or block.size for block in layout.blocks)

    def of(self, layout: Layout, solved: np.ndarray) -> np.ndarray | FactoredSolutions:
        """Solved test points [T, P] in this form."""
        if self.rank is None:
            return solved.astype(self.dtype, copy=False)
        parts, lost = [], np.zeros(len(solved))
        for block in layout.blocks:
            matrices = block.matrices(solved)
            part: tuple[np.ndarray, ...] = (matrices,)
            if rank := self.rank_of(block):
                part = with_rank(truncated(matrices, rank, self.tolerance), rank)
            kept = tuple(np.ascontiguousarray(array, dtype=self.dtype) for array in part)
            exact = [array.astype(np.float64, copy=False) for array in kept]
            product = exact[0].transpose(0, 2, 1) @ exact[1] if rank else exact[0]
            lost += np.linalg.norm(matrices - product, axis=(1, 2)) ** 2
            parts.append(kept)
        norms = np.linalg.norm(solved, axis=1)
        errors = np.divide(np.sqrt(lost), norms, out=np.zeros_like(norms), where=norms > 0)
        return FactoredSolutions(tuple(parts), float(errors.max(initial=0.0)))


WHOLE = StoredForm()
"""Every number, in float64."""
