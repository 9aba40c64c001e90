"""The job over several checkpoints: influence is the weighted sum of the runs over each."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_influence.pipelines.config import InfluenceConfig
from tests.pipelines.digits_job import TOLERANCE, DigitsJob, run_quietly


@pytest.fixture(scope="module")
def checkpoints(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """The network at two other points, each as `.keras` and as `.weights.h5`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model: Any = keras.models.load_model(job.model)
    trained = model.get_weights()
    found = []
    for number, scale in enumerate((0.4, 0.8)):
        model.set_weights([scale * weight for weight in trained])
        model.save(folder / f"{number}.keras")
        model.save_weights(folder / f"{number}.weights.h5")
        found.append(folder / f"{number}.keras")
    return found


def scores(output: pathlib.Path, table: str = "scores") -> np.ndarray:
    order = [(name, "ascending") for name in ("test_id", "train_id") if name in pq.read_table(output / table).column_names]
    return np.asarray(pq.read_table(output / table).sort_by(order)["influence"])


@pytest.mark.parametrize(
    ("curvature", "suffix"), [("identity", ".keras"), ("gauss_newton", ".weights.h5"), ("ekfac", ".keras")], ids=lambda value: value
)
def test_the_job_sums_over_checkpoints(
    job: DigitsJob, checkpoints: list[pathlib.Path], tmp_path: pathlib.Path, curvature: str, suffix: str
) -> None:
    damping = "auto" if curvature == "identity" else "0.05"
    options: dict[str, Any] = {"curvature": curvature, "damping": damping, "outputs": "top_k,scores,self_influence", "group_feature": None}
    for number, path in enumerate(checkpoints):
        run_quietly(job.config(tmp_path / str(number), model=str(path), **options))
    listed = ",".join(str(path.with_suffix(suffix) if suffix == ".keras" else path.parent / f"{path.stem}{suffix}") for path in checkpoints)
    summary = run_quietly(job.config(tmp_path / "sum", checkpoints=listed, checkpoint_weights="0.1,2", **options))
    for table in ("scores", "self_influence"):
        wanted = 0.1 * scores(tmp_path / "0", table) + 2 * scores(tmp_path / "1", table)
        assert np.abs(scores(tmp_path / "sum", table) - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    assert summary.manifest["curvature"]["size"] == 180  # both checkpoints' 90 weights
    assert pq.read_table(tmp_path / "sum" / "top_k").num_rows == 20 * 7


def test_an_index_of_checkpoints(job: DigitsJob, checkpoints: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    options: dict[str, Any] = {"checkpoints": ",".join(map(str, checkpoints)), "group_feature": None}
    projected: dict[str, Any] = {"curvature": "random_projection", "projection_dim": 50}
    run_quietly(job.config(tmp_path / "run", outputs="scores", **options, **projected))
    run_quietly(job.config(tmp_path / "index", outputs="index", test=None, **options, **projected))
    run_quietly(job.config(tmp_path / "query", outputs="scores", train=None, index=str(tmp_path / "index"), **options))
    wanted = scores(tmp_path / "run")
    assert np.abs(scores(tmp_path / "query") - wanted).max() <= 1e-6 * np.abs(wanted).max()  # float32
    with pytest.raises(ValueError, match="the curvature is for 180 watched weights, the model has 90"):
        only = {**options, "checkpoints": str(checkpoints[0])}
        run_quietly(job.config(tmp_path / "x", outputs="scores", train=None, index=str(tmp_path / "index"), **only))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "a.keras,b.keras", "checkpoint_weights": "1"}, "--checkpoint_weights '1' must be 2 numbers, one for each"),
        ({"checkpoints": "a.keras", "checkpoint_weights": "-1"}, "--checkpoint_weights '-1' must be numbers above 0"),
        ({"checkpoints": "a.keras", "checkpoint_weights": "x"}, "--checkpoint_weights 'x' must be numbers above 0"),
        ({"checkpoint_weights": "1"}, "--checkpoint_weights '1' must be 0 numbers, one for each of --checkpoints"),
        ({"checkpoints": "a.keras", "removal": "newton"}, "--checkpoints sums influence of first order"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        InfluenceConfig(**{"model": "m.keras", "output": "out", "train": "t", "test": "t", **options})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["none.keras", "none.weights.h5"])
def test_a_checkpoint_that_is_not_there(job: DigitsJob, tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"there (is no model|are no weights) at '.*{name}'"):
        run_quietly(job.config(tmp_path / "out", checkpoints=str(tmp_path / name), outputs="top_k", group_feature=None))
