"""The job with SOURCE, against its formula for a softmax layer in NumPy; and what is refused."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.pipelines.prepare import prepare
from beam_influence.transforms.files import BeamFiles
from tests.pipelines.digits_job import SIZES, DigitsJob, read, run_quietly

HORIZONS = (0.1 * 30, 0.02 * 50)
OPTIONS: dict[str, Any] = {
    "curvature": "source_gauss_newton", "segments": "1,2", "segment_rates": "0.1,0.02", "segment_steps": "30,50", "group_feature": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The network at two points of a training by Adam, and as it is."""
    folder, found = tmp_path_factory.mktemp("checkpoints"), []
    model: Any = keras.models.load_model(job.model)
    trained = model.get_weights()
    adam: Any = keras.optimizers.Adam(0.01, epsilon=1e-2)
    model.compile(adam, keras.losses.SparseCategoricalCrossentropy())
    adam.build(model.trainable_variables)
    for number, scale in enumerate((0.4, 0.8, 1.0)):
        model.set_weights([scale * weight for weight in trained])
        adam.iterations.assign(300 * (number + 1))
        for place, variable in enumerate(adam._velocities):
            variable.assign(10 ** np.random.default_rng([number, place]).uniform(-5, -1, variable.shape))
        model.save(folder / f"{number}.keras")
        found.append(str(folder / f"{number}.keras"))
    return found


def layer(path: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the last layer sees, and 1 [N, 9]; its probabilities [N, 10]."""
    model: Any = keras.models.load_model(path)
    first, bias, last, last_bias = (np.asarray(weight, np.float64) for weight in model.get_weights())
    seen = np.concatenate([np.maximum(images.astype(np.float64) @ first + bias, 0), np.ones((len(images), 1))], axis=1)
    z = seen @ np.concatenate([last, last_bias[None]])
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return seen, p / p.sum(axis=1, keepdims=True)


def roots(path: str) -> np.ndarray:
    """√P of Adam's steps for the last layer's weights: [90]."""
    model: Any = keras.models.load_model(path)
    adam = model.optimizer
    v = np.concatenate([np.asarray(variable, np.float64).ravel() for variable in adam._velocities[-2:]])
    return ((np.sqrt(v) + 1e-2) / np.sqrt(1 - 0.999 ** int(adam.iterations))) ** -0.5


def gradients(path: str, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    seen, p = layer(path, images)
    return np.einsum("nd,nc->ndc", seen, p - np.eye(10)[labels]).reshape(len(images), -1)


def curvature(path: str, images: np.ndarray) -> np.ndarray:
    seen, p = layer(path, images)
    middle = p[:, :, None] * np.eye(10) - p[:, :, None] * p[:, None, :]
    return np.einsum("nd,ncb,ne->dceb", seen, middle, seen).reshape(90, 90) / len(images) + 2e-3 * np.eye(90)


def scores(job: DigitsJob, table: pa.Table) -> np.ndarray:
    """[TEST, TRAIN]."""
    ids = [{name: row for row, name in enumerate(job.shards(split, files).ids())} for split, files in (("test", 1), ("train", 3))]
    found = np.empty((len(ids[0]), len(ids[1])))
    for row in table.to_pylist():
        found[ids[0][row["test_id"]], ids[1][row["train_id"]]] = row["influence"]
    return found


def test_the_job_is_the_formula(job: DigitsJob, checkpoints: list[str], tmp_path: pathlib.Path) -> None:
    run_quietly(job.config(tmp_path / "out", checkpoints=",".join(checkpoints), outputs="scores,self_influence,top_k", **OPTIONS))
    train, test = job.splits["train"], job.splits["test"]
    left, wanted = gradients(checkpoints[-1], test.images, test.labels), 0.0
    for members, horizon in ((checkpoints[1:], HORIZONS[1]), (checkpoints[:1], HORIZONS[0])):
        of_steps = np.mean([roots(path) ** -2.0 for path in members], axis=0) ** -0.5
        matrix = np.mean([curvature(path, train.images) for path in members], axis=0)
        values, vectors = np.linalg.eigh(of_steps[:, None] * matrix * of_steps)
        mean = np.mean([gradients(path, train.images, train.labels) for path in members], axis=0)
        rotated = (left * of_steps) @ vectors
        wanted = wanted + (rotated * ((1 - np.exp(-horizon * values)) / values)) @ ((mean * of_steps) @ vectors).T
        left = (rotated * np.exp(-horizon * values)) @ vectors.T / of_steps
    found = scores(job, read(tmp_path / "out", "scores"))
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()  # inputs are float32 in the files; solutions to 1e-7


def test_the_job_solves_each_segment(job: DigitsJob, checkpoints: list[str], tmp_path: pathlib.Path) -> None:
    """In two rounds, of 17 vectors of 90 numbers for each of 14 test points; as the plain loop in memory."""
    options = {**OPTIONS, "curvature": "source_gauss_newton_cg", "passes": 2, "outputs": "scores,top_k"}
    config = job.config(tmp_path / "out", checkpoints=",".join(checkpoints), max_worker_memory=str(14 * 8 * 17 * 90), **options)
    prepared = prepare(config)
    assert prepared.queries.text.endswith("solved in 2 rounds of 4 passes")
    run_quietly(config)
    batches = []
    for split, files in (("train", 3), ("test", 1)):
        ids, rows = np.array(job.shards(split, files).ids(), dtype=object), job.splits[split]
        batches.append([ExampleBatch(ids, rows.images, rows.labels)])
    model = prepared.model.session()
    wanted = compute_in_memory(model, config.make_curvature(), *batches, passes=2, outputs=("scores",)).tables["scores"]
    found = scores(job, read(tmp_path / "out", "scores"))
    np.testing.assert_allclose(found, scores(job, wanted), rtol=1e-6, atol=1e-9)  # sums in any order
    told = read_manifest(config.output, BeamFiles())["solver"]
    residuals = read(tmp_path / "out", "residuals").column("residual").to_numpy()
    assert told["points"] == told["unsolved"] == len(residuals) == SIZES["test"]
    assert told["largest_residual"] == residuals.max() and 1e-6 < residuals.min() < residuals.max() < 1
    again = job.config(tmp_path / "again", checkpoints=",".join(checkpoints), curvature_path=f"{config.output}/curvature", outputs="top_k")
    with pytest.raises(ValueError, match="is where the passes of source_gauss_newton_cg begin; fit it again"):
        run_quietly(again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "a,b"}, "--checkpoints names 2 and --segments 1,2 are of 3"),
        ({"checkpoints": "a,b,c", "checkpoint_weights": "1,1,1"}, "--checkpoint_weights 1,1,1: --curvature source_gauss_newton weighs"),
        ({"checkpoints": "a,b,c", "normalize": "loss"}, "--normalize loss needs influence vectors"),
        ({"checkpoints": "a,b,c", "outputs": "influence_vectors"}, "--outputs influence_vectors needs influence vectors"),
        ({"checkpoints": "a,b,c", "segment_steps": None}, "--segment_steps is needed"),
        ({"checkpoints": "a,b,c", "curvature": "ekfac"}, "--curvature source, source_gauss_newton or source_gauss_newton_cg, not ekfac"),
        ({"checkpoints": "a,b,c", "passes": 3}, "with --curvature gauss_newton_cg or conjugate_gradient or source_gauss_newton_cg: "),
        ({"checkpoints": "a,b,c", "curvature": "source_gauss_newton_cg"}, "to first order; for the rest use --passes 0"),
        (
            {"checkpoints": "a,b,c", "curvature": "source_gauss_newton_cg", "outputs": "curvature", "test": None},
            "--curvature source_gauss_newton_cg solves test points, and fit has none; fit --curvature source",
        ),
    ],
)
def test_wrong_options(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        job.config(tmp_path / "out", **{"outputs": "self_influence", "top_k": 10, **OPTIONS, **options})
    assert message in str(caught.value)


def test_checkpoints_end_with_the_model_in_the_order_of_training(job: DigitsJob, checkpoints: list[str], tmp_path: pathlib.Path) -> None:
    later: Any = keras.models.load_model(checkpoints[0])
    later.optimizer.iterations.assign(901)
    later.save(tmp_path / "later.keras")
    later.optimizer = None
    later.save_weights(tmp_path / "alone.weights.h5")
    for given, message in (
        ([*checkpoints[1:], checkpoints[0]], "0.keras', has other weights than --model"),
        ([str(tmp_path / "later.keras"), *checkpoints[1:]], "checkpoint 1 was saved after 600 steps of its optimizer, one before it"),
        ([str(tmp_path / "alone.weights.h5"), *checkpoints[1:]], "checkpoint 0 is a file of weights alone, so how far Adam moves each"),
    ):
        with pytest.raises(ValueError, match=message):
            run_quietly(job.config(tmp_path / "out", checkpoints=",".join(given), outputs="self_influence", **OPTIONS))
    assert not (tmp_path / "out").exists()
