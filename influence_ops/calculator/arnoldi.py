"""Influence in the space of the Hessian's largest eigenvalues: Schioppa et al. 2022, 2112.03052."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.pairs import InfluenceCalculator
from beam_influence.influence_ops.calculator.tf_datasets import dataset_form
from beam_influence.influence_ops.curvature import FinishOptions, fit
from beam_influence.influence_ops.curvature.arnoldi import StreamedArnoldi
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.influence_ops.settings import ArnoldiSettings

_MOST_PASSES = 8


class ArnoldiInfluenceCalculator(InfluenceCalculator):
    """Σ_k (w_k·∇ℓ(t)) (w_k·∇ℓ(z)) / (s_k + λ) over the largest eigenpairs (s_k, w_k) of the exact Hessian over all training examples.

    A vector (B, k) is w_k·∇ℓ(z) / (s_k + λ). What lies outside the space is left out, as there; `FirstOrderInfluenceCalculator`
    with 'arnoldi' keeps a term for it.

    Args:
      model: the model.
      train_dataset: the batched training set.
      subspace_dim: dimensions of the Krylov space. It is built in blocks, in at most 8 passes over the data.
      force_hermitian: accepted for the reference's sake; our projected matrix is symmetric always.
      k_largest_eig_vals: how many eigenpairs are kept, the largest ones. Ones that are not positive are left out.
      dtype: of the results.
      damping, seed: λ, and the first block's; keyword only, ours.

    Attributes:
      eig_vals: s [k], largest first.
      G: w [k, P].

    Raises:
      ValueError: the data set is not batched or does not fit the model, or a number is wrong.
    """

    def __init__(
        self,
        model: ExplainedModel,
        train_dataset: tf.data.Dataset,
        subspace_dim: int,
        force_hermitian: bool,
        k_largest_eig_vals: int,
        dtype: tf.DType | str = tf.float32,
        *,
        damping: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(model, dtype)
        if subspace_dim < 1 or not 1 <= k_largest_eig_vals <= subspace_dim:
            raise ValueError(f"k_largest_eig_vals={k_largest_eig_vals} must be at least 1 and at most subspace_dim={subspace_dim}")
        block_size = -(-subspace_dim // _MOST_PASSES)
        passes = max(2, -(-subspace_dim // block_size))
        settings = ArnoldiSettings(rank=k_largest_eig_vals, matrix="hessian", block_size=block_size, seed=seed, passes=passes)
        self.dataset_form = dataset_form(train_dataset, model)
        self.preconditioner = fit(model, StreamedArnoldi(settings), self._passes(train_dataset), FinishOptions(damping))
        self.options = ScoreOptions()
        self._directions = np.asarray(self.preconditioner.arrays["vectors"])
        self._inverses = 1 / (np.asarray(self.preconditioner.arrays["eigenvalues"]) + damping)
        self.eig_vals = self._result(self.preconditioner.arrays["eigenvalues"])
        self.G = self._result(self._directions)
        self.width = len(self._directions)

    @property
    def _facts(self) -> dict[str, Any]:
        return {**super()._facts, "curvature": "arnoldi (projected)"}  # vectors that are no other calculator's

    def _vectors(self, gradients: np.ndarray) -> np.ndarray:
        return self._evaluation(gradients) * self._inverses

    def _evaluation(self, gradients: np.ndarray) -> np.ndarray:
        return gradients @ self._directions.T
