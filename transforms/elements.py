"""The elements that pass between transforms. No example and no gradient is among them.

One exception is bounded by an option: the statistic of a curvature that is fitted on a sample (`--n_samples`,
`conjugate_gradient`, `lissa`) is that sample.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.reading.reader import WHOLE, Span
from beam_influence.influence_ops.results.result_files import WrittenFile as WrittenFile
from beam_influence.influence_ops.scoring.part import Part as Part
from beam_influence.transforms.broadcast import Broadcast

MESSAGE_LIMIT = 1000

FILES = "files"
"""The tag of the `WrittenFile`s among a transform's outputs."""
PARTS = "parts"
"""The tag of the outputs' parts."""

PartKey = tuple[str, str]
"""The name of an output, and the key of one of its parts."""


class ReadLimit(NamedTuple):
    """How much of a shard is read where a part of it is enough, to see what a batch costs.

    Attributes:
      examples: after so many no further batch is read.
      batches: at least so many are, whatever they cost.
      seconds: after so many, from the end of the first batch on, no further batch is read.
    """

    examples: int
    batches: int
    seconds: float

    def cut(self, batches: Iterator[tuple[ExampleBatch, list[Rejected]]]) -> Iterator[tuple[ExampleBatch, list[Rejected]]]:
        """The batches up to the limit."""
        read, ends = 0, float("inf")
        for number, (batch, rejected) in enumerate(batches):
            if read >= self.examples or (number >= self.batches and time.monotonic() >= ends):
                return
            yield batch, rejected
            read += len(batch) + len(rejected)
            if number == 0:
                ends = time.monotonic() + self.seconds


@dataclasses.dataclass(frozen=True)
class Shard:
    """An input file, or a part of one that is read by itself.

    Attributes:
      split: `train` or `test`.
      ordinal: the file's place among the split's, which are ordered by path.
      path: where it is.
      name: its path below the files' common folder, the first half of its examples' ids.
      size: the file's bytes.
      modified: when it was changed last, in seconds; 0: not known.
      sha256: of the file, where that is asked for.
      span: what is read of it.
      part: the span's place among the file's `parts`.
      limit: how much of it is read; None: all.
      digits: of the ordinal in names, which order as numbers do.
      known: the SHA-256 that an index has of the file of this name; empty: it has none.
    """

    split: str
    ordinal: int
    path: str
    name: str
    size: int
    modified: float = 0.0
    sha256: str = ""
    span: Span = WHOLE
    part: int = 0
    parts: int = 1
    limit: ReadLimit | None = None
    digits: int = 5
    known: str = ""

    @property
    def key(self) -> str:
        """A name of digits: no other shard of the split has it, and in their order shards are ordered."""
        number = f"{self.ordinal:0{self.digits}d}"
        return number if self.parts == 1 else f"{number}-{self.part:0{digits_of(self.parts)}d}"


def digits_of(count: int) -> int:
    """The digits of each of so many numbers from 0: five, or what the largest needs."""
    return max(5, len(str(count - 1)))


@dataclasses.dataclass(frozen=True)
class StatisticPart:
    """A named part of a curvature's statistic over some of the training data.

    Attributes:
      name: the part's.
      array: the part, but for what is saved; None: all of it is.
      layout: digest of the model, curvature and pass that it is of; parts of other ones never add up.
      shape: of a sum; (): it is none.
      saved: rows of the part, or of several to be added up: the first row's number, and where they can be had.
    """

    name: str
    array: Any
    layout: str = ""
    shape: tuple[int, ...] = ()
    saved: tuple[tuple[int, Broadcast], ...] = ()


Bucket = tuple[str, int]
"""The name of an output that is summed over groups, and the number of some of the groups."""


@dataclasses.dataclass(frozen=True)
class GroupBlock:
    """The sums of some groups over some of the training data, or over all of it, or where they can be had.

    Attributes:
      shapes: each part's key, and the length of its rows.
      size: the bytes of all sums.
      saved: the arrays `names`, in order, `counts`, and the rows of each part, `sums-` and its key.
    """

    shapes: tuple[tuple[str, int], ...]
    size: int
    saved: Broadcast

    @property
    def widths(self) -> dict[str, int]:
        """The length of a row of each part."""
        return dict(self.shapes)


@dataclasses.dataclass(frozen=True)
class QueryReference:
    """A block of embedded test points: its key, which orders blocks, and where it can be had."""

    key: str
    broadcast: Broadcast


@dataclasses.dataclass(frozen=True)
class RejectedExample:
    """An example that was left out; `influence_ops.Rejected` with its split, and a message of at most `MESSAGE_LIMIT` characters."""

    split: str
    file: str
    index: int
    stage: str
    error: str
    message: str

    @classmethod
    def of(cls, split: str, rejected: Rejected) -> RejectedExample:
        message = rejected.message
        if len(message) > MESSAGE_LIMIT:
            message = f"{message[: MESSAGE_LIMIT - 1]}…"
        return cls(split, rejected.file, rejected.index, rejected.stage, rejected.error, message)


@dataclasses.dataclass(frozen=True)
class RejectedBlock:
    """How many examples of one block of a file were left out, and the first of each kind, a few."""

    count: int
    first: tuple[RejectedExample, ...]


@dataclasses.dataclass(frozen=True)
class SolverReport:
    """How far the queries' solutions are: relative residuals, how many queries were not solved to the tolerance, and how many there are."""

    largest_residual: float
    mean_residual: float
    unsolved: int
    points: int

    def and_of(self, other: SolverReport) -> SolverReport:
        """Of both's queries."""
        points = self.points + other.points
        mean = (self.mean_residual * self.points + other.mean_residual * other.points) / max(points, 1)
        return SolverReport(max(self.largest_residual, other.largest_residual), mean, self.unsolved + other.unsolved, points)


@dataclasses.dataclass(frozen=True)
class ShardCount:
    """How many examples of one shard, given by its key, were used and how many rejected, in one stage; how often a batch was halved to fit
    the device; and the first two names of groups in it. Or the sum over several `shards`, without a key."""

    stage: str
    split: str
    shard: str
    examples: int
    rejected: int
    halved: int = 0
    groups: tuple[str, ...] = ()
    shards: int = 1


@dataclasses.dataclass(frozen=True)
class FileBlock:
    """Some of a split's files: a row group of a Parquet file that the launcher has written; see `FileList`."""

    path: str
    number: int
    split: str
    digits: int
    limit: ReadLimit | None = None


@dataclasses.dataclass(frozen=True)
class ListedFiles:
    """Some of a run's `WrittenFile`s, each once, as an Arrow stream of `listed_files.LISTED`, compressed: 30 bytes a file."""

    data: bytes


def at_end_of_bundle(value: Any) -> WindowedValue:
    """An element that `finish_bundle` gives, which Beam wants with its window."""
    window = GlobalWindow()
    return WindowedValue(value, window.max_timestamp(), (window,))
