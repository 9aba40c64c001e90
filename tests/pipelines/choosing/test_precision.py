"""`--precision auto` takes the model's own precision where a sample has the same ranks, tells the error, and stays in float64 else."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from beam_influence.influence_ops.evaluation.score_error import ScoreError, score_error
from beam_influence.pipelines.choosing import precision
from beam_influence.pipelines.choosing.choose import choose_and_prepare
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.scored_data import config_of
from tests.pipelines.digits_job import SIZES, DigitsJob, read, run_quietly

ALL: dict[str, Any] = {"weights": "all", "curvature": "ekfac", "damping": "0.1", "outputs": "scores"}


def test_the_error_is_that_of_ranks() -> None:
    generator = np.random.default_rng(0)
    exact = generator.normal(size=(3, 40))
    other = exact + 0.3 * generator.normal(size=exact.shape)
    other[1] = exact[1]
    found = score_error(exact, other, 5)
    rank: Any = scipy.stats.rankdata
    wanted = [np.corrcoef(rank(one), rank(two))[0, 1] for one, two in zip(exact, other, strict=True)]
    assert found.rank == pytest.approx(np.min(wanted), abs=1e-12) and (found.points, found.examples, found.k) == (3, 40, 5)
    same = [len(set(np.argsort(one)[-5:]) & set(np.argsort(two)[-5:])) for one, two in zip(exact, other, strict=True)]
    assert found.top == pytest.approx(sum(same) / 15) and same[1] == 5 and found.top < 1
    assert found.relative == pytest.approx(np.sqrt(((other - exact) ** 2).sum() / (exact**2).sum()))
    assert score_error(exact, np.zeros_like(exact), 5).rank == 0


def test_the_narrower_one_is_taken_where_ranks_are_the_same() -> None:
    good = ScoreError(16, 256, 1 - 0.9e-4, 1.0, 10, 1e-6)
    assert precision.decide("float32", good).precision == "native"
    assert precision.decide("bfloat16", good._replace(rank=1 - 1.1e-4)).precision == "float64"
    assert precision.decide("float32", good._replace(rank=float("nan"))).precision == "float64"


def test_a_network_is_computed_in_its_own_precision(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_and_prepare(job.config(tmp_path / "short", **ALL))[1].dtype == "float64"  # too short a run to measure another
    monkeypatch.setattr(precision, "_WORTH_IT", 0.0)
    chosen, prepared = choose_and_prepare(job.config(tmp_path / "out", **ALL))
    assert chosen.precision == "native" and prepared.dtype == "float32" and prepared.model.session().dtype == "float32"
    told = json.loads(json.dumps(prepared.choice_facts["precision"]))
    assert told["asked"] == "auto" and 1 - 1e-4 <= told["error"]["rank"] <= 1 and 0 < told["error"]["relative"] < 1e-4
    assert prepared.precision is not None
    assert prepared.precision.text.startswith("precision: float32: as good as float64 (of 256 training examples × 16 test points, ")


def test_what_is_ill_conditioned_stays_in_float64(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_WORTH_IT", 0.0)
    dense = choose_and_prepare(job.config(tmp_path / "dense", outputs="scores"))[1].precision
    assert dense is not None and dense.error is None and dense.precision == "float64" and "however ill-conditioned" in dense.why
    bad = ScoreError(16, 256, 0.9, 0.5, 10, 0.8)
    monkeypatch.setattr(precision, "measure", lambda *_: bad)
    chosen, prepared = choose_and_prepare(job.config(tmp_path / "bad", **ALL))
    found = prepared.precision
    assert (chosen.precision, prepared.dtype) == ("auto", "float64") and found is not None and found.error == bad
    assert found.text == f"precision: float64: float32 gives other ranks ({bad.text})"
    assert choose_and_prepare(dataclasses.replace(chosen, precision="native"))[1].precision is None


@keras.saving.register_keras_serializable("test_precision")
class _AnotherInFloat64(keras.layers.Layer):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * (1.5 if inputs.dtype == tf.float64 else 1.0)


def another_in_float64(policy: str = "float32") -> keras.Model:
    """A model whose copy in float64 is another function."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,), name="image")
    hidden = _AnotherInFloat64(dtype="float32")(keras.layers.Dense(4, dtype=policy)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(hidden))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


in_bfloat16 = functools.partial(another_in_float64, "mixed_bfloat16")


def test_a_copy_that_is_another_function_is_told(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = job.config(tmp_path / "out", **{**ALL, "model": f"{__name__}:another_in_float64"})
    chosen, prepared = choose_and_prepare(config)
    assert (chosen.precision, prepared.dtype, prepared.model.precision) == ("native", "float32", "native")
    found = prepared.precision
    assert found is not None and found.is_told and prepared.choice_facts["precision"]["precision"] == "native"
    assert found.text.startswith("precision: float32, the model's own: the float64 copy of the model is not the model: its outputs are off")
    assert found.text.endswith("(_AnotherInFloat64)")  # without the mend: it is mended
    native = choose_and_prepare(dataclasses.replace(config, model=f"{__name__}:in_bfloat16", precision="native"))[1].precision
    assert native is not None and native.is_told and native.error is None
    assert native.why.startswith("bfloat16, as it is asked for; its error can't be measured (the float64 copy of the model is not")
    held = choose_and_prepare(dataclasses.replace(config, precision="bfloat16"))[1].precision
    assert held is not None and held.error is not None and "beside float32, not float64, since the float64 copy" in held.why


def test_one_that_is_asked_for_is_told(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run after the other in one process: TensorFloat-32, then test points in bfloat16, which take half the rounds of float32."""
    options = {**ALL, "curvature": "identity", "damping": "auto", "group_feature": None, "outputs": "scores,self_influence"}
    in_tf32 = job.config(tmp_path / "tf32", **options, precision="tf32")
    told = run_quietly(in_tf32).manifest["precision"]
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    assert told["precision"] == "tf32" and "error" not in told and "no GPU with TensorFloat-32 here" in told["why"]

    size = 65 * 8 + 9 * 10
    config = job.config(tmp_path / "out", **options, precision="bfloat16", score_tolerance=0.0, max_worker_memory=str(2 * 10 * 2 * size))
    summary = run_quietly(config)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    error = summary.manifest["precision"]["error"]
    assert 0.999 < error["rank"] < 1 and 1e-4 < error["relative"] < 2e-3
    plan = choose_and_prepare(dataclasses.replace(config, overwrite=True))[1].queries
    assert plan.rounds.count == 2 and f"take {20 * 2 * size / 1024:.1f} KiB in bfloat16" in plan.text
    native = dataclasses.replace(config, overwrite=True, precision="native")
    assert choose_and_prepare(native)[1].queries.rounds.count == 4
    oracle = job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids())
    for table, bounds in (("scores", (1e-4, 2e-3)), ("self_influence", (0.0, 1e-6))):
        ids = [(name, "ascending") for name in oracle.tables[table].column_names if name.endswith("id")]
        tables = (read(tmp_path / "out", table), oracle.tables[table])
        found, wanted = (each.sort_by(ids)["influence"].to_numpy() for each in tables)
        assert len(found) == SIZES["train"] * (SIZES["test"] if table == "scores" else 1)
        assert bounds[0] <= np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < bounds[1]

    error = ScoreError(16, 256, 0.9999, 0.99, 10, 1e-3)
    monkeypatch.setattr(precision, "has_tensor_float_32", lambda: True)
    monkeypatch.setattr(precision, "measure", lambda *_: error)
    measured = choose_and_prepare(dataclasses.replace(in_tf32, overwrite=True))[1].precision
    assert measured is not None and measured.error == error and measured.why.endswith(f"where a GPU has it ({error.text})")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "self_influence"}, "and there are none; use --precision native"),
        ({"removal": "newton", "damping": "0.1"}, "and --removal newton takes them in float64"),
        ({"outputs": "group_influence", "group_feature": "group", "second_order_groups": True}, "and --second_order_groups needs none"),
        ({"curvature": "identity", "per_token": True}, "its parts would not add up to them"),
        ({"train": None, "influence_vectors_path": "vectors"}, "and there are none; use --precision native"),
    ],
)
def test_what_has_no_products_is_refused(options: dict[str, Any], message: str) -> None:
    given = {"model": "m.keras", "train": "train", "test": "test", "output": "out", "outputs": "top_k", **options}
    with pytest.raises(ValueError, match=f"--precision bfloat16 is of solved test points that .*{message}"):
        InfluenceConfig(**given, precision="bfloat16")
    InfluenceConfig(**given, precision="tf32")


def test_what_a_run_in_bfloat16_read_is_read_in_its_models_own_precision() -> None:
    """Of `evaluate` and the report, which multiply nothing with solved test points."""
    assert config_of({"model": "m.keras", "train": "t.tfrecord", "precision": "bfloat16"}, "out").precision == "native"
