"""The whole computation as plain loops in one process: the oracle of the Beam job, from the same parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import pyarrow as pa

from beam_influence.influence_ops.curvature import Curvature, FinishOptions, Preconditioner, curvature_by_name, fit
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results import tables
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.groups import add_hessian_products, first_steps, group_vectors
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions, Scoring
from beam_influence.influence_ops.scoring.outputs.collector import Collector
from beam_influence.influence_ops.scoring.outputs.groups import GRADIENTS, GROUPS, PRODUCTS
from beam_influence.influence_ops.scoring.outputs.table import (
    OUTPUTS,
    complete_options,
    refuse_for_candidates,
    refuse_for_tokens,
    with_errors,
)
from beam_influence.influence_ops.scoring.part import Part
from beam_influence.influence_ops.scoring.query_block import QUERY_ARRAYS, QueryArray, QueryBlock, concatenate_queries
from beam_influence.influence_ops.scoring.query_solver import System, errors, solutions, solve
from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.scores import ScoreOptions, embed_queries
from beam_influence.influence_ops.scoring.token_scores import add_token_scores, pairs_by_example
from beam_influence.influence_ops.scoring.top_k import TopK

GROUPS_LIMIT = 1 << 30
"""The most bytes that sums over groups may take."""


@dataclasses.dataclass(frozen=True)
class InfluenceResult:
    """Result tables by name (see `OUTPUTS`), and the operator they were made with."""

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
    candidates: Iterable[ExampleBatch] | None = None,
    per_token: bool = False,
    uncertainty: bool = False,
) -> InfluenceResult:
    """Every table of a run, computed batch by batch.

    Args:
      model: the model.
      curvature: a name of `CURVATURES`, a curvature, or a fitted operator.
      train, test: batches; `train` is iterated several times and must give the same examples each time.
      damping, rcond, rank: see `FinishOptions`.
      options: what is scored; see `ScoreOptions` (tables asked for switch on what they need).
      outputs: names of `OUTPUTS`.
      top_k, order: how many training examples for each test point, and from which end.
      second_order_groups: see `groups`.
      candidates: batches of examples that were not trained on, scored in place of `train`: would it help to add them?
      per_token: whether `top_k` tells influence by position; `train` (or `candidates`) is iterated once more.
      uncertainty: whether `top_k` and `scores` tell the standard error of each score; of a curvature, not a fitted operator.
      passes, tolerance: over the training data that solve the test points, at most and for each solve, for a curvature with `systems`.
    """
    asked, score, of_candidates = tuple(outputs), options or ScoreOptions(), candidates is not None
    if of_candidates:
        refuse_for_candidates(asked, score, second_order_groups)
    wanted = complete_options(OutputOptions(asked, score, top_k, order, second_order_groups, of_candidates, per_token=per_token))
    if isinstance(curvature, str):
        curvature = curvature_by_name(curvature)
    if uncertainty:
        wanted = with_errors(wanted, curvature, passes)
    system = curvature.systems if isinstance(curvature, Curvature) else None
    if isinstance(curvature, Curvature):
        curvature = fit_curvature(model, curvature, train, FinishOptions(damping, wanted.score.removal == "newton", rcond, rank))
    preconditioner = curvature.bind(model)
    rejected: list[tuple[str, Rejected]] = []
    solves = passes > 0 and system is not None
    needs: tuple[QueryArray, ...] = QUERY_ARRAYS if second_order_groups or solves else ("solved",)
    if per_token:
        refuse_for_tokens(wanted, str(preconditioner.meta["curvature"]), passes if solves else 0)
        needs = (*needs, "placed")
    if uncertainty and not solves:
        needs = (*needs, "errors")
    queries = _embed(model, preconditioner, test, needs, rejected)
    if system is not None and solves:
        queries = [solve_over(train, model, preconditioner, system, block, passes, tolerance, uncertainty) for block in queries]
    blocks = {f"{number:05d}": block for number, block in enumerate(queries)}
    scoring = Scoring(wanted, blocks, preconditioner.meta, lambda: (model, preconditioner))
    collector = Collector(scoring)
    parts: dict[str, list[pa.Table]] = {table: [] for table in wanted.tables}
    for batch in train if candidates is None else candidates:
        scored = scoring.scorer.score(batch)
        rejected += [("train" if candidates is None else "candidates", r) for r in scored.rejected]
        collector.add(scored, lambda table, rows: parts[table].append(rows))
        _refuse_large(collector)
    if second_order_groups and GROUPS in collector.parts:
        _multiply_groups(collector.parts[GROUPS], train, model, preconditioner)
    if per_token:
        _place(collector, model, preconditioner, blocks, train if candidates is None else candidates)
    for finished in collector.finish():
        parts[finished.table].append(finished.rows)
    return InfluenceResult({**_whole_tables(parts, wanted), "rejected": tables.rejected_table(rejected)}, preconditioner)


def _refuse_large(collector: Collector) -> None:
    """
    Raises:
      ValueError: sums over groups take more than `GROUPS_LIMIT` bytes, which the job adds up some groups at a time.
    """
    sums = [part for parts in collector.parts.values() for part in parts.values() if isinstance(part, GroupSums)]
    if (size := sum(part.nbytes for part in sums)) > GROUPS_LIMIT:
        raise ValueError(
            f"the sums over {len(sums[0].names):,} groups take {size:,} bytes, more than {GROUPS_LIMIT >> 20:,} MiB in one process; "
            "compute them by the job, `run`, or use fewer groups"
        )


def _embed(
    model: ExplainedModel,
    preconditioner: Preconditioner,
    test: Iterable[ExampleBatch],
    needs: tuple[QueryArray, ...],
    rejected: list[tuple[str, Rejected]],
) -> list[QueryBlock]:
    """The test points as one block, or none; those that can't be used are added to `rejected`."""
    embedded: list[QueryBlock] = []
    for batch in test:
        block, bad = embed_queries(model, preconditioner, batch, needs)
        embedded.append(block)
        rejected += [("test", r) for r in bad]
    return concatenate_queries(embedded, max(1, sum(len(block) for block in embedded)))


def _whole_tables(parts: dict[str, list[pa.Table]], wanted: OutputOptions) -> dict[str, pa.Table]:
    schemas = {table: wanted.schema(OUTPUTS[table].tables[table]) for table in parts}
    return {table: pa.concat_tables(rows) if rows else schemas[table].empty_table() for table, rows in parts.items()}


def _place(
    collector: Collector,
    model: ExplainedModel,
    preconditioner: Preconditioner,
    queries: dict[str, QueryBlock],
    batches: Iterable[ExampleBatch],
) -> None:
    """Adds scores by position to the tables of the best."""
    tops = {key: part for key, part in collector.parts["top_k"].items() if isinstance(part, TopK)}
    pairs = pairs_by_example(tops)
    for batch in batches:
        add_token_scores(tops, pairs, model, preconditioner, queries, batch, collector.normalize)


def _multiply_groups(
    parts: dict[str, Part], train: Iterable[ExampleBatch], model: ExplainedModel, preconditioner: Preconditioner
) -> None:
    """Adds the second pass of second-order groups to their parts."""
    gradients = parts[GRADIENTS]
    assert isinstance(gradients, GroupSums)
    groups = group_vectors(preconditioner, gradients)
    steps = first_steps(model, preconditioner, groups)
    products = GroupSums(model.size)
    step_of = dict(zip(groups.names, steps, strict=True))
    for batch in train:
        add_hessian_products(model, products, batch, step_of.__getitem__)
    parts[PRODUCTS] = products


def solve_over(
    train: Iterable[ExampleBatch],
    model: ExplainedModel,
    preconditioner: Preconditioner,
    system: System,
    queries: QueryBlock,
    passes: int,
    tolerance: float,
    uncertainty: bool = False,
) -> QueryBlock:
    """The queries solved over all of `train` in at most `passes` passes a solve, and what is not known of them; see `query_solver`."""
    operator = preconditioner.bind(model)

    def finite() -> Iterator[ExampleBatch]:
        return _finite(model, train)

    state = solve(system, model, operator, finite, queries.gradients, queries.solved, passes, tolerance)
    unknown = errors(state, queries.gradients, operator.meta, operator.apply) if uncertainty and system == "gauss_newton" else None
    return dataclasses.replace(queries, solved=solutions(state)[0], errors=unknown)
