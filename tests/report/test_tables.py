"""What a page takes from tables: the first rows of each key, and how concentrated scores are, against sorting all of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.scoring.ranking import Order
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.report.concentration import Concentration
from beam_influence.report.strongest import Score, Strongest


@pytest.mark.parametrize("end", ["descending", "ascending"])
@pytest.mark.parametrize("waiting", [1, 40, 10**6])
def test_the_first_of_each_key_are_those_of_a_sort(end: Order, waiting: int) -> None:
    """Over batches of odd sizes, with ties, which ids decide, and a key with fewer rows than are kept."""
    random = np.random.default_rng(0)
    rows = [(f"t{random.integers(4)}", f"e{row:03d}", float(random.integers(-9, 9))) for row in range(300)] + [("few", "e1", 0.5)]
    strongest = Strongest(5, end, "test_id", waiting=waiting)
    for start in range(0, len(rows), 37):
        tests, names, values = zip(*rows[start : start + 37], strict=True)
        columns = {"loss_change": pa.array([value / 10 for value in values]), "test_id": tests, "train_id": names, "influence": values}
        strongest.add(pa.RecordBatch.from_pydict(columns))
    sign = -1 if end == "descending" else 1
    wanted: dict[str, list[Score]] = {}
    for test, name, value in sorted(rows, key=lambda row: (sign * row[2], row[1])):
        if len(wanted.setdefault(test, [])) < 5:
            wanted[test].append(Score(name, value, value / 10))
    assert strongest.rows() == wanted
    assert Strongest(3, end).rows() == {}


def test_what_differs_by_the_noise_of_a_sum_is_ordered_by_id_as_in_top_k() -> None:
    values, names = [0.3, 0.1 + 0.2, 0.25], ["b", "a", "c"]
    columns = {"train_id": names, "influence": values, "loss_change": values}
    strongest = Strongest(2, "ascending"), Strongest(2, "descending")
    for one in strongest:
        one.add(pa.RecordBatch.from_pydict(columns))
    assert [[score.id for score in one.rows()[None]] for one in strongest] == [["c", "a"], ["a", "b"]]
    best = TopK(1, 2, "ascending")
    best.add(np.array([values]), np.array(names, dtype=object))
    assert list(best.ids[0]) == ["c", "a"]


def test_shares_are_those_of_all_sorted_values() -> None:
    random = np.random.default_rng(1)
    values = random.lognormal(0, 3, 5001) * random.choice([-1, 1], 5001)
    values[:100] = 0
    spread = Concentration()
    for part in np.array_split(values, 7):
        spread.add(part)
    parts = [0.0, 0.001, 0.0137, 0.1, 0.5, 1.0]
    sums = np.append(0, np.cumsum(np.sort(np.abs(values))[::-1]))
    exact = np.interp(np.array(parts) * len(values), np.arange(len(sums)), sums) / sums[-1]
    # Within a bin values are taken as equal, which they are to 1/128; so the sum within one is off by less than that part of it.
    assert spread.count == 5001 and spread.total == pytest.approx(sums[-1], rel=1e-12)
    assert spread.shares(parts) == pytest.approx(exact, rel=1 / 128)
    assert spread.shares([0.0, 1.0]).tolist() == [0.0, pytest.approx(1.0)]
    assert Concentration().shares([0.5]).tolist() == [0.0]
