"""Whole jobs on models and files that people have: every score is the product of Keras's own gradients (H = I)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.pipelines.config import InfluenceConfig
from tests.influence_ops.model.keras_oracle import losses_and_gradients
from tests.pipelines import models_of_users
from tests.pipelines.digits_job import floats, framed, ints, read, run_quietly

MODELS = "tests.pipelines.models_of_users"
ROWS = {"train": 9, "test": 4}
FLOAT32 = 2e-5  # Keras computes the other side in float32

Data = dict[str, np.ndarray]


def vectors(rng: np.random.Generator, count: int) -> Data:
    return {"x": rng.normal(size=(count, 3)).astype(np.float32), "label": rng.normal(size=(count, 2)).astype(np.float32)}


def pixels(rng: np.random.Generator, count: int) -> Data:
    x = rng.uniform(size=(count, 4, 4, 1)).astype(np.float32)
    return {"x": x, "label": x}


def classes_of_pixels(rng: np.random.Generator, count: int) -> Data:
    return {"x": rng.uniform(size=(count, 4, 4, 1)).astype(np.float32), "label": rng.integers(0, 3, (count, 4, 4))}


def sentences(rng: np.random.Generator, count: int) -> Data:
    x = rng.integers(1, 6, (count, 5))
    for row in range(count):
        x[row, rng.integers(1, 6) :] = 0
    return {"x": x, "label": rng.integers(0, 3, (count, 5)), "w": rng.uniform(0.2, 2, (count, 5)).astype(np.float32)}


def prices(rng: np.random.Generator, count: int) -> Data:
    return {
        "x": rng.normal(size=(count, 3)).astype(np.float32),
        "cost": rng.normal(size=(count, 1)).astype(np.float32),
        "class": rng.integers(0, 3, (count, 1)),
    }


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "lambda-and-own-loss": ("with_lambda", vectors, {}),
    "own-loss-named-beside-its-model": ("with_lambda", vectors, {"loss": f"{MODELS}:absolute"}),
    "a-copy-that-is-another-model": ("forgetful", vectors, {}),
    "normalization": ("normalised", vectors, {}),
    "image-target-stored-flat": ("autoencoder", pixels, {}),
    "classes-of-pixels-stored-flat": ("segmentation", classes_of_pixels, {}),
    "masked-tokens-with-weights": ("tagger", sentences, {"weight_feature": "w"}),
    "outputs-by-name": ("two_outputs", prices, {"label_feature": "price=cost,kind=class"}),
}


def write(folder: pathlib.Path, split: str, data: Data) -> str:
    def example(row: int) -> bytes:
        features = {
            name: floats(array[row].ravel().tolist()) if array.dtype == np.float32 else ints(array[row].ravel().tolist())
            for name, array in data.items()
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    path = folder / f"{split}.tfrecord"
    path.write_bytes(framed(example(row) for row in range(ROWS[split])))
    return str(path)


@pytest.mark.parametrize("name", CASES)
def test_scores_are_products_of_kerass_gradients(name: str, tmp_path: pathlib.Path) -> None:
    made, data_of, options = CASES[name]
    rng = np.random.default_rng(4)
    splits = {split: data_of(rng, count) for split, count in ROWS.items()}
    files: dict[str, Any] = {split: write(tmp_path, split, data) for split, data in splits.items()}
    config = InfluenceConfig(
        model=f"{MODELS}:{made}", output=str(tmp_path / "out"), weights="all", curvature="identity", outputs="scores", **files, **options
    )
    run_quietly(config)
    network: keras.Model = getattr(models_of_users, made)()
    gradients = {}
    for split, data in splits.items():
        labels: Any = {"price": data["cost"], "kind": data["class"][:, 0]} if "cost" in data else data["label"]
        weights = data["w"] if split == "train" and "weight_feature" in options else None
        gradients[split] = losses_and_gradients(network, data["x"], labels, weights)[1]
    wanted = gradients["test"] @ gradients["train"].T
    found = np.zeros_like(wanted)
    for row in read(tmp_path / "out", "scores").to_pylist():
        found[int(row["test_id"].rpartition(":")[2]), int(row["train_id"].rpartition(":")[2])] = row["influence"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FLOAT32 * np.abs(wanted).max())
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["model"]
    assert facts["dtype"] == ("float32" if made == "forgetful" else "float64")
    assert facts["agreement"]["examples"] > 0 and facts["agreement"]["losses"] < 1e-4


def test_a_copy_that_is_another_model_is_refused_where_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(4)
    files: dict[str, Any] = {split: write(tmp_path, split, vectors(rng, count)) for split, count in ROWS.items()}
    config = InfluenceConfig(model=f"{MODELS}:forgetful", output=str(tmp_path / "out"), precision="float64", **files)
    with pytest.raises(ValueError, match="test examples: the float64 copy .* first in the layer 'forgetful.*; use precision 'native'"):
        run_quietly(config)
    assert not (tmp_path / "out").exists()
