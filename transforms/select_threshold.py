"""The smallest of the largest scores, exactly, over any number of files and in bounded memory.

A radix selection: four passes over the scores, each of which counts 16 more bits of a key that orders float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam import pvalue
from apache_beam.typehints.decorators import with_input_types, with_output_types

from beam_influence.influence_ops.results.result_files import iterate_table
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.typed import collection

_BITS = 16
_DIGITS = 64 // _BITS
_BATCH = 1 << 16


class _Search(NamedTuple):
    """The leading bits of the key that is looked for, how many of the scores that begin so are wanted, and how many there are."""

    prefix: int
    wanted: int
    ties: int


@dataclasses.dataclass(frozen=True)
class ScoreHistogram:
    """How many scores have each value of the next 16 bits: (65536,) int64."""

    counts: np.ndarray


def ordered_keys(scores: np.ndarray) -> np.ndarray:
    """(N,) float64 without NaN to (N,) uint64 in the same order; -0 and 0 have one key."""
    bits = (scores + 0.0).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _score(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else ~key & (1 << 64) - 1
    return float(np.array(bits, np.uint64).view(np.float64))


def _count(path: str, column: str, digit: int, search: _Search) -> np.ndarray:
    """How many scores of a file that begin as the one that is looked for have each value of the next 16 bits: (65536,) int64."""
    counts = np.zeros(1 << _BITS, np.int64)
    shift = np.uint64(64 - _BITS * (digit + 1))
    for rows in iterate_table(path, BeamFiles(), _BATCH, [column]):
        keys = ordered_keys(rows.column(column).to_numpy()) >> shift
        digits = keys & np.uint64((1 << _BITS) - 1)
        if digit:
            digits = digits[keys >> np.uint64(_BITS) == np.uint64(search.prefix)]
        counts += np.bincount(digits.astype(np.int64), minlength=1 << _BITS)
    return counts


def select_threshold(paths: Callable[[], Iterable[str]], count: int, column: str = "influence") -> float:
    """What `SelectThreshold` finds, in this process.

    Args:
      paths: gives the files, four times.
      count: see `SelectThreshold`.
      column: see `SelectThreshold`.
    """
    if count == 0:
        return float("inf")
    search = _Search(0, count, 0)
    for digit in range(_DIGITS):
        counts = sum((_count(path, column, digit, search) for path in paths()), np.zeros(1 << _BITS, np.int64))
        search = _narrow(ScoreHistogram(counts), search)
    return _threshold(search)


class _CountDoFn(beam.DoFn):
    def __init__(self, column: str, digit: int):
        self._column = column
        self._digit = digit

    def process(self, path: str, search: _Search) -> Iterator[ScoreHistogram]:
        yield ScoreHistogram(_count(path, self._column, self._digit, search))


@with_input_types(ScoreHistogram)
@with_output_types(ScoreHistogram)
class _AddHistogramsFn(beam.CombineFn):
    def create_accumulator(self) -> ScoreHistogram:
        return ScoreHistogram(np.zeros(1 << _BITS, np.int64))

    def add_input(self, mutable_accumulator: ScoreHistogram, element: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(mutable_accumulator.counts + element.counts)

    def merge_accumulators(self, accumulators: Iterable[ScoreHistogram]) -> ScoreHistogram:
        return ScoreHistogram(sum((part.counts for part in accumulators), np.zeros(1 << _BITS, np.int64)))

    def extract_output(self, accumulator: ScoreHistogram) -> ScoreHistogram:
        return accumulator


def _narrow(histogram: ScoreHistogram, search: _Search) -> _Search:
    """The next 16 bits of the `wanted`-th largest score."""
    above = np.cumsum(histogram.counts[::-1])
    place = int(np.searchsorted(above, search.wanted))
    digit = len(above) - 1 - place
    ties = int(histogram.counts[digit])
    return _Search(search.prefix << _BITS | digit, search.wanted - (int(above[place]) - ties), ties)


def _threshold(search: _Search) -> float:
    value = _score(search.prefix)
    return value if search.ties <= search.wanted else float(np.nextafter(value, np.inf))


@dataclasses.dataclass
class SelectThreshold(beam.PTransform):
    """Finds the smallest t such that at most `count` scores are ≥ t.

    Equal scores are taken together or not at all: with ties at the edge, fewer than `count` may be ≥ t.

    Args:
      count: how many at most, from 0 to the number of scores.
      column: a float64 column without nulls and NaN.

    In: paths of Parquet files (str). Out: t, one float; ∞ for a count of 0.
    """

    count: int
    column: str = "influence"

    def expand(self, paths: pvalue.PCollection[str]) -> pvalue.PCollection[float]:
        if self.count == 0:
            return collection(paths.pipeline | "Nothing" >> beam.Create([float("inf")], reshuffle=False).with_output_types(float))
        begin = beam.Create([_Search(0, self.count, 0)], reshuffle=False).with_output_types(_Search)
        search = collection(paths.pipeline | "Begin" >> begin)
        for digit in range(_DIGITS):
            count = beam.ParDo(_CountDoFn(self.column, digit), pvalue.AsSingleton(search)).with_output_types(ScoreHistogram)
            histogram = (
                paths
                | f"Count[{digit}]" >> count
                | f"Add[{digit}]" >> beam.CombineGlobally(_AddHistogramsFn())
            )
            narrow = beam.Map(_narrow, pvalue.AsSingleton(search)).with_output_types(_Search)
            search = collection(histogram | f"Narrow[{digit}]" >> narrow)
        return collection(search | "Threshold" >> beam.Map(_threshold).with_output_types(float))
