"""A batch of decoded examples, and the record of an example that could not be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Inputs = np.ndarray | Mapping[str, np.ndarray]
Labels = np.ndarray | Mapping[str, np.ndarray] | tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ExampleBatch:
    """B examples, decoded and in the order in which their file holds them.

    Attributes:
      ids: (B,) array of str, unique over the whole data set.
      inputs: one array [B, ...], or a mapping from the model's input names to such arrays.
      labels: [B] or [B, ...], or a mapping from names to such arrays, or a tuple of them: what the loss takes.
      weights: optional sample weights: [B], one by which each example's loss is multiplied, or [B, ...], one for each position.
      groups: optional (B,) array of str, the group each example belongs to.
      positions: (B,) int64, the index of each example in its file; None: its row.
      file: the file that all of them come from; empty when there is none.
    """

    ids: np.ndarray
    inputs: Inputs
    labels: Labels
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None
    positions: np.ndarray | None = None
    file: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, keep: np.ndarray) -> ExampleBatch:
        """The examples at `keep`, a boolean mask [B] or an index array."""
        return ExampleBatch(
            ids=self.ids[keep],
            inputs=_select(self.inputs, keep),
            labels=_select(self.labels, keep),
            weights=None if self.weights is None else self.weights[keep],
            groups=None if self.groups is None else self.groups[keep],
            positions=None if self.positions is None else self.positions[keep],
            file=self.file,
        )

    def reject(self, row: int, error: str, message: str) -> Rejected:
        """The example in `row` as one that could not be evaluated."""
        index = int(row if self.positions is None else self.positions[row])
        return Rejected(self.file, index, "evaluate", error, f"example {self.ids[row]}: {message}")


def place_ids(file: str, positions: np.ndarray) -> np.ndarray:
    """The ids `<file>:<position>` of examples that have none of their own."""
    return np.array([f"{file}:{position}" for position in positions.tolist()], dtype=object)


def _select(arrays: Any, keep: np.ndarray) -> Any:
    if isinstance(arrays, Mapping):
        return {name: array[keep] for name, array in arrays.items()}
    return tuple(array[keep] for array in arrays) if isinstance(arrays, tuple) else arrays[keep]


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """One example that was left out, and why.

    Attributes:
      file: the file that holds it.
      index: its position in the file, from 0.
      stage: `read`, `decode` or `evaluate`.
      error: a short name of the kind of error, stable enough to count by.
      message: what was wrong, with the value.
    """

    file: str
    index: int
    stage: str
    error: str
    message: str
