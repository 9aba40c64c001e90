"""How far a projected curvature's answers may be from those without a projection: the jackknife over the projection's rows.

S projects P numbers to k, K = S H Sᵀ. Its rows fall at random into B blocks. Without those of block b, rescaled by c = k / (k − k_b), the
answer to a projected gradient u is (c·K_bb̄ + λ)⁻¹ c·u: what another, somewhat shorter projection would have said. With w_b these answers,
w the whole one and w̄ the mean of w_b (Efron & Stein 1981; Shao & Wu 1989, for blocks):

    variance  (B − 1)/B · Σ_b (x·w_b − x·w̄)²,   x the other, projected gradient
    bias      (B − 1) · x·(w̄ − w),   which is linear in 1/k where the true one grows as 1/(1 − d/k), d = tr K (K + λ)⁻¹

A standard error is √(variance + bias² / (1 − d/k)): the length of the B + 1 inner products of x with `error_vectors`.
"""

from __future__ import annotations

import numpy as np

from beam_influence.influence_ops.types import Float64Matrix

BLOCKS = 8
"""B. A 90 % interval takes Student's t with B − 1 degrees of freedom."""


class DeletedRows:
    """The answers of a projected curvature without each block of the projection's rows.

    Args:
      eigenvectors, eigenvalues: V [k, k] and s [k], K + rI = V diag(s) Vᵀ.
      penalty: r, the regulariser's part, which no projection changes.
      damping: λ.
      seed: which rows are in which block.

    Raises:
      ValueError: there are fewer rows than blocks, or no inverse.
    """

    def __init__(self, eigenvectors: Float64Matrix, eigenvalues: np.ndarray, penalty: float, damping: float, seed: int):
        self._vectors, count = eigenvectors, len(eigenvalues)
        if count < BLOCKS:
            raise ValueError(f"the error of a projection to {count} numbers can't be told; use --projection_dim {BLOCKS} or more")
        if penalty + damping <= 0:
            raise ValueError("the error of a projection can be told with a --damping above 0 alone")
        of_data, self._floor = np.maximum(eigenvalues - penalty, 0), penalty + damping
        used = float(np.sum(of_data / (of_data + self._floor)))
        self._bias = (BLOCKS - 1) / np.sqrt(max(1 - used / count, 1e-12))
        self._whole = 1 / (of_data + self._floor)
        order = np.random.default_rng([seed, count, BLOCKS]).permutation(count)
        self._blocks: list[tuple[np.ndarray, float, np.ndarray, np.ndarray]] = []
        for rows in np.array_split(order, BLOCKS):
            scale = count / (count - len(rows))
            inverses = 1 / (scale * of_data + self._floor)
            columns = (eigenvectors * inverses) @ eigenvectors[rows].T  # of the inverse with all rows
            self._blocks.append((rows, scale, inverses, columns))

    def error_vectors(self, projected: Float64Matrix) -> np.ndarray:
        """[T, k] projected gradients -> [T, B + 1, k]: the length of their inner products with another is the standard error."""
        answers = np.stack([self._without(projected, *block) for block in self._blocks], axis=1)
        mean = answers.mean(axis=1, keepdims=True)
        whole = (projected @ self._vectors * self._whole) @ self._vectors.T
        bias = self._bias * (mean - whole[:, None])
        return np.concatenate([np.sqrt((BLOCKS - 1) / BLOCKS) * (answers - mean), bias], axis=1)

    def _without(
        self, projected: Float64Matrix, rows: np.ndarray, scale: float, inverses: np.ndarray, columns: np.ndarray
    ) -> Float64Matrix:
        """The answers without some rows, by the inverse of a matrix from which these are taken (Schur complement)."""
        kept = projected.copy()
        kept[:, rows] = 0
        found = (kept @ self._vectors * inverses) @ self._vectors.T
        found -= np.linalg.solve(columns[rows], found[:, rows].T).T @ columns.T
        return scale * found
