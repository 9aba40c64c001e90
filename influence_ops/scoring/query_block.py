"""Test points as they are kept for scoring."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import numpy as np

from beam_influence.influence_ops.model.gradients import Layout
from beam_influence.influence_ops.model.gradients.placed import PlacedGradients
from beam_influence.influence_ops.scoring.stored_form import FactoredSolutions
from beam_influence.influence_ops.types import Float64Matrix

QueryArray = Literal["gradients", "solved", "placed", "errors"]
QUERY_ARRAYS: tuple[QueryArray, ...] = ("gradients", "solved")
"""Those that a block has a number for each weight in."""


@dataclasses.dataclass(frozen=True)
class QueryBlock:
    """T test examples, embedded.

    Attributes:
      ids: (T,) array of str.
      gradients: ∇ℓ(t): [T, P] float64; [T, 0] where none are needed.
      solved: (H + λI)⁻¹ ∇ℓ(t): [T, P]; [T, 0] where none are needed.
      groups: optional (T,) array of str.
      factored: the solutions as factors, in place of `solved`; or None.
      placed: ∇ℓ(t) position by position; None where it is not needed.
      errors: what is not known of each solution [T, e, r] (`Preconditioner.error_vectors`); None where it is not needed.
    """

    ids: np.ndarray
    gradients: np.ndarray
    solved: np.ndarray
    groups: np.ndarray | None = None
    factored: FactoredSolutions | None = None
    placed: PlacedGradients | None = None
    errors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def solution(self, layout: Layout, row: int) -> list[Float64Matrix]:
        """(H + λI)⁻¹ ∇ℓ(t) of one of them, as a matrix [I, O] for each block of the layout; where none is kept in an operator's basis."""
        if self.factored is None:
            whole = np.asarray(self.solved[row : row + 1], dtype=np.float64)
            return [block.matrices(whole)[0] for block in layout.blocks]
        parts = ([np.asarray(array[row], dtype=np.float64) for array in part] for part in self.factored.parts)
        return [part[0] if len(part) == 1 else part[0].T @ part[1] for part in parts]


def concatenate_queries(blocks: list[QueryBlock], size: int) -> list[QueryBlock]:
    """The same queries, in order, in blocks of `size` (the last may be shorter, and any before others that are kept in another form)."""
    if not blocks:
        return []
    for number, (one, after) in enumerate(itertools.pairwise(blocks), start=1):
        if one.factored is not None and after.factored is not None and one.factored.turned != after.factored.turned:
            return concatenate_queries(blocks[:number], size) + concatenate_queries(blocks[number:], size)
    if len(blocks) == 1 and len(blocks[0]) <= size:
        return blocks  # large ones are not copied
    ids = np.concatenate([block.ids for block in blocks])
    gradients = np.concatenate([block.gradients for block in blocks])
    solved = np.concatenate([block.solved for block in blocks])
    named = [block.groups for block in blocks if block.groups is not None]
    groups = np.concatenate(named) if len(named) == len(blocks) else None
    factored: list[FactoredSolutions] = [block.factored for block in blocks if block.factored is not None]
    placed = PlacedGradients.concatenate(of_each) if (of_each := [each.placed for each in blocks if each.placed is not None]) else None
    errors = np.concatenate(known) if (known := [block.errors for block in blocks if block.errors is not None]) else None
    sliced = list(FactoredSolutions.concatenate(factored).slices(size)) if factored else []
    parts = [slice(start, start + size) for start in range(0, len(ids), size)]
    return [
        QueryBlock(
            ids[p],
            gradients[p],
            solved[p],
            None if groups is None else groups[p],
            sliced[number] if sliced else None,
            None if placed is None else placed.select(p),
            None if errors is None else errors[p],
        )
        for number, p in enumerate(parts)
    ]
