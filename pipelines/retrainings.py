"""Retrainings for an evaluation: what is trained on, run on Beam, those that were finished before taken from their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

import apache_beam as beam
import numpy as np

from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth
from beam_influence.influence_ops.evaluation.retraining import Outcome, Retraining, load_train_function
from beam_influence.pipelines.progress_bar import ProgressBar
from beam_influence.pipelines.run_pipeline import RunFailedError, run_pipeline
from beam_influence.pipelines.runners import choose_engine
from beam_influence.pipelines.scored_data import ScoredData
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.retrain_models import STAGE, RetrainModels, outcome_path, read_outcome, save_ids

FOLDER = "retrainings"


@dataclasses.dataclass(frozen=True)
class Retrainer:
    """Retrains and remembers.

    Attributes:
      data: the scored model and data.
      train_fn: the user's function, `module:function`.
      train_ids: the N examples that masks are over.
      output: the folder below which results are kept.
      seeds: every retraining is done with each of them.
      beam_arguments: Beam's options.
      stream: where progress is drawn.
    """

    data: ScoredData
    train_fn: str
    train_ids: Sequence[str]
    output: str
    seeds: Sequence[int]
    beam_arguments: Sequence[str] = ()
    stream: TextIO | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.data.model.model, "set_weights"):
            raise ValueError("a SavedModel can't take retrained weights; evaluate the scores of the .keras file, or of module:function")

    def outcomes(self, masks: Iterable[np.ndarray], test_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The losses [M, R, T] and predicted classes [M, R, T] (−1: none) of the test points after M retrainings with R seeds.

        Raises:
          ValueError: the user's function can't be used, or a test point of the scores is not in the test files.
          RunFailedError: a retraining failed. Those that were finished are kept.
        """
        retrainings = [Retraining.of(mask, seed) for mask in masks for seed in self.seeds]
        circumstances = self._circumstances()
        folder = join(self.output, FOLDER)
        paths = [outcome_path(folder, retraining, circumstances) for retraining in retrainings]
        waiting = {path: retraining for path, retraining in zip(paths, retrainings, strict=True) if not BeamFiles().exists(path)}
        if waiting:
            self._run(list(waiting.values()), folder, circumstances)
        found = [_in_order(read_outcome(path), test_ids) for path in paths]
        shape = (-1, len(self.seeds), len(test_ids))
        return np.stack([losses for losses, _ in found]).reshape(shape), np.stack([classes for _, classes in found]).reshape(shape)

    def _circumstances(self) -> str:
        """All that decides a result besides the examples kept and the seed: the function, the model, the files, the ids."""
        _, source = load_train_function(self.train_fn)
        prepared = self.data.prepared
        model = {key: value for key, value in dataclasses.asdict(prepared.model).items() if key != "threads"}
        files = [(shard.path, shard.size) for shards in (prepared.train, prepared.test) for shard in shards]
        features = [repr(prepared.train_features), repr(prepared.test_features)]
        text = json.dumps([source, model, files, features], sort_keys=True) + "\n".join(self.train_ids)
        return hashlib.sha256(text.encode()).hexdigest()

    def _run(self, retrainings: list[Retraining], folder: str, circumstances: str) -> None:
        ids_path = join(folder, f"train_ids-{circumstances[:32]}.parquet")
        save_ids(ids_path, self.train_ids)
        engine = choose_engine(self.beam_arguments)
        with ProgressBar({STAGE: len(retrainings)}, self.stream or sys.stderr) as bar:
            retrain = RetrainModels(
                self.train_fn,
                self.data.prepared.model,
                self.data.prepared.train,
                self.data.prepared.test,
                self.data.reader("train"),
                self.data.reader("test"),
                ids_path,
                folder,
                circumstances,
                Progress(bar.address if engine.is_local else None),
            )
            pipeline = beam.Pipeline(options=engine.options())
            elements = beam.Create(retrainings, reshuffle=False).with_output_types(Retraining)
            _ = pipeline | "Retrainings" >> elements | "RetrainModels" >> retrain
            try:
                run_pipeline(pipeline, engine)
            except RunFailedError as error:
                raise RunFailedError(f"a retraining failed: {error}") from error.__cause__

    def subsets(self, count: int, fraction: float, seed: int, test_ids: Sequence[str]) -> GroundTruth:
        """Retrainings on `count` random parts, each with `fraction` of the examples (at least one)."""
        masks = np.array([self._part(number, fraction, seed) for number in range(count)])
        losses, _ = self.outcomes(masks, test_ids)
        return GroundTruth(masks, losses.mean(axis=1), train_ids=_array(self.train_ids), test_ids=_array(test_ids))

    def is_finished(self, count: int, fraction: float, seed: int) -> list[bool]:
        """Of each of the first `count` parts of `subsets`, whether its retrainings are there already."""
        folder, circumstances, files = join(self.output, FOLDER), self._circumstances(), BeamFiles()

        def found(number: int) -> bool:
            mask = self._part(number, fraction, seed)
            return all(files.exists(outcome_path(folder, Retraining.of(mask, own), circumstances)) for own in self.seeds)

        return [found(number) for number in range(count)]

    def _part(self, number: int, fraction: float, seed: int) -> np.ndarray:
        """A part's mask, which depends on its number alone: more parts keep the first."""
        total = len(self.train_ids)
        mask = np.zeros(total, dtype=bool)
        mask[np.random.default_rng([seed, number]).choice(total, max(1, round(fraction * total)), replace=False)] = True
        return mask

    def removals(self, count: int, seed: int, test_ids: Sequence[str]) -> GroundTruth:
        """Retrainings without one example, for `count` examples at random, and one with all of them."""
        total = len(self.train_ids)
        if count > total:
            raise ValueError(f"--retrainings {count} is more than the {total:,} training examples that could be removed")
        removed = np.random.default_rng(seed).permutation(total)[:count]
        losses, _ = self.outcomes((np.arange(total) != place for place in [-1, *removed]), test_ids)
        means = losses.mean(axis=1)
        return GroundTruth(
            loo_idx=removed, loo_test_loss=means[1:], base_test_loss=means[0], train_ids=_array(self.train_ids), test_ids=_array(test_ids)
        )


def _array(ids: Sequence[str]) -> np.ndarray:
    return np.asarray(ids, dtype=object)


def _in_order(outcome: Outcome, test_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    places = {name: place for place, name in enumerate(outcome.test_ids)}
    missing = [name for name in test_ids if name not in places]
    if missing:
        raise ValueError(f"the scores have the test point {missing[0]!r}, but the run's test files have not; score them again")
    order = [places[name] for name in test_ids]
    return outcome.losses[order], outcome.predictions[order]
