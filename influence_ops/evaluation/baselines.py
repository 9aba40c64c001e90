"""What a run's scores are held against: scores of every training example on every test point that need no curvature.

    nearest in features   the cosine of the angle between what the last layer sees of the two; of the inputs where there is no such tensor
    plain loss            the training example's loss, the same for every test point
    random                normal numbers
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from beam_influence.influence_ops.evaluation.choices import are_numbers, flat_inputs
from beam_influence.influence_ops.evaluation.features import features_of
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

MOST_BYTES = 256 << 20  # of features that are held
_Batches = Iterable[ExampleBatch]


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """In what neighbours are looked for: `name` of the baseline, and what gives batches with these vectors as their inputs."""

    name: str
    vectors: Callable[[_Batches], Iterator[ExampleBatch]]


def neighbours_of(model: ExplainedModel, batch: ExampleBatch) -> Neighbours | None:
    """What the last layer sees; else the inputs; None where they are no numbers.

    Args:
      batch: any of the examples, whose inputs are looked at.
    """
    featured = features_of(model)
    if featured is not None:
        return Neighbours("nearest in features", featured)
    return Neighbours("nearest", iter) if are_numbers(batch.inputs) else None


def baseline_scores(
    model: ExplainedModel, train: _Batches, tests: _Batches, seed: int = 0
) -> Iterator[tuple[ExampleBatch, Mapping[str, np.ndarray]]]:
    """Each batch of the training set with the scores [B, T] of each baseline, larger for more helpful.

    Args:
      train, tests: the examples; the columns are in the order of `tests`.
      seed: of the random numbers.

    Raises:
      ValueError: the test points' features take more than 256 MiB.
    """
    near, points, count = None, [], 0
    for batch in tests:
        near = near if points else neighbours_of(model, batch)
        count += len(batch)
        if near is not None:
            points += [unit_vectors(one) for one in near.vectors([batch])]
            if sum(one.nbytes for one in points) > MOST_BYTES:
                raise ValueError(f"the features of the test points take more than {MOST_BYTES >> 20} MiB")
    directions, random = np.concatenate(points) if points else None, np.random.default_rng(seed)
    for batch in train:
        losses = np.asarray(model.losses(batch), np.float64)
        found = {"plain loss": np.repeat(losses[:, None], count, axis=1), "random": random.normal(size=(len(batch), count))}
        if near is not None and directions is not None:
            (vectors,) = near.vectors([batch])
            found = {near.name: unit_vectors(vectors) @ directions.T, **found}
        yield batch, found


def unit_vectors(batch: ExampleBatch) -> np.ndarray:
    """The inputs, each scaled to length 1; 0 stays 0: [B, F] float64."""
    vectors = flat_inputs(batch.inputs)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def other_class_near(train: _Batches, sample: _Batches, classes: Callable[[ExampleBatch], list[str]], k: int = 10) -> Iterator[np.ndarray]:
    """For each batch of `train`: the share of the k nearest of a sample, itself left out, of another class: [B].

    Args:
      train, sample: with the vectors in which neighbours are looked for as their inputs; the sample is held.
      classes: the class of each example.
    """
    held = [(batch.ids, flat_inputs(batch.inputs), np.array(classes(batch))) for batch in sample]
    ids, points, of_points = (np.concatenate(parts) for parts in zip(*held, strict=True))
    columns = {name: column for column, name in enumerate(ids)}
    for batch in train:
        vectors = flat_inputs(batch.inputs)
        distances = (vectors**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)[None] - 2 * vectors @ points.T
        itself = [(row, columns[name]) for row, name in enumerate(batch.ids) if name in columns]
        for row, column in itself:
            distances[row, column] = np.inf
        nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(k, len(points) - 1)]
        yield (of_points[nearest] != np.array(classes(batch))[:, None]).mean(axis=1)
