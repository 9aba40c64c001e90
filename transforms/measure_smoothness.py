"""Some trainings with other weights of the examples, beside what the derivative predicts for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam import pvalue
from apache_beam.typehints.decorators import IOTypeHints

from beam_influence.influence_ops.replay.smoothness import changed_weights, measure_smoothness, share_of
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.open_replay import Replay, TrainingRecipe, open_run
from beam_influence.transforms.read_shards import ShardReader
from beam_influence.transforms.typed import collection, run_once
from beam_influence.transforms.unroll_test_points import ChangedTrainings, PointBlock, PointLosses, description_of


@dataclasses.dataclass
class MeasureSmoothness(beam.PTransform):
    """Trains with other weights, each training on any worker, and describes the run: its facts, and how well the changes were predicted.

    Args:
      recipe: the training.
      reader: reads the test shards, a block at a time.
      replay: the training replayed forward, one `Replay`.
      first: the test points whose losses are compared, one `PointBlock`.
      changed: the trainings; none: nothing is measured.

    In: `PointLosses`, predicted. Out: one `Broadcast` without arrays; its description is the manifest's.
    """

    recipe: TrainingRecipe
    reader: ShardReader
    replay: pvalue.PCollection[Replay]
    first: pvalue.PCollection[PointBlock]
    changed: ChangedTrainings

    def expand(self, predicted: pvalue.PCollection[PointLosses]) -> pvalue.PCollection[Broadcast]:
        numbers = predicted.pipeline | "Trainings" >> beam.Create(range(self.changed.count and self.changed.count + 1), reshuffle=True)
        train = beam.ParDo(_TrainDoFn(self), pvalue.AsSingleton(self.replay), pvalue.AsSingleton(self.first))
        actual = collection(numbers | "Train" >> train.with_output_types(PointLosses))
        sides = (pvalue.AsSingleton(self.replay), pvalue.AsIter(predicted), pvalue.AsIter(actual))
        return run_once(predicted.pipeline, "Describe", _DescribeDoFn(self.changed), Broadcast, *sides)


class _TrainDoFn(beam.DoFn):
    def __init__(self, wanted: MeasureSmoothness):
        self._recipe = wanted.recipe
        self._reader = wanted.reader
        self._changed = wanted.changed

    def default_type_hints(self) -> IOTypeHints:
        return IOTypeHints.empty()

    def process(self, number: int, replay: Replay, first: PointBlock) -> Iterator[PointLosses]:
        run, _, _ = open_run(self._recipe, replay)
        test, changed = first.read(self._reader), self._changed
        if number == changed.count:  # the training as it was, so that both are losses of one computation
            state = [tf.constant(array) for array in replay.checkpoint(len(run.order))]
        else:
            state = run.last_state(changed_weights(replay.count, number, changed.seed, changed.step))
        losses = run.test_losses(state, test)
        yield PointLosses(number, (tuple(map(float, losses)),))


class _DescribeDoFn(beam.DoFn):
    def __init__(self, changed: ChangedTrainings):
        self._changed = changed

    def default_type_hints(self) -> IOTypeHints:
        return IOTypeHints.empty()

    def process(self, _: None, replay: Replay, predicted: Iterable[PointLosses], actual: Iterable[PointLosses]) -> Iterator[Broadcast]:
        meta = description_of(replay)
        meta["smoothness"] = None
        if self._changed.count:
            losses = np.array([one.values[0] for one in sorted({one.number: one for one in actual}.values(), key=lambda one: one.number)])
            changes = losses[:-1] - losses[-1]
            wanted = np.array(next(iter(predicted)).values)
            kept = np.isfinite(changes).all(axis=0) & np.isfinite(wanted).all(axis=0)
            found = measure_smoothness(wanted[:, kept], changes[:, kept], share_of(replay.count), self._changed.step)
            meta["smoothness"] = {name: None if value != value else value for name, value in found._asdict().items()}
        yield Broadcast.publish({}, meta, "")
