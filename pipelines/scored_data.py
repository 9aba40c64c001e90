"""The model and the data of a finished run, opened again from what its manifest says."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from beam_influence.influence_ops.curvature.sample import concatenate
from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.result_files import iterate_table, table_files
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.named_code import names_code
from beam_influence.pipelines.prepare import PreparedRun, prepare
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader

_LEFT_OUT = ("group_feature", "test_group_feature", "influence_vectors_path", "max_rejected")
_MAY_BE_CODE = ("model", "loss", "preprocess")


def check_code(stored: Mapping[str, Any], code: Mapping[str, str | None], folder: str, options: Sequence[str] = _MAY_BE_CODE) -> None:
    """Refuses to take code from a file: what a manifest names as `module:function` is imported when the user names it too.

    Args:
      stored: the options in a manifest.
      code: those of the command line, by name.
      folder: of the run.
      options: which may name code.

    Raises:
      ValueError: an option names code that the command line doesn't, or the command line names other code.
    """
    for name in options:
        had, given = stored.get(name), code.get(name)
        if given is None and names_code(name, str(had or "")):
            raise ValueError(
                f"the run in {folder!r} had --{name} {had}: code is taken from the command line alone, never from a file; "
                f"if you trust it, give --{name} {had}"
            )
        if given is not None and given != had:
            raise ValueError(f"--{name} {given}: the run in {folder!r} had {had!r}; name just that, or leave it out where it is no code")


def config_of(stored: Mapping[str, Any], folder: str, curvature: str | None = None, class_feature: str | None = None) -> InfluenceConfig:
    """What a finished run read and explained, as options of a run: those of the data and of the model in its manifest.

    Args:
      stored: the options in the manifest; with `train`.
      folder: of the run.
      curvature: None: one that needs no pass over the data.
      class_feature: a feature whose values are read as the examples' groups.
    """
    kept = [field.name for field in dataclasses.fields(InfluenceConfig) if field.metadata["group"] in ("data", "model")]
    options = {name: stored[name] for name in [*kept, "batch_size", "threads"] if name in stored and name not in _LEFT_OUT}
    if options.get("precision") == "bfloat16":
        options["precision"] = "native"  # the same network; nothing is multiplied with test points here
    if class_feature is not None:
        options |= {"group_feature": class_feature, "test_group_feature": class_feature}
    return InfluenceConfig(**options, output=folder, outputs="self_influence", curvature=curvature or "identity")


def _rejected_places(folder: str) -> dict[tuple[str, str], list[int]]:
    """Where the examples are that a run rejected, by split and file."""
    places: dict[tuple[str, str], list[int]] = {}
    for path in table_files(folder, "rejected", BeamFiles()):
        for rows in iterate_table(path, BeamFiles(), columns=["split", "file", "index"]):
            for split, file, index in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                places.setdefault((split, file), []).append(index)
    return places


class ScoredData:
    """What a run scored: its training set, its test points and its model.

    Args:
      run: the finished run.
      code: what the command line names as `module:function`, by option; see `check_code`.
      class_feature: see `config_of`.

    Raises:
      ValueError: the run names code that the command line does not, it had no training files, or the files or the model are no longer
        what they were.
    """

    def __init__(self, run: ScoreTable, code: Mapping[str, str | None], class_feature: str | None = None):
        stored = run.manifest["config"]
        check_code(stored, code, run.folder)
        if not stored.get("train"):
            raise ValueError(f"the run in {run.folder!r} had no --train; evaluate one that read the training set itself")
        config = config_of(stored, run.folder, code.get("curvature"), class_feature)
        try:
            self.prepared: PreparedRun = prepare(config)
        except ValueError as error:
            if class_feature is None:
                raise
            raise ValueError(re.sub(r"--(test_)?group_feature", "--class_feature", str(error))) from error
        self._rejected = _rejected_places(run.folder) if "rejected" in run.manifest["tables"] else {}
        self.model: ExplainedModel = self.prepared.model.session()
        if self.model.fingerprint() != run.manifest["curvature"]["fingerprint"]:
            raise ValueError(f"the model at {config.model!r} is not the one that the run in {run.folder!r} scored; score it again")
        if config.dropout_seed is not None:  # that is explained; what is retrained and predicts is the whole network
            whole = dataclasses.replace(self.prepared.model, dropout_seed=None, agreement=None)
            self.prepared = dataclasses.replace(self.prepared, model=whole)
            self.model = self.prepared.model.session()

    def reader(self, split: str) -> ShardReader:
        """Reads the files of `train` or `test`."""
        features = self.prepared.train_features if split == "train" else self.prepared.test_features
        if features is None:
            raise ValueError("the run had no --test; evaluate one with test points")
        return ShardReader("evaluate", features, self.prepared.batch_size, Progress(None))

    def batches(self, split: str) -> Iterator[ExampleBatch]:
        """The examples of `train` or `test` that the run did not reject, in the order of the files."""
        reader = self.reader(split)
        for shard in self.prepared.train if split == "train" else self.prepared.test:
            for batch, _ in reader.read(shard):
                rejected = self._rejected.get((split, batch.file))
                if rejected is not None and batch.positions is not None:
                    batch = batch.select(np.flatnonzero(~np.isin(batch.positions, rejected)))
                if len(batch):
                    yield batch

    def ids(self, split: str) -> list[str]:
        """The ids of the examples, in the order of the files."""
        return [str(name) for batch in self.batches(split) for name in batch.ids]

    def examples(self, split: str, ids: Sequence[str]) -> ExampleBatch:
        """Some examples, in the order of `ids`.

        Raises:
          ValueError: there is none with one of the ids.
        """
        wanted = set(ids)
        parts = []
        for batch in self.batches(split):
            keep = np.array([name in wanted for name in batch.ids])
            if keep.any():
                parts.append(batch.select(keep))
        found = {str(name) for part in parts for name in part.ids}
        if wanted - found:
            raise ValueError(f"the {split} files have no example {min(wanted - found)!r}")
        whole = functools.reduce(concatenate, parts)
        places = {str(name): place for place, name in enumerate(whole.ids)}
        return whole.select(np.array([places[name] for name in ids]))
