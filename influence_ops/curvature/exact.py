"""`exact`: the Hessian of the mean loss."""

from __future__ import annotations

from typing import ClassVar

from beam_influence.influence_ops.curvature.dense import DenseCurvature


class Exact(DenseCurvature):
    """H = 1/n Σ ∇²ℓ(z_i) + ∇²R (Koh & Liang 2017, equation 2). Off a minimum it can be indefinite."""

    name: ClassVar[str] = "exact"
    needs_hessian = True
    matrix = "hessian"
