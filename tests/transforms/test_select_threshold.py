"""The threshold is the one that sorting all scores would give, for any files, ties, signs and counts."""

from __future__ import annotations

import pathlib

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_influence.transforms import SelectThreshold
from beam_influence.transforms.select_threshold import ordered_keys

ODD = np.array([0.0, -0.0, 1.0, -1.0, 5e-324, -5e-324, 1.7e308, -1.7e308, 1 + 2**-52, 1e-3])


def files(folder: pathlib.Path, scores: np.ndarray, count: int) -> list[str]:
    """The scores in files of uneven sizes, one of them empty."""
    ends = [0, *np.linspace(1, len(scores), count).astype(int), len(scores)]
    paths = []
    for number, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        paths.append(str(folder / f"shard-{number:05d}.parquet"))
        pq.write_table(pa.table({"influence": scores[start:end]}), paths[-1])
    return paths


def wanted(scores: np.ndarray, count: int) -> float:
    """The smallest t of the scores, or next to one, such that at most `count` scores are at least t."""
    if not count:
        return float("inf")
    edge = np.sort(scores)[::-1][count - 1]
    return float(edge if np.sum(scores >= edge) <= count else np.nextafter(edge, np.inf))


@pytest.mark.parametrize("repeat", [0, 2], ids=["once", "each bundle three times"])
@pytest.mark.parametrize("count", [0, 1, 7, 500, 996, 997])
@pytest.mark.timeout(60)
def test_is_what_sorting_gives(tmp_path: pathlib.Path, count: int, repeat: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.permutation(np.concatenate([rng.lognormal(-3, 4, 900), -rng.lognormal(0, 2, 60), np.full(27, 0.25), ODD]))
    expected = wanted(scores, count)
    assert np.sum(scores >= expected) <= count < 28 + np.sum(scores >= expected)
    options = PipelineOptions([f"--direct_runner_bundle_repeat={repeat}"])
    with beam.Pipeline(FnApiRunner(bundle_repeat=repeat), options=options) as pipeline:
        found = pipeline | beam.Create(files(tmp_path, scores, 5), reshuffle=False) | SelectThreshold(count)
        assert_that(found, equal_to([expected]))


@pytest.mark.timeout(60)
def test_ties_are_taken_together_or_not_at_all(tmp_path: pathlib.Path) -> None:
    scores = np.array([3.0, 2.0, 2.0, 2.0, 1.0])
    for count, number in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 5)):
        with beam.Pipeline(FnApiRunner()) as pipeline:
            found = pipeline | beam.Create(files(tmp_path, scores, 2), reshuffle=False) | SelectThreshold(count)
            assert_that(found | beam.Map(lambda t: int(np.sum(scores >= t))), equal_to([number]))


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=20))
@settings(max_examples=200, deadline=None)
def test_keys_order_as_the_scores_do(values: list[float]) -> None:
    scores = np.array(values)
    keys = ordered_keys(scores)
    assert np.array_equal(scores[:, None] < scores[None], keys[:, None] < keys[None])
    assert np.array_equal(scores[:, None] == scores[None], keys[:, None] == keys[None])
