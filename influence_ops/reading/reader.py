"""What every input format provides: rows of an open file as Arrow, with stable positions and rejected rows."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import BinaryIO, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.reading.features import Description, Feature


class RowError(NamedTuple):
    """A row that can't be read: which row of the file it is, the stage (`read` or `decode`), the error and a message."""

    row: int
    stage: str
    error: str
    message: str


class Rows(NamedTuple):
    """B rows of a file in order.

    Attributes:
      table: [B] rows with the features' columns; one that the file lacks is left out.
      positions: (B,) int64, the index of each in the file.
      rejected: the rows among and before them that could not be read.
    """

    table: pa.RecordBatch
    positions: np.ndarray
    rejected: list[RowError]


class Reader(abc.ABC):
    """One input format: one file, one entry in `READERS`.

    Args:
      features: what is read.
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    """What the files must be, for messages."""
    converts: ClassVar[bool] = True
    """Whether a column of numbers may be read as another kind of number."""
    ordered: ClassVar[bool] = True
    """Whether the columns have an order."""

    def __init__(self, features: Sequence[Feature]):
        self.features = tuple(features)

    @abc.abstractmethod
    def read(self, file: BinaryIO, size: int) -> Iterator[Rows]:
        """All rows of a file, at most `size` at a time, in bounded memory.

        Args:
          file: a seekable binary file at its start.
          size: B.

        Raises:
          OSError: the file itself could not be read; damage in it is a rejected row.
        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        """The features as most of the first `rows` rows have them; empty when none can be read."""
