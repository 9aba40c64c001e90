"""What one worker collects from all others is bounded in bytes, whatever the number of examples; see also test_query_references."""

from __future__ import annotations

import pathlib
import pickle

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from beam_influence.influence_ops.curvature import curvature_by_name
from beam_influence.influence_ops.results.result_files import WrittenFile
from beam_influence.transforms import file_list
from beam_influence.transforms.broadcast import INLINE_PART_LIMIT
from beam_influence.transforms.elements import ShardCount, StatisticPart
from beam_influence.transforms.file_list import MAX_FILES, list_shards
from beam_influence.transforms.finish_curvature import _SavePartDoFn
from beam_influence.transforms.sum_counts import SumCounts, sum_counts
from beam_influence.transforms.write_manifest import _list_once


@pytest.mark.parametrize("numbers", [1, 5_000, 8_192, 8_193, 1_000_000])
def test_a_part_of_a_statistic_travels_by_path_when_it_is_large(tmp_path: pathlib.Path, numbers: int) -> None:
    """A layer's part is of the size of the layer, not of the data; above 64 KiB only its path travels: 1,000 layers' are 64 MiB at most."""
    curvature = curvature_by_name("gauss_newton")
    save = _SavePartDoFn(curvature, str(tmp_path))
    ((_, broadcast),) = save.process(("a", StatisticPart("a", np.ones(numbers))))
    assert len(pickle.dumps(broadcast)) <= INLINE_PART_LIMIT + 1024
    assert broadcast.open()[0]["part"].sum() == numbers


def test_what_files_tell_the_manifest_is_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that training files can tell, three tables with a row for each example: 30 bytes each. Their counts are one sum."""
    tables = ("self_influence", "scores", "influence_vectors")
    files = [WrittenFile(table, f"{table}/shard-{n:07d}.parquet", n * 7919 % 10**6, n**3) for table in tables for n in range(5000)]
    (once,) = {_list_once(some).data for some in (files, files[::-1] + files)}
    assert len(once) <= 30 * len(files)
    counts = [ShardCount("score", "train", f"{n:07d}", n, 1, 2, (f"group {n}",)) for n in (3, 1, 2, 3)]
    with beam.Pipeline(FnApiRunner()) as pipeline:
        summed = pipeline | beam.Create(counts, reshuffle=False).with_output_types(ShardCount) | SumCounts()
        total = summed | beam.CombineGlobally(lambda counts: sum_counts(counts) if counts else None).without_defaults()
        assert_that(total, equal_to([ShardCount("score", "train", "", 6, 3, 6, ("group 1", "group 2"), 3)]))
    monkeypatch.setattr(file_list, "MAX_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--train matches 3 files, more than 2; write the examples to fewer, larger files"):
        list_shards("train", [f"{tmp_path}/*.tfrecord"])
    assert MAX_FILES == 2_000_000
