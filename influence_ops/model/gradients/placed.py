"""Gradients of examples that are sequences, with every position by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from beam_influence.influence_ops.types import Float64Matrix, Float64Vector


@dataclasses.dataclass(frozen=True)
class PlacedGradients:
    """∇ℓ(z_i) of B examples, as host arrays.

    Attributes:
      parts: for each block of the layout the arrays of a `Factored` or `OneHot`, or those of a `Materialised`: one alone.
      places: for each block [S], the position of the sequence or `UNPLACED`; [0] where there is one array.
      length: T, the sequence's positions.
    """

    parts: tuple[tuple[np.ndarray, ...], ...]
    places: tuple[np.ndarray, ...]
    length: int

    def __len__(self) -> int:
        return len(self.parts[0][0])

    @property
    def numbers(self) -> int:
        """How many an example takes."""
        return sum(array[:1].size for part in self.parts for array in part)

    def select(self, rows: np.ndarray | slice) -> PlacedGradients:
        """Those of some of the examples."""
        return dataclasses.replace(self, parts=tuple(tuple(array[rows] for array in part) for part in self.parts))

    @classmethod
    def concatenate(cls, several: Sequence[PlacedGradients]) -> PlacedGradients:
        """All of them, in order."""
        by_block = zip(*(each.parts for each in several), strict=True)
        parts = tuple(tuple(map(np.concatenate, zip(*of_block, strict=True))) for of_block in by_block)
        return dataclasses.replace(several[0], parts=parts)

    def products(self, row: int, vector: Iterable[Float64Matrix]) -> tuple[Float64Vector, float]:
        """The inner product of one example's gradient with a vector, position by position.

        Args:
          row: of the example.
          vector: its matrix [I, O] for each block.

        Returns:
          [T], and what is at no position; they add up to the product.
        """
        found, unplaced = np.zeros(self.length), 0.0
        for part, places, matrix in zip(self.parts, self.places, vector, strict=True):
            values, each = part[-1][row].astype(np.float64), part[0][row]
            if len(part) == 1:
                unplaced += float(np.vdot(values, matrix))
                continue
            seen = matrix[each] if each.ndim == 1 else each.astype(np.float64) @ matrix
            products = np.einsum("so,so->s", seen, values)
            np.add.at(found, places[places >= 0], products[places >= 0])
            unplaced += float(products[places < 0].sum())
        return found, unplaced

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Everything by name, for a saved folder: `placed-<block>-<number>` and `placed-<block>-places`."""
        for block, (part, places) in enumerate(zip(self.parts, self.places, strict=True)):
            yield f"placed-{block}-places", places
            yield from ((f"placed-{block}-{number}", array) for number, array in enumerate(part))

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], length: int) -> PlacedGradients:
        """The inverse of `arrays`, which may be among others."""
        blocks = sum(name.startswith("placed-") and name.endswith("-places") for name in arrays)
        parts = (tuple(arrays[name] for n in range(2) if (name := f"placed-{block}-{n}") in arrays) for block in range(blocks))
        return cls(tuple(parts), tuple(arrays[f"placed-{block}-places"] for block in range(blocks)), length)
