"""Training examples that stand beside their values: kept in the pass that the values come from, or found again by content.

A training set may give its examples in another order at each pass, so a position in one pass says nothing about another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.influence_ops.types import Tensors, TensorSpecs

RESHUFFLED = (
    "another pass over the dataset gave other examples, or another order; use shuffle(…, reshuffle_each_iteration=False), and cache() "
    "after a map that draws at random"
)

Digests = Callable[[Tensors], np.ndarray]
"""From an element of a data set to its examples' digests; see `tf_datasets.example_digests`."""


class TopExamples:
    """For each of T queries the k training examples that come first, with what belongs to them: T · k rows at most, and a batch.

    Args:
      queries, k, order: see `TopK`.
      specs: a structure of what belongs to a batch of examples, such as (inputs, labels).
    """

    def __init__(self, queries: int, k: int, order: Order, specs: TensorSpecs):
        self.top = TopK(queries, k, order)
        self._specs = specs
        self._rows: dict[int, list[np.ndarray]] = {}

    def add(self, scores: np.ndarray, positions: np.ndarray, parts: Tensors) -> None:
        """Takes in scores [T, B], the examples' positions in this pass (B,), and their `parts`."""
        self.top.add(scores, positions)
        best = np.unique(self.positions)
        new = np.flatnonzero(np.isin(positions, best))
        if not len(new):
            return
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(parts)]
        self._rows = {position: row for position, row in self._rows.items() if position in set(best.tolist())}
        self._rows.update({int(positions[row]): [np.array(leaf[row]) for leaf in leaves] for row in new})

    @property
    def positions(self) -> np.ndarray:
        """[T, m], m ≤ k."""
        return self.top.ids.astype(np.int64)

    def parts(self) -> Tensors:
        """What belongs to the examples: the structure with arrays [T, m, …].

        Raises:
          ValueError: the examples' shapes differ.
        """
        return gather(self.positions, self._rows, self._specs)


def gather(keys: np.ndarray, rows: dict[int, list[np.ndarray]], specs: TensorSpecs) -> Tensors:
    """The rows of `keys` [T, m]: the structure `specs` with arrays [T, m, …]."""
    leaves = []
    for place, spec in enumerate(tf.nest.flatten(specs)):
        chosen = [rows[key][place] for key in keys.ravel().tolist()]
        shapes = {row.shape for row in chosen}
        if len(shapes) > 1:
            shown = " and ".join(str(shape) for shape in sorted(shapes)[:2])
            raise ValueError(f"training examples of the shapes {shown} can't stand in one array; pad all batches to one length")
        shape = shapes.pop() if shapes else tuple(size or 0 for size in spec.shape[1:])
        empty = np.zeros((0, *shape), dtype=spec.dtype.as_numpy_dtype)
        leaves.append(np.reshape(np.stack(chosen) if chosen else empty, (*keys.shape, *shape)))
    return tf.nest.pack_sequence_as(specs, leaves)


class VectorBlocks:
    """A data set of (training batch, vectors) as (positions, vectors), iterable again and again, that knows what it gave.

    Args:
      vectors: the data set.
      digests_of: of a training batch.
      recorded: whether `digests` is asked for.

    Attributes:
      element: the training batch of the block that was given last.
    """

    def __init__(self, vectors: tf.data.Dataset, digests_of: Digests, recorded: bool):
        self.vectors = vectors
        self.digests_of = digests_of
        self._recorded = recorded
        self.element: Tensors | None = None
        self._given: list[np.ndarray] = []

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self._given = []
        start = 0
        for element, block in self.vectors:
            self.element = element
            array = block.numpy()
            if self._recorded:
                self._given.append(self.digests_of(self.element))
            yield np.arange(start, start + len(array)), array
            start += len(array)

    def digests(self) -> np.ndarray:
        """Of the examples of the last pass, in its order: [N] uint64."""
        return np.concatenate([np.zeros(0, np.uint64), *self._given])


def check_same_examples(given: np.ndarray, before: np.ndarray, path: str) -> None:
    """Refuses to save what was computed in a pass that gave other examples than another one.

    Raises:
      ValueError: the digests differ.
    """
    if not np.array_equal(given, before):
        raise ValueError(f"nothing is saved in {path!r}, where ids are positions in the dataset: {RESHUFFLED}")


def find_again(
    dataset: Iterable[Tensors], wanted: np.ndarray, digests_of: Digests, parts_of: Callable[[Tensors], Tensors], specs: TensorSpecs
) -> Tensors:
    """What belongs to the examples with the digests `wanted` [T, k], by one pass over the data set: the structure with [T, k, …].

    Raises:
      ValueError: the pass did not give them.
    """
    left = {int(digest) for digest in wanted.ravel()}
    rows: dict[int, list[np.ndarray]] = {}
    for element in dataset:
        digests = digests_of(element).tolist()
        leaves = None
        for row, digest in enumerate(digests):
            if digest in left and digest not in rows:
                leaves = leaves or [np.asarray(leaf) for leaf in tf.nest.flatten(parts_of(element))]
                rows[digest] = [np.array(leaf[row]) for leaf in leaves]
    if len(rows) < len(left):
        raise ValueError(f"{len(left) - len(rows)} of the training examples found can't be found again: {RESHUFFLED}")
    return gather(wanted, rows, specs)
