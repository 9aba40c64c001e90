"""Input files to batches of examples with stable ids, inside the worker that uses them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics.metric import Metrics
from apache_beam.typehints.decorators import IOTypeHints

from beam_influence.influence_ops.model.halving import Halving
from beam_influence.influence_ops.reading import READERS, Reader
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.decoded_file import ReadBatch
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.transforms.decoded_cache import DecodedCache, read_kept
from beam_influence.transforms.elements import FileBlock, RejectedExample, Shard, ShardCount
from beam_influence.transforms.file_list import FileList, part_bytes, read_block
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_ahead import read_ahead
from beam_influence.transforms.typed import collection

NAMESPACE = "beam_influence"
FROM_DECODED = "_shards_from_decoded"
"""After the stage, the name of the counter of shards that it read decoded."""
INLINE_FILES = 1000
"""So many files are in the job's graph themselves, some 300 KB; the names of more are read from a file in the work folder."""
_AHEAD = 2
_CHUNK = 1 << 22


def split_file(shard: Shard, features: FeatureSpec, size: int) -> list[Shard]:
    """The parts, of at most `size` bytes but for the last record, of a shard that is a whole file; see `Reader.split`."""
    parts = -(-shard.size // size)
    if parts < 2:
        return [shard]
    with open_shard(shard) as file:
        spans = READERS[features.format].split(file, -(-shard.size // parts))
    return [dataclasses.replace(shard, span=span, part=part, parts=len(spans)) for part, span in enumerate(spans)]


class _SplitDoFn(beam.DoFn):
    def __init__(self, wanted: ReadShards):
        self._features = wanted.features
        self._with_digest = wanted.with_digest
        self._bytes = part_bytes(wanted.shards, wanted.shard_bytes)

    def process(self, shard: Shard) -> Iterator[Shard]:
        if self._with_digest and shard.limit is None:
            shard = dataclasses.replace(shard, sha256=content_digest(shard))
        yield from [shard] if self._features is None else split_file(shard, self._features, self._bytes)


@contextlib.contextmanager
def open_shard(shard: Shard) -> Iterator[BinaryIO]:
    """The shard's file; what fails names it."""
    try:
        with BeamFiles().open_read(shard.path) as file:
            yield file
    except OSError as error:
        raise OSError(f"can't read {shard.split} file {shard.path}: {error}") from error


def content_digest(shard: Shard) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_shard(shard) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclasses.dataclass
class ReadShards(beam.PTransform):
    """Files, and parts of large ones, spread over the workers; their examples are read where they are used.

    Args:
      shards: the files of one split.
      features: how their examples are read; None: they hold none, and none is split.
      shard_bytes: a larger file is split into as many parts of one size as are needed for none to be larger, but for its last record;
        more where that would make more than `MAX_FILES`. A file that can't be split, such as gzip, is one shard.
      with_digest: whether shards tell their file's SHA-256.
      work: a folder that all workers reach; where there are more than `INLINE_FILES`, their list is written there. Empty: the graph has
        them all.

    In: the pipeline. Out: `Shard`.
    """

    shards: Sequence[Shard]
    features: FeatureSpec | None
    shard_bytes: int
    with_digest: bool = False
    work: str = ""

    def expand(self, pbegin: pvalue.PBegin) -> pvalue.PCollection[Shard]:
        # Breaks fusion with Create, which one worker runs.
        files = collection(self._files(pbegin) | "Spread" >> beam.Reshuffle().with_output_types(Shard))
        if not self.with_digest and FileList.of(self.shards).largest <= self.shard_bytes:
            return files
        return collection(
            files
            | "Split" >> beam.ParDo(_SplitDoFn(self)).with_output_types(Shard)
            # All parts of a file come from the worker that looked where they begin; they are read on all.
            | "SpreadParts" >> beam.Reshuffle().with_output_types(Shard)
        )

    def _files(self, pbegin: pvalue.PBegin) -> pvalue.PCollection[Shard]:
        longest_first = FileList.of(self.shards).longest_first()  # as far as the engine keeps an order
        if len(longest_first) <= INLINE_FILES or not self.work:
            return collection(pbegin | "Files" >> beam.Create(list(longest_first), reshuffle=False).with_output_types(Shard))
        return collection(
            pbegin
            | "Blocks" >> beam.Create(longest_first.publish(join(self.work, "files")), reshuffle=False).with_output_types(FileBlock)
            | "SpreadBlocks" >> beam.Reshuffle().with_output_types(FileBlock)  # as below
            | "Files" >> beam.FlatMap(read_block).with_output_types(Shard)
        )


class ShardReader:
    """Reads one shard in batches, and keeps the stage's counts: progress, metrics, examples used and rejected.

    Args:
      stage, spec, batch_size, progress: of what is counted, what is decoded, how many rows at once, and where to it is told.
      decoded: where decoded examples are kept from one pass to the next; None: nowhere.
    """

    def __init__(self, stage: str, spec: FeatureSpec, batch_size: int, progress: Progress, decoded: DecodedCache | None = None):
        self.stage = stage
        self._spec = spec
        self._batch_size = batch_size
        self._progress = progress
        self._decoded = decoded
        self._format: Reader | None = None
        self._decoder: RowDecoder | None = None
        self._examples = Metrics.counter(NAMESPACE, f"{stage}_examples")
        self._rejected = Metrics.counter(NAMESPACE, f"{stage}_rejected")
        self._halved = Metrics.counter(NAMESPACE, f"{stage}_halved_batches")
        self._milliseconds = Metrics.counter(NAMESPACE, f"{stage}_milliseconds")
        self._from_decoded = Metrics.counter(NAMESPACE, f"{stage}{FROM_DECODED}")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_format": None, "_decoder": None}

    @property
    def ids_are_places(self) -> bool:
        """Whether an example's id is `<file>:<position>`."""
        return self._spec.id is None

    def read(self, shard: Shard) -> Iterator[ReadBatch]:
        """Batches of at most `batch_size` examples, each with the records that were rejected on the way to it. A thread reads the next
        ones while one is used.

        Raises:
          OSError: the file can't be opened or read; the message names it.
        """
        kept = None if self._decoded is None else self._decoded.find(shard)
        if kept is not None:
            self._from_decoded.inc()
        batches = read_ahead(self._read(shard) if kept is None else read_kept(kept), _AHEAD)
        return batches if shard.limit is None else shard.limit.cut(batches)

    def _read(self, shard: Shard) -> Iterator[ReadBatch]:
        batches = self._read_source(shard)
        return batches if self._decoded is None else self._decoded.keep(shard, batches, not self.ids_are_places)

    def _read_source(self, shard: Shard) -> Iterator[ReadBatch]:
        if self._format is None or self._decoder is None:
            self._format, self._decoder = READERS[self._spec.format](self._spec.features()), RowDecoder(self._spec)
        with open_shard(shard) as file:
            for rows in self._format.read(file, self._batch_size, shard.span):
                yield self._decoder.decode(rows, shard.name)

    def count(self, started: float, examples: int, rejected: int, files: float = 0, halved: int = 0) -> None:
        """Adds a batch, or the end of a file or of a part of it, that began at `started` (`time.monotonic`)."""
        self._examples.inc(examples)
        self._rejected.inc(rejected)
        self._halved.inc(halved)
        self._milliseconds.inc(round(1000 * (time.monotonic() - started)))
        self._progress.report(self.stage, examples, files)


REJECTED = "rejected"
COUNTS = "counts"
REPORT_TYPES = {REJECTED: RejectedExample, COUNTS: ShardCount}


class ShardDoFn(beam.DoFn):
    """The loop that every stage shares: read a shard, use each batch, give what was rejected and the counts.

    A subclass defines `open` (once per bundle's first shard), `use` (one batch; returns those that were rejected) and,
    when it writes files, `begin_shard` and `end_shard`. A batch that is too large for the device is used in halves.
    """

    def __init__(self, reader: ShardReader):
        self._reader = reader
        self._halving = Halving()

    def open(self, sides: tuple) -> None:
        """Makes the worker's state; `sides` are the side inputs."""

    def begin_shard(self, shard: Shard) -> None:
        """Before a shard's first batch."""

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        """Uses a batch; returns those of its examples that could not be evaluated. One that does not fit the device leaves no trace."""
        raise NotImplementedError

    def end_shard(self, shard: Shard) -> Iterator[object]:
        """After a shard's last batch; gives further outputs."""
        return iter(())

    def abandon_shard(self) -> None:
        """After an error in a shard."""

    def default_type_hints(self) -> IOTypeHints:
        """Beam takes the hint of `*sides` for each side input's own; the main input's is given by the PTransforms."""
        return IOTypeHints.empty()

    def process(self, shard: Shard, *sides: Any) -> Iterator[object]:
        self.open(sides)
        used = left_out = halved = 0
        groups: set[str] = set()
        started = time.monotonic()
        try:
            self.begin_shard(shard)
            for batch, rejected in self._reader.read(shard):
                bad, times = self._halving.use(batch, self.use) if len(batch) else ([], 0)
                rejected = rejected + bad
                used += len(batch) - len(bad)
                if batch.groups is not None and len(groups) < 2:
                    groups.update(map(str, batch.groups))
                left_out += len(rejected)
                halved += times
                for r in rejected:
                    yield pvalue.TaggedOutput(REJECTED, RejectedExample.of(shard.split, r))
                self._reader.count(started, len(batch) - len(bad), len(rejected), halved=times)
                started = time.monotonic()
            yield from self.end_shard(shard)
        except BaseException:
            self.abandon_shard()
            raise
        self._reader.count(started, 0, 0, files=1 / shard.parts)
        count = ShardCount(self._reader.stage, shard.split, shard.key, used, left_out, halved, tuple(sorted(groups)[:2]))
        yield pvalue.TaggedOutput(COUNTS, count)
