"""An inverse from r eigenpairs and a residual term for the rest of the spectrum: no P × P matrix."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.base import Preconditioner
from beam_influence.influence_ops.model.gradients import Gradients


class LowRankPreconditioner(Preconditioner):
    """Vᵀ diag(1/(s + λ) − 1/(s₀ + λ)) V + I/(s₀ + λ).

    Arrays: `vectors` V [r, P], orthonormal rows, and `eigenvalues` s [r], largest first. `meta["rest"]` is s₀, the value that
    the rest of the spectrum is taken to have; with s₀ + λ = 0 the rest is left out (a pseudo-inverse).
    """

    kind: ClassVar[str] = "low_rank"

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        gradients = np.asarray(gradients, dtype=np.float64)
        vectors, residual = self.arrays["vectors"], self._residual()
        along = gradients @ vectors.T
        return residual * gradients + (along * (self._inverses() - residual)) @ vectors

    def with_damping(self, damping: float) -> Preconditioner:
        return self._redamped(damping)

    def embed(self, gradients: np.ndarray | Gradients) -> np.ndarray:
        """(s + λ)^-½ V g for each row g: [B, P] -> [B, r]. The residual term, which needs g·g, is left out."""
        return (np.asarray(gradients, dtype=np.float64) @ self.arrays["vectors"].T) * np.sqrt(self._inverses())

    def _inverses(self) -> np.ndarray:
        return 1 / (self.arrays["eigenvalues"] + float(self.meta["damping"]))

    def _residual(self) -> float:
        rest = float(self.meta["rest"]) + float(self.meta["damping"])
        return 1 / rest if rest > 0 else 0.0
