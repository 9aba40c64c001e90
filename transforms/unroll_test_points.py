"""The blocks of test points, each gone through the whole training backward by itself, and their tables."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.typehints.decorators import IOTypeHints
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.smoothness import changed_weights, predicted_changes
from beam_influence.influence_ops.replay.training_run import TrainingRun
from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.results.result_files import ParquetFile, write_table
from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.transforms.elements import FILES, RejectedExample, Shard, ShardCount, WrittenFile
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.open_replay import Replay, TrainingRecipe, open_run
from beam_influence.transforms.read_shards import COUNTS, REJECTED, REPORT_TYPES, ShardReader
from beam_influence.transforms.typed import collection, outputs, run_once

STAGE = "unroll"
PREDICTED = "predicted"
_PAIRS = 1 << 17  # rows of `scores` made at once


@dataclasses.dataclass(frozen=True)
class PointBlock:
    """Some test points: a batch of a shard, by its number there."""

    shard: Shard
    number: int

    @property
    def key(self) -> str:
        """A name of digits that orders blocks."""
        return f"{self.shard.key}-{self.number:05d}"

    def read(self, reader: ShardReader) -> ExampleBatch:
        """The examples."""
        for number, (batch, _) in enumerate(reader.read(self.shard)):
            if number == self.number:
                return batch
        raise ValueError(f"{self.shard.path} has fewer test points than when the run began; start it again")


@dataclasses.dataclass(frozen=True)
class ChangedTrainings:
    """The trainings with other weights by which the derivative is measured; see `smoothness`."""

    count: int
    seed: int
    step: float

    def weights(self, examples: int) -> np.ndarray:
        """w of each, [R, n]."""
        return np.array([changed_weights(examples, number, self.seed, self.step) for number in range(self.count)]).reshape(-1, examples)


@dataclasses.dataclass(frozen=True)
class PointLosses:
    """Numbers for the first block's test points: of one training, or predicted for all.

    Attributes:
      number: of the training; −1: none's.
      values: a row for each training, or one.
    """

    number: int
    values: tuple[tuple[float, ...], ...]


@dataclasses.dataclass
class CutTestPoints(beam.PTransform):
    """Finds the blocks of test points, which are read where they are used.

    Args:
      reader: reads the test shards, a block at a time.

    In: `Shard`. Out: a dictionary of PCollections: `blocks` (`PointBlock`), `first` (the first of them), `rejected`, `counts`.
    """

    reader: ShardReader

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        cut = beam.ParDo(_CutDoFn(self.reader)).with_output_types(PointBlock, **REPORT_TYPES)
        found = outputs(shards | "Cut" >> cut.with_outputs(REJECTED, COUNTS, main="blocks"))
        # The blocks of a file are found by one worker, and take long: all should have some.
        blocks = collection(found["blocks"] | "SpreadBlocks" >> beam.Reshuffle().with_output_types(PointBlock))
        first = run_once(shards.pipeline, "FirstBlock", _FirstBlockDoFn(), PointBlock, pvalue.AsIter(found["blocks"]))
        return {"blocks": blocks, "first": first, REJECTED: found[REJECTED], COUNTS: found[COUNTS]}


class _CutDoFn(beam.DoFn):
    def __init__(self, reader: ShardReader):
        self._reader = reader

    def process(self, shard: Shard) -> Iterator[object]:
        used = left_out = 0
        for number, (batch, rejected) in enumerate(self._reader.read(shard)):
            used, left_out = used + len(batch), left_out + len(rejected)
            for one in rejected:
                yield pvalue.TaggedOutput(REJECTED, RejectedExample.of(shard.split, one))
            if len(batch):
                yield PointBlock(shard, number)
        yield pvalue.TaggedOutput(COUNTS, ShardCount(STAGE, shard.split, shard.key, used, left_out))


class _FirstBlockDoFn(beam.DoFn):
    def process(self, _: None, blocks: Iterable[PointBlock]) -> Iterator[PointBlock]:
        first = min(blocks, key=lambda block: block.key, default=None)
        if first is None:
            raise ValueError("no test point can be used; the table of rejected examples says why")
        yield first


@dataclasses.dataclass
class UnrollTestPoints(beam.PTransform):
    """Goes through the training backward for each block of test points, and writes its rows of the tables.

    Args:
      recipe: the training.
      reader: reads the test shards, a block at a time.
      replay: the training replayed forward, one `Replay`.
      first: the first block, whose predictions for `changed` are given too.
      changed: the trainings with other weights.
      output: the folder of the results.
      wanted: the tables, of `top_k` and `scores`.
      top_k, order: of `top_k`.

    In: `PointBlock`. Out: a dictionary of PCollections: `files` (`WrittenFile`), `predicted` (`PointLosses`), `rejected`.
    """

    recipe: TrainingRecipe
    reader: ShardReader
    replay: pvalue.PCollection[Replay]
    first: pvalue.PCollection[PointBlock]
    changed: ChangedTrainings
    output: str
    wanted: tuple[str, ...]
    top_k: int
    order: Order

    def expand(self, blocks: pvalue.PCollection[PointBlock]) -> dict[str, pvalue.PCollection]:
        unroll = beam.ParDo(_UnrollDoFn(self), pvalue.AsSingleton(self.replay), pvalue.AsSingleton(self.first))
        types = {FILES: WrittenFile, PREDICTED: PointLosses, REJECTED: RejectedExample}
        found = outputs(blocks | "Unroll" >> unroll.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: found[tag] for tag in types}


class _UnrollDoFn(beam.DoFn):
    def __init__(self, wanted: UnrollTestPoints):
        self._wanted = dataclasses.replace(wanted, replay=None, first=None)  # type: ignore[arg-type]  # no worker has collections
        self._shared = Shared()

    def default_type_hints(self) -> IOTypeHints:
        return IOTypeHints.empty()

    def process(self, block: PointBlock, replay: Replay, first: PointBlock) -> Iterator[object]:
        wanted, started = self._wanted, time.monotonic()
        opened: _OpenedRun = self._shared.acquire(lambda: _OpenedRun(wanted.recipe, replay), tag=replay.examples.digest)
        test = block.read(wanted.reader)
        losses, by_weight = opened.run.backward(replay.checkpoint, test)
        finite = np.isfinite(losses)
        for row in np.flatnonzero(~finite):
            rejected = test.reject(int(row), "NotFinite", f"the loss after the training is {losses[row]}")
            yield pvalue.TaggedOutput(REJECTED, RejectedExample.of(block.shard.split, rejected))
        if block == first:
            rows = predicted_changes(by_weight, wanted.changed.weights(replay.count))
            yield pvalue.TaggedOutput(PREDICTED, PointLosses(-1, tuple(tuple(map(float, row)) for row in rows)))
        test, by_weight = test.select(finite), by_weight[finite]
        _refuse_overflow(test, by_weight)
        # Without an example, w is 0 in place of 1; and I is n times the change of the loss.
        for file in self._write(block, test, opened.ids, -replay.count * by_weight, facts_of(replay)):
            yield pvalue.TaggedOutput(FILES, file)
        wanted.reader.count(started, len(test), 0, 0)

    def _write(
        self, block: PointBlock, test: ExampleBatch, ids: np.ndarray, scores: np.ndarray, facts: dict[str, Any]
    ) -> Iterator[WrittenFile]:
        wanted, name, n = self._wanted, f"block-{block.key}", len(ids)
        if "top_k" in wanted.wanted:
            top = TopK(len(test), wanted.top_k, wanted.order)
            top.add(scores, ids)
            yield write_table(wanted.output, "top_k", name, schemas.TOP_K, tables.top_k_table(test.ids, top, n), facts, BeamFiles())
        if "scores" in wanted.wanted:
            file = ParquetFile(wanted.output, "scores", name, schemas.SCORES, facts, BeamFiles())
            try:
                for start in range(0, n, step := max(1, _PAIRS // max(len(test), 1))):
                    part = slice(start, start + step)
                    file.write(tables.scores_table(test.ids, ids[part], scores[:, part], n))
                yield file.close()
            except BaseException:
                file.abandon()
                raise


class _OpenedRun:
    """A run of this process, since tuples can't be shared."""

    def __init__(self, recipe: TrainingRecipe, replay: Replay):
        self.run: TrainingRun
        self.run, self.ids, self.groups = open_run(recipe, replay)


def description_of(replay: Replay) -> dict[str, Any]:
    """What stands for the curvature in the manifest and in each file: there is none, and no damping."""
    return {"curvature": "unrolled", "damping": 0.0, "examples": replay.count, **dict(replay.facts)}


def facts_of(replay: Replay) -> dict[str, Any]:
    """The metadata of each file."""
    return schemas.facts(description_of(replay), "none", "first_order")


def _refuse_overflow(test: ExampleBatch, by_weight: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(by_weight).all(axis=1))
    if len(bad):
        raise ValueError(
            f"the derivative of the loss of the test point {test.ids[bad[0]]} is not finite: on the way back through the training it grows "
            "beyond all numbers, so no score of it would predict anything; train with a smaller learning rate or fewer steps"
        )
