"""The calculators that fit a curvature first, and what they say of groups."""

from __future__ import annotations

import abc
from typing import TypedDict

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.base import DatasetCalculator
from beam_influence.influence_ops.calculator.fitting import IHVP, CurvatureChoice, CurvatureSource, fit_operator
from beam_influence.influence_ops.calculator.tf_datasets import dataset_form
from beam_influence.influence_ops.curvature import FinishOptions, Preconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel


class FitOptions(TypedDict, total=False):
    """The options of `FittedCalculator` that are given by name."""

    damping: float | str
    weight_decay: float | None
    passes: int | None
    tolerance: float | None
    rank: int | None
    rcond: float | None
    seed: int
    dtype: tf.DType | str


class FittedCalculator(DatasetCalculator, abc.ABC):
    """A curvature, and groups by it; for the arguments see `FirstOrderInfluenceCalculator`."""

    def __init__(
        self,
        model: ExplainedModel,
        dataset: CurvatureSource,
        ihvp_calculator: IHVP = "exact",
        n_samples_for_hessian: int | None = None,
        shuffle_buffer_size: int = 10000,
        *,
        damping: float | str = 0.0,
        weight_decay: float | None = None,
        passes: int | None = None,
        tolerance: float | None = None,
        rank: int | None = None,
        rcond: float | None = None,
        seed: int = 0,
        dtype: tf.DType | str = tf.float64,
    ):
        super().__init__(model, dtype)
        if weight_decay is not None:
            self.model = model.with_weight_decay(weight_decay)
        finish = FinishOptions(damping, rcond=rcond, rank=rank)
        choice = CurvatureChoice(ihvp_calculator, n_samples_for_hessian, seed, passes, tolerance, finish)
        read = dataset if isinstance(dataset, tf.data.Dataset) and not isinstance(ihvp_calculator, Preconditioner) else None
        self.dataset_form = None if read is None else dataset_form(read, self.model)
        self.preconditioner = fit_operator(self.model, dataset, choice, None if read is None else self._passes(read))

    def compute_influence_vector_group(self, group: tf.data.Dataset) -> tf.Tensor:
        """The group's influence vector (1, P).

        Raises:
          ValueError: to second order: the group is empty or the whole training set, or the curvature is the identity.
        """
        return self._result(self._group_vector(group)[0])

    def estimate_influence_values_group(self, group_train: tf.data.Dataset, group_to_evaluate: tf.data.Dataset | None = None) -> tf.Tensor:
        """(1, 1): the group's influence on the summed loss of the other group, or of itself. Sizes may differ."""
        vector, gradient = self._group_vector(group_train)
        evaluated = gradient if group_to_evaluate is None else self._group_gradient(group_to_evaluate)
        return self._result(evaluated @ vector.T)

    @abc.abstractmethod
    def _group_vector(self, group: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """The group's influence vector, and Σ ∇ℓ over it: [1, P] each."""
