"""Influence to first order, of single examples and of groups: Koh & Liang 2017, 1703.04730; Koh et al. 2019, 1905.13289."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.fitted import FitOptions, FittedCalculator
from beam_influence.influence_ops.calculator.fitting import IHVP, CurvatureSource, applies_by_passes
from beam_influence.influence_ops.calculator.pairs import InfluenceCalculator
from beam_influence.influence_ops.calculator.vectors import Sides
from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.scoring.scores import Normalize, ScoreOptions, relative_factor


class FirstOrderInfluenceCalculator(FittedCalculator, InfluenceCalculator):
    """Influence of training examples and of groups of them, for data sets at hand.

    A group's vector is n × the estimated change of the weights when it is removed.

    Args:
      model: the model; see `InfluenceModel`.
      dataset: the batched training set that the curvature is made from; or a curvature that was saved by a Beam
        job or by `save_curvature` (its folder), or a fitted `Preconditioner`, in its place.
      ihvp_calculator: a name of `CURVATURES` ('exact', 'gauss_newton', 'cgd', …), a member of `IHVPCalculator`, a
        `Curvature` or a `Preconditioner`.
      n_samples_for_hessian: how many training examples the curvature uses, chosen by `seed`; None: all of them.
      shuffle_buffer_size: accepted for the reference's sake; our sample is uniform over the whole data set.
      normalize: relative influence: True or 'theta' (θ-RelatIF, the reference's), 'loss' (ℓ-RelatIF), or False.
      damping: λ, or 'auto'. The default 0 is the reference's: a pseudo-inverse, in float64 and with its true rank.
      weight_decay: w of a regulariser 0.5·w·‖θ‖² that training used but the model does not carry; None: the model's.
      passes: with 'cgd' or 'lissa', the most iterations, each a pass over the data of the curvature; None: the
        curvature's own cap. A warning carries the residual when it is reached. With 'gauss_newton_cg': the most steps of its
        conjugate gradients, 5 by default, 0 for its preconditioner's answer, which is EK-FAC's. With 'source_gauss_newton_cg': the
        same for each segment, 0 for the answer of 'source'. With 'arnoldi': how many, 8 by default.
      tolerance: relative residual at which 'cgd' (1e-8 by default), 'lissa' (1e-3), 'gauss_newton_cg' and 'source_gauss_newton_cg'
        (1e-6) stop.
      rank, rcond: of 'exact', 'gauss_newton' and 'arnoldi'; see `FinishOptions`.
      seed: which examples `n_samples_for_hessian` chooses.
      dtype: of the results, such as tf.float32, where they meet tensors of it; what is computed is the same.

    Attributes:
      preconditioner: the operator; its `meta` has the damping, the rank and the smallest and largest eigenvalue; where a Cholesky factor is
        in their place (docs/quantities.md), their mean.
      dataset_form: which form the data set's elements were seen to have; None where there is none.

    Where the operator makes passes over data for each vector ('cgd', 'lissa', 'gauss_newton_cg'), influence on test points is
    computed by solving these and not the training examples, unless it is normalised or vectors are loaded or saved.

    Raises:
      ValueError: the data set is not batched or does not fit the model, or an option is wrong.
    """

    def __init__(
        self,
        model: ExplainedModel,
        dataset: CurvatureSource,
        ihvp_calculator: IHVP = "exact",
        n_samples_for_hessian: int | None = None,
        shuffle_buffer_size: int = 10000,
        normalize: bool | Normalize = False,
        **options: Unpack[FitOptions],
    ):
        self.normalize: Normalize = "none" if normalize is False else "theta" if normalize is True else normalize
        self.options = ScoreOptions(self.normalize)
        super().__init__(model, dataset, ihvp_calculator, n_samples_for_hessian, shuffle_buffer_size, **options)
        self.width = self.model.size
        if self.normalize != "none":
            self._refuse_vectors_of_test_points()

    def save_curvature(self, folder: str) -> None:
        """Saves the curvature for another calculator, or for a Beam job's `--curvature_path`."""
        self.preconditioner.save(folder)

    def estimate_influence_values_group(self, group_train: tf.data.Dataset, group_to_evaluate: tf.data.Dataset | None = None) -> tf.Tensor:
        if self.preconditioner.is_symmetric:
            return super().estimate_influence_values_group(group_train, group_to_evaluate)
        gradient = self._group_gradient(group_train)
        evaluated = gradient if group_to_evaluate is None else self._group_gradient(group_to_evaluate)
        return self._result(self.preconditioner.apply(evaluated) @ gradient.T)

    def _group_vector(self, group: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        self._refuse_vectors_of_test_points()
        gradient = self._group_gradient(group)
        return self._vectors(gradient), gradient

    def _saved_curvature(self) -> Preconditioner | None:
        over_a_dataset = getattr(self.preconditioner, "stream", None) is not None  # holds nothing that could be saved
        return None if over_a_dataset else self.preconditioner

    def _vectors(self, gradients: np.ndarray) -> np.ndarray:
        vectors = self.preconditioner.apply(gradients)
        self_influence = np.einsum("bp,bp->b", gradients, vectors)
        return vectors * relative_factor(self.normalize, len(vectors), vectors, self_influence)[:, None]

    def _refuse_vectors_of_test_points(self) -> None:
        if not self.preconditioner.is_symmetric:
            raise ValueError(
                f"a {self.preconditioner.meta['curvature']} curvature is of test points and gives no influence vectors of training "
                "examples; leave normalize, vectors and their paths out"
            )

    def _sides(self, vectors_wanted: bool) -> Sides:
        if vectors_wanted:
            self._refuse_vectors_of_test_points()
        of_tests = applies_by_passes(self.preconditioner) or not self.preconditioner.is_symmetric
        if of_tests and self.normalize == "none" and not vectors_wanted:
            return Sides(lambda gradients: gradients, self.preconditioner.apply)
        return super()._sides(vectors_wanted)
