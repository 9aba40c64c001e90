"""What an output is: how it takes in scores, and which tables come of it."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import pyarrow as pa

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.ensemble.intervals import CONFIDENCE, interval_factor
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.tables import candidates_table
from beam_influence.influence_ops.scoring.embedded_scorer import EmbeddedScorer
from beam_influence.influence_ops.scoring.part import Part
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.scores import BatchScores, ScoreOptions, Scorer

Quantity = Literal["self_influence", "vectors", "gradients"]
"""What is computed only for outputs that need it: a flag of `ScoreOptions`, and a field of `BatchScores`."""

SINGLE_FILE = "part-00000"
INDEX_ERROR = "index_error"
"""The largest relative error of the rows of the index that was read, in the facts of a table."""
P = TypeVar("P", bound=Part)


def run_facts(curvature: Mapping[str, Any], options: ScoreOptions, of_candidates: bool = False) -> tuple[int, dict[str, Any]]:
    """n for loss_change (0: unknown), and the metadata of every result file, from an operator's `meta`."""
    n = int(curvature["examples"]) if options.normalize == "none" else 0
    return n, schemas.facts(curvature, options.normalize, options.removal, of_candidates)


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """What a run is asked for.

    Attributes:
      tables: names of `table.OUTPUTS`.
      score: which quantities are computed: those that the tables need, see `table.complete_options`.
      top_k, order: how many training examples for each test point, and from which end.
      second_order_groups: see `groups`.
      of_candidates: whether what is scored are candidates, which were not trained on: `schemas.OF_CANDIDATES`.
      by_embedding: whether they are scored by the r numbers of an index, as its rows are.
      per_token: whether `top_k` tells influence by position; see `token_scores`.
      error_draws: how many draws the standard errors of `top_k` and `scores` are of (`Curvature.error_draws`); 0: they have none.
      index_error: the largest relative error of an index's rows as they are stored, which the facts tell; None: no index is read.
    """

    tables: tuple[str, ...]
    score: ScoreOptions
    top_k: int = 10
    order: Order = "descending"
    second_order_groups: bool = False
    of_candidates: bool = False
    by_embedding: bool = False
    index_error: float | None = None
    per_token: bool = False
    error_draws: int = 0

    def schema(self, of: pa.Schema) -> pa.Schema:
        """A table's schema as it is written."""
        if self.per_token and of is schemas.TOP_K:
            of = pa.schema([*of, *schemas.TOKENS])
        if self.error_draws and of in (schemas.TOP_K, schemas.SCORES):
            of = pa.schema([*of, schemas.STANDARD_ERROR, *([schemas.STABLE] if of is schemas.TOP_K else [])])
        return schemas.of_candidates(of) if self.of_candidates else of

    def written(self, rows: pa.Table) -> pa.Table:
        """Rows as they are written."""
        return candidates_table(rows) if self.of_candidates else rows


class Scoring:
    """What outputs are made with on one worker.

    Args:
      options: what is asked for.
      queries: the blocks of test points by key, in order.
      curvature: the operator's `meta`.
      open_operator: gives the model and the operator for it.
      open_solved: gives the blocks with their solutions (of an index: their r numbers), one after the other; None: `queries` have them.

    Attributes:
      n: the number of training examples; 0 where it is unknown or scores are relative.
      facts: the metadata of every result file.
      interval_factor: half the width of a 90 % interval in standard errors; None where there are none.
    """

    def __init__(
        self,
        options: OutputOptions,
        queries: Mapping[str, QueryBlock],
        curvature: Mapping[str, Any],
        open_operator: Callable[[], tuple[ExplainedModel, Preconditioner]],
        open_solved: Callable[[], Iterable[QueryBlock]] | None = None,
    ):
        self.options = options
        self.queries = queries
        self.n, self.facts = run_facts(curvature, options.score, options.of_candidates)
        self.interval_factor = interval_factor(options.error_draws) if options.error_draws else None
        if self.interval_factor is not None:
            self.facts |= {"interval_factor": self.interval_factor, "confidence": CONFIDENCE}
        if options.index_error is not None:
            self.facts[INDEX_ERROR] = options.index_error
        self._open_operator = open_operator
        self._open_solved = open_solved or queries.values

    @functools.cached_property
    def operator(self) -> tuple[ExplainedModel, Preconditioner]:
        """The model and the operator for it, opened when an output first needs them."""
        return self._open_operator()

    @functools.cached_property
    def scorer(self) -> Scorer | EmbeddedScorer:
        """Scores batches against the queries."""
        model, preconditioner = self.operator
        if self.options.by_embedding:
            return EmbeddedScorer(model, preconditioner, self._open_solved())
        return Scorer(model, preconditioner, self._open_solved(), self.options.score)


class FinishedTable(NamedTuple):
    """Rows that are complete: the table's name, and that of the file, without its ending."""

    table: str
    file: str
    rows: pa.Table


class Output(abc.ABC):
    """One result: a table, or several that are made from the same sums. Subclass `RowOutput` or `CombinedOutput`.

    Attributes:
      tables: the schema of each table by its name.
      of_test_points: those of the tables that there are none of without test points.
      is_ranked: whether it keeps the first `top_k` examples of an `order`.
      needs_groups: whether each training example must name its group.
      quantities: what scoring must compute for it, beside influence on test points.
    """

    tables: Mapping[str, pa.Schema]
    of_test_points: frozenset[str] = frozenset()
    is_ranked: bool = False
    needs_groups: bool = False
    quantities: frozenset[Quantity] = frozenset()

    @property
    def name(self) -> str:
        """The first table's."""
        return next(iter(self.tables))

    def needs(self, options: OutputOptions) -> frozenset[Quantity]:
        """The quantities for just what is asked for."""
        return self.quantities


class RowOutput(Output):
    """A table with rows for each training example; it is written while the training data is read, a file for each file of it."""

    @abc.abstractmethod
    def rows(self, scored: BatchScores, scoring: Scoring) -> Iterator[pa.Table]:
        """The rows of a batch of at least one example."""


class CombinedOutput(Output, Generic[P]):
    """Tables of what is summed, or kept, over all training examples.

    Attributes:
      by_group: whether its parts are `GroupSums`, which leave a worker, and end in tables, some groups at a time; all parts have the same
        groups then. False: each part ends in a table of its own.
    """

    by_group: bool = False

    @abc.abstractmethod
    def create(self, scoring: Scoring) -> dict[str, P]:
        """The parts before the first example, by key: a block of test points' own key, or another."""

    @abc.abstractmethod
    def add(self, parts: Mapping[str, P], scored: BatchScores, scoring: Scoring) -> None:
        """Takes in a batch of at least one example."""

    @abc.abstractmethod
    def finish(self, parts: Mapping[str, P], scoring: Scoring) -> Iterator[FinishedTable]:
        """The tables, from parts over all training examples: those asked for. It is given any of the parts, or
        all of them for some groups; see `by_group`."""
