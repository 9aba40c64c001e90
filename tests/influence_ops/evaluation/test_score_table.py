"""Sums over subsets from streams of rows equal those of the whole matrix, whatever the order and the size of the pieces."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import ParquetFile, write_manifest
from beam_influence.influence_ops.results.tables import scores_table

N, T = 37, 5
TRAIN = [f"train:{row}" for row in range(N)]
TEST = [f"test:{row}" for row in range(T)]


def scores() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(T, N))


def write_run(folder: pathlib.Path, shuffled: bool = False, leave_out: int = 0) -> pathlib.Path:
    """Three files, each of blocks of examples and of queries as the job writes them; or all rows in no order."""
    matrix, files = scores(), []
    ids = np.array(TRAIN, dtype=object), np.array(TEST, dtype=object)
    parts = []
    for rows in np.array_split(np.arange(N), 3):
        pieces = [
            scores_table(ids[1][tests], ids[0][batch], matrix[np.ix_(tests, batch)], N)
            for batch in np.array_split(rows, 2)
            for tests in np.array_split(np.arange(T), 2)
        ]
        parts.append(pa.concat_tables(pieces))
    if shuffled:
        whole = pa.concat_tables(parts)
        parts = [whole.take(np.random.default_rng(1).permutation(whole.num_rows))]
    for number, part in enumerate(parts):
        file = ParquetFile(str(folder), "scores", f"shard-{number:05d}", schemas.SCORES, schemas.facts(META, "none", "first_order"))
        file.write(part.slice(0, part.num_rows - (leave_out if number == len(parts) - 1 else 0)))
        files.append(file.close())
    write_manifest(str(folder), files, {"config": {"order": "descending", "top_k": 3}, "curvature": META})
    return folder


META = {"examples": N, "curvature": "exact", "damping": 0.5, "fingerprint": "f"}


@pytest.mark.parametrize("rows", [1, 7, 64, 1 << 17])
@pytest.mark.parametrize("shuffled", [False, True])
def test_sums_equal_those_of_the_matrix(tmp_path: pathlib.Path, rows: int, shuffled: bool) -> None:
    run = ScoreTable(str(write_run(tmp_path, shuffled)), rows=rows)
    masks = np.random.default_rng(2).random((9, N)) < 0.5
    # Sums of 37 numbers of order 1 in another order.
    assert np.abs(run.subset_sums(masks, TRAIN, TEST) - masks @ scores().T).max() < 1e-13
    assert run.facts()["n"] == N


def test_a_block_that_would_be_mostly_empty(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_influence.influence_ops.evaluation.score_table._SPARSE", 0)
    masks = np.random.default_rng(2).random((9, N)) < 0.5
    run = ScoreTable(str(write_run(tmp_path, shuffled=True)), rows=20)
    assert np.abs(run.subset_sums(masks, TRAIN, TEST) - masks @ scores().T).max() < 1e-13


def test_ids_are_in_the_order_of_the_files_and_any_order_can_be_asked_for(tmp_path: pathlib.Path) -> None:
    run = ScoreTable(str(write_run(tmp_path)), rows=11)
    assert run.ids() == (TRAIN, TEST)
    masks = np.random.default_rng(3).random((4, N)) < 0.5
    sums = run.subset_sums(masks[:, ::-1], TRAIN[::-1], TEST[::-1])
    assert np.abs(sums - (masks @ scores().T)[:, ::-1]).max() < 1e-13
    assert np.array_equal(run.columns([TRAIN[30], TRAIN[2]], TEST), scores()[:, [30, 2]].T)


def test_missing_scores_are_refused(tmp_path: pathlib.Path) -> None:
    run = ScoreTable(str(write_run(tmp_path, leave_out=1)))
    with pytest.raises(ValueError, match="36 scores of the test point 'test:4' on the 37 training examples"):
        run.subset_sums(np.ones((1, N), bool), TRAIN, TEST)
    with pytest.raises(ValueError, match="0 scores of the test point 'other'"):
        run.columns(TRAIN[:2], ["other"])


def test_tables_that_a_run_lacks_are_named(tmp_path: pathlib.Path) -> None:
    run = ScoreTable(str(write_run(tmp_path)))
    with pytest.raises(ValueError, match="wrote no self_influence; run it with --outputs self_influence"):
        run.self_influence()
    with pytest.raises(ValueError, match="kept 3 examples in descending order; the 5 most helpful"):
        run.top_k(5, TEST)
    with pytest.raises(ValueError, match="no run has finished there"):
        ScoreTable(str(tmp_path / "nowhere"))


def test_an_id_that_is_asked_for_twice(tmp_path: pathlib.Path) -> None:
    run = ScoreTable(str(write_run(tmp_path)))
    with pytest.raises(ValueError, match=f"names the test point {TEST[1]!r} twice"):
        run.columns(TRAIN[:2], [TEST[1], TEST[0], TEST[1]])
