"""Every training example against every test point, where it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions, Scoring
from beam_influence.influence_ops.scoring.outputs.table import later_round
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.bundle_outputs import BundleOutputs
from beam_influence.transforms.elements import FILES, PARTS, Bucket, GroupBlock, Part, PartKey, QueryReference, Shard, WrittenFile
from beam_influence.transforms.group_blocks import GROUP_SUMS
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import COUNTS, REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.rounds import ONE_ROUND, Rounds
from beam_influence.transforms.typed import collection, outputs


class _ScoreDoFn(ShardDoFn):
    def __init__(self, wanted: ScoreExamples, number: int, shared: Shared):
        super().__init__(wanted.reader)
        options = later_round(wanted.options) if number else wanted.options
        groups = (wanted.work, wanted.group_bytes)
        self._outputs = BundleOutputs(options, wanted.model, wanted.output, (), number, shared, *groups)
        self._scoring: Scoring | None = None
        self._number = number
        self._rounds = wanted.rounds
        self._chosen: list[QueryReference] | None = None

    def start_bundle(self) -> None:
        self._chosen = None
        self._outputs.start_bundle()

    def process(self, shard: Shard, *sides: Any) -> Iterator[Any]:
        preconditioner, references, _ = sides  # the third makes scoring wait for the verdict on rejected examples
        if self._chosen is None:
            self._chosen = self._rounds.choose(references, self._number)
        if self._chosen or self._number == 0:  # test points took fewer rounds than planned: the files need not be read
            yield from super().process(shard, preconditioner, self._chosen)

    def open(self, sides: tuple) -> None:
        self._scoring = self._outputs.open(*sides)

    def begin_shard(self, shard: Shard) -> None:
        assert self._scoring is not None
        self._outputs.begin_shard(shard, self._scoring)

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._scoring is not None
        scored = self._scoring.scorer.score(batch)
        self._outputs.add(scored)
        return scored.rejected

    def end_shard(self, shard: Shard) -> Iterator[object]:
        return self._outputs.end_shard()

    def abandon_shard(self) -> None:
        self._outputs.abandon_shard()

    def finish_bundle(self) -> Iterator[object]:
        self._scoring = self._chosen = None  # the process keeps the latest; an idle DoFn of an earlier round must not keep that round's
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
      rounds: a round reads the training set and scores it against some of the blocks, the next begins when it has ended.
      work: a folder for temporary files that all workers reach.
      group_bytes: what sums over groups may take in a worker before they leave it.

    In: `Shard`. Out: a dictionary of PCollections: `parts` ((`PartKey`, `Part`)), `group_sums` ((`Bucket`, `GroupBlock`)), `files`
    (`WrittenFile`), `rejected`, `counts`.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    gate: pvalue.PCollection
    options: OutputOptions
    output: str
    accelerator: str | None = None
    rounds: Rounds = ONE_ROUND
    work: str = ""
    group_bytes: int = 0

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        shared, rounds, gate = Shared(), [], self.gate
        for number in range(self.rounds.count):
            rounds.append(self._round(shards, number, gate, shared))
            gate = rounds[-1][COUNTS]
        if len(rounds) == 1:
            return rounds[0]
        # Every round counts and rejects the same examples.
        several = {tag: [each[tag] for each in rounds] for tag in (PARTS, GROUP_SUMS, FILES)}
        return {**rounds[0], **{tag: collection(found | f"Rounds[{tag}]" >> beam.Flatten()) for tag, found in several.items()}}

    def _round(
        self, shards: pvalue.PCollection[Shard], number: int, gate: pvalue.PCollection, shared: Shared
    ) -> dict[str, pvalue.PCollection]:
        label = f"[{number + 1}]" if number else ""
        score = beam.ParDo(
            _ScoreDoFn(self, number, shared), pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.queries), pvalue.AsIter(gate)
        )
        if self.accelerator:
            score.with_resource_hints(accelerator=self.accelerator)  # it changes `score` and returns it
        types = {PARTS: tuple[PartKey, Part], GROUP_SUMS: tuple[Bucket, GroupBlock], FILES: WrittenFile, **REPORT_TYPES}
        scored = outputs(shards | f"Score{label}" >> score.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: scored[tag] for tag in types}
