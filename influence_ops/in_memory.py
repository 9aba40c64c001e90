"""The whole computation as plain loops in one process: the oracle of the Beam job, from the same parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from influence_ops import schemas, tables
from influence_ops.curvature import Curvature, FinishOptions, Preconditioner, curvature_by_name
from influence_ops.example_batch import ExampleBatch, Rejected
from influence_ops.group_sums import GroupSums
from influence_ops.model import InfluenceModel
from influence_ops.scores import QueryBlock, ScoreOptions, Scorer, concatenate_queries, embed_queries, evaluate
from influence_ops.top_k import Order, TopK


@dataclasses.dataclass(frozen=True)
class InfluenceResult:
    """Result tables by name (see `schemas`), and the operator they were made with."""

    tables: dict[str, pa.Table]
    preconditioner: Preconditioner


def fit_curvature(
    model: InfluenceModel, curvature: Curvature, train: Iterable[ExampleBatch], options: FinishOptions
) -> Preconditioner:
    """(H + λI)⁻¹ from batches of training examples; examples that are not finite are left out."""
    statistic = curvature.create(model)
    if curvature.passes:
        for batch in train:
            kept = evaluate(model, batch)[0]
            if len(kept):
                statistic = curvature.add(model, statistic, kept)
    return curvature.finish(model, statistic, options)


def compute_in_memory(
    model: InfluenceModel,
    curvature: str | Preconditioner,
    train: Iterable[ExampleBatch],
    test: Iterable[ExampleBatch],
    *,
    damping: float | str = "auto",
    rcond: float | None = None,
    options: ScoreOptions | None = None,
    outputs: Iterable[str] = ("top_k",),
    top_k: int = 10,
    order: Order = "descending",
) -> InfluenceResult:
    """Every table of a run, computed batch by batch.

    Args:
      model: the model.
      curvature: a name of `CURVATURES`, or a fitted operator.
      train, test: batches; `train` is iterated twice and must give the same examples each time.
      damping, rcond: see `FinishOptions`.
      options: what is scored; see `ScoreOptions` (tables asked for switch on what they need).
      outputs: names of `schemas.OUTPUTS`.
      top_k, order: how many training examples for each test point, and from which end.
    """
    outputs = set(outputs)
    options = dataclasses.replace(
        options or ScoreOptions(),
        self_influence="self_influence" in outputs,
        vectors="influence_vectors" in outputs,
    )
    if isinstance(curvature, str):
        finish = FinishOptions(damping, options.removal == "newton", rcond)
        curvature = fit_curvature(model, curvature_by_name(curvature), train, finish)
    n = curvature.examples if options.normalize == "none" else 0
    rejected: list[tuple[str, Rejected]] = []
    embedded: list[QueryBlock] = []
    for batch in test:
        block, bad = embed_queries(model, curvature, batch)
        embedded.append(block)
        rejected += [("test", r) for r in bad]
    queries = concatenate_queries(embedded, max(1, sum(len(block) for block in embedded)))
    scorer = Scorer(model, curvature, queries, options)
    tops = [TopK(len(block), top_k, order) for block in queries]
    groups = [GroupSums(len(block)) for block in queries]
    parts: dict[str, list[pa.Table]] = {"self_influence": [], "scores": [], "influence_vectors": []}
    for batch in train:
        scored = scorer.score(batch)
        rejected += [("train", r) for r in scored.rejected]
        for block, scores, top, sums in zip(queries, scored.scores, tops, groups, strict=True):
            top.add(scores, scored.batch.ids)
            if "group_influence" in outputs and scored.batch.groups is not None:
                sums.add(scores, scored.batch.groups)
            if "scores" in outputs:
                parts["scores"].append(tables.scores_table(block.ids, scored.batch.ids, scores, n))
        if scored.self_influence is not None:
            parts["self_influence"].append(tables.self_influence_table(scored, n))
        if scored.vectors is not None:
            parts["influence_vectors"].append(tables.influence_vectors_table(scored))
    found: dict[str, pa.Table] = {"rejected": tables.rejected_table(rejected)}
    if "top_k" in outputs:
        found["top_k"] = _concatenate("top_k", [tables.top_k_table(b.ids, t, n) for b, t in zip(queries, tops, strict=True)])
    if "group_influence" in outputs:
        found["group_influence"] = tables.group_influence_table([(b.ids, g) for b, g in zip(queries, groups, strict=True)], n)
    found.update({name: _concatenate(name, part) for name, part in parts.items() if name in outputs})
    return InfluenceResult(found, curvature)


def _concatenate(name: str, parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts) if parts else schemas.TABLES[name].empty_table()


def run_facts(preconditioner: Preconditioner, options: ScoreOptions) -> dict[str, Any]:
    """The metadata of every result file; see `schemas.facts`."""
    return schemas.facts(preconditioner.meta, options.normalize, options.removal)
