"""Influence of batches of examples by the r numbers of an index: of candidates, which are in none."""

from __future__ import annotations

from collections.abc import Iterable

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.scores import BatchScores


class EmbeddedScorer:
    """Scores batches of examples as an index has them: by r numbers, whose inner products with a query's are influence.

    Args:
      model, preconditioner: of the index.
      queries: their r numbers in place of gradients.
    """

    def __init__(self, model: ExplainedModel, preconditioner: Preconditioner, queries: Iterable[QueryBlock]):
        self._model = model
        self._preconditioner = preconditioner.bind(model)
        self._queries = [block.gradients for block in queries]

    def score(self, batch: ExampleBatch) -> BatchScores:
        """Influence of each example of `batch` on each query."""
        kept, _, gradients, rejected = evaluate(self._model, batch)
        embedded = self._preconditioner.embed(gradients)
        scores = [queries @ embedded.T for queries in self._queries]
        return BatchScores(kept.ids, scores, scores, kept.groups, rejected=rejected)
