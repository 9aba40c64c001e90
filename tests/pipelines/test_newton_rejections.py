"""With `--removal newton` an example can be unusable for its own removal: it is rejected by the scoring stage."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.pipelines.run_pipeline import RunFailedError
from tests.pipelines.digits_job import DigitsJob, floats, framed, read, run_quietly


@pytest.fixture
def regression(tmp_path: pathlib.Path) -> dict[str, Any]:
    """y = wx without a regulariser; only the third example has the second feature, so without it w₂ has no curvature."""
    inputs = keras.Input((2,), name="x")
    outputs = keras.layers.Dense(1, use_bias=False)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    model.save(tmp_path / "model.keras")
    random = np.random.default_rng(0)
    rows = [(float(random.normal()), 2.0 if row == 2 else 0.0) for row in range(12)]

    def example(row: tuple[float, float]) -> bytes:
        feature = {"x": floats(row), "label": floats([float(random.normal())])}
        return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()

    (tmp_path / "train").write_bytes(framed(example(row) for row in rows))
    (tmp_path / "test").write_bytes(framed(example(row) for row in rows[:3]))
    return {
        "model": str(tmp_path / "model.keras"),
        "train": str(tmp_path / "train"),
        "test": str(tmp_path / "test"),
        "removal": "newton",
        "damping": "0",
        "outputs": "scores",
    }


def test_they_are_in_the_table(job: DigitsJob, tmp_path: pathlib.Path, regression: dict[str, Any]) -> None:
    output = tmp_path / "out"
    run_quietly(job.config(output, group_feature=None, max_rejected=1, **regression))
    (row,) = read(output, "rejected").to_pylist()
    assert (row["file"], row["index"], row["stage"], row["error"]) == ("train", 2, "evaluate", "leverage")
    assert set(read(output, "scores")["train_id"].to_pylist()) == {f"train:{index}" for index in range(12) if index != 2}


def test_they_count_against_max_rejected(job: DigitsJob, tmp_path: pathlib.Path, regression: dict[str, Any]) -> None:
    with pytest.raises(RunFailedError, match=r"(?s)^1 example was rejected.*train:2 \(evaluate, leverage\).*use a larger --damping"):
        run_quietly(job.config(tmp_path / "out", group_feature=None, **regression))
    assert not (tmp_path / "out" / "manifest.json").exists()
