"""Which examples each step of a training run has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
"""Places of examples in the training set."""


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """The batches of a run of `len(self)` steps.

    Attributes:
      positions: the examples of all steps, one step after the other.
      ends: (S,) where each step ends in them.
    """

    positions: Positions
    ends: Positions

    def __len__(self) -> int:
        return len(self.ends)

    def of_step(self, step: int) -> Positions:
        """The examples of one step."""
        return np.asarray(self.positions[int(self.ends[step - 1]) if step else 0 : int(self.ends[step])])

    @staticmethod
    def of_fit(count: int, batch_size: int, epochs: int, seed: int | None) -> BatchOrder:
        """As `fit(batch_size=, epochs=, shuffle=False)` of `count` examples; with a seed each epoch has an order of its own."""
        orders = [np.arange(count) if seed is None else epoch_order(count, seed, epoch) for epoch in range(epochs)]
        in_epoch = np.minimum(np.arange(1, -(-count // batch_size) + 1) * batch_size, count)
        ends = np.concatenate([in_epoch + epoch * count for epoch in range(epochs)])
        return BatchOrder(np.concatenate(orders), ends)

    @staticmethod
    def of_ids(batches: Iterable[Sequence[str]], ids: Sequence[str]) -> BatchOrder:
        """The steps of a user's own recipe.

        Args:
          batches: the ids of each step's examples.
          ids: those of the training set.

        Raises:
          ValueError: there is no step, one is empty, an id is none of the training set's, or two examples have the same.
        """
        places = {str(name): place for place, name in enumerate(ids)}
        if len(places) < len(ids):
            twice = next(str(name) for place, name in enumerate(ids) if places[str(name)] != place)
            raise ValueError(f"two training examples have the id {twice!r}, so that batches can't name them; give each its own id")
        found: list[Positions] = []
        for step, names in enumerate(batches):
            if isinstance(names, (str, bytes)):
                raise ValueError(f"step {step} of the batches is the text {names!r}, not a list of ids")
            names = list(names)
            strange = [name for name in names if str(name) not in places]
            if strange or not len(names):
                what = f"has the example {strange[0]!r}, which the training set has not" if strange else "has no examples"
                raise ValueError(f"step {step} of the batches {what}; give for each step ids of the training set")
            found.append(np.array([places[str(name)] for name in names]))
        if not found:
            raise ValueError("there are no batches; give for each step of the training the ids of its examples")
        return BatchOrder(np.concatenate(found), np.cumsum([len(part) for part in found]))


def epoch_order(count: int, seed: int, epoch: int) -> Positions:
    """The order of the examples in one epoch: `numpy.random.default_rng([seed, epoch]).permutation(count)`.

    Example: training that `--shuffle_seed 7` repeats
      for epoch in range(epochs):
        order = epoch_order(len(x), 7, epoch)
        model.fit(x[order], y[order], batch_size=64, epochs=1, shuffle=False)
    """
    return np.random.default_rng([seed, epoch]).permutation(count)
