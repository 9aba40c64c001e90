"""The first stage of an unrolled run: the training, replayed once, its states kept in files, and the model that it ends in."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator

import apache_beam as beam
import keras
from apache_beam import pvalue
from apache_beam.typehints.decorators import IOTypeHints

from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.keras_training import compare_with_trained
from beam_influence.influence_ops.replay.training_run import TrainingRun
from beam_influence.influence_ops.replay.training_step import State, give_state
from beam_influence.transforms.elements import RejectedExample, Shard, ShardCount
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.load_model import load_model
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.open_replay import Replay, TrainingRecipe, save_run, save_state, whole_batch
from beam_influence.transforms.read_shards import COUNTS, REJECTED, REPORT_TYPES, ShardReader
from beam_influence.transforms.typed import outputs

STAGE = "replay"
STATES = "states"
"""The folder, below that of temporary files, with what the run leaves for its other stages."""


@dataclasses.dataclass
class ReplayTraining(beam.PTransform):
    """Replays the training, in the order of the batches, on one worker.

    Args:
      recipe: how.
      reader: reads the training shards.
      work: a folder for temporary files that all workers reach.
      trained: where the model that the training ends in is put.
      given: the user's own trained model, with which it is compared; or None.

    In: `Shard`s of the training set. Out: a dictionary of PCollections: `replay` (one `Replay`), `rejected`, `counts`.
    """

    recipe: TrainingRecipe
    reader: ShardReader
    work: str
    trained: ModelSpec
    given: str | None

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        replay = beam.ParDo(_ReplayDoFn(self), pvalue.AsIter(shards)).with_output_types(Replay, **REPORT_TYPES)
        start = shards.pipeline | "OnceReplay" >> beam.Create([None], reshuffle=False)
        found = outputs(start | "Replay" >> replay.with_outputs(REJECTED, COUNTS, main=STAGE))
        return {tag: found[tag] for tag in (STAGE, REJECTED, COUNTS)}


class _ReplayDoFn(beam.DoFn):
    def __init__(self, wanted: ReplayTraining):
        self._recipe = wanted.recipe
        self._reader = wanted.reader
        self._folder = join(wanted.work, STATES)
        self._trained = wanted.trained
        self._given = wanted.given

    def default_type_hints(self) -> IOTypeHints:
        return IOTypeHints.empty()

    def process(self, _: None, shards: Iterable[Shard]) -> Iterator[object]:
        reports: list[pvalue.TaggedOutput] = []
        examples = whole_batch(self._read(sorted(shards, key=lambda shard: shard.key), reports), self._recipe.memory)
        run = TrainingRun.of(self._recipe.step(), examples, self._recipe.order(examples.ids), self._recipe.memory)
        states, state = [], run.step.initial
        for number, state in run.forward():  # noqa: B007  # the last one is used below
            states.append((number, save_state(state, number, self._folder)))
        optimizer = run.step.optimizer
        facts: dict[str, str | int | float | None] = {
            "fingerprint": _save_trained(self._recipe.model, self._trained, state),
            "steps": len(run.order),
            "steps_in_a_segment": run.segment,
            "state_bytes": run.step.state_bytes,
            "optimizer": optimizer.name,
            "off_trained": None if self._given is None else compare_with_trained(run, state, load_trained(self._given)),
        }
        saved = save_run(run, examples.ids, examples.groups, self._folder)
        yield Replay(saved, tuple(states), run.segment, len(examples), tuple(facts.items()))
        yield from reports

    def _read(self, shards: list[Shard], reports: list[pvalue.TaggedOutput]) -> Iterator[ExampleBatch]:
        for shard in shards:
            used = left_out = 0
            started = time.monotonic()
            for batch, rejected in self._reader.read(shard):
                reports += [pvalue.TaggedOutput(REJECTED, RejectedExample.of(shard.split, one)) for one in rejected]
                used, left_out = used + len(batch), left_out + len(rejected)
                if len(batch):
                    yield batch
            self._reader.count(started, used, left_out, 1)
            reports.append(pvalue.TaggedOutput(COUNTS, ShardCount(STAGE, shard.split, shard.key, used, left_out)))


def _save_trained(before: ModelSpec, trained: ModelSpec, state: State) -> str:
    """Saves the model that the training ends in; returns its fingerprint, which the manifest has."""
    model, _ = load_model(before.path, before.model_weights, before.digest)
    give_state(model, state)
    target = trained.model_weights or trained.path
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(target))
        model.save_weights(local) if trained.model_weights else model.save(local)
        with open(local, "rb") as file:
            BeamFiles().write(target, file.read())
    return trained.open_first()[0].fingerprint()


def load_trained(path: str) -> keras.Model:
    """The user's own trained model.

    Raises:
      ValueError: it is none that can be compared.
    """
    model, _ = load_model(path)
    if not isinstance(model, keras.Model):
        raise ValueError(f"--trained {path!r} is a SavedModel, whose weights have no order; give a .keras file")
    return model
