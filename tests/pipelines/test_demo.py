"""`beam-influence demo`: the data, the wrong labels, and the small demos of text and of a table from nothing to their report, with the
self-influence computed once more in NumPy. The digits are CI's main job."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.resources
import pathlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.demo import DEMOS, demo
from beam_influence.pipelines.demo.demo import Examples, load_demo, with_wrong_labels
from beam_influence.pipelines.load_influence import load_influence
from tests.report.visit_page import assert_reads_well, visit, wait_for_browser

DATA = importlib.resources.files("beam_influence.pipelines.demo") / "data"
SIZES = {"digits": (1697, 100), "text": (1332, 150), "table": (300, 44)}


@pytest.mark.parametrize("name", DEMOS)
def test_the_data_are_whole(name: str) -> None:
    found = load_demo(name)
    splits = found.load()
    assert tuple(len(splits[split].labels) for split in ("train", "test")) == SIZES[name]
    labels = np.concatenate([splits[split].labels for split in splits])
    assert np.unique(labels).tolist() == list(range(len(found.classes)))
    for values in splits["train"].features.values():
        assert len(values) == SIZES[name][0]


def test_the_penguins_are_those_of_the_package_and_what_is_missing_is_told() -> None:
    content = (DATA / "penguins.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93"
    rows = list(csv.DictReader(content.decode().splitlines()))
    splits = load_demo("table").load()
    missing = sum(row["sex"] == "NA" for row in rows), sum(row["body_mass_g"] == "NA" for row in rows)
    found = [np.concatenate([splits[split].features[name] for split in splits]) for name in ("sex", "body_mass_g")]
    assert (np.sum(found[0] == "NA"), np.sum(found[1] == -1)) == missing == (11, 2)
    assert found[1][found[1] != -1].min() == 2700


def test_wrong_labels_are_wrong_and_the_others_are_kept() -> None:
    labels = np.arange(1000) % 3
    changed, places = with_wrong_labels(Examples({"x": np.arange(1000)}, labels), 3)
    assert np.array_equal(np.flatnonzero(changed.labels != labels), places) and len(places) == 50
    assert set(changed.labels) == {0, 1, 2}


@pytest.mark.parametrize("words", [["--output", ""], ["--output", "gs://bucket/demo"], ["--output", __file__], ["--top_k", "3"]])
def test_what_can_not_be_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "text", *words]) == 2
    assert repr(words[1]) in (said := capsys.readouterr().err) or "--top_k is not an option of demo" in said


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["text", "table"])
def test_from_nothing_to_the_report(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With fewer examples and one epoch."""
    whole = load_demo(name)

    def few() -> dict[str, Examples]:
        return {split: examples.select(np.arange(dict(train=80, test=6)[split])) for split, examples in whole.load().items()}

    monkeypatch.setattr(demo, "load_demo", lambda name: dataclasses.replace(whole, load=few, epochs=1))
    assert main(["demo", name, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    wrong = (tmp_path / "wrong_labels.txt").read_text().split()
    own = {row["train_id"]: row["influence"] for row in load_influence(tmp_path / "influence").self_influence.to_pylist()}
    first = sorted(own, key=lambda each: (-own[each], each))[: len(wrong)]
    assert len(wrong) == 4 and f"Of the 4 wrong labels, {len(set(first) & set(wrong))} are among the 4 training examples" in said
    assert said.rstrip().endswith((tmp_path / "report.html").as_uri())

    train, _ = with_wrong_labels(few()["train"], len(whole.classes))
    exact = self_influence(tmp_path, train)
    ids = [f"train-{shard:05d}-of-00004.{whole.extension}:{row}" for shard in range(4) for row in range(20)]
    # float32 activations of Keras in the oracle
    assert [own[each] for each in ids] == pytest.approx(exact, rel=2e-4, abs=1e-4 * exact.max())

    page = (tmp_path / "report.html").read_text()
    assert all(f'<td class="label">{each}</td>' in page for each in whole.classes)  # by their names
    assert ('<span class="token">' in page) == (name == "text")
    wait_for_browser()
    seen = visit(tmp_path / "report.html")
    assert_reads_well(seen)
    assert len(seen["points"]) == 6 and seen["gallery"] == 24


def self_influence(folder: pathlib.Path, train: Examples) -> np.ndarray:
    """gᵀ (H + λI)⁻¹ g of the last layer, softmax or sigmoid, in NumPy."""
    network: Any = load_keras_file(str(folder / "model.keras"))
    last = network.layers[-1]
    inputs = {name: tf.constant(values) for name, values in train.features.items()}
    before = keras.Model(network.inputs, last.input)
    hidden = np.asarray(before(inputs if len(inputs) > 1 else inputs.popitem()[1]), np.float64)
    rows = np.c_[hidden, np.ones(len(hidden))]
    kernel, bias = (np.asarray(weight, np.float64) for weight in last.weights)
    logits = hidden @ kernel + bias
    if logits.shape[1] == 1:
        logits = np.c_[np.zeros(len(logits)), logits]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    chance = odds / odds.sum(axis=1, keepdims=True)
    errors = chance - np.eye(chance.shape[1])[train.labels]
    spread = np.einsum("ni,ij->nij", chance, np.eye(chance.shape[1])) - np.einsum("ni,nj->nij", chance, chance)
    if kernel.shape[1] == 1:
        errors, spread = errors[:, 1:], spread[:, 1:, 1:]
    gradients = np.einsum("na,ni->nai", rows, errors).reshape(len(rows), -1)
    hessian = np.einsum("na,nb,nij->aibj", rows, rows, spread).reshape(gradients.shape[1], -1) / len(rows)
    penalty = 2 * (float(last.kernel_regularizer.l2) if last.kernel_regularizer else 0.0)
    damping = load_influence(folder / "influence").curvature["damping"]
    return np.einsum("np,pq,nq->n", gradients, np.linalg.inv(hessian + (penalty + damping) * np.eye(len(hessian))), gradients)
