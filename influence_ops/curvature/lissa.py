"""`lissa`: H⁻¹g by a Neumann series of Hessian-vector products."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.conjugate_gradient import ConjugateGradient, IterativePreconditioner
from beam_influence.influence_ops.curvature.conjugate_gradients import Products
from beam_influence.influence_ops.settings import LissaSettings


def neumann_series(
    products: Products, right: np.ndarray, scale: float, tolerance: float, max_iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Solves A x = b for each row b of `right` [R, P]: x ← x + (b − A x)/scale, until the residual is small.

    It converges when the eigenvalues of A lie in (0, 2·scale). A row whose residual grows keeps its best iterate.

    Returns:
      x [R, P] and the relative residuals [R].
    """
    norms = np.linalg.norm(right, axis=1)
    x, residual = np.zeros_like(right), right.copy()
    best, best_residual = x.copy(), norms.copy()
    active = norms > 0
    for _ in range(max_iterations):
        active &= best_residual > tolerance * norms
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        x[rows] += residual[rows] / scale
        residual[rows] = right[rows] - products(x[rows])
        lengths = np.linalg.norm(residual[rows], axis=1)
        improved = rows[lengths < best_residual[rows]]
        best[improved], best_residual[improved] = x[improved], np.linalg.norm(residual[improved], axis=1)
        active[rows[~(lengths < 2 * norms[rows])]] = False  # diverged: H + λI is not positive, or the scale too small
    return best, np.divide(best_residual, norms, out=np.zeros_like(norms), where=norms > 0)


class NeumannPreconditioner(IterativePreconditioner):
    """(H + λI)⁻¹ by the series."""

    kind: ClassVar[str] = "neumann"

    def _solve(self, products: Products, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        meta = self.meta
        scale = 1.05 * abs(float(meta["largest_eigenvalue"])) + float(meta["damping"])  # power iteration comes from below
        return neumann_series(products, right, scale or 1.0, float(meta["tolerance"]), int(meta["max_iterations"]))


class Lissa(ConjugateGradient):
    """(H + λI)⁻¹ g by LiSSA (Agarwal, Bullins & Hazan 2017, 1602.03943; Koh & Liang 2017, section 3).

    The series is over the whole sample, not one example a step, so it is deterministic; its scale is the largest
    eigenvalue, by power iteration. It needs about λ_max/λ_min·ln(1/tolerance) steps: conjugate gradients need far fewer.
    """

    name: ClassVar[str] = "lissa"
    Settings = LissaSettings
    operator = NeumannPreconditioner
    operators = (NeumannPreconditioner,)
