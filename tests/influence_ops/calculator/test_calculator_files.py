"""What the calculators keep and save: caches, influence vectors, values, top-k, curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence import CACHE, FirstOrderInfluenceCalculator
from tests.arrays import joined, matrix_of, relative
from tests.influence_ops.calculator.calculator_case import EXACT, Case


@pytest.mark.parametrize("cache", list(CACHE))
def test_caches_do_not_change_the_result(cache):
    case = Case("a")
    wanted = matrix_of(case.calculator.estimate_influence_values_in_batches(case.test, case.train))
    found = matrix_of(case.calculator.estimate_influence_values_in_batches(case.test, case.train, cache))
    assert relative(found, wanted) < EXACT


def test_paths_save_and_load_and_never_overwrite(tmp_path):
    case = Case("a")
    vectors, values, top = (str(tmp_path / name) for name in ("vectors", "values", "top"))
    wanted = matrix_of(case.calculator.estimate_influence_values_in_batches(case.test, case.train))
    saved = case.calculator.estimate_influence_values_in_batches(
        case.test, case.train, save_influence_vector_path=vectors, save_influence_value_path=values
    )
    assert relative(matrix_of(saved), wanted) < EXACT
    table = pq.read_table(f"{values}/scores")
    assert relative(np.asarray(table.sort_by([("influence", "ascending")])["influence"]), np.sort(wanted.ravel())) < EXACT
    # A loaded path is used whatever the cache: vectors that were saved doubled come back doubled.
    loaded = case.calculator.estimate_influence_values_in_batches(case.test, case.train, load_influence_vector_path=vectors)
    assert relative(matrix_of(loaded), wanted) < EXACT
    reread, computed = (joined(case.calculator.compute_influence_vector(case.train, path)) for path in (vectors, None))
    assert relative(reread, computed) < EXACT
    # The same again is kept as it is; something else is never written over it.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    case.calculator.estimate_influence_values_in_batches(
        case.test, case.train, save_influence_vector_path=vectors, save_influence_value_path=values
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    with pytest.raises(ValueError, match="holds a finished run already, another one: train differ; give another path"):
        case.calculator.estimate_influence_values_in_batches(case.test, case.head(8), save_influence_vector_path=vectors)
    with pytest.raises(ValueError, match="another one: test differ"):
        case.calculator.estimate_influence_values_in_batches(case.test_head(3), case.train, save_influence_value_path=values)
    with pytest.raises(ValueError, match="another one: damping 0.0, not 0.1 differ"):
        damped = FirstOrderInfluenceCalculator(case.model, case.train, damping=0.1)
        damped.estimate_influence_values_in_batches(case.test, case.train, save_influence_vector_path=vectors)
    with pytest.raises(ValueError, match="another one: what it is differ"):
        case.calculator.top_k(case.test, case.train, save_top_k_ds_path=vectors)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more influence vectors than the dataset"):
        joined(case.calculator.compute_influence_vector(case.head(8), vectors))
    backwards = tf.data.Dataset.from_tensor_slices((case.x[::-1], case.y[::-1])).batch(17)
    with pytest.raises(tf.errors.InvalidArgumentError, match="are of other examples, or in another order"):
        joined(case.calculator.compute_influence_vector(backwards, vectors))
    with pytest.raises(ValueError, match="no run has finished"):
        case.calculator.top_k(case.test, case.train, load_influence_vector_ds_path=str(tmp_path / "nothing"))
    other = Case("a", normalize=True)
    with pytest.raises(ValueError, match="were made with normalize"):
        other.calculator.compute_influence_vector(case.train, vectors)
    for _ in range(2):
        list(case.calculator.top_k(case.test, case.train, 2, save_top_k_ds_path=top))
        assert pq.read_table(f"{top}/top_k").num_rows == 24
    with pytest.raises(ValueError, match="another one: k differ"):
        case.calculator.top_k(case.test, case.train, 3, save_top_k_ds_path=top)


def test_a_saved_curvature_takes_the_place_of_the_dataset(tmp_path):
    case = Case("a")
    case.calculator.save_curvature(str(tmp_path))
    again = FirstOrderInfluenceCalculator(case.model, str(tmp_path))
    found, wanted = (joined(calculator.compute_influence_values(case.train)) for calculator in (again, case.calculator))
    assert relative(found, wanted) < EXACT
    FirstOrderInfluenceCalculator(case.model, case.calculator.preconditioner, damping=0.0)
    wrong: list[dict[str, Any]] = [{"damping": 0.5}, {"rank": 3}, {"passes": 4}, {"tolerance": 1e-3}]
    for options in wrong:
        with pytest.raises(ValueError, match="can't change a curvature that is fitted already, with damping 0.0"):
            FirstOrderInfluenceCalculator(case.model, str(tmp_path), **options)
    with pytest.raises(ValueError, match="watched weights|another model"):
        FirstOrderInfluenceCalculator(Case("b").model, str(tmp_path))
