"""Examples to hold against the most influential ones: drawn at random, and the nearest in the inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Inputs
from beam_influence.influence_ops.scoring.top_k import TopK


def random_examples(train_ids: Sequence[str], k: int, seed: int) -> list[str]:
    """k of the ids, none twice."""
    chosen = np.random.default_rng(seed).choice(len(train_ids), size=k, replace=False)
    return [str(train_ids[place]) for place in np.sort(chosen)]


def nearest_examples(train: Iterable[ExampleBatch], queries: ExampleBatch, k: int) -> list[list[str]]:
    """The k training examples nearest to each query by the Euclidean distance of their inputs, nearest first.

    Raises:
      ValueError: inputs are no numbers.
    """
    points = flat_inputs(queries.inputs)
    top = TopK(len(points), k, "ascending")
    for batch in train:
        other = flat_inputs(batch.inputs)
        products = points @ other.T
        top.add((points**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * products, batch.ids)
    return [[str(name) for name in row] for row in top.ids]


def are_numbers(inputs: Inputs) -> bool:
    """Whether a distance between inputs has a meaning."""
    arrays = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return all(np.issubdtype(array.dtype, np.number) for array in arrays)


def flat_inputs(inputs: Inputs) -> np.ndarray:
    """All numbers of each example: [B, F] float64.

    Raises:
      ValueError: inputs are no numbers.
    """
    if not are_numbers(inputs):
        raise ValueError("nearest neighbours need inputs that are numbers")
    arrays = [inputs[name] for name in sorted(inputs)] if isinstance(inputs, Mapping) else [inputs]
    return np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in arrays], axis=1)
