"""`--uncertainty`: the job gives what a loop in memory gives, and refuses what has no known error before it starts."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from beam_influence.influence_ops.ensemble.intervals import interval_factor
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.config import InfluenceConfig
from tests.pipelines.digits_job import DigitsJob, read, run_quietly


@pytest.mark.parametrize(
    ("options", "draws"),
    [
        ({"curvature": "random_projection", "projection_dim": 40, "order": "ascending"}, 8),
        ({"curvature": "gauss_newton_cg", "passes": 1, "max_worker_memory": "130000"}, 4),  # two rounds of solving
    ],
    ids=["projection", "solver"],
)
def test_equals_memory(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], draws: int) -> None:
    how = {"outputs": "top_k,scores", "group_feature": None, "uncertainty": True, "query_block_size": 3, "top_k": 5}
    config = job.config(tmp_path / "out", files=2, **how, **options)
    run_quietly(config)
    wanted = job.oracle(config, job.shards("train", 2).ids(), job.shards("test", 1).ids())
    by, numbers = ["test_id", "train_id"], ["influence", "standard_error"]
    for table, columns in (("scores", numbers), ("top_k", [*numbers, "stable", "rank"])):
        both = read(tmp_path / "out", table), wanted.tables[table]
        found, theirs = (rows.sort_by([(name, "ascending") for name in by]) for rows in both)
        assert found.schema.names == theirs.schema.names and found.select(by).equals(theirs.select(by))
        for name in columns:  # sums over files in another order
            mine, other = (np.asarray(rows[name], np.float64) for rows in (found, theirs))
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-8 * np.abs(other).max())
    assert read_manifest(str(tmp_path / "out"))["interval_factor"] == interval_factor(draws)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "^the error of --curvature gauss_newton is not known|^--uncertainty: the error of --curvature gauss_newton is not known"),
        ({"curvature": "conjugate_gradient", "passes": 9}, "use random_projection or gauss_newton_cg, or .* beam-influence ensemble"),
        ({"curvature": "gauss_newton_cg", "passes": 0}, "use --passes 1 or more"),
        ({"curvature": "random_projection", "n_samples": 9}, "--n_samples 9: what a sample .* leaves out is not in the error"),
        ({"curvature": "random_projection", "damping": "0"}, "a --damping above 0"),
        ({"curvature_path": "c"}, "--uncertainty is of a curvature that this run fits, and --curvature_path takes its place"),
        ({"curvature": "random_projection", "outputs": "self_influence"}, "top_k and scores, not of self_influence; leave one out"),
        ({"curvature": "random_projection", "outputs": "curvature", "test": None}, "not of a curvature or an index alone"),
        ({"curvature": "random_projection", "per_token": True}, "the error of per_token is not known"),
    ],
)
def test_what_has_no_known_error_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfluenceConfig(**{"model": "m.keras", "train": "a", "test": "b", "output": "o", "uncertainty": True, **options})
