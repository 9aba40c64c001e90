"""The influence vector of a group of training examples, to first and to second order.

    I(G, t) = Σ_{i∈G} I(z_i, t),  v_G = Σ_{i∈G} v_i = (H + λI)⁻¹ Σ_{i∈G} ∇ℓ(z_i)        (Koh et al. 2019, 1905.13289)

Relative influence normalises the sum: I(G, t)/‖v_G‖ (theta) or /√I(G, G) (loss).

To second order (Basu, You & Feizi 2020, 1911.00418), with p = |G|/n, H_D the data's part of H, H_G the mean Hessian
over the group and R the regulariser, the optimum without G, as a mean over the other n − |G|, is

    θ_{−G} − θ ≈ u − p/(1−p) · (H + λI)⁻¹ (H_D − H_G) u,   u = (H + λI)⁻¹ Σ_{i∈G} (∇ℓ(z_i) + ∇R) / (n (1−p)),

the first two terms of the Taylor series of the optimum as the group's weight goes from 1 to 0 and the others' to
1/(1−p). The paper has no regulariser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.group_sums import GroupSums


@dataclasses.dataclass(frozen=True)
class GroupVectors:
    """The vectors v_G of G groups, and what they are made from.

    Attributes:
      names: the groups, sorted.
      counts: [G], examples in each.
      gradients: Σ ∇ℓ(z_i): [G, P].
      vectors: [G, P]; influence is its product with a test point's gradient.
    """

    names: list[str]
    counts: np.ndarray
    gradients: np.ndarray
    vectors: np.ndarray


def group_vectors(preconditioner: Preconditioner, gradients: GroupSums) -> GroupVectors:
    """v_G of each group, from the sums of its gradients (`GroupSums` over P columns)."""
    names = sorted(gradients.names)
    summed, counts = gradients.of(names)
    return GroupVectors(names, counts, summed, preconditioner.apply(summed))


def first_steps(model: ExplainedModel, preconditioner: Preconditioner, groups: GroupVectors) -> np.ndarray:
    """n·u: [G, P], the first term of the series.

    Raises:
      ValueError: a group is the whole training set, or the curvature is the identity.
    """
    if preconditioner.examples == 0:
        raise ValueError("second-order groups need the Hessian of the training set; use another curvature than identity")
    left = 1 - groups.counts / preconditioner.examples
    if len(left) and left.min() <= 0:
        raise ValueError(f"group {groups.names[int(left.argmin())]!r} is the whole training set; its removal has no second-order influence")
    right = groups.gradients
    if model.regularizer == "curvature":  # else it is in every example's gradient already
        right = right + groups.counts[:, None] * model.regularizer_gradient()
    return preconditioner.apply(right) / left[:, None]


def add_hessian_products(model: ExplainedModel, sums: GroupSums, batch: ExampleBatch, step_of: Callable[[str], np.ndarray]) -> None:
    """Adds Σ_{i∈G} ∇²ℓ(z_i) s_G of the batch's examples, for each group's own s_G [P] (`first_steps`), to `sums`."""
    batch = evaluate(model, batch)[0]
    if batch.groups is None:
        return
    products = {}
    for name in sorted(set(batch.groups)):
        members = np.flatnonzero(batch.groups == name)
        products[name] = model.hessian_vector_products(batch.select(members), np.array(step_of(str(name)))[None])
    for name, product in products.items():  # after all of them: a batch that is too large for the device leaves no trace
        sums.add(product.T, np.array([name], dtype=object))


def second_order_vectors(
    model: ExplainedModel, preconditioner: Preconditioner, groups: GroupVectors, steps: np.ndarray, products: GroupSums
) -> GroupVectors:
    """The groups with n·(θ_{−G} − θ) to second order in place of v_G.

    Args:
      steps: by `first_steps`.
      products: by `add_hessian_products` over all training examples.
    """
    part = groups.counts / preconditioner.examples
    summed = products.of(groups.names)[0]
    # H_D s = (H + λI) s − ∇²R s − λ s, so its solve needs no further pass over the data. H has ∇²R, the products never do.
    beside = float(preconditioner.meta["damping"]) * steps + model.regularizer_products(steps)
    change = steps - preconditioner.apply(beside + summed / groups.counts[:, None])
    vectors = steps - (part / (1 - part))[:, None] * change
    return dataclasses.replace(groups, vectors=vectors)
