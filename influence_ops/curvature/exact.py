"""`exact`: the Hessian of the mean loss."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.dense import DenseCurvature
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch


class Exact(DenseCurvature):
    """H = 1/n Σ ∇²ℓ(z_i) + ∇²R (Koh & Liang 2017, equation 2). Off a minimum it can be indefinite."""

    name: ClassVar[str] = "exact"
    needs_hessian = True

    def batch_rows(self, model: ExplainedModel, batch: ExampleBatch, rows: slice) -> np.ndarray:
        return model.hessian_sum(batch, rows)
