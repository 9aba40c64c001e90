"""Influence of groups to second order: Basu, You & Feizi 2020, 1911.00418; see `beam_influence.influence_ops.scoring.groups`."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.calculator.fitted import FittedCalculator
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.groups import GroupVectors, add_hessian_products, first_steps, second_order_vectors

_GROUP = "group"


class SecondOrderInfluenceCalculator(FittedCalculator):
    """What the removal of a whole group does, counting how its examples bear on each other.

    Scale: as the reference's class, and unlike `FirstOrderInfluenceCalculator`, the result is the change itself, 1/n included: a
    vector is θ without the group − θ, a value the change of the other group's summed loss. Positive = a helpful group. The paper
    has no regulariser; one that the model or `weight_decay` has is taken in where `InfluenceModel` says it stands.

    Args:
      model, dataset, ihvp_calculator, n_samples_for_hessian, shuffle_buffer_size, damping, weight_decay, passes, tolerance, rank, rcond,
        seed, dtype: as of `FirstOrderInfluenceCalculator`. n is the size of the whole data set, whatever the curvature uses of it.

    Raises:
      ValueError: the data set is not batched or does not fit the model, or an option is wrong.
    """

    def _group_vector(self, group: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """(θ without the group − θ, Σ ∇ℓ over the group), [1, P] each; two passes over the group."""
        if not self.preconditioner.is_symmetric:
            name = self.preconditioner.meta["curvature"]
            raise ValueError(f"second order needs a curvature at one point of training; use ekfac or gauss_newton, not {name}")
        passes = self._passes(group)
        gradient, count = self._gradient_sum(self._evaluate(batch, None)[1] for batch in passes())
        if not count:
            raise ValueError("the group has no examples")
        groups = GroupVectors([_GROUP], np.array([count]), gradient, self.preconditioner.apply(gradient))
        steps = first_steps(self.model, self.preconditioner, groups)
        products = GroupSums(self.model.size)
        for batch in passes():
            named = dataclasses.replace(batch, groups=np.full(len(batch), _GROUP, dtype=object))
            add_hessian_products(self.model, products, named, lambda _: steps[0])
        vectors = second_order_vectors(self.model, self.preconditioner, groups, steps, products).vectors
        return vectors / self.preconditioner.examples, gradient
