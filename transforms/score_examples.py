"""Every training example against every test point, where it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.bundle_outputs import BundleOutputs
from beam_influence.transforms.elements import FILES, PARTS, Part, PartKey, QueryReference, Shard, WrittenFile
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.typed import outputs


class _ScoreDoFn(ShardDoFn):
    def __init__(self, wanted: ScoreExamples):
        super().__init__(wanted.reader)
        self._outputs = BundleOutputs(wanted.options, wanted.model, wanted.output)

    def start_bundle(self) -> None:
        self._outputs.start_bundle()

    def open(self, sides: tuple) -> None:
        preconditioner, references, _ = sides  # the third makes scoring wait for the verdict on rejected examples
        self._scoring = self._outputs.open(preconditioner, references)

    def begin_shard(self, shard: Shard) -> None:
        self._outputs.begin_shard(shard, self._scoring)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        scored = self._scoring.scorer.score(batch)
        self._outputs.add(scored)
        return scored.rejected

    def end_shard(self, shard: Shard) -> Iterator[object]:
        return self._outputs.end_shard()

    def abandon_shard(self) -> None:
        self._outputs.abandon_shard()

    def finish_bundle(self) -> Iterator[object]:
        return self._outputs.finish_bundle()


@dataclasses.dataclass
class ScoreExamples(beam.PTransform):
    """Scores the training examples where they are read; what leaves a worker are the outputs' parts: tables of k, and sums.

    Args:
      reader: reads the training shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`.
      queries: `QueryReference`s.
      gate: any collection that must be complete before scoring starts.
      options: what is asked for.
      output: the folder of the results; tables with rows for each training example are written here, a file a shard.
      accelerator: Beam's resource hint for this step alone, or None.

    In: `Shard`. Out: a dictionary of PCollections: `parts` ((`PartKey`, `Part`)), `files` (`WrittenFile`), `rejected`, `counts`.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    gate: pvalue.PCollection
    options: OutputOptions
    output: str
    accelerator: str | None = None

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        score = beam.ParDo(
            _ScoreDoFn(self),
            pvalue.AsSingleton(self.preconditioner),
            pvalue.AsIter(self.queries),
            pvalue.AsIter(self.gate),
        )
        if self.accelerator:
            score.with_resource_hints(accelerator=self.accelerator)  # it changes `score` and returns it
        types = {PARTS: tuple[PartKey, Part], FILES: WrittenFile, **REPORT_TYPES}
        scored = outputs(shards | "Score" >> score.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: scored[tag] for tag in types}
