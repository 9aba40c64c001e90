"""`--per_token`: the job gives what a loop in memory gives; what can't be split by position is refused."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.prepare import prepare
from tests.pipelines.digits_job import DigitsJob, read, run_quietly

_SIZES = {"train-0": 9, "train-1": 8, "train-2": 7, "test": 5}


def _write(folder: pathlib.Path) -> dict[str, list[ExampleBatch]]:
    rng = np.random.default_rng(7)
    batches: dict[str, list[ExampleBatch]] = {"train": [], "test": []}
    for name, count in _SIZES.items():
        ids, labels = rng.integers(1, 9, (count, 4)), rng.integers(0, 2, count)
        pq.write_table(pa.table({"x": pa.array(list(ids)), "label": labels}), folder / f"{name}.parquet")
        names = np.array([f"{name}.parquet:{row}" for row in range(count)], dtype=object)
        batches[name.partition("-")[0]].append(ExampleBatch(names, ids, labels))
    keras.utils.set_random_seed(2)
    layers = keras.layers
    model: Any = keras.Sequential([keras.Input((4,), name="x"), layers.Embedding(9, 3), layers.SimpleRNN(3), layers.Dense(2)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(folder / "model.keras")
    return batches


def test_equals_memory(tmp_path: pathlib.Path) -> None:
    of = _write(tmp_path)
    files = {"candidates": str(tmp_path / "train-*.parquet")}
    how: dict[str, Any] = {"curvature": "identity", "top_k": 3, "per_token": True}
    places = {"model": str(tmp_path / "model.keras"), "test": str(tmp_path / "test.parquet"), "output": str(tmp_path / "out")}
    run_quietly(InfluenceConfig(**places, **files, **how, weights="all", query_block_size=2, batch_size=4, threads=1))
    found = read(tmp_path / "out", "top_k")
    model = InfluenceModel(keras.models.load_model(tmp_path / "model.keras"), weights="all")
    of_memory = (model, how.pop("curvature"), of["train"], of["test"])
    wanted = compute_in_memory(*of_memory, candidates=of["train"], **how).tables["top_k"]
    assert found.schema.names == wanted.schema.names
    assert len(found) == 15
    for mine, theirs in zip(found.to_pylist(), wanted.to_pylist(), strict=True):
        assert (mine["test_id"], mine["rank"]) == (theirs["test_id"], theirs["rank"])
        assert mine["candidate_id"] == theirs["candidate_id"]
        for side in ("candidate", "test"):  # rounding of sums in batches of other sizes
            for name in (f"{side}_token_scores", f"{side}_unplaced_score"):
                np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "scores"}, "--per_token is of the table top_k"),
        ({"removal": "newton"}, "removal newton has no positions"),
        ({"query_rank": 2, "curvature": "ekfac"}, "--query_rank 2 leaves part of them out"),
        ({"curvature": "conjugate_gradient"}, "not conjugate_gradient; use ekfac"),
        ({"curvature": "gauss_newton_cg"}, "not gauss_newton_cg with passes"),
        ({"influence_vectors_path": "x", "train": None}, "--influence_vectors_path has not kept"),
    ],
)
def test_refuses_other_scores(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfluenceConfig(**{"model": "m.keras", "train": "a", "test": "b", "output": "o", "per_token": True, **options})


def test_refuses_a_model_without_a_sequence(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = job.config(tmp_path / "out", group_feature=None, outputs="top_k", per_token=True)
    with pytest.raises(ValueError, match="--per_token needs positions; the watched layer .* sees one vector of each example"):
        prepare(config)
