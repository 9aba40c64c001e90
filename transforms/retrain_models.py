"""Retraining as a Beam element: each is independent, and its result a file, so that a finished one is not done again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam import pvalue
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.evaluation.retraining import (
    LOSSES,
    Outcome,
    Retraining,
    evaluate_test_points,
    load_train_function,
    retrain,
)
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.schemas import with_facts
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader
from beam_influence.transforms.typed import collection

STAGE = "retrain"


def outcome_path(folder: str, retraining: Retraining, circumstances: str) -> str:
    """The file of a retraining's result."""
    return join(folder, f"{retraining.digest(circumstances)}.parquet")


def read_outcome(path: str) -> Outcome:
    """A finished retraining's result."""
    with BeamFiles().open_read(path) as file:
        return Outcome.from_table(pq.read_table(file))


def save_ids(path: str, ids: Iterable[str]) -> None:
    """The training examples' ids, in the order of the masks, for all workers."""
    table = pa.table({"train_id": pa.array(list(ids), pa.string())})
    with BeamFiles().open_write(path) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")


class _Positions:
    """The place of each id in the masks; a dictionary alone can't be shared."""

    def __init__(self, path: str):
        with BeamFiles().open_read(path) as file:
            ids = pq.read_table(file).column("train_id").to_pylist()
        self.of = {name: place for place, name in enumerate(ids)}


class _RetrainDoFn(beam.DoFn):
    def __init__(self, wanted: RetrainModels):
        self._wanted = dataclasses.replace(wanted)
        self._shared = Shared()
        self._model: ExplainedModel | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_model": None}

    def process(self, retraining: Retraining) -> Iterator[str]:
        wanted = self._wanted
        path = outcome_path(wanted.folder, retraining, wanted.circumstances)
        if not BeamFiles().exists(path):  # a bundle that is tried again finds what it has done
            positions = self._shared.acquire(lambda: _Positions(wanted.ids_path), tag=wanted.ids_path)
            assert positions is not None
            if self._model is None:  # this DoFn's own: it is given other weights
                self._model = wanted.model.open()
            function, _ = load_train_function(wanted.train_fn)
            trained = retrain(function, retraining, lambda: _read(wanted.train_reader, wanted.train), positions.of)
            outcome = evaluate_test_points(self._model, trained, _read(wanted.test_reader, wanted.test))
            facts = {
                "train_fn": wanted.train_fn,
                "seed": retraining.seed,
                "kept": int(retraining.mask.sum()),
                "examples": retraining.count,
            }
            table = outcome.table().replace_schema_metadata(with_facts(LOSSES, facts).metadata)
            with BeamFiles().open_write(path) as file:
                pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd")
            logging.getLogger(__name__).info("retrained on %d of %d examples: %s", facts["kept"], retraining.count, path)
        wanted.progress.report(STAGE, shards=1)
        yield path


def _read(reader: ShardReader, shards: Sequence[Shard]) -> Iterator[ExampleBatch]:
    for shard in shards:
        for batch, _ in reader.read(shard):
            if len(batch):
                yield batch


@dataclasses.dataclass
class RetrainModels(beam.PTransform):
    """Retrains on parts of the training set, and writes the test points' losses after each.

    Every worker reads the files itself: elements hold a bit for each training example, no example.

    Args:
      train_fn: the user's function, `module:function`; see `beam_influence.influence_ops.evaluation.retraining`.
      model: the model that was scored; its loss and its architecture.
      train, test: the files; train_reader, test_reader: how they are read.
      ids_path: what `save_ids` wrote.
      folder: where results go, a Parquet file each.
      circumstances: names all that decides a result besides the examples kept and the seed.
      progress: is told of each result.

    In: `Retraining`. Out: the path of its result.
    """

    train_fn: str
    model: ModelSpec
    train: Sequence[Shard]
    test: Sequence[Shard]
    train_reader: ShardReader
    test_reader: ShardReader
    ids_path: str
    folder: str
    circumstances: str
    progress: Progress

    def expand(self, retrainings: pvalue.PCollection[Retraining]) -> pvalue.PCollection[str]:
        spread: Any = retrainings | "Spread" >> beam.Reshuffle()  # each is long: one at a time to whoever is free
        return collection(spread | "Retrain" >> beam.ParDo(_RetrainDoFn(self)).with_output_types(str))
