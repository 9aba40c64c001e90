"""`source_gauss_newton_cg`: SOURCE with each segment's whole Gauss–Newton matrix, by solves over the data; see `segments`.

F is close to a damped inverse (Bae et al. 2024, 2405.12186, section 3): s / (1 + s) in place of 1 − exp(−s). With exp(−η K M) = 1 − M F
and the matrices transposed, as g is multiplied by them,

    F ≈ √P (M + 1/(η K))⁻¹ √P = A⁻¹,     √P⁻¹ exp(−η K M) √P ≈ (1 / (η K P)) A⁻¹,     A = H + (κ + 1/(η K)) / P,

so one solve of a segment and test point, x = A⁻¹ g, gives what its checkpoints' gradients are multiplied by, x, and what goes on to the
segment before, x / (η K P). Directions that the segment has learned, or not begun to, are met; between them F is at most 0.23 of itself too
small, and exp(−s) at most 0.20 too large, at s = 1.8 and 2.5. What scores lose by it is measured (docs/truth.md, SOURCE).

The operator that is fitted, `source`'s, has EK-FAC's A⁻¹ too, the preconditioner of conjugate gradients. With no pass the answer is
`source`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.optimizer_steps import StepScales
from beam_influence.influence_ops.curvature.segments import shift_of
from beam_influence.influence_ops.curvature.solved_block import turned
from beam_influence.influence_ops.curvature.source import AT_ONCE, Source, SourcePreconditioner
from beam_influence.influence_ops.settings import SourceGaussNewtonCgSettings


class SegmentPreconditioner(SourcePreconditioner):
    """`source`'s operator, and an approximation of A⁻¹ of each segment.

    Attributes:
      arrays: besides, for layer b of segment l, `inverses-l-b`: 1 / (Λ + uᵀ ((κ + 1/(η K)) / P) u) of its directions u, [I, O].
    """

    kind: ClassVar[str] = "segment_preconditioner"

    def precondition(self, vectors: np.ndarray, segment: int) -> np.ndarray:
        """About A⁻¹ v of each row v: [R, P] -> [R, P], P the weights of one checkpoint."""
        if self.layout is None:
            raise ValueError("a curvature by layers needs the model's layout; call bind(model) first")
        blocks = self.layout.blocks[: len(self.layout.blocks) // len(self.meta["root_weights"])]
        solved, step = np.empty_like(vectors), max(1, AT_ONCE // max(block.size for block in blocks))
        for start in range(0, len(vectors), step):
            rows = slice(start, start + step)
            for layer, block in enumerate(blocks):
                inputs, errors, inverses = (self.arrays[f"{name}-{segment}-{layer}"] for name in ("inputs", "errors", "inverses"))
                rotated = turned(block.matrices(vectors[rows]), inputs, errors) * inverses
                block.write(turned(rotated, inputs.T, errors.T), solved[rows])
        return solved


class SourceGaussNewtonCg(Source):
    """EK-FAC of each segment, for the systems A x = g of the last segment first.

    K-FAC's settings are the preconditioner's: they change how fast the solutions are reached, not the solutions.
    """

    name: ClassVar[str] = "source_gauss_newton_cg"
    Settings = SourceGaussNewtonCgSettings
    operators = (SegmentPreconditioner,)
    systems = "segments"

    def __init__(self, settings: SourceGaussNewtonCgSettings | None = None):
        super().__init__(settings)
        self.solves = len(self._segments.counts)

    def _of_layer(
        self, curvature: np.ndarray, steps: StepScales, horizon: float, in_basis: Callable[[np.ndarray], np.ndarray]
    ) -> dict[str, np.ndarray]:
        inverses = 1 / (curvature + in_basis(shift_of(steps, horizon)))
        return {**super()._of_layer(curvature, steps, horizon, in_basis), "inverses": inverses}
