"""The queries' inverse-curvature products over the whole training set: conjugate gradients, a pass for each step.

A pass reads every training example once, multiplies its curvature with one vector for each query that is not solved yet,
and adds: what is combined are T × P sums. No P × P matrix is needed. The state of the iteration is a broadcast; see
`beam_influence.influence_ops.scoring.query_solver`. Where all this is more than a worker's memory, test points are solved in rounds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.influence_ops.results.tables import residuals_table
from beam_influence.influence_ops.scoring.query_block import QUERY_ARRAYS, QueryBlock
from beam_influence.influence_ops.scoring.query_solver import (
    System,
    batch_products,
    begin,
    errors,
    multiplied,
    solutions,
    step,
    to_multiply,
)
from beam_influence.transforms.broadcast import INLINE_LIMIT, Broadcast
from beam_influence.transforms.elements import FILES, QueryReference, Shard, SolverReport, StatisticPart, WrittenFile, at_end_of_bundle
from beam_influence.transforms.embed_queries import open_queries, publish_queries
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.finish_curvature import open_operator
from beam_influence.transforms.merging import MergingCombineFn
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.rounds import ONE_ROUND, Rounds
from beam_influence.transforms.sent_bytes import count_sent
from beam_influence.transforms.typed import collection, outputs, run_once

_NUMBERS = "numbers"
_PART_NUMBERS = 4 << 20  # 32 MB in float64, also where one query has more


class _ChooseDoFn(beam.DoFn):
    def __init__(self, rounds: Rounds, number: int):
        self._rounds = rounds
        self._number = number

    def process(self, _: None, references: Iterable[QueryReference], solved: Iterable[QueryReference]) -> Iterator[QueryReference]:
        yield from self._rounds.choose(references, self._number)  # what is solved in the rounds before is complete by now


class _StartDoFn(beam.DoFn):
    def __init__(self, wanted: SolveQueries, work: str):
        self._model = wanted.model
        self._system: System = wanted.system
        self._passes = len(wanted.readers) // wanted.solves
        self._tolerance = wanted.tolerance
        self._work = work

    def process(self, _: None, references: Iterable[QueryReference], preconditioner: Broadcast | None = None) -> Iterator[Broadcast]:
        blocks = open_queries(references, QUERY_ARRAYS)[1]
        nothing = [np.zeros((0, 1))]  # every test point was rejected
        right = np.concatenate([block.gradients for block in blocks] or nothing)
        solution = np.concatenate([block.solved for block in blocks] or nothing)

        def opened() -> tuple[ExplainedModel, Preconditioner]:
            assert preconditioner is not None  # of segments, which alone ask for it
            return open_operator(self._model, preconditioner)

        state = begin(self._system, right, solution, self._passes, self._tolerance, opened)
        yield Broadcast.publish(state, {}, join(self._work, "solver", "start"))


class _State:
    """What one process multiplies with in a pass."""

    def __init__(self, model: ExplainedModel, broadcast: Broadcast):
        state = broadcast.open()[0]
        self.model = model
        self.multiplied = multiplied(state, model)
        self.vectors = np.ascontiguousarray(to_multiply(state))


class _MultiplyDoFn(ShardDoFn):
    def __init__(self, reader: ShardReader, model: ModelSpec, system: System, shared: Shared):
        super().__init__(reader)
        self._spec = model
        self._system: System = system
        self._shared = shared
        self._state: _State | None = None
        self._sum: np.ndarray | None = None

    def start_bundle(self) -> None:
        self._sum = None

    def process(self, shard: Shard, *sides: Any) -> Iterator[Any]:
        self.open(sides)
        if self._state is not None and len(self._state.vectors):  # nothing left to solve: the files need not be read
            yield from super().process(shard, *sides)

    def open(self, sides: tuple) -> None:
        (broadcast,) = sides
        self._state = state = self._shared.acquire(lambda: _State(self._spec.session(), broadcast), tag=f"{self._spec}|{broadcast.digest}")
        if self._sum is None:
            self._sum = np.zeros(state.vectors.shape)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._state is not None and self._sum is not None
        kept = evaluate(self._state.model, batch)[0]
        if len(kept):
            self._sum += batch_products(self._system, self._state.multiplied, kept, self._state.vectors)
        return []

    def finish_bundle(self) -> Iterator[Any]:
        if self._sum is not None and len(self._sum):
            count_sent(self._reader.stage, [self._sum])
            flat = self._sum.ravel()
            for first in range(0, len(flat), _PART_NUMBERS):
                name = f"{_NUMBERS}-{first:015d}"
                yield at_end_of_bundle((name, StatisticPart(name, flat[first : first + _PART_NUMBERS])))
        self._sum = self._state = None  # the process keeps the latest; an idle DoFn of an earlier pass must not keep that pass's


@with_input_types(StatisticPart)
@with_output_types(StatisticPart)
class SumPartsCombineFn(MergingCombineFn[StatisticPart]):
    """Adds the arrays of parts of one name."""

    def copy(self, element: StatisticPart) -> StatisticPart:
        return StatisticPart(element.name, np.array(element.array))

    def merge(self, total: StatisticPart, element: StatisticPart) -> StatisticPart:
        np.add(total.array, element.array, out=total.array)
        return total


class _AdvanceDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, system: System, tolerance: float, folder: str):
        self._model = model
        self._system: System = system
        self._tolerance = tolerance
        self._folder = folder

    def process(
        self, _: None, state: Broadcast, preconditioner: Broadcast, parts: Iterable[tuple[str, StatisticPart]]
    ) -> Iterator[Broadcast]:
        blocks = [part.array for _, part in sorted(parts, key=lambda pair: pair[0])]
        if not blocks:  # solved already
            yield state
            return
        opened = functools.partial(open_operator, self._model, preconditioner)
        before = state.open()[0]
        summed = np.concatenate(blocks).reshape(-1, before["solution"].shape[1])
        after = step(self._system, before, summed, self._tolerance, opened)
        yield Broadcast.publish(after, {}, self._folder)


class _SolvedDoFn(beam.DoFn):
    def __init__(self, wanted: SolveQueries, inline_limit: int):
        self._output = wanted.output
        self._work = wanted.work
        self._model = wanted.model if wanted.uncertainty else None
        self._inline_limit = inline_limit

    def process(self, _: None, state: Broadcast, preconditioner: Broadcast, references: Iterable[QueryReference]) -> Iterator[Any]:
        arrays, _meta = state.open()
        if "active" not in arrays:
            return
        solved, residuals, unsolved = solutions(arrays)
        keys, blocks = open_queries(references, () if self._model is None else ("gradients",))
        unknown = None
        if self._model is not None:
            right = np.concatenate([block.gradients for block in blocks])
            operator = open_operator(self._model, preconditioner)[1]
            unknown = errors(arrays, right, operator.meta, operator.apply)
        first, left = 0, self._inline_limit
        for key, block in zip(keys, blocks, strict=True):
            rows = slice(first, first + len(block))
            table = residuals_table(block.ids, residuals[rows])
            facts = schemas.facts(preconditioner.description, "none", "first_order")
            written = write_table(self._output, "residuals", f"block-{key}", schemas.RESIDUALS, table, facts, BeamFiles())
            yield pvalue.TaggedOutput(FILES, written)
            nothing, of_rows = np.zeros((len(block), 0)), None if unknown is None else unknown[rows]
            better = QueryBlock(block.ids, nothing, solved[rows], block.groups, errors=of_rows)
            broadcast = publish_queries(better, join(self._work, "solved", key), left)
            left -= broadcast.inline_bytes
            yield QueryReference(key, broadcast)
            first += len(block)
        points = len(residuals)
        report = SolverReport(float(residuals.max(initial=0.0)), float(residuals.sum()) / max(points, 1), unsolved, points)
        yield pvalue.TaggedOutput(REPORTS, report)


QUERIES = "queries"
REPORTS = "reports"


@dataclasses.dataclass
class SolveQueries(beam.PTransform):
    """Replaces the queries' solutions by ones over all training examples.

    Args:
      readers: reads the training shards, one for each pass of each solve.
      model: the model.
      system: which matrix.
      preconditioner: the fitted operator, one `Broadcast`: preconditioner, or first guess; its damping and n are used.
      queries: the embedded test points.
      tolerance: the relative residual at which a query is solved; when all are, the passes left read nothing.
      output: the folder of the results, for the table `residuals`.
      work: a folder for temporary files that all workers reach.
      rounds: of test points that are solved together; the next begins when one is solved.
      uncertainty: whether what is not known of the solutions is kept too; of a system with a preconditioner.
      solves: how many of them a test point takes, one after the other; see `Curvature`.

    In: `Shard`, the training files. Out: a dictionary of PCollections: `queries` (`QueryReference`), `reports` (a
    `SolverReport` a round), `files` (`WrittenFile`).
    """

    readers: list[ShardReader]
    model: ModelSpec
    system: System
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    tolerance: float
    output: str
    work: str
    rounds: Rounds = ONE_ROUND
    uncertainty: bool = False
    solves: int = 1

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        shared, found, queries = Shared(), [], self.queries
        for number in range(self.rounds.count):
            if self.rounds.count > 1:
                before = found[-1][QUERIES] if found else shards.pipeline | "NothingSolved" >> beam.Create([], reshuffle=False)
                sides = (pvalue.AsIter(self.queries), pvalue.AsIter(before))
                queries = run_once(shards.pipeline, f"Choose[{number + 1}]", _ChooseDoFn(self.rounds, number), QueryReference, *sides)
            found.append(self._round(shards, queries, number, shared))
        if len(found) == 1:
            return found[0]
        return {tag: collection([each[tag] for each in found] | f"Rounds[{tag}]" >> beam.Flatten()) for tag in found[0]}

    def _round(
        self, shards: pvalue.PCollection[Shard], queries: pvalue.PCollection[QueryReference], number: int, shared: Shared
    ) -> dict[str, pvalue.PCollection]:
        """The passes that solve some of the queries."""
        start, label = _StartDoFn(self, join(self.work, f"round-{number:05d}")), f"{number + 1}," if number else ""
        of_round, sides = f"[{number + 1}]" if number else "", list[pvalue.AsSideInput]([pvalue.AsIter(queries)])
        if self.system == "segments":  # a side input costs Flink buffers
            sides.append(pvalue.AsSingleton(self.preconditioner))
        state = run_once(shards.pipeline, f"Start{of_round}", start, Broadcast, *sides)
        for place, reader in enumerate(self.readers, start=1):
            multiply = beam.ParDo(_MultiplyDoFn(reader, self.model, self.system, shared), pvalue.AsSingleton(state))
            typed = multiply.with_output_types(tuple[str, StatisticPart], **REPORT_TYPES)
            products = outputs(shards | f"Multiply[{label}{place}]" >> typed.with_outputs(*REPORT_TYPES, main="products"))
            summed = collection(products["products"] | f"Sum[{label}{place}]" >> beam.CombinePerKey(SumPartsCombineFn()))
            folder = join(self.work, f"round-{number:05d}", "solver", f"state-{place:05d}")
            advance = _AdvanceDoFn(self.model, self.system, self.tolerance, folder)
            sides = (pvalue.AsSingleton(state), pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(summed))
            state = run_once(shards.pipeline, f"Advance[{label}{place}]", advance, Broadcast, *sides)
        sides = (pvalue.AsSingleton(state), pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(queries))
        solve = beam.ParDo(_SolvedDoFn(self, INLINE_LIMIT if self.rounds.count == 1 else 0), *sides)
        typed = solve.with_output_types(QueryReference, **{REPORTS: SolverReport, FILES: WrittenFile})
        once = shards.pipeline | f"Once{of_round}" >> beam.Create([None], reshuffle=False)
        solved = outputs(once | f"Solved{of_round}" >> typed.with_outputs(REPORTS, FILES, main=QUERIES))
        return {tag: solved[tag] for tag in (QUERIES, REPORTS, FILES)}
