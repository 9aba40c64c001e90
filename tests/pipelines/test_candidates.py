"""Candidates, which were not trained on: what they would change is what retraining with them changes, sign included."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from beam_influence import load_influence
from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.config import InfluenceConfig
from tests.pipelines.convex_job import TRAIN, ConvexJob, optimum
from tests.pipelines.digits_job import framed, influence_model, ints, read, run_quietly

COUNT = 12
SAVED: dict[str, Any] = {"train": None, "curvature": "gauss_newton", "damping": "auto"}  # no option of a fit


class Case(ConvexJob):
    """Candidates too: digits that are not in the files, half of them with a wrong label; as a group each."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        random = np.random.default_rng(9)
        self.cx = np.clip(self.x[random.choice(TRAIN, COUNT)] + 0.05 * random.standard_normal((COUNT, 16)), 0, 1).astype(np.float32)
        self.cy = random.integers(0, 3, COUNT)
        rows = []
        for x, y in zip(self.cx, self.cy, strict=True):
            example = tf.train.Example()
            example.features.feature["image"].float_list.value.extend(x)
            example.features.feature["label"].CopyFrom(ints([y]))
            example.features.feature["source"].CopyFrom(ints([y % 2]))
            rows.append(example.SerializeToString())
        (folder / "new-0.tfrecord").write_bytes(framed(rows[:5]))
        (folder / "new-1.tfrecord").write_bytes(framed(rows[5:]))
        self.train = (self.x[:TRAIN].astype(np.float64), self.y[:TRAIN])
        self.theta = optimum(*self.train)

    def config(self, output: str, **options: Any) -> InfluenceConfig:
        """The exact Hessian, undamped, so that first order is all that is approximate."""
        files = {split: str(self.folder / f"{split}-*.tfrecord") for split in ("train", "test")}
        defaults = {"model": str(self.model), **files, "candidates": str(self.folder / "new-*.tfrecord"), "weights": "all"}
        chosen = {**defaults, "outputs": "scores", "curvature": "exact", "damping": "0", **options}
        return InfluenceConfig(output=str(self.folder / output), **chosen)

    def test_losses(self, theta: np.ndarray) -> np.ndarray:
        """[T] in float64."""
        x, y = self.x[TRAIN:].astype(np.float64), self.y[TRAIN:]
        z = x @ theta[:-1] + theta[-1]
        return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]

    def retrained(self, candidate: int, weight: float) -> np.ndarray:
        """The change of each test loss when the optimum has the candidate too, with `weight` times the weight of a training example."""
        x, y = np.concatenate([self.train[0], self.cx[candidate][None]]), np.append(self.train[1], self.cy[candidate])
        return self.test_losses(optimum(x, y, np.append(np.ones(TRAIN), weight) / TRAIN)) - self.test_losses(self.theta)

    def changes(self, output: str, column: str = "loss_change_if_added") -> np.ndarray:
        """A column of `scores` [candidates, T], in the order of the files."""
        rows = {(row["candidate_id"], row["test_id"]): row[column] for row in read(self.folder / output, "scores").to_pylist()}
        ids = [f"new-0.tfrecord:{row}" for row in range(5)] + [f"new-1.tfrecord:{row}" for row in range(COUNT - 5)]
        return np.array([[rows[name, f"test-0.tfrecord:{row}"] for row in range(len(self.y) - TRAIN)] for name in ids])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("candidates"))


def test_what_they_would_change_is_what_retraining_changes(case: Case) -> None:
    run_quietly(case.config("run", outputs="scores,top_k,group_influence", group_feature="source", top_k=3))
    found = case.changes("run")
    # The derivative by the candidate's weight: a thousandth of an example's. What is left is of second order, a thousandth.
    little = np.array([case.retrained(row, 1e-3) for row in range(COUNT)]) / 1e-3
    assert np.abs(found - little).max() < 3e-3 * np.abs(little).max()
    added = np.array([case.retrained(row, 1.0) for row in range(COUNT)])
    large = np.abs(added) > 0.02 * np.abs(added).max()
    assert np.array_equal(np.sign(found[large]), np.sign(added[large])) and large.mean() > 0.5
    assert np.corrcoef(found.ravel(), added.ravel())[0, 1] > 0.98
    assert np.allclose(found, -case.changes("run", "influence") / TRAIN, rtol=1e-12)
    top = read(case.folder / "run", "top_k").to_pandas()
    assert list(top.columns) == ["test_id", "rank", "candidate_id", "influence", "loss_change_if_added"]
    best = top[top["rank"] == 1].set_index("test_id")
    most = [best.loss_change_if_added[f"test-0.tfrecord:{row}"] for row in range(15)]
    assert np.array_equal(most, found.min(axis=0))  # the most helpful lowers the loss most
    groups = read(case.folder / "run", "group_influence").to_pandas()
    of_one = groups[(groups.group == "1") & groups.test_id.isna() & groups.test_group.isna()].loss_change_if_added.item()
    assert np.isclose(of_one, found[case.cy % 2 == 1].sum(), rtol=1e-9)
    told = load_influence(case.folder / "run")
    assert "adding the candidate" in told.sign and "divide by -n" in told.unit and told.n == TRAIN
    assert told.manifest["counts"]["candidates"]["examples"] == COUNT and told.manifest["counts"]["curvature"]["examples"] == TRAIN
    with pytest.raises(ValueError, match="scored --candidates, which were not trained on"):
        ScoreTable(str(case.folder / "run"))
    assert main(["report", str(case.folder / "run"), "--output", str(case.folder / "page.html")]) == 2
    assert not (case.folder / "page.html").exists()


def test_an_index_a_saved_curvature_and_a_loop_give_the_same(case: Case) -> None:
    """The index by r = P numbers of a projection that is none, so its curvature is the whole Gauss-Newton matrix, here the Hessian."""
    options: dict[str, Any] = {"curvature": "random_projection", "projection_dim": 51, "damping": "0.001"}
    run_quietly(case.config("index", outputs="index", test=None, candidates=None, index_dtype="int8", **options))
    model = ["--model", str(case.model), "--weights", "all", "--test", str(case.folder / "test-*.tfrecord")]
    new = ["--candidates", str(case.folder / "new-*.tfrecord"), "--outputs", "scores", "--runner=FnApiRunner", "--threads", "1"]
    folders = {name: str(case.folder / name) for name in ("index", "query", "saved")}
    assert main(["query", *model, *new, "--index", folders["index"], "--output", folders["query"]]) == 0
    assert main(["run", *model, *new, "--curvature_path", f"{folders['index']}/curvature", "--output", folders["saved"]]) == 0
    explained = influence_model(str(case.model))
    operator = load_preconditioner(f"{folders['index']}/curvature")
    ids, names = np.arange(15).astype(str).astype(object), np.arange(COUNT).astype(str).astype(object)
    test, train = ExampleBatch(ids, case.x[TRAIN:], case.y[TRAIN:]), ExampleBatch(names, *case.train)
    alone = compute_in_memory(explained, operator, [train], [test], outputs=["scores"], candidates=[ExampleBatch(names, case.cx, case.cy)])
    table = alone.tables["scores"].to_pandas()
    wanted = table.pivot(index="candidate_id", columns="test_id", values="loss_change_if_added").loc[list(names), list(ids)].to_numpy()
    for output in ("query", "saved"):
        assert np.abs(case.changes(output) - wanted).max() < 1e-9 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": None}, "--train is needed beside --candidates: the curvature is made from it; or give --curvature_path"),
        ({"curvature_path": "c"}, "--train would not be read: --curvature_path has the curvature"),
        ({"curvature": "identity", "damping": "auto"}, "--train would not be read: --curvature identity needs no data"),
        ({"curvature": "gauss_newton_cg", "curvature_path": "c", "train": None, "damping": "auto"}, "its passes solve the test points"),
        ({"outputs": "self_influence"}, "outputs top_k, group_influence, scores, not self_influence"),
        ({"outputs": "index", "curvature": "arnoldi", "test": None}, "--candidates are scored against test points"),
        ({"removal": "newton"}, "removal newton is of the removal of training examples"),
        ({**SAVED, "index": "i", "search": "faiss", "outputs": "top_k"}, "of an index's rows"),
        ({**SAVED, "influence_vectors_path": "v"}, "has vectors of training examples"),
    ],
)
def test_refusals(case: Case, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ValueError) as caught:
        case.config("refused", **options)
    assert message in str(caught.value)


def test_a_training_file_is_no_candidate(case: Case) -> None:
    with pytest.raises(ValueError, match=r"train-1.tfrecord is among the files of --candidates and of --train"):
        run_quietly(case.config("refused", candidates=str(case.folder / "*-1.tfrecord")))
