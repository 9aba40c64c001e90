"""What sums over a group become: its influence on test points, test groups and itself, and its vector; see `scoring.groups`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.tables import loss_change, vector_column
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.groups import GroupVectors, first_steps, group_vectors, second_order_vectors
from beam_influence.influence_ops.scoring.outputs import base
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.scores import BatchScores, relative_factor

GROUPS = "group_influence"
"""The output's name."""
GRADIENTS = "gradients"
"""The key of the sums of gradients, beside the keys of query blocks."""
PRODUCTS = "products"
"""The key of the sums of Hessian products, which a second pass over the training data makes."""


class Groups(base.CombinedOutput[GroupSums]):
    """Influence of each group: the parts are its plain influence on each block of test points, and its gradients' sum where needed."""

    tables = {
        "group_influence": schemas.GROUP_INFLUENCE,
        "group_self_influence": schemas.GROUP_SELF_INFLUENCE,
        "group_vectors": schemas.GROUP_VECTORS,
    }
    of_test_points = frozenset({"group_influence"})
    needs_groups = True
    by_group = True

    def needs(self, options: base.OutputOptions) -> frozenset[base.Quantity]:
        of_vectors = {"group_self_influence", "group_vectors"} & set(options.tables)
        vectors = of_vectors or options.score.normalize != "none" or options.second_order_groups
        return frozenset({"gradients"}) if vectors else frozenset()

    def create(self, scoring: base.Scoring) -> dict[str, GroupSums]:
        parts = {key: GroupSums(len(block)) for key, block in scoring.queries.items()}
        if scoring.options.score.gradients:
            parts[GRADIENTS] = GroupSums(scoring.operator[0].size)
        return parts

    def add(self, parts: Mapping[str, GroupSums], scored: BatchScores, scoring: base.Scoring) -> None:
        if scored.groups is None:
            return
        for key, plain in zip(scoring.queries, scored.plain_scores, strict=True):
            parts[key].add(plain, scored.groups)
        if scored.gradients is not None:
            parts[GRADIENTS].add(scored.gradients.T, scored.groups)

    def finish(self, parts: Mapping[str, GroupSums], scoring: base.Scoring) -> Iterator[base.FinishedTable]:
        queries, sums = list(scoring.queries.values()), [parts[key] for key in scoring.queries]
        second_order = scoring.options.second_order_groups
        if GRADIENTS in parts:
            groups = group_vectors(scoring.operator[1], parts[GRADIENTS])
            if second_order:
                steps = first_steps(*scoring.operator, groups)
                groups = second_order_vectors(*scoring.operator, groups, steps, parts.get(PRODUCTS, GroupSums(steps.shape[1])))
            names, counts = groups.names, groups.counts
            self_influence = np.einsum("gp,gp->g", groups.gradients, groups.vectors)
            factor = relative_factor(scoring.options.score.normalize, len(names), groups.vectors, self_influence)
            yield from self._of_vectors(groups, self_influence * factor, factor, scoring)
        else:
            groups = None
            names = sorted({name for part in sums for name in part.names})
            counts = np.max([part.of(names)[1] for part in sums], axis=0) if sums else np.zeros(0, dtype=np.int64)
            factor = np.ones(len(names))
        if "group_influence" in scoring.options.tables:
            if second_order and groups is not None:
                blocks = [groups.vectors @ block.gradients.T for block in queries]
            else:
                blocks = [part.of(names)[0] for part in sums]
            matrix = np.concatenate(blocks, axis=1) if blocks else np.zeros((len(names), 0))
            rows = _influence_table(queries, names, counts, matrix * factor[:, None], scoring.n)
            yield base.FinishedTable("group_influence", base.SINGLE_FILE, rows)

    def _of_vectors(
        self, groups: GroupVectors, self_influence: np.ndarray, factor: np.ndarray, scoring: base.Scoring
    ) -> Iterator[base.FinishedTable]:
        """The tables of groups alone: self-influence (G,), and vectors, which `factor` (G,) makes relative."""
        names, counts = pa.array(groups.names, pa.string()), pa.array(groups.counts)
        columns = {
            "group_self_influence": [names, pa.array(self_influence), loss_change(self_influence, scoring.n), counts],
            "group_vectors": [names, vector_column(groups.vectors * factor[:, None]), counts],
        }
        for table in columns:
            if table in scoring.options.tables:
                yield base.FinishedTable(table, base.SINGLE_FILE, pa.Table.from_arrays(columns[table], schema=self.tables[table]))


def _influence_table(queries: list[QueryBlock], names: list[str], counts: np.ndarray, matrix: np.ndarray, n: int) -> pa.Table:
    """Rows by group: each test point, each test group, then all test points together (both columns null)."""
    test_ids = [str(test_id) for block in queries for test_id in block.ids]
    of_point = [None if block.groups is None else str(block.groups[row]) for block in queries for row in range(len(block))]
    test_groups = sorted({group for group in of_point if group is not None})
    members = np.array([[group == name for name in test_groups] for group in of_point], dtype=np.float64)
    members = members.reshape(len(test_ids), len(test_groups))
    rows = np.concatenate([matrix, matrix @ members, matrix.sum(axis=1, keepdims=True)], axis=1)
    count, width = rows.shape
    influence = rows.ravel()
    by_group, by_test = pa.array(np.repeat(np.arange(count), width)), pa.array(np.tile(np.arange(width), count))
    columns = [
        pa.array(names, pa.string()).take(by_group),  # in Arrow: a Python object for each row is five times as much
        pa.array([*test_ids, *[None] * (len(test_groups) + 1)], pa.string()).take(by_test),
        pa.array([*of_point, *test_groups, None], pa.string()).take(by_test),
        pa.array(influence),
        loss_change(influence, n),
        pa.array(counts).take(by_group),
    ]
    return pa.Table.from_arrays(columns, schema=schemas.GROUP_INFLUENCE)
