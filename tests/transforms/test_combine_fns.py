"""One law test for every CombineFn: the result does not depend on how the inputs were split, ordered or merged."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pytest

from beam_influence.influence_ops.curvature import curvature_by_name
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.transforms.elements import StatisticPart
from beam_influence.transforms.merging import PartsCombineFn
from beam_influence.transforms.solve_queries import SumPartsCombineFn
from beam_influence.transforms.statistic_parts import MergePartsCombineFn

INPUTS = 6


def _top_parts() -> list[Any]:
    random = np.random.default_rng(0)
    parts = []
    for number in range(INPUTS):
        top = TopK(4, 5)
        count = (0, 1, 3, 9, 9, 20)[number]  # fewer than k, more than k, none
        # Few distinct values, so that ties are decided by the ids.
        scores = random.integers(-2, 3, (4, count)).astype(np.float64)
        top.add(scores, np.array([f"e{number}-{i}" for i in range(count)], dtype=object))
        parts.append(top)
    return parts


def _group_parts() -> list[Any]:
    random = np.random.default_rng(1)
    parts = []
    for number in range(INPUTS):
        sums = GroupSums(4)
        count = (0, 1, 3, 9, 9, 20)[number]
        # Whole numbers: sums are exact, so any order must give the same bits.
        scores = random.integers(-50, 50, (4, count)).astype(np.float64)
        sums.add(scores, np.array([f"g{i % (number + 1)}" for i in range(count)], dtype=object))
        parts.append(sums)
    return parts


def _statistic_parts() -> list[Any]:
    random = np.random.default_rng(2)
    return [StatisticPart("block-0-0", random.integers(-50, 50, (3, 3)).astype(np.float64)) for _ in range(INPUTS)]


def _content(part: Any) -> Any:
    if isinstance(part, TopK):
        return part.values.tolist(), part.ids.tolist()
    if isinstance(part, GroupSums):
        return {name: (total.tolist(), int(count)) for name, total, count in zip(part.names, part.sums, part.counts, strict=True)}
    return part.name, part.array.tolist()


COMBINE_FNS: dict[str, tuple[Callable[[], beam.CombineFn], Callable[[], list[Any]]]] = {
    "top_k": (PartsCombineFn, _top_parts),
    "groups": (PartsCombineFn, _group_parts),
    "products": (SumPartsCombineFn, _statistic_parts),
    "statistic": (lambda: MergePartsCombineFn(curvature_by_name("gauss_newton")), _statistic_parts),
}


@pytest.fixture(params=sorted(COMBINE_FNS))
def case(request: pytest.FixtureRequest) -> tuple[beam.CombineFn, list[Any], Any]:
    """A CombineFn, inputs, and what they combine to one after the other."""
    make, inputs = COMBINE_FNS[request.param]
    fn = make()
    return fn, inputs(), _content(fn.extract_output(_accumulate(fn, inputs())))


def _accumulate(fn: beam.CombineFn, inputs: list[Any]) -> Any:
    accumulator = fn.create_accumulator()
    for value in inputs:
        accumulator = fn.add_input(accumulator, value)
    return accumulator


def test_the_inputs_matter(case: tuple[beam.CombineFn, list[Any], Any]) -> None:
    fn, inputs, expected = case
    assert _content(fn.extract_output(_accumulate(fn, inputs[:-1]))) != expected


@pytest.mark.parametrize("split", [[6], [1, 5], [0, 6], [2, 0, 2, 2], [1, 1, 1, 1, 1, 1], [0, 0, 3, 3, 0]])
def test_any_split(case: tuple[beam.CombineFn, list[Any], Any], split: list[int]) -> None:
    fn, inputs, expected = case
    stops = np.cumsum([0, *split])
    accumulators = [_accumulate(fn, inputs[a:b]) for a, b in zip(stops, stops[1:], strict=False)]
    assert _content(fn.extract_output(fn.merge_accumulators(accumulators))) == expected


@pytest.mark.parametrize("seed", range(5))
def test_any_order(case: tuple[beam.CombineFn, list[Any], Any], seed: int) -> None:
    fn, inputs, expected = case
    order = np.random.default_rng(seed).permutation(INPUTS)
    halves = [_accumulate(fn, [inputs[i] for i in part]) for part in (order[:2], order[2:])]
    assert _content(fn.extract_output(fn.merge_accumulators(halves))) == expected
    assert _content(fn.extract_output(_accumulate(fn, [inputs[i] for i in order]))) == expected


def test_merged_in_a_tree_compacted_and_sent(case: tuple[beam.CombineFn, list[Any], Any]) -> None:
    """As on a real runner: accumulators are compacted, pickled, merged in twos and added to again."""
    fn, inputs, expected = case

    def sent(accumulator: Any) -> Any:
        return pickle.loads(pickle.dumps(fn.compact(accumulator)))

    left = fn.merge_accumulators([sent(_accumulate(fn, inputs[:1])), sent(_accumulate(fn, inputs[1:3]))])
    left = fn.add_input(sent(left), inputs[3])
    right = fn.merge_accumulators(iter([sent(_accumulate(fn, inputs[4:])), sent(fn.create_accumulator())]))
    assert _content(fn.extract_output(fn.merge_accumulators([sent(left), sent(right)]))) == expected


def test_empty_accumulators_change_nothing(case: tuple[beam.CombineFn, list[Any], Any]) -> None:
    fn, inputs, expected = case
    accumulator = _accumulate(fn, inputs)
    for accumulators in ([fn.create_accumulator(), accumulator], [accumulator, fn.create_accumulator()]):
        assert _content(fn.extract_output(fn.merge_accumulators(copy.deepcopy(accumulators)))) == expected
    empty = fn.merge_accumulators([fn.create_accumulator(), fn.create_accumulator()])
    assert _content(fn.extract_output(_accumulate_into(fn, empty, inputs))) == expected


def _accumulate_into(fn: beam.CombineFn, accumulator: Any, inputs: list[Any]) -> Any:
    for value in inputs:
        accumulator = fn.add_input(accumulator, value)
    return accumulator


def test_only_the_first_accumulator_may_change(case: tuple[beam.CombineFn, list[Any], Any]) -> None:
    fn, inputs, _ = case
    before = [_content(value) for value in inputs]
    accumulators = [_accumulate(fn, inputs[:2]), _accumulate(fn, inputs[2:4]), _accumulate(fn, inputs[4:])]
    others = [_content(accumulator) for accumulator in accumulators[1:]]
    fn.merge_accumulators(accumulators)
    assert [_content(accumulator) for accumulator in accumulators[1:]] == others
    assert [_content(value) for value in inputs] == before  # nor an input: a runner gives it to others as well
    # A merge whose first accumulators are empty must not take the next one as its own and change it.
    accumulators = [fn.create_accumulator(), _accumulate(fn, inputs[:2]), _accumulate(fn, inputs[2:])]
    others = [_content(accumulator) for accumulator in accumulators[1:]]
    fn.merge_accumulators(accumulators)
    assert [_content(accumulator) for accumulator in accumulators[1:]] == others
