"""A bundle's statistic leaves by value or by path, adds up to the same either way, and only with its like."""

from __future__ import annotations

import pathlib
import pickle

import numpy as np
import pytest

from beam_influence.influence_ops.curvature import Curvature, curvature_by_name
from beam_influence.transforms import statistic_parts
from beam_influence.transforms.elements import StatisticPart
from beam_influence.transforms.statistic_parts import MergePartsCombineFn, merged_array, send_statistic

SHAPES = {"count": (1,), "wide": (40, 300), "long": (30_000,), "row": (1, 20_000)}


def statistic(seed: int) -> dict[str, np.ndarray]:
    """Whole numbers: sums are exact in any order."""
    random = np.random.default_rng(seed)
    return {name: random.integers(-99, 99, shape).astype(np.float64) for name, shape in SHAPES.items()}


def combined(curvature: Curvature, sent: list[list[StatisticPart]]) -> dict[str, np.ndarray]:
    combine = MergePartsCombineFn(curvature)
    found = {}
    for parts in zip(*sent, strict=True):
        first, second = combine.create_accumulator(), combine.create_accumulator()
        for number, part in enumerate(parts):
            if number % 2:
                first = combine.add_input(first, part)
            else:
                second = combine.add_input(second, pickle.loads(pickle.dumps(part)))
        whole = combine.extract_output(combine.merge_accumulators([first, second]))
        found[whole.name] = merged_array(whole)
        assert merged_array(whole).tolist() == found[whole.name].tolist()  # a step that is done again
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that the arrays above are larger than."""
    monkeypatch.setattr(statistic_parts, "INLINE_LIMIT", 100_000)
    monkeypatch.setattr(statistic_parts, "INLINE_PART_LIMIT", 1_000)
    monkeypatch.setattr(statistic_parts, "FILE_BYTES", 50_000)


def test_a_large_statistic_goes_by_path_in_bounded_files(small: None, tmp_path: pathlib.Path) -> None:
    curvature = curvature_by_name("kfac")
    sent = [list(send_statistic(curvature, statistic(seed), "layout", str(tmp_path))) for seed in range(3)]
    for part in sent[0]:
        assert len(pickle.dumps(part)) < 10_000
        assert (part.array is None) == (part.name != "count")
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.npy")]
    assert len(sizes) == 3 * (2 + 5 + 1) and max(sizes) <= 160_128  # a row is never cut
    found = combined(curvature, sent)
    for name in SHAPES:
        assert found[name].tolist() == np.sum([statistic(seed)[name] for seed in range(3)], axis=0).tolist()


def test_a_small_one_goes_by_value_and_adds_to_what_went_by_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curvature = curvature_by_name("kfac")
    sent = [list(send_statistic(curvature, statistic(0), "layout", str(tmp_path)))]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(statistic_parts, "INLINE_LIMIT", 1_000)
    sent.append(list(send_statistic(curvature, statistic(1), "layout", str(tmp_path))))
    found = combined(curvature, sent)
    assert all(found[name].tolist() == (statistic(0)[name] + statistic(1)[name]).tolist() for name in SHAPES)


def test_what_is_no_sum_goes_by_value(small: None, tmp_path: pathlib.Path) -> None:
    """A sample merges in its own way, whatever its size, which an option bounds."""
    (part,) = send_statistic(curvature_by_name("lissa"), {"sample": np.zeros(30_000)}, "layout", str(tmp_path))
    assert part.shape == () and part.array is not None


def test_a_bundle_is_emptied_as_it_is_sent(small: None, tmp_path: pathlib.Path) -> None:
    """So that it is never in memory beside its copies."""
    left = statistic(0)
    for count, _ in enumerate(send_statistic(curvature_by_name("kfac"), left, "layout", str(tmp_path)), 1):
        assert len(left) == len(SHAPES) - count


@pytest.mark.parametrize(
    "other",
    [
        StatisticPart("a", np.ones(3), "another", (3,)),
        StatisticPart("a", np.ones(1), "layout", (1,)),  # NumPy would broadcast it
        StatisticPart("b", np.ones(3), "layout", (3,)),
        StatisticPart("a", None, "layout", (3, 1)),
    ],
    ids=["layout", "shape", "name", "saved"],
)
def test_parts_of_another_layout_never_add_up(other: StatisticPart) -> None:
    combine = MergePartsCombineFn(curvature_by_name("gauss_newton"))
    with pytest.raises(ValueError, match="two statistics do not belong together: part 'a'"):
        combine.merge(StatisticPart("a", np.ones(3), "layout", (3,)), other)
