"""A training run on a worker: a recipe small enough to travel, and what the first stage of the job has left of the run."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from beam_influence.influence_ops.curvature.sample import from_arrays, to_arrays
from beam_influence.influence_ops.import_path import load_object
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.batch_order import BatchOrder
from beam_influence.influence_ops.replay.training_run import Checkpoint, TrainingRun, as_checkpoint
from beam_influence.influence_ops.replay.training_step import State, TrainingStep
from beam_influence.influence_ops.results.text_arrays import bytes_to_texts, texts_to_bytes
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.files import join
from beam_influence.transforms.open_model import ModelSpec

_OPENING = threading.RLock()


@dataclasses.dataclass(frozen=True)
class TrainingRecipe:
    """How a training run is repeated.

    Attributes:
      model: the model before its training, compiled.
      batch_size, epochs, shuffle_seed: as of `BatchOrder.of_fit`.
      batches: in place of these, the user's function `module:function`: the ids of the training set → those of each step.
      memory: bytes that the states of a segment, and the training set, may take each.
    """

    model: ModelSpec
    batch_size: int
    epochs: int
    shuffle_seed: int | None
    batches: str | None
    memory: int

    def step(self) -> TrainingStep:
        """The steps, compiled once for a process."""
        with _OPENING:
            return _open_step(self.model)

    def order(self, ids: np.ndarray) -> BatchOrder:
        """The batches.

        Raises:
          ValueError: the user's function failed, or gave none of the training set's ids.
        """
        if self.batches is None:
            return BatchOrder.of_fit(len(ids), self.batch_size, self.epochs, self.shuffle_seed)
        function = load_object(self.batches)
        names = [str(name) for name in ids]
        try:
            found = function(list(names))
        except Exception as error:
            raise ValueError(f"--batches {self.batches!r} failed: {type(error).__name__}: {error}") from error
        if isinstance(found, (str, bytes)) or not isinstance(found, Iterable):
            raise ValueError(f"--batches {self.batches!r} returned a {type(found).__name__}; give for each step a list of ids")
        return BatchOrder.of_ids(found, names)


@functools.lru_cache(maxsize=2)
def _open_step(spec: ModelSpec) -> TrainingStep:
    model = spec.session()
    assert isinstance(model, InfluenceModel)
    return TrainingStep(model, optimizer_of(model))


def optimizer_of(model: InfluenceModel) -> keras.optimizers.Optimizer:
    """The optimizer that a model was compiled with.

    Raises:
      ValueError: it was not compiled.
    """
    optimizer = getattr(model.network.original, "optimizer", None)
    if optimizer is None:
        raise ValueError("--model was not compiled: compile it with the optimizer and the loss of its training, then save it, before fit")
    return optimizer


@dataclasses.dataclass(frozen=True)
class Replay:
    """A training run that was replayed forward.

    Attributes:
      examples: the training set, its ids and groups, the batches' order and the learning rates.
      states: the state that each segment begins with, by the number of its first step, and the last one.
      segment: steps in a segment.
      count: n, the training examples.
      facts: what the manifest tells.
    """

    examples: Broadcast
    states: tuple[tuple[int, Broadcast], ...]
    segment: int
    count: int
    facts: tuple[tuple[str, str | int | float | None], ...]

    def checkpoint(self, number: int) -> Checkpoint:
        """The state before a step."""
        arrays, _ = dict(self.states)[number].open()
        return [arrays[name] for name in sorted(arrays)]


def save_run(run: TrainingRun, ids: np.ndarray, groups: np.ndarray | None, folder: str) -> Broadcast:
    """Makes a run's training set available to all workers."""
    arrays = {**to_arrays(run.examples), "-ids": texts_to_bytes(ids), "-positions": run.order.positions, "-ends": run.order.ends}
    arrays["-rates"] = run.rates
    if groups is not None:
        arrays["-groups"] = texts_to_bytes(groups)
    return Broadcast.publish(arrays, {}, join(folder, "examples"))


def save_state(state: State, number: int, folder: str) -> Broadcast:
    """Makes a state available to all workers, by path."""
    arrays = {f"{place:06d}": array for place, array in enumerate(as_checkpoint(state))}
    return Broadcast.publish(arrays, {}, join(folder, f"state-{number:09d}"), inline_limit=0)


def open_run(recipe: TrainingRecipe, replay: Replay) -> tuple[TrainingRun, np.ndarray, np.ndarray | None]:
    """The run, the ids of the training set, and their groups where there are any."""
    arrays, _ = replay.examples.open()
    order = BatchOrder(arrays.pop("-positions"), arrays.pop("-ends"))
    ids, groups, rates = bytes_to_texts(arrays.pop("-ids")), arrays.pop("-groups", None), arrays.pop("-rates")
    run = TrainingRun(recipe.step(), from_arrays(arrays), order, rates, replay.segment)
    return run, ids, None if groups is None else bytes_to_texts(groups)


def whole_batch(batches: Iterable[ExampleBatch], most: int) -> ExampleBatch:
    """All examples as one batch.

    Args:
      most: bytes that they may take.

    Raises:
      ValueError: there are none, they take more, or they have different shapes.
    """
    kept: list[ExampleBatch] = []
    size = 0
    for batch in batches:
        kept.append(batch)
        size += sum(array.nbytes for array in to_arrays(batch).values()) + sum(len(str(name)) for name in batch.ids)
        if size > most:
            raise ValueError(
                f"the training set takes more than the {most:,} bytes that a worker may hold of it: a replay reads it again and again, in "
                "the order of the batches; give --max_worker_memory, or explain a part of it"
            )
    if not kept:
        raise ValueError("the training set has no usable example")
    return _joined(kept)


def _joined(batches: list[ExampleBatch]) -> ExampleBatch:
    arrays = [to_arrays(batch) for batch in batches]
    shapes = [{name: array.shape[1:] for name, array in each.items()} for each in arrays]
    strange = next((number for number, each in enumerate(shapes) if each != shapes[0]), None)
    if strange is not None:
        raise ValueError(
            f"the examples from {batches[strange].ids[0]} on have the shapes {shapes[strange]}, the first {shapes[0]}: a replay puts any "
            "of them in one batch; give them one shape, by --schema or --preprocess"
        )
    whole = from_arrays({name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})
    groups = [batch.groups for batch in batches if batch.groups is not None]
    joined = np.concatenate(groups) if len(groups) == len(batches) else None
    return dataclasses.replace(whole, ids=np.concatenate([batch.ids for batch in batches]), groups=joined)


def first_examples(batches: Iterator[ExampleBatch], count: int) -> ExampleBatch | None:
    """The first examples, so many or as many as there are; None where there are none."""
    kept: list[ExampleBatch] = []
    while sum(map(len, kept)) < count and (batch := next(batches, None)) is not None:
        kept.append(batch)
    return _joined(kept).select(np.arange(min(count, sum(map(len, kept))))) if kept else None
