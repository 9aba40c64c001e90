"""The tables with rows for each training example."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions, Quantity, RowOutput, Scoring
from beam_influence.influence_ops.scoring.scores import BatchScores


class Scores(RowOutput):
    """Every pair of a training example and a test point."""

    tables = {"scores": schemas.SCORES}
    of_test_points = frozenset({"scores"})

    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        for block, scores in zip(scoring.queries.values(), scored.scores, strict=True):
            yield tables.scores_table(block.ids, scored.ids, scores, scoring.n)


class SelfInfluence(RowOutput):
    """Each training example's influence on its own loss."""

    tables = {"self_influence": schemas.SELF_INFLUENCE}

    def needs(self, options: OutputOptions) -> frozenset[Quantity]:
        return frozenset({"self_influence"})

    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        assert scored.self_influence is not None
        yield tables.self_influence_table(scored.ids, scored.self_influence, scoring.n)


class InfluenceVectors(RowOutput):
    """Each training example's influence vector."""

    tables = {"influence_vectors": schemas.INFLUENCE_VECTORS}

    def needs(self, options: OutputOptions) -> frozenset[Quantity]:
        return frozenset({"vectors"})

    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        assert scored.vectors is not None
        yield tables.vectors_table(scored.ids, scored.vectors)
