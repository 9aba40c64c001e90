"""Solved gradients, a block of the layout at a time: what an operator that works layer by layer gives without arrays of P numbers."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.blas_threads import threads_for

NO_SIDE = np.zeros((0, 0))
"""Stands for the identity."""


@dataclasses.dataclass(frozen=True)
class Quotients:
    """B matrices (a_b ⊗ g_b) ∘ W that are not built: with some columns for each, all are multiplied by one large product with W.

    Attributes:
      left, right: a [B, I] and g [B, O].
      weights: W [I, O].
    """

    left: np.ndarray
    right: np.ndarray
    weights: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, I, O."""
        return len(self.left), *self.weights.shape

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, rows: slice) -> Quotients:
        return Quotients(self.left[rows], self.right[rows], self.weights)

    def times(self, columns: np.ndarray) -> np.ndarray:
        """Each matrix times its k columns [B, O, k]: [B, I, k]."""
        return _weighted(self.left, self.right, self.weights.T, columns)

    def transposed_times(self, columns: np.ndarray) -> np.ndarray:
        """Each matrix, transposed, times its k columns [B, I, k]: [B, O, k]."""
        return _weighted(self.right, self.left, self.weights, columns)

    @functools.cached_property
    def squares(self) -> np.ndarray:
        """The squared norm of each: [B]."""
        return np.einsum("bo,bo->b", self.left**2 @ self.weights**2, self.right**2)

    def built(self) -> np.ndarray:
        """[B, I, O]."""
        return self.left[:, :, None] * self.right[:, None, :] * self.weights


def _weighted(outer: np.ndarray, inner: np.ndarray, weights: np.ndarray, columns: np.ndarray) -> np.ndarray:
    rows = (columns * inner[:, :, None]).transpose(0, 2, 1)
    found = (rows.reshape(-1, rows.shape[2]) @ weights).reshape(*rows.shape[:2], weights.shape[1])
    return found.transpose(0, 2, 1) * outer[:, :, None]


class SolvedBlock(NamedTuple):
    """U_A M_b U_Sᵀ, the block's part of (H + λI)⁻¹ g of B examples, in the basis in which the operator has it.

    U_A and U_S are orthogonal: norms, and the shortest sums of products for an error, are those of M.

    Attributes:
      matrices: M [B, I, O] float64.
      inputs, errors: U_A [I, I] and U_S [O, O]; [0, 0]: the identity.
    """

    matrices: np.ndarray | Quotients
    inputs: np.ndarray = NO_SIDE
    errors: np.ndarray = NO_SIDE

    def turned_back(self, rows: slice = slice(None)) -> np.ndarray:
        """Some of the B, [b, I, O], as the weights have them."""
        some = self.matrices[rows]
        matrices = some.built() if isinstance(some, Quotients) else some
        return turned(matrices, self.inputs.T, self.errors.T)

    def squares(self) -> np.ndarray:
        """The squared norm of each: [B]."""
        return self.matrices.squares if isinstance(self.matrices, Quotients) else np.linalg.norm(self.matrices, axis=(1, 2)) ** 2

    def squared_distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """‖M_b − Σ_r l_br ⊗ r_br‖² of l [B, r, I] and r [B, r, O]: [B]; of matrices that are not built, to float64's rounding of ‖M_b‖²."""
        if not isinstance(self.matrices, Quotients):
            return np.linalg.norm(self.matrices - left.transpose(0, 2, 1) @ right, axis=(1, 2)) ** 2
        squares = self.squares()
        mixed = np.einsum("bir,bri->b", self.matrices.times(right.transpose(0, 2, 1)), left)
        own = np.einsum("brs,brs->b", left @ left.transpose(0, 2, 1), right @ right.transpose(0, 2, 1))
        return np.maximum(squares - 2 * mixed + own, 0) + 4 * np.finfo(np.float64).eps * squares


def turned(matrices: np.ndarray, inputs: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """U_Aᵀ M U_S of each matrix [B, I, O]."""
    with threads_for(max(matrices.shape[1:])):
        if errors.size:
            matrices = matrices @ errors
        return inputs.T @ matrices if inputs.size else matrices
