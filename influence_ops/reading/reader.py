"""What every input format provides: rows of an open file as Arrow, with stable positions and rejected rows."""

from __future__ import annotations

import abc
import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO, ClassVar, NamedTuple, cast

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.reading.features import Description, Feature


class Span(NamedTuple):
    """A part of a file that is read by itself.

    Attributes:
      first: the index in the file of its first row.
      start, stop: where it begins and ends, in bytes, or in row groups (Parquet); a stop of None is the end of the file.
    """

    first: int = 0
    start: int = 0
    stop: int | None = None


WHOLE = Span()
"""All of a file."""

_PICKED_FROM = 256  # rows


def spans(starts: Sequence[tuple[int, int]]) -> list[Span]:
    """A file's spans by their (`first`, `start`), in order."""
    stops = [*(start for _, start in starts[1:]), None]
    return [Span(first, start, stop) for (first, start), stop in zip(starts, stops, strict=True)]


def open_span(file: BinaryIO, start: int, stop: int | None) -> BinaryIO:
    """The bytes of a seekable file from `start` to before `stop`, as a file of their own; None: to the end."""
    if (start, stop) == (0, None):
        return file
    file.seek(start)
    return file if stop is None else cast(BinaryIO, io.BufferedReader(_Beginning(file, stop - start), 1 << 16))


class _Beginning(io.RawIOBase):
    """The next bytes of a file, so many."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


class Prefixed:
    """A file whose first bytes have been read already."""

    def __init__(self, prefix: bytes, file: BinaryIO):
        self._prefix = prefix
        self._file = file
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        if not self._prefix:
            return self._file.read(size)
        if size < 0:
            data, self._prefix = self._prefix + self._file.read(), b""
            return data
        data, self._prefix = self._prefix[:size], self._prefix[size:]
        return data


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
    has_records: ClassVar[bool] = False
    """Whether a row can be read as the tf.Example that it is, by the name `RECORD`."""

    def __init__(self, features: Sequence[Feature]):
        self.features = tuple({column.name: column for feature in features for column in feature.columns}.values())

    @abc.abstractmethod
    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        """All rows of a file, or of a span of it, at most `size` at a time, in bounded memory.

        Args:
          file: a seekable binary file at its start.
          size: B.
          span: one of those that `split` gave.

        Raises:
          OSError: the file itself could not be read; damage in it is a rejected row.
        """

    def pick(self, file: BinaryIO, positions: Sequence[int]) -> Iterator[Rows]:
        """The rows of a file at some positions, in order, with as little of the file read as its format allows.

        Args:
          file: a seekable binary file at its start.
          positions: indexes in the file; of those at which no row can be read nothing is given.

        Raises:
          OSError: the file itself could not be read.
        """
        return self._pick(self.read(file, _PICKED_FROM), positions)

    @staticmethod
    def _pick(batches: Iterator[Rows], positions: Sequence[int]) -> Iterator[Rows]:
        """Those rows of batches in order, no further than the last of `positions`."""
        last = max(positions, default=-1)
        for rows in batches if last >= 0 else ():
            keep = np.isin(rows.positions, np.asarray(positions))
            if keep.any():
                yield Rows(rows.table.filter(pa.array(keep)), rows.positions[keep], [])
            if len(rows.positions) and rows.positions[-1] >= last:
                return

    @classmethod
    @abc.abstractmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        """The spans of a file, each but the last the shortest of at least `size` bytes; one for a file that can't be split.

        Read span by span, a file has the rows that it has as a whole, with the same positions. Where it is damaged so that what follows
        can't be told apart, the last span goes on to the end.

        Args:
          file: a seekable binary file at its start.
          size: in bytes.

        Raises:
          OSError: the file itself could not be read.
        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        """The features as most of the first `rows` rows have them; empty when none can be read."""
