"""The mean of rows, their ranks and their intervals, against NumPy in float64 and tables of Student's t."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.ensemble.intervals import interval_factor
from beam_influence.influence_ops.ensemble.mean_rows import mean_rows, side_by_side
from beam_influence.influence_ops.ensemble.ranked_rows import RankedRows
from beam_influence.influence_ops.results.tables import scores_table

TESTS, TRAINS, K = 5, 40, 6


@pytest.mark.parametrize(("members", "t"), [(2, 6.313752), (3, 2.919986), (4, 2.353363), (5, 2.131847), (11, 1.812461), (31, 1.697261)])
def test_intervals_are_students(members: int, t: float) -> None:
    assert interval_factor(members) == pytest.approx(t, abs=1e-5)  # printed to six places in the usual tables


def member(seed: int, ties: bool = False) -> tuple[np.ndarray, pa.Table]:
    scores = np.random.default_rng(seed).normal(size=(TESTS, TRAINS))
    if ties:
        scores = np.round(scores)
    tests, trains = ([f"{name} {row}" for row in range(count)] for name, count in (("test", TESTS), ("train", TRAINS)))
    return scores, scores_table(np.array(tests, object), np.array(trains, object), scores, 10)


def test_the_mean_is_numpys() -> None:
    scores, tables = zip(*(member(seed) for seed in range(3)), strict=True)
    mean = mean_rows(tables)
    wanted, error = np.mean(scores, axis=0).T.ravel(), (np.std(scores, axis=0, ddof=1) / np.sqrt(3)).T.ravel()
    assert np.allclose(mean["influence"], wanted, rtol=1e-12, atol=1e-15) and np.allclose(mean["loss_change"], wanted / 10, rtol=1e-12)
    assert np.allclose(mean["standard_error"], error, rtol=1e-12)
    relative = [table.set_column(3, table.schema.field(3), pa.nulls(len(table), pa.float64())) for table in tables]
    assert mean_rows(relative)["loss_change"].null_count == len(mean)


def test_other_rows_are_refused() -> None:
    first, other = member(0)[1], member(1)[1]
    with pytest.raises(ValueError, match="run 2 has a row of test_id 'test 1', train_id 'train 0' where the first has test_id 'test 0'"):
        mean_rows([first, other.take([1, 0, *range(2, len(other))])])


def test_batches_need_not_be_cut_alike() -> None:
    _, table = member(0)
    cut = [iter(table.to_batches(size)) for size in (7, 200, 64)]
    found = list(side_by_side(cut))
    assert all(len({len(one) for one in tables}) == 1 for tables in found)
    for place in range(3):
        assert pa.concat_tables([tables[place] for tables in found]).equals(table)
    with pytest.raises(ValueError, match="run 2 has fewer rows"):
        list(side_by_side([iter(table.to_batches(50)), iter(table.slice(0, 150).to_batches())]))


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("ties", [False, True])
def test_ranks_in_any_order_of_merging(descending: bool, ties: bool) -> None:
    scores, tables = zip(*(member(seed, ties) for seed in range(3)), strict=True)
    mean = mean_rows(tables)
    parts = []
    for start in range(0, len(mean), 60):
        part = RankedRows(K, descending)
        for rows in (mean.slice(start, 25), mean.slice(start + 25, 35)):
            part.add(rows)
        parts.append(part)
    factor, found = interval_factor(3), []
    for order in itertools.islice(itertools.permutations(parts), 4):
        total = RankedRows(K, descending)
        for part in order:
            total.merge(part)
        found.append(total.finish(factor))
    assert all(table.equals(found[0]) for table in found)
    assert found[0].column_names == ["test_id", "rank", "train_id", "influence", "loss_change", "standard_error", "stable"]
    average, error = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1) / np.sqrt(3)
    sign = -1 if descending else 1
    wanted = []
    for test in range(TESTS):
        order = sorted(range(TRAINS), key=lambda row, test=test: (np.round(sign * average[test, row], 9), f"train {row}"))
        outside = sign * average[test, order[K]]
        for rank, row in enumerate(order[:K], start=1):
            wanted.append((f"test {test}", rank, f"train {row}", bool(sign * average[test, row] + factor * error[test, row] < outside)))
    assert [tuple(row.values()) for row in found[0].select(["test_id", "rank", "train_id", "stable"]).to_pylist()] == wanted


def test_fewer_examples_than_k_are_stable() -> None:
    part = RankedRows(TRAINS, True)
    part.add(mean_rows([member(seed)[1] for seed in range(2)]))
    rows = part.finish(interval_factor(2))
    assert len(rows) == TESTS * TRAINS and all(rows["stable"].to_pylist())
