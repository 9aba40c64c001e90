"""What sums over a group become: its influence on test points, test groups and itself, and its vector.

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

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.tables import loss_change, vector_column
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.scores import Normalize, QueryBlock, evaluate, relative_factor


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
    names = sorted(gradients.sums)
    summed = np.array([gradients.sums[name] for name in names]).reshape(len(names), gradients.queries)
    counts = np.array([gradients.counts[name] for name in names], dtype=np.int64)
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


def add_hessian_products(model: ExplainedModel, sums: GroupSums, batch: ExampleBatch, names: list[str], steps: np.ndarray) -> None:
    """Adds Σ_{i∈G} ∇²ℓ(z_i) s_G of the batch's examples, for each group's own s_G (`first_steps`), to `sums`."""
    batch = evaluate(model, batch)[0]
    if batch.groups is None:
        return
    row_of = {name: row for row, name in enumerate(names)}
    products = {}
    for name in sorted(set(batch.groups)):
        members = np.flatnonzero(batch.groups == name)
        row = row_of[str(name)]
        products[name] = model.hessian_vector_products(batch.select(members), steps[row : row + 1])
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
    summed = np.array([products.sums[name] for name in groups.names]).reshape(steps.shape)
    # H_D s = (H + λI) s − ∇²R s − λ s, so its solve needs no further pass over the data. H has ∇²R, the products never do.
    beside = float(preconditioner.meta["damping"]) * steps + model.regularizer_products(steps)
    change = steps - preconditioner.apply(beside + summed / groups.counts[:, None])
    vectors = steps - (part / (1 - part))[:, None] * change
    return dataclasses.replace(groups, vectors=vectors)


def group_tables(
    queries: list[QueryBlock],
    sums: list[GroupSums],
    groups: GroupVectors | None,
    normalize: Normalize,
    second_order: bool,
    n: int,
) -> dict[str, pa.Table]:
    """Every group table.

    Args:
      queries, sums: the test points, and the groups' plain influence on them.
      groups: the groups' vectors; None where only plain, first-order influence on test points is wanted.
      normalize: see the module.
      second_order: whether influence is the vectors' product with the queries' gradients, not the sums.
      n: examples, or 0 where loss_change is unknown.
    """
    found: dict[str, pa.Table] = {}
    names = groups.names if groups is not None else sorted({name for part in sums for name in part.sums})
    counts = groups.counts if groups is not None else np.array([_count(sums, name) for name in names], dtype=np.int64)
    factor = np.ones(len(names))
    if groups is not None:
        self_influence = np.einsum("gp,gp->g", groups.gradients, groups.vectors)
        factor = relative_factor(normalize, len(groups.vectors), groups.vectors, self_influence)
        influence = self_influence * factor
        columns = [pa.array(names, pa.string()), pa.array(influence), loss_change(influence, n), pa.array(counts)]
        found["group_self_influence"] = pa.Table.from_arrays(columns, schema=schemas.GROUP_SELF_INFLUENCE)
        columns = [pa.array(names, pa.string()), vector_column(groups.vectors * factor[:, None]), pa.array(counts)]
        found["group_vectors"] = pa.Table.from_arrays(columns, schema=schemas.GROUP_VECTORS)
    if second_order:
        assert groups is not None
        blocks = [groups.vectors @ block.gradients.T for block in queries]
    else:
        blocks = [
            np.array([part.sums[name] if name in part.sums else np.zeros(len(block)) for name in names]).reshape(len(names), len(block))
            for block, part in zip(queries, sums, strict=True)
        ]
    matrix = np.concatenate(blocks, axis=1) if blocks else np.zeros((len(names), 0))
    found["group_influence"] = _influence_table(queries, names, counts, matrix * factor[:, None], n)
    return found


def _count(sums: list[GroupSums], name: str) -> int:
    return max(part.counts.get(name, 0) for part in sums)


def _influence_table(queries: list[QueryBlock], names: list[str], counts: np.ndarray, matrix: np.ndarray, n: int) -> pa.Table:
    """Rows by group: each test point, each test group, then all test points together (both columns null)."""
    test_ids = [str(test_id) for block in queries for test_id in block.ids]
    of_point = [None if block.groups is None else str(block.groups[row]) for block in queries for row in range(len(block))]
    test_groups = sorted({group for group in of_point if group is not None})
    members = np.array([[group == name for name in test_groups] for group in of_point], dtype=np.float64)
    members = members.reshape(len(test_ids), len(test_groups))
    rows = np.concatenate([matrix, matrix @ members, matrix.sum(axis=1, keepdims=True)], axis=1)
    width = rows.shape[1]
    influence = rows.ravel()
    columns = [
        pa.array(np.repeat(np.array(names, dtype=object), width), pa.string()),
        pa.array([*test_ids, *[None] * (len(test_groups) + 1)] * len(names), pa.string()),
        pa.array([*of_point, *test_groups, None] * len(names), pa.string()),
        pa.array(influence),
        loss_change(influence, n),
        pa.array(np.repeat(counts, width)),
    ]
    return pa.Table.from_arrays(columns, schema=schemas.GROUP_INFLUENCE)
