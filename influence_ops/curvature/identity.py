"""`identity`: no curvature, so that influence is the gradients' inner product. The baseline."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.base import Curvature, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch


class IdentityPreconditioner(Preconditioner):
    """I."""

    kind: ClassVar[str] = "identity"

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        return np.asarray(gradients, dtype=np.float64)


class Identity(Curvature):
    """H = I, undamped (TracIn at one checkpoint, Pruthi et al. 2020, 2002.08484, up to its learning rate)."""

    name: ClassVar[str] = "identity"
    passes = 0
    operators = (IdentityPreconditioner,)

    def create(self, model: ExplainedModel) -> Statistic:
        return {}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        return statistic

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        return IdentityPreconditioner(
            {},
            {"curvature": self.name, "damping": 0.0, "examples": 0, "size": model.size, "fingerprint": model.fingerprint()},
        )
