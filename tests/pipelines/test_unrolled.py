"""`beam-influence unrolled`, from files to tables, beside the same derivative in memory; and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.replay.batch_order import BatchOrder
from beam_influence.influence_ops.replay.smoothness import measure_smoothness
from beam_influence.influence_ops.replay.training_run import TrainingRun, as_checkpoint
from beam_influence.pipelines import unrolled
from beam_influence.pipelines.inspect_folder import inspect_folder
from beam_influence.pipelines.load_influence import load_influence
from beam_influence.pipelines.prepare_unrolled import prepare_unrolled
from beam_influence.pipelines.unrolled_config import UnrolledConfig
from beam_influence.pipelines.unrolled_words import warnings_of
from tests.pipelines.digits_job import FN_API, DigitsJob

EPOCHS, BATCH = 2, 64
MADE: dict[str, Any] = {"epochs": EPOCHS, "batch_size": BATCH}


def backwards(ids: list[str]) -> list[list[str]]:
    """Batches of the user's own: the examples from the last to the first, in two epochs."""
    turned = ids[::-1]
    return [turned[start : start + BATCH] for start in range(0, len(ids), BATCH)] * EPOCHS


def in_file_order(job: DigitsJob, split: str, count: int) -> ExampleBatch:
    files, of = job.shards(split, count).rows, job.splits[split]
    rows = [row for _, of_file in files for row in of_file]
    ids = [f"{name}:{index}" for name, of_file in files for index in range(len(of_file))]
    return ExampleBatch(np.array(ids, object), of.images[rows], of.labels[rows])


def network(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,), name="image")
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy())
    return model


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "before.keras"
    network(keras.optimizers.SGD(0.1)).save(path)
    return str(path)


def make_config(job: DigitsJob, before: str, output: pathlib.Path, **options: Any) -> UnrolledConfig:
    files = {split: job.shards(split, count).pattern for split, count in (("train", 3), ("test", 2))}
    return UnrolledConfig(model=before, **files, output=str(output), threads=1, **options)


def test_scores_are_the_derivative_in_memory(
    job: DigitsJob, before: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"batches": f"{__name__}:backwards"}
    config = make_config(job, before, tmp_path / "out", **names, outputs="top_k,scores", top_k=3, query_block_size=9, smoothness=3)
    prepared = prepare_unrolled(config)
    monkeypatch.setattr(unrolled, "prepare_unrolled", lambda _: prepared)  # once is enough
    unrolled.unroll(config, FN_API, io.StringIO())

    train, test = (in_file_order(job, split, count) for split, count in (("train", 3), ("test", 2)))
    order = BatchOrder.of_ids(backwards(list(train.ids)), list(train.ids))
    # What this process has compiled; tests/influence_ops/replay has independent numbers.
    run = TrainingRun.of(prepared.recipe.step(), train, order, 1 << 20)
    states = {number: as_checkpoint(state) for number, state in run.forward()}
    _, by_weight = run.backward(states.__getitem__, test)

    found = load_influence(str(tmp_path / "out"))
    scores = found.scores.to_pandas().pivot(index="test_id", columns="train_id", values="loss_change")
    assert scores.shape == (20, 300)
    wanted = -by_weight  # one test point after another has the same sums in another order: rounding alone
    np.testing.assert_allclose(scores.loc[test.ids, train.ids], wanted, atol=1e-9 * np.abs(wanted).max())
    best = train.ids[np.argsort(-wanted[0])[:3]]
    assert found.explain(test.ids[0])["train_id"].to_pylist() == best.tolist()
    assert found.n == 300 and found.curvature["steps"] == 10

    trained = load_keras_file(found.manifest["config"]["model"])
    for own, state in zip(trained.get_weights(), states[10], strict=False):
        np.testing.assert_allclose(own, state, atol=1e-6)  # saved in float32
    smoothness = found.curvature["smoothness"]
    assert smoothness["examples"] == 3 and smoothness["correlation"] > 0.9 and not list(warnings_of(found.manifest))
    assert not (tmp_path / "out" / ".work").exists()
    assert "beam-influence unrolled" in str(inspect_folder(str(tmp_path / "out"), 0).command)


def test_what_is_no_prediction_is_said() -> None:
    found = measure_smoothness(np.array([[1.0, 2.0], [-1.0, 1.0]]), np.array([[1.0, -2.0], [-1.0, 1.0]]), 3, 1.0)
    assert found.correlation == pytest.approx(0.0) and not found.is_enough
    facts: dict[str, Any] = {"curvature": {"smoothness": found._asdict(), "off_trained": 0.5}}
    not_smooth, another = warnings_of(facts)
    assert "does not predict" in not_smooth and "50 % of its whole change" in another
    (not_measured,) = warnings_of({"curvature": {"smoothness": None, "off_trained": None}})
    assert "not measured" in not_measured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": "self_influence"}, "must name some of top_k, scores"),
        ({"smoothness": 1}, "nothing to correlate"),
        ({"smoothness_step": 0.0}, "above 0 and at most 1"),
        ({"batches": "m:f", "epochs": 3}, "takes the place of --epochs 3"),
        ({"batches": "file.py"}, "not an import path"),
        ({"max_worker_memory": "much"}, "number of bytes"),
        ({"epochs": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnrolledConfig(model="m", train="a", test="b", output="o", **options)


def with_dropout(seed: int | None) -> keras.Model:
    model = network(keras.optimizers.SGD(0.1))
    dropped = keras.layers.Dropout(0.5, seed=seed, name="drops")(model.layers[1].output)
    other = keras.Model(model.inputs, model.layers[-1](dropped))
    other.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy())
    return other


def test_dropout_with_a_seed_draws_what_fit_drew(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    model, path = with_dropout(3), str(tmp_path / "before.keras")
    model.save(path)
    start = model.get_weights()
    train = in_file_order(job, "train", 3)
    model.fit(train.inputs, train.labels, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose="0")
    prepared = prepare_unrolled(make_config(job, path, tmp_path / "out", **MADE))
    run = TrainingRun.of(prepared.recipe.step(), train, BatchOrder.of_fit(len(train), BATCH, EPOCHS, None), 1 << 20)
    *_, (_, last) = run.forward()
    for wanted, found, before in zip(model.get_weights(), last, start, strict=False):
        # Both in float32, added up in another order; other draws of dropout are off by some tenths.
        assert np.linalg.norm(wanted - np.asarray(found)) < 1e-3 * np.linalg.norm(wanted - before)


def test_models_that_can_t_be_repeated_are_refused(job: DigitsJob, before: str, tmp_path: pathlib.Path) -> None:
    config = make_config(job, before, tmp_path / "out", **MADE)
    with pytest.raises(ValueError, match="has made 120 steps already"):
        unrolled.unroll(dataclasses.replace(config, model=str(job.model)), FN_API, io.StringIO())
    uncompiled = tmp_path / "uncompiled.keras"
    made = network(keras.optimizers.SGD())
    keras.Model(made.inputs, made.outputs).save(uncompiled)
    with pytest.raises(ValueError, match="was not compiled"):
        unrolled.unroll(dataclasses.replace(config, model=str(uncompiled), loss="sparse_categorical_crossentropy"), FN_API, io.StringIO())
    with pytest.raises(ValueError, match="the trained model has weights of the shapes"):
        unrolled.unroll(dataclasses.replace(config, trained=str(job.model)), FN_API, io.StringIO())
    keras.utils.set_random_seed(0)
    with_dropout(None).save(tmp_path / "unkept.keras")
    with pytest.raises(ValueError, match=r"each time it is opened \(layer 'drops'\), so that its training can't be repeated"):
        unrolled.unroll(dataclasses.replace(config, model=str(tmp_path / "unkept.keras")), FN_API, io.StringIO())
    with pytest.raises(ValueError, match="can't import 'no_such_module'"):
        unrolled.unroll(make_config(job, before, tmp_path / "out", batches="no_such_module:f"), FN_API, io.StringIO())
    assert not (tmp_path / "out").exists()
