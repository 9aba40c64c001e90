"""`source_gauss_newton_cg`: SOURCE with each segment's whole Gauss–Newton matrix, by solves over the data; see `segments`.

F is close to a damped inverse (Bae et al. 2024, 2405.12186, section 3), as to s in place of 1 − exp(−s) where s / (1 + s) is taken. With
exp(−η K M) = 1 − M F,

    F ≈ √P (M + 1/(η K))⁻¹ √P = A⁻¹,     √P exp(−η K M) √P⁻¹ ≈ (1 / (η K P)) A⁻¹ transposed,     A = H + (κ + 1/(η K)) / P,

so one solve of a segment and test point, x = A⁻¹ g, gives what its checkpoints' gradients are multiplied by, x, and what goes on to the
segment before, x / (η K P). Directions that the segment has learned, or not begun to, are met; between them F is at most 0.23 of itself too
small, and exp(−s) at most 0.20 too large, at s = 1.8 and 2.5. What scores lose by it is measured (docs/truth.md, SOURCE).

The operator that is fitted, `source`'s, is the preconditioner of conjugate gradients. With no pass the answer is `source`'s.
"""

from __future__ import annotations

from typing import ClassVar

from beam_influence.influence_ops.curvature.source import Source
from beam_influence.influence_ops.settings import SourceGaussNewtonCgSettings


class SourceGaussNewtonCg(Source):
    """EK-FAC of each segment, for the systems A x = g of the last segment first.

    K-FAC's settings are the preconditioner's: they change how fast the solutions are reached, not the solutions.
    """

    name: ClassVar[str] = "source_gauss_newton_cg"
    Settings = SourceGaussNewtonCgSettings
    systems = "segments"

    def __init__(self, settings: SourceGaussNewtonCgSettings | None = None):
        super().__init__(settings)
        self.solves = len(self._segments.counts)
