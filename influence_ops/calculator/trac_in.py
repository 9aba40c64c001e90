"""TracIn: Pruthi et al. 2020, 2002.08484, equation 4; see `beam_influence.influence_ops.model.checkpoints`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.pairs import InfluenceCalculator
from beam_influence.influence_ops.curvature import FinishOptions
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.scoring.scores import ScoreOptions


class TracIn(InfluenceCalculator):
    """Σ_c η_c ∇ℓ_c(t)ᵀ ∇ℓ_c(z) over checkpoints c of a training run, η_c its learning rate.

    A vector (B, C·P) has √η_c ∇ℓ_c of each checkpoint side by side, as the reference's.

    Args:
      models: a model for each checkpoint, of one network.
      learning_rates: one for all, or one for each.
      dtype: of the results.

    Raises:
      ValueError: there are no models, they don't fit each other, or the learning rates don't fit them.
    """

    def __init__(self, models: Sequence[InfluenceModel], learning_rates: float | Sequence[float], *, dtype: tf.DType | str = tf.float64):
        rates = learning_rates if isinstance(learning_rates, Sequence) else [learning_rates] * len(models)
        together = CheckpointSum(models, rates)
        super().__init__(together, dtype)
        self.models = tuple(models)
        self.learning_rates = list(together.part_weights)
        self.options = ScoreOptions()
        self.preconditioner = Identity().finish(together, {}, FinishOptions())
        self.width = together.size

    def _vectors(self, gradients: np.ndarray) -> np.ndarray:
        return gradients
