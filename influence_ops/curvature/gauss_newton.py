"""`gauss_newton`: the generalised Gauss–Newton matrix."""

from __future__ import annotations

from typing import ClassVar

from beam_influence.influence_ops.curvature.dense import DenseCurvature


class GaussNewton(DenseCurvature):
    """H = 1/n Σ J_iᵀ (∂²ℓ/∂z²) J_i + ∇²R (Martens 2020, 1412.1193, section 8): never indefinite for convex losses.

    J is the Jacobian of the model's outputs, before a final softmax or sigmoid, and ∂²ℓ/∂z² its positive part.
    """

    name: ClassVar[str] = "gauss_newton"
    matrix = "gauss_newton"
