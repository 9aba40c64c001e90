"""The measures of `beam-influence evaluate` that read `top_k` alone, against loops over the tables in NumPy."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.evaluation.found_examples import cardinality, found_relevant, mean_and_error, overlaps
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.measures.retrieval import _relevant
from tests.pipelines.convex_job import TEST, TRAIN, ConvexJob, network
from tests.pipelines.digits_job import run_quietly

K = 4


@pytest.fixture(scope="module")
def convex(tmp_path_factory: pytest.TempPathFactory) -> ConvexJob:
    return ConvexJob(tmp_path_factory.mktemp("convex"))


@pytest.fixture(scope="module")
def runs(convex: ConvexJob) -> list[str]:
    """Of the trained model, and of random weights."""
    keras.utils.set_random_seed(4)
    network().save(convex.folder / "random.keras")
    found = []
    for name in ("model.keras", "random.keras"):
        output = str(convex.folder / f"run-{name}")
        options: dict[str, Any] = {"train": str(convex.folder / "train-*"), "test": str(convex.folder / "test-*"), "weights": "all"}
        run_quietly(InfluenceConfig(model=str(convex.folder / name), output=output, curvature="exact", threads=1, **options))
        found.append(output)
    return found


def measured(measure: str, scores: str, output: pathlib.Path, *words: str) -> dict[tuple[str, int], dict[str, Any]]:
    assert main(["evaluate", measure, "--scores", scores, "--output", str(output), "--k", f"2,{K}", *words]) == 0
    return {(row["method"], row["k"]): row for row in json.loads((output / f"{measure}.json").read_text())["rows"]}


def tops(run: str, k: int) -> dict[str, list[str]]:
    rows = pq.read_table(pathlib.Path(run) / "top_k").to_pylist()
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        if row["rank"] <= k:
            found.setdefault(row["test_id"], []).append(row["train_id"])
    return found


def labels(convex: ConvexJob) -> dict[str, int]:
    names = [*convex.train_ids(), *(f"test-0.tfrecord:{row}" for row in range(TEST))]
    return dict(zip(names, convex.y.tolist(), strict=True))


def test_class_detection(convex: ConvexJob, runs: list[str], tmp_path: pathlib.Path) -> None:
    found, own = measured("class_detection", runs[0], tmp_path), labels(convex)
    for k in (2, K):
        same = [[own[name] == own[test] for name in names] for test, names in tops(runs[0], k).items()]
        assert found[runs[0], k]["same_class"] == pytest.approx(np.mean(same)), k
        first = [1 / (1 + one.index(True)) if any(one) else 0 for one in same]
        assert found[runs[0], k]["reciprocal_rank"] == pytest.approx(np.mean(first))
    assert {method for method, _ in found} == {runs[0], "nearest", "nearest in features", "plain loss", "random"}
    counts = np.bincount(convex.y[:TRAIN])
    chance = np.mean([counts[own[test]] / TRAIN for test in tops(runs[0], K)])
    assert abs(found["random", K]["same_class"] - chance) < 0.25  # 3 draws of 4
    assert found["nearest", K]["same_class"] > chance
    # The last layer is the only one: what it sees are the inputs.
    assert found["nearest", K]["same_class"] == found["nearest in features", K]["same_class"]


def test_retrieval_of_pairs_and_of_a_list(convex: ConvexJob, runs: list[str], tmp_path: pathlib.Path) -> None:
    best = tops(runs[0], K)
    first = next(iter(best))
    pairs = {first: [best[first][1], next(name for name in convex.train_ids() if name not in best[first])]}
    rows = [(test, name) for test, names in pairs.items() for name in names]
    pq.write_table(pa.table({"test_id": [test for test, _ in rows], "train_id": [name for _, name in rows]}), tmp_path / "pairs.parquet")
    (tmp_path / "pairs.csv").write_text("test_id,train_id\n" + "".join(f"{test},{name}\n" for test, name in rows))
    assert [_relevant(str(tmp_path / name), list(best)) for name in ("pairs.parquet", "pairs.csv")] == [
        [set(pairs.get(test, [])) for test in best]
    ] * 2
    found = measured("retrieval", runs[0], tmp_path, "--relevant", str(tmp_path / "pairs.csv"))[runs[0], K]
    assert (found["precision"], found["recall"], found["reciprocal_rank"]) == (1 / K, 0.5, 0.5)
    (tmp_path / "all.txt").write_text("\n".join(convex.train_ids()[:30]))
    found = measured("shortcut", runs[0], tmp_path / "list", "--relevant", str(tmp_path / "all.txt"))
    wanted = [np.isin(names, convex.train_ids()[:30]).mean() for names in best.values()]
    assert found[runs[0], K]["precision"] == pytest.approx(np.mean(wanted))
    assert found[runs[0], K]["precision_error"] == pytest.approx(np.std(wanted, ddof=1) / np.sqrt(TEST))


def test_cardinality_and_random_weights(runs: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, other = tops(runs[0], K), tops(runs[1], K)
    found = measured("cardinality", runs[0], tmp_path)[runs[0], K]
    different = len({name for names in best.values() for name in names})
    assert (found["different"], found["share"]) == (different, different / (K * TEST))
    found = measured("randomised", ",".join(runs), tmp_path)
    wanted = [len(set(best[test]) & set(other[test])) / K for test in best]
    assert found[runs[1], K]["overlap"] == pytest.approx(np.mean(wanted)) and found["random", K]["overlap"] == pytest.approx(K / TRAIN)
    capsys.readouterr()
    words = ["evaluate", "randomised", "--scores", f"{runs[0]},{runs[0]}/../run-model.keras", "--output", str(tmp_path / "x")]
    assert main(words) == 2
    assert "is of the same model as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        ("retrieval", {}, "--relevant is needed"),
        ("shortcut", {}, "--relevant is needed"),
        ("randomised", {}, "must name two runs"),
        ("cardinality", {"test_points": 0}, "--test_points 0 must be at least 1"),
    ],
)
def test_wrong_options(measure: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(measure, **{"scores": "r", "output": "o", **options})


def test_wrong_files(runs: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "strange.txt").write_text("nobody\n")
    (tmp_path / "others.csv").write_text("test_id,train_id\nnobody,x\n")
    with pytest.raises(ValueError, match="there is no file"):
        _relevant(str(tmp_path / "none.csv"), [])
    for name, message in (
        ("strange.txt", "has 'nobody', which is no training example"),
        ("others.csv", "has nothing of the 15 test points"),
    ):
        words = ["--scores", runs[0], "--output", str(tmp_path / "x"), "--relevant", str(tmp_path / name), "--k", "2"]
        assert main(["evaluate", "retrieval", *words]) == 2
        assert message in capsys.readouterr().err
    words = ["--scores", runs[0], "--output", str(tmp_path / "x"), "--class_feature", "none", "--k", "2"]
    assert main(["evaluate", "class_detection", *words]) == 2
    assert "the data has no feature 'none' (--class_feature)" in capsys.readouterr().err


def test_figures() -> None:
    tops_of = [["a", "b", "c"], ["d", "a", "b"], ["x", "y", "z"]]
    found = found_relevant(tops_of, [{"b", "q"}, {"d"}, set()])
    assert found.precision == pytest.approx([1 / 3, 1 / 3, 0]) and found.reciprocal_rank == pytest.approx([0.5, 1, 0])
    assert found.recall[:2] == pytest.approx([0.5, 1]) and np.isnan(found.recall[2])
    assert cardinality(tops_of) == (7, 7 / 9)
    assert overlaps(tops_of, [["a", "x", "y"], ["d", "a", "b"], ["a", "b", "c"]]) == pytest.approx([1 / 3, 1, 0])
    mean, error = mean_and_error(np.array([0.0, 1.0, np.nan]))
    assert mean == 0.5 and error == pytest.approx(0.5)
