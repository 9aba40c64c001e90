"""A bounded sample of a run's files: enough of them to see what a batch, a file and a test point cost."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence

from beam_influence.influence_ops.curvature.sampled import SampleCurvature
from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.features import FeatureSpec
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.pipelines.query_plan import count_rows
from beam_influence.transforms.elements import ReadLimit, Shard
from beam_influence.transforms.file_list import FileList
from beam_influence.transforms.read_shards import open_shard
from beam_influence.transforms.rounds import ONE_ROUND

_SHARDS = 3  # that are read where each has some batches
_MOST_SHARDS = 64
_BATCHES = 4  # of each stage at least: the first are slow, since their functions are compiled
_ENOUGH = 12
_POINT_BYTES = 1 << 29  # of test points' gradients in float64
_COUNTED_FILES = 8
_COUNTED_BYTES = 4 << 20
_COUNT_SECONDS = 0.5
_ROWS = 1024
_VECTOR_BYTES = 128 << 20
_LOOKED_AT = 32 << 20


@dataclasses.dataclass(frozen=True)
class Examples:
    """How many rows the files of a split hold.

    Attributes:
      count: rows, the ones that can't be used too.
      is_exact: whether they were all counted; else `count` is the bytes of the files over those of a row in some of them.
    """

    count: int
    is_exact: bool


def count_examples(shards: FileList, features: FeatureSpec | None, files: int = _COUNTED_FILES) -> Examples:
    """The rows of a split, from at most 0.5 s in each of so many of its files; none where there are no features."""
    if features is None:
        return Examples(0, True)
    chosen = spread(shards, files)
    rows = counted = 0
    is_whole = len(chosen) == len(shards)
    for shard in chosen:
        found, position = _rows_and_bytes(shard, features)
        rows, counted, is_whole = rows + found, counted + position, is_whole and position == shard.size
    return Examples(rows if is_whole else round(rows * shards.total_bytes / max(counted, 1)), is_whole)


def _rows_and_bytes(shard: Shard, features: FeatureSpec) -> tuple[int, int]:
    """Rows at a shard's beginning, and the bytes of the file that they take."""
    rows, stop = 0, time.monotonic() + _COUNT_SECONDS
    if features.format == "parquet":  # its footer says
        import pyarrow.parquet as pq

        with open_shard(shard) as file:
            try:
                return pq.ParquetFile(file).metadata.num_rows, shard.size
            except OSError:
                return 0, shard.size
    with open_shard(shard) as file:
        for read in READERS[features.format](features.features()).read(file, _ROWS, shard.span):
            rows += read.table.num_rows + len(read.rejected)
            if (position := file.tell()) >= _COUNTED_BYTES or time.monotonic() >= stop:
                return rows, min(position, shard.size)
    return rows, shard.size


def spread(shards: Sequence[Shard], most: int) -> list[Shard]:
    """At most so many of the shards, at even distances."""
    count = min(most, len(shards))
    return [shards[number * len(shards) // count] for number in range(count)]


def sample_run(
    prepared: PreparedRun, config: InfluenceConfig, examples: Examples | None, candidates: Examples, seconds: float
) -> PreparedRun:
    """The run with its files cut to a sample.

    Args:
      prepared: the run.
      config: its options.
      examples: of its training files; None: they hold none, but saved vectors, or there are none.
      candidates: of the files that are scored in their place.
      seconds: for each stage, about, without its first batch.
    """
    return dataclasses.replace(
        prepared,
        train=_sample_vectors(prepared.train) if examples is None else _sample_train(prepared, config, examples, seconds),
        candidates=_cut(prepared.candidates, prepared.batch_size, candidates, seconds, _BATCHES),
        test=sample_points(prepared, config, seconds),
        queries=dataclasses.replace(prepared.queries, rounds=ONE_ROUND, solving=ONE_ROUND, points=0),
        indexed=None,
        resumed=None,
    )


def _sample_train(prepared: PreparedRun, config: InfluenceConfig, examples: Examples, seconds: float) -> FileList:
    curvature, least = config.make_curvature(), _BATCHES
    if isinstance(curvature, SampleCurvature) and prepared.curvature_path is None:
        least = max(least, -(-curvature.settings.n_samples // prepared.batch_size))  # what it solves with is a sample of that size
    return _cut(prepared.train, prepared.batch_size, examples, seconds, least)


def _cut(shards: FileList, batch_size: int, examples: Examples, seconds: float, least: int) -> FileList:
    """Some of the files, each cut to its share of `seconds`, but `least` batches of all; to an index, all are new."""
    if not shards:
        return shards
    of_file = examples.count / len(shards)
    few = of_file < _BATCHES * batch_size
    wanted = min(_MOST_SHARDS, round(_ENOUGH * batch_size / max(of_file, 1))) if few else _SHARDS
    chosen = spread(shards, max(_SHARDS, wanted))
    limit = ReadLimit(1 << 62, -(-least // len(chosen)), seconds / len(chosen))
    return FileList.of([dataclasses.replace(shard, size=0, known="", limit=limit) for shard in chosen])


def _sample_vectors(shards: FileList) -> FileList:
    """Some files of saved vectors: each is read whole."""
    if not shards:
        return shards
    size = shards.total_bytes / len(shards)
    return FileList.of(spread(shards, max(1, int(_VECTOR_BYTES / max(size, 1)))))


def sample_points(prepared: PreparedRun, config: InfluenceConfig, seconds: float, most: int | None = None) -> FileList:
    """Files of test points, each cut to its share of `seconds`, of the memory for a sample, and of `most` points."""
    if not prepared.test:
        return prepared.test
    fits = max(1, _POINT_BYTES // (8 * prepared.watched))
    if prepared.queries.points:
        fits = min(fits, -(-prepared.queries.points // prepared.queries.rounds.count))  # those of a round
    points = fits if most is None else min(fits, most)
    chosen = spread(prepared.test, min(_MOST_SHARDS, points))
    limit = ReadLimit(-(-points // len(chosen)), 1, seconds / len(chosen))
    return FileList.of([dataclasses.replace(shard, size=0, limit=limit) for shard in chosen])


def count_points(prepared: PreparedRun) -> int:
    """How many test points a run has."""
    if prepared.queries.points or not prepared.test or prepared.test_features is None:
        return prepared.queries.points
    return sum(count_rows(shard, prepared.test_features) for shard in prepared.test)


def look_up_seconds(shards: Sequence[Shard], features: FeatureSpec | None, shard_size: int) -> float:
    """How long it takes to find where files larger than `shard_size` can be split: from the beginning of the first of them."""
    large = [shard for shard in shards if shard.size > shard_size]
    if features is None or not large or features.format == "parquet":
        return 0.0
    with tempfile.TemporaryFile() as part:
        with open_shard(large[0]) as file:
            size = part.write(file.read(min(_LOOKED_AT, large[0].size)))
        part.seek(0)
        started = time.monotonic()
        READERS[features.format].split(part, size // 4)
    return (time.monotonic() - started) / size * sum(shard.size for shard in large)
