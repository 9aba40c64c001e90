"""The whole computation as plain loops in one process: the oracle of the Beam job, from the same parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from beam_influence.influence_ops.curvature import Curvature, FinishOptions, Preconditioner, curvature_by_name, fit
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.groups import add_hessian_products, first_steps, group_tables, group_vectors, second_order_vectors
from beam_influence.influence_ops.scoring.query_solver import System, solutions, solve
from beam_influence.influence_ops.scoring.scores import (
    BatchScores,
    QueryBlock,
    ScoreOptions,
    Scorer,
    concatenate_queries,
    embed_queries,
    evaluate,
)
from beam_influence.influence_ops.scoring.top_k import Order, TopK


@dataclasses.dataclass(frozen=True)
class InfluenceResult:
    """Result tables by name (see `schemas`), and the operator they were made with."""

    tables: dict[str, pa.Table]
    preconditioner: Preconditioner


def fit_curvature(
    model: ExplainedModel, curvature: Curvature, train: Iterable[ExampleBatch], options: FinishOptions
) -> Preconditioner:
    """(H + λI)⁻¹ from batches of training examples; examples that are not finite are left out."""

    return fit(model, curvature, lambda: _finite(model, train), options)


def _finite(model: ExplainedModel, train: Iterable[ExampleBatch]) -> Iterator[ExampleBatch]:
    for batch in train:
        kept = evaluate(model, batch)[0]
        if len(kept):
            yield kept


def compute_in_memory(
    model: ExplainedModel,
    curvature: str | Curvature | Preconditioner,
    train: Iterable[ExampleBatch],
    test: Iterable[ExampleBatch],
    *,
    damping: float | str = "auto",
    rcond: float | None = None,
    rank: int | None = None,
    options: ScoreOptions | None = None,
    outputs: Iterable[str] = ("top_k",),
    top_k: int = 10,
    order: Order = "descending",
    second_order_groups: bool = False,
    passes: int = 0,
    tolerance: float = 1e-6,
) -> InfluenceResult:
    """Every table of a run, computed batch by batch.

    Args:
      model: the model.
      curvature: a name of `CURVATURES`, a curvature, or a fitted operator.
      train, test: batches; `train` is iterated several times and must give the same examples each time.
      damping, rcond, rank: see `FinishOptions`.
      options: what is scored; see `ScoreOptions` (tables asked for switch on what they need).
      outputs: names of `schemas.OUTPUTS`.
      top_k, order: how many training examples for each test point, and from which end.
      second_order_groups: see `groups`.
      passes, tolerance: over the training data that solve the test points, at most, for a curvature with `systems`.
    """
    wanted = frozenset(outputs)
    options = complete_options(options or ScoreOptions(), wanted, second_order_groups)
    if isinstance(curvature, str):
        curvature = curvature_by_name(curvature)
    system = curvature.systems if isinstance(curvature, Curvature) else None
    if isinstance(curvature, Curvature):
        curvature = fit_curvature(model, curvature, train, FinishOptions(damping, options.removal == "newton", rcond, rank))
    preconditioner = curvature.bind(model)
    n, _ = run_facts(preconditioner.meta, options)
    rejected: list[tuple[str, Rejected]] = []
    embedded: list[QueryBlock] = []
    for batch in test:
        block, bad = embed_queries(model, preconditioner, batch)
        embedded.append(block)
        rejected += [("test", r) for r in bad]
    queries = concatenate_queries(embedded, max(1, sum(len(block) for block in embedded)))
    if passes and system is not None:
        queries = [solve_over(train, model, preconditioner, system, block, passes, tolerance) for block in queries]
    scorer = Scorer(model, preconditioner, queries, options)
    tops = [TopK(len(block), top_k, order) for block in queries]
    self_top = TopK(1, top_k, order)
    sums = [GroupSums(len(block)) for block in queries]
    gradients = GroupSums(model.size)
    parts: dict[str, list[pa.Table]] = {"self_influence": [], "scores": [], "influence_vectors": []}
    for batch in train:
        scored = scorer.score(batch)
        rejected += [("train", r) for r in scored.rejected]
        for block, scores, top in zip(queries, scored.scores, tops, strict=True):
            top.add(scores, scored.batch.ids)
            if "scores" in wanted:
                parts["scores"].append(tables.scores_table(block.ids, scored.batch.ids, scores, n))
        add_to_groups(scored, sums, gradients)
        if scored.self_influence is not None:
            self_top.add(scored.self_influence[None], scored.batch.ids)
            parts["self_influence"].append(tables.self_influence_table(scored, n))
        if scored.vectors is not None:
            parts["influence_vectors"].append(tables.influence_vectors_table(scored))
    found: dict[str, pa.Table] = {"rejected": tables.rejected_table(rejected)}
    found["top_k"] = _concatenate("top_k", [tables.top_k_table(b.ids, t, n) for b, t in zip(queries, tops, strict=True)])
    found["self_influence_top_k"] = tables.self_influence_top_k_table(self_top, n)
    found.update({name: _concatenate(name, part) for name, part in parts.items()})
    if wanted & set(schemas.GROUP_OUTPUTS):
        vectors = group_vectors(preconditioner, gradients) if options.gradients else None
        if second_order_groups:
            assert vectors is not None
            steps = first_steps(model, preconditioner, vectors)
            products = GroupSums(model.size)
            for batch in train:
                add_hessian_products(model, products, batch, vectors.names, steps)
            vectors = second_order_vectors(model, preconditioner, vectors, steps, products)
        found.update(group_tables(queries, sums, vectors, options.normalize, second_order_groups, n))
    return InfluenceResult({name: table for name, table in found.items() if name in wanted or name == "rejected"}, preconditioner)


def solve_over(
    train: Iterable[ExampleBatch],
    model: ExplainedModel,
    preconditioner: Preconditioner,
    system: System,
    queries: QueryBlock,
    passes: int,
    tolerance: float,
) -> QueryBlock:
    """The queries solved over all of `train` in at most `passes` passes; see `query_solver`."""
    precondition = preconditioner.bind(model).apply if system == "gauss_newton" else None

    def finite() -> Iterator[ExampleBatch]:
        return _finite(model, train)

    meta = preconditioner.meta
    state = solve(system, model, finite, queries.gradients, queries.solved, meta, passes, tolerance, precondition)
    return dataclasses.replace(queries, solved=solutions(state)[0])


def complete_options(options: ScoreOptions, outputs: frozenset[str], second_order_groups: bool) -> ScoreOptions:
    """The options with everything switched on that the tables `outputs` need."""
    of_groups = bool(outputs & set(schemas.GROUP_OUTPUTS))
    vectors_of_groups = options.normalize != "none" or second_order_groups or bool(outputs & {"group_self_influence", "group_vectors"})
    return dataclasses.replace(
        options,
        self_influence=bool(outputs & {"self_influence", "self_influence_top_k"}),
        vectors="influence_vectors" in outputs,
        gradients=of_groups and vectors_of_groups,
    )


def add_to_groups(scored: BatchScores, sums: list[GroupSums], gradients: GroupSums) -> None:
    """Adds a batch to its groups: plain influence to one of `sums` for each query block, gradients where there are any."""
    if scored.batch.groups is None or not len(scored.batch):
        return
    for plain, part in zip(scored.plain_scores, sums, strict=True):
        part.add(plain, scored.batch.groups)
    if scored.gradients is not None:
        gradients.add(scored.gradients.T, scored.batch.groups)


def _concatenate(name: str, parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts) if parts else schemas.TABLES[name].empty_table()


def run_facts(curvature: Mapping[str, Any], options: ScoreOptions) -> tuple[int, dict[str, Any]]:
    """n for loss_change (0: unknown), and the metadata of every result file, from an operator's `meta`."""
    n = int(curvature["examples"]) if options.normalize == "none" else 0
    return n, schemas.facts(curvature, options.normalize, options.removal)
