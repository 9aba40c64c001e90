"""The tables with rows for each training example."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.tables import loss_change, scores_table, vectors_table
from beam_influence.influence_ops.scoring.outputs.base import Quantity, RowOutput, Scoring
from beam_influence.influence_ops.scoring.scores import BatchScores


class Scores(RowOutput):
    """Every pair of a training example and a test point."""

    tables = {"scores": schemas.SCORES}
    of_test_points = frozenset({"scores"})

    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        errors = scored.errors or [None] * len(scored.scores)
        for block, scores, of_scores in zip(scoring.queries.values(), scored.scores, errors, strict=True):
            yield scores_table(block.ids, scored.ids, scores, scoring.n, of_scores)


class SelfInfluence(RowOutput):
    """Each training example's influence on its own loss."""

    tables = {"self_influence": schemas.SELF_INFLUENCE}
    quantities = frozenset[Quantity]({"self_influence"})

    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        assert scored.self_influence is not None
        columns = [pa.array(scored.ids, pa.string()), pa.array(scored.self_influence), loss_change(scored.self_influence, scoring.n)]
        yield pa.Table.from_arrays(columns, schema=schemas.SELF_INFLUENCE)


class InfluenceVectors(RowOutput):
    """Each training example's influence vector."""

    tables = {"influence_vectors": schemas.INFLUENCE_VECTORS}
    quantities = frozenset[Quantity]({"vectors"})

    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        assert scored.vectors is not None
        yield vectors_table(scored.ids, scored.vectors)
