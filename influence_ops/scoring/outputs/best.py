"""The k most influential training examples: for each test point, and by self-influence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.scoring.outputs.base import SINGLE_FILE, CombinedOutput, FinishedTable, Quantity, Scoring
from beam_influence.influence_ops.scoring.scores import BatchScores
from beam_influence.influence_ops.scoring.top_k import TopK


class BestByTestPoint(CombinedOutput[TopK]):
    """The first k training examples for each test point; a part and a file for each block of these."""

    tables = {"top_k": schemas.TOP_K}
    of_test_points = frozenset({"top_k"})
    is_ranked = True

    def create(self, scoring: Scoring) -> dict[str, TopK]:
        options = scoring.options
        kept = options.top_k + (options.error_draws > 0)  # the one after them decides what is stable
        return {key: TopK(len(block), kept, options.order) for key, block in scoring.queries.items()}

    def add(self, parts: Mapping[str, TopK], scored: BatchScores, scoring: Scoring) -> None:
        if scored.errors is None:
            for top, scores in zip(parts.values(), scored.unfetched, strict=True):
                top.add(scores, scored.ids)
            return
        for top, scores, errors in zip(parts.values(), scored.scores, scored.errors, strict=True):
            top.add(scores, scored.ids, errors)

    def finish(self, parts: Mapping[str, TopK], scoring: Scoring) -> Iterator[FinishedTable]:
        for key, top in parts.items():
            rows = tables.top_k_table(scoring.queries[key].ids, top, scoring.n, scoring.options.per_token, scoring.interval_factor)
            yield FinishedTable("top_k", f"block-{key}", rows)


class BestBySelfInfluence(CombinedOutput[TopK]):
    """The first k training examples by their influence on their own loss."""

    tables = {"self_influence_top_k": schemas.SELF_INFLUENCE_TOP_K}
    is_ranked = True
    quantities = frozenset[Quantity]({"self_influence"})

    def create(self, scoring: Scoring) -> dict[str, TopK]:
        return {"self": TopK(1, scoring.options.top_k, scoring.options.order)}

    def add(self, parts: Mapping[str, TopK], scored: BatchScores, scoring: Scoring) -> None:
        assert scored.self_influence is not None
        parts["self"].add(scored.self_influence[None], scored.ids)

    def finish(self, parts: Mapping[str, TopK], scoring: Scoring) -> Iterator[FinishedTable]:
        yield FinishedTable(self.name, SINGLE_FILE, tables.self_influence_top_k_table(parts["self"], scoring.n))
