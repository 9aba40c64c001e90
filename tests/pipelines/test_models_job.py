"""Models of every form: SavedModel folders, the user's functions, several inputs and outputs."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.saved_model import SavedModelNetwork
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.prepare import prepare
from beam_influence.transforms.load_model import load_model
from tests.pipelines import models_of_tests
from tests.pipelines.digits_job import DigitsJob, assert_same_rows, read, run_quietly

MODELS = "tests.pipelines.models_of_tests"
FLOAT32 = 2e-4  # scores of a float32 model against float64, of the largest; seen: 2e-5


def digits(job: DigitsJob, output: pathlib.Path, **options: Any) -> InfluenceConfig:
    return job.config(output, files=1, outputs="scores", group_feature=None, damping="0.01", **options)


def scores(output: pathlib.Path) -> np.ndarray:
    return np.array(read(output, "scores")["influence"].to_pylist())


@pytest.fixture(scope="module")
def native(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Scores of the `.keras` file in float64, the regulariser apart: a SavedModel does not carry it."""
    output = tmp_path_factory.mktemp("native") / "out"
    model: Any = keras.models.load_model(job.model)
    plain = keras.Sequential([keras.Input((64,), name="image"), keras.layers.Dense(8, "relu"), keras.layers.Dense(10, "softmax")])
    plain.set_weights(model.get_weights())
    plain.save(output.parent / "plain.keras")
    run_quietly(digits(job, output, model=str(output.parent / "plain.keras"), loss="sparse_categorical_crossentropy", curvature="exact"))
    return scores(output)


@pytest.mark.parametrize("how", ["export", pytest.param("save", marks=pytest.mark.slow)])
def test_a_saved_model(job: DigitsJob, tmp_path: pathlib.Path, native: np.ndarray, how: str) -> None:
    model: Any = keras.models.load_model(job.model)
    folder = str(tmp_path / "saved")
    if how == "export":
        model.export(folder, verbose=False)
    else:
        tf.saved_model.save(model, folder)
    config = digits(job, tmp_path / "out", model=folder, loss="sparse_categorical_crossentropy", input_features="image", curvature="exact")
    plan = prepare(config)
    assert (plan.dtype, plan.watched, plan.total, len(plan.weights)) == ("float32", 90, 610, 2)
    run_quietly(config)
    found = scores(tmp_path / "out")
    assert np.abs(found - native).max() < FLOAT32 * np.abs(native).max()
    with open(f"{folder}/variables/variables.index", "ab") as file:
        file.write(b"changed")
    with pytest.raises(ValueError, match="has changed since the run began"):
        plan.model.open()


def test_exact_refuses_stopped_gradients(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((64,), name="image")
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.LayerNormalization()(keras.layers.Dense(4)(inputs))))
    model.export(tmp_path / "saved", verbose=False)
    options: dict[str, Any] = {"model": str(tmp_path / "saved"), "loss": "softmax_cross_entropy"}
    with pytest.raises(ValueError, match="StopGradient operations.*use --curvature gauss_newton"):
        prepare(digits(job, tmp_path / "out", curvature="exact", **options))
    prepare(digits(job, tmp_path / "out", curvature="gauss_newton", **options))
    network = InfluenceModel(load_model(options["model"])[0], weights="last", loss_function="softmax_cross_entropy")
    batch = ExampleBatch(np.array(["a"], dtype=object), np.zeros((1, 64), np.float32), np.array([1]))
    with pytest.raises(ValueError, match="StopGradient"):
        network.hessian_sum(batch)


def test_saved_models_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    module: Any = tf.Module()
    module.weight = tf.Variable(tf.constant([2.0]))
    folder = str(tmp_path / "none")
    tf.saved_model.save(module, folder)
    with pytest.raises(ValueError, match="has no signature 'serving_default'"):
        SavedModelNetwork(folder)
    module.call = tf.function(
        lambda x: x * module.weight + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32),
        [tf.TensorSpec([None, 1])],
    )
    tf.saved_model.save(module, str(tmp_path / "reads"), signatures=module.call)
    with pytest.raises(ValueError, match="operations ReadFile, which run Python or touch files"):
        SavedModelNetwork(str(tmp_path / "reads"))


def test_a_function_and_weights(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    model: Any = keras.models.load_model(job.model)
    model.save_weights(tmp_path / "digits.weights.h5")
    for name, options in {
        "file": {},
        "function": {"model": f"{MODELS}:digits_model", "model_weights": str(tmp_path / "digits.weights.h5")},
    }.items():
        run_quietly(digits(job, tmp_path / name, **options))
    assert np.array_equal(scores(tmp_path / "function"), scores(tmp_path / "file"))


def test_a_function_that_draws_its_weights_is_refused(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    plan = prepare(digits(job, tmp_path / "out", model=f"{MODELS}:digits_model"))
    with pytest.raises(ValueError, match="other weights on this worker.*--model_weights"):
        plan.model.open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": f"{MODELS}:nothing"}, "has no attribute 'nothing'"),
        ({"model": f"{MODELS}:no_model"}, "returned a int; it must return a built Keras model"),
        ({"model": f"{MODELS}:subclassed", "loss": "softmax_cross_entropy"}, r"declares no inputs.*keras\.Model\(inputs"),
        ({"model": f"{MODELS}:digits_model", "model_weights": "x.weights.h5"}, "there are no weights at 'x.weights.h5'"),
        ({"model": f"{MODELS}:digits_model", "model_weights": "x.npy"}, r"must be a \.weights\.h5 file"),
        ({"model_weights": "x.weights.h5"}, "goes with --model module:function"),
    ],
)
def test_what_is_refused(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(digits(job, tmp_path / "out", **options))


def test_a_subclassed_layer_in_a_functional_model(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = digits(job, tmp_path / "out", model=f"{MODELS}:wrapped", loss="softmax_cross_entropy", weights="all")
    assert prepare(config).watched == 650
    run_quietly(config)
    assert np.isfinite(scores(tmp_path / "out")).all()


def two_output_data(count: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "left": generator.normal(size=(count, 3)).astype(np.float32),
        "right": generator.normal(size=(count, 2, 2)).astype(np.float32),
        "kind": generator.integers(0, 3, count),
        "size": generator.normal(size=count).astype(np.float32),
        "weight": generator.uniform(0.5, 2, count).astype(np.float32),
    }


def test_several_inputs_and_outputs(tmp_path: pathlib.Path) -> None:
    data = {"train": two_output_data(50, 1), "test": two_output_data(4, 2)}
    for split, columns in data.items():
        table = {name: pa.array(array.tolist()) for name, array in columns.items() if name != "right"}
        pq.write_table(pa.table({**table, "matrix": pa.array(columns["right"].tolist())}), tmp_path / f"{split}.parquet")
    config = InfluenceConfig(
        model=f"{MODELS}:two_outputs",
        train=str(tmp_path / "train.parquet"),
        test=str(tmp_path / "test.parquet"),
        output=str(tmp_path / "out"),
        input_features="right=matrix",
        label_feature="kind,size",
        weight_feature="weight",
        loss=f"{MODELS}:joint_loss",
        weights="all",
        curvature="gauss_newton",
        damping="1.0",
        outputs="top_k,self_influence",
        batch_size=13,
        threads=1,
    )
    run_quietly(config)
    batches = {}
    for split, columns in data.items():
        ids = np.array([f"{split}.parquet:{row}" for row in range(len(columns["kind"]))], dtype=object)
        inputs, labels = ({name: columns[name] for name in names} for names in (("left", "right"), ("kind", "size")))
        weights = columns["weight"].astype(np.float64) if split == "train" else None
        batches[split] = [ExampleBatch(ids, inputs, labels, weights)]
    model = InfluenceModel(models_of_tests.two_outputs(), weights="all", loss_function=models_of_tests.joint_loss)
    oracle = compute_in_memory(
        model, "gauss_newton", batches["train"], batches["test"], damping=1.0, options=ScoreOptions(), outputs=("top_k", "self_influence")
    )
    for table in ("top_k", "self_influence"):
        assert_same_rows(read(tmp_path / "out", table), oracle.tables[table], 1e-9)  # other batches, so other last bits
    # The gradients themselves, by finite differences of the loss with Dropout off and the moving statistics.
    batch = batches["train"][0]
    _, gradients = model.losses_and_gradients(batch)
    variable, step = model.variables[0], 1e-6
    value = variable.value.numpy()
    moved = []
    for sign in (1, -1):
        other = value.copy()
        other[0, 0] += sign * step
        variable.assign(other)
        moved.append(model.losses(batch))
    variable.assign(value)
    assert np.allclose(np.asarray(gradients)[:, 0], (moved[0] - moved[1]) / (2 * step), atol=1e-8)


def test_one_hot_labels_are_integer_labels(job: DigitsJob) -> None:
    split = job.splits["train"]
    model: Any = keras.models.load_model(job.model)
    ids = np.array(split.names[:30], dtype=object)
    sparse = InfluenceModel(model, weights="last", loss_function="sparse_categorical_crossentropy")
    dense = InfluenceModel(model, weights="last", loss_function="categorical_crossentropy")
    _, a = sparse.losses_and_gradients(ExampleBatch(ids, split.images[:30], split.labels[:30]))
    _, b = dense.losses_and_gradients(ExampleBatch(ids, split.images[:30], np.eye(10, dtype=np.float32)[split.labels[:30]]))
    assert np.allclose(a, b, rtol=1e-12, atol=1e-14)
