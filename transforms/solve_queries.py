"""The queries' inverse-Hessian products over the whole training set: conjugate gradients, a pass for each step.

A pass reads every training example once, multiplies its Hessian with one vector for each query that is not solved yet,
and adds: what is combined are T × P sums. No P × P matrix and no sample is needed; the sample's solution is the first
guess. The state of the iteration is a broadcast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types
from apache_beam.utils.shared import Shared

from influence_ops.conjugate_gradients import CgState, advance, start
from influence_ops.example_batch import ExampleBatch, Rejected
from influence_ops.model import InfluenceModel
from influence_ops.scores import QueryBlock, evaluate
from transforms.broadcast import Broadcast
from transforms.elements import QueryReference, Shard, SolverReport, StatisticPart, at_end_of_bundle
from transforms.embed_queries import open_queries, publish_queries
from transforms.files import join
from transforms.merging import MergingCombineFn
from transforms.open_model import ModelSpec
from transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from transforms.typed import collection, outputs

_ROWS = "rows"
_BLOCK_BYTES = 32 << 20


def _to_multiply(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The vectors that the next pass multiplies: the first guess, then the directions of the unsolved queries."""
    if "active" not in arrays:
        return arrays["solution"]
    return arrays["direction"][arrays["active"]]


class _StartDoFn(beam.DoFn):
    def __init__(self, work: str):
        self._work = work

    def process(self, _: None, references: Iterable[QueryReference]) -> Iterator[Broadcast]:
        blocks = open_queries(references)[1]
        nothing = [np.zeros((0, 1))]  # every test point was rejected
        right = np.concatenate([block.gradients for block in blocks] or nothing)
        solution = np.concatenate([block.solved for block in blocks] or nothing)
        yield Broadcast.publish({"right": right, "solution": solution}, {}, join(self._work, "solver", "start"))


class _State:
    """What one process multiplies with in a pass."""

    def __init__(self, model: InfluenceModel, broadcast: Broadcast):
        self.model = model
        self.vectors = np.ascontiguousarray(_to_multiply(broadcast.open()[0]))


class _MultiplyDoFn(ShardDoFn):
    def __init__(self, reader: ShardReader, model: ModelSpec):
        super().__init__(reader)
        self._spec = model
        self._shared = Shared()
        self._sum: np.ndarray | None = None

    def start_bundle(self) -> None:
        self._sum = None

    def process(self, shard: Shard, *sides: Any) -> Iterator[Any]:
        self.open(sides)
        if len(self._state.vectors):  # nothing left to solve: the files need not be read
            yield from super().process(shard, *sides)

    def open(self, sides: tuple) -> None:
        (broadcast,) = sides
        self._state = self._shared.acquire(lambda: _State(self._spec.open(), broadcast), tag=f"{self._spec}|{broadcast.digest}")
        if self._sum is None:
            self._sum = np.zeros(self._state.vectors.shape)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        kept = evaluate(self._state.model, batch)[0]
        if len(kept):
            assert self._sum is not None
            self._sum += self._state.model.hessian_vector_products(kept, self._state.vectors)
        return []

    def finish_bundle(self) -> Iterator[Any]:
        if self._sum is not None and len(self._sum):
            rows = max(1, _BLOCK_BYTES // max(1, self._sum[0].nbytes))
            for first in range(0, len(self._sum), rows):
                name = f"{_ROWS}-{first:09d}"
                yield at_end_of_bundle((name, StatisticPart(name, self._sum[first : first + rows])))
        self._sum = None


@with_input_types(StatisticPart)
@with_output_types(StatisticPart)
class SumPartsCombineFn(MergingCombineFn[StatisticPart]):
    """Adds the arrays of parts of one name."""

    def copy(self, part: StatisticPart) -> StatisticPart:
        return StatisticPart(part.name, np.array(part.array))

    def merge(self, own: StatisticPart, other: StatisticPart) -> StatisticPart:
        own.array.__iadd__(other.array)
        return own


class _AdvanceDoFn(beam.DoFn):
    def __init__(self, model: ModelSpec, tolerance: float, folder: str):
        self._model = model
        self._tolerance = tolerance
        self._folder = folder

    def process(
        self, _: None, state: Broadcast, preconditioner: Broadcast, parts: Iterable[tuple[str, StatisticPart]]
    ) -> Iterator[Broadcast]:
        arrays, _meta = state.open()
        blocks = [part.array for _, part in sorted(parts, key=lambda pair: pair[0])]
        if not blocks:  # solved already
            yield state
            return
        curvature = preconditioner.description
        vectors = _to_multiply(arrays)
        image = np.concatenate(blocks) / curvature["examples"]
        image += self._model.open().regularizer_products(vectors) + float(curvature["damping"]) * vectors
        if "active" in arrays:
            names = CgState._fields
            after = advance(CgState(*(np.array(arrays[name]) for name in names)), image, self._tolerance)
        else:
            after = start(np.asarray(arrays["right"]), self._tolerance, np.asarray(arrays["solution"]), image)
        yield Broadcast.publish(after._asdict(), {}, self._folder)


class _SolvedDoFn(beam.DoFn):
    def __init__(self, work: str):
        self._work = work

    def process(self, _: None, state: Broadcast, references: Iterable[QueryReference]) -> Iterator[Any]:
        arrays, _meta = state.open()
        if "active" not in arrays:
            return
        cg = CgState(*(np.asarray(arrays[name]) for name in CgState._fields))
        keys, blocks = open_queries(references)
        first = 0
        for key, block in zip(keys, blocks, strict=True):
            rows = slice(first, first + len(block))
            solved = QueryBlock(block.ids, block.gradients, cg.best[rows], block.groups)
            yield QueryReference(key, publish_queries(solved, join(self._work, "solved", key)))
            first += len(block)
        residuals = cg.relative_residual
        report = SolverReport(float(residuals.max(initial=0.0)), float(residuals.mean()) if len(residuals) else 0.0, int(cg.active.sum()))
        yield pvalue.TaggedOutput(REPORTS, report)


QUERIES = "queries"
REPORTS = "reports"


@dataclasses.dataclass
class SolveQueries(beam.PTransform):
    """Replaces the queries' solutions by ones over all training examples.

    Args:
      readers: reads the training shards, one for each pass.
      model: the model.
      preconditioner: the curvature of a sample: its solutions are the first guess, its damping and n are used.
      queries: the embedded test points.
      tolerance: the relative residual at which a query is solved; when all are, the passes left read nothing.
      work: a folder for temporary files that all workers reach.

    In: `Shard`, the training files. Out: a dictionary of PCollections: `queries` (`QueryReference`), `reports` (one
    `SolverReport`).
    """

    readers: list[ShardReader]
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    tolerance: float
    work: str

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        once = shards.pipeline | "Once" >> beam.Create([None], reshuffle=False)
        state = once | "Start" >> beam.ParDo(_StartDoFn(self.work), pvalue.AsIter(self.queries)).with_output_types(Broadcast)
        for number, reader in enumerate(self.readers):
            multiply = beam.ParDo(_MultiplyDoFn(reader, self.model), pvalue.AsSingleton(state))
            typed = multiply.with_output_types(tuple[str, StatisticPart], **REPORT_TYPES)
            products = outputs(shards | f"Multiply[{number}]" >> typed.with_outputs(*REPORT_TYPES, main="products"))
            summed = collection(products["products"] | f"Sum[{number}]" >> beam.CombinePerKey(SumPartsCombineFn()))
            folder = join(self.work, "solver", f"state-{number:05d}")
            state = once | f"Advance[{number}]" >> beam.ParDo(
                _AdvanceDoFn(self.model, self.tolerance, folder),
                pvalue.AsSingleton(state),
                pvalue.AsSingleton(self.preconditioner),
                pvalue.AsIter(summed),
            ).with_output_types(Broadcast)
        solve = beam.ParDo(_SolvedDoFn(self.work), pvalue.AsSingleton(state), pvalue.AsIter(self.queries))
        typed = solve.with_output_types(QueryReference, **{REPORTS: SolverReport})
        solved = outputs(once | "Solved" >> typed.with_outputs(REPORTS, main=QUERIES))
        return {QUERIES: solved[QUERIES], REPORTS: solved[REPORTS]}
