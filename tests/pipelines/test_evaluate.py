"""`beam-influence evaluate` from end to end: real runs, real retraining, and the reference's saved retrainings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.evaluation.coverage import coverage
from beam_influence.influence_ops.evaluation.ground_truth import GroundTruth, load_ground_truth
from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import ParquetFile, write_manifest
from beam_influence.influence_ops.results.tables import scores_table
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.evaluate import evaluate
from beam_influence.pipelines.evaluate_config import MEASURES, EvaluateConfig
from beam_influence.pipelines.evaluation_result import Evaluation, Figures
from beam_influence.pipelines.measures import candidate_maker
from tests.influence_ops.reference import DATA
from tests.pipelines.convex_job import CALLS, TRAIN, ConvexJob
from tests.pipelines.digits_job import FN_API, run_quietly

TRAIN_FN = "tests.pipelines.convex_job:train"


@pytest.fixture(scope="module")
def convex(tmp_path_factory: pytest.TempPathFactory) -> ConvexJob:
    return ConvexJob(tmp_path_factory.mktemp("convex"))


@pytest.fixture(scope="module")
def runs(convex: ConvexJob) -> dict[str, str]:
    """The exact Hessian, and the gradient product, over the same data."""
    found = {}
    for curvature in ("exact", "identity"):
        output = convex.folder / curvature
        config = InfluenceConfig(
            model=str(convex.model), train=str(convex.folder / "train-*"), test=str(convex.folder / "test-*"), output=str(output),
            weights="all", curvature=curvature, damping="0", outputs="scores,self_influence,top_k", top_k=8, batch_size=32, threads=1,
        )  # fmt: skip
        run_quietly(config)
        found[curvature] = str(output)
    return found


def figures(evaluation: Evaluation, method: str) -> Figures:
    return next(row.figures for row in evaluation.rows if row.method == method)


def test_leave_one_out_by_exact_retraining(runs: dict[str, str], tmp_path: pathlib.Path) -> None:
    config = EvaluateConfig("leave_one_out", ",".join(runs.values()), str(tmp_path), train_fn=TRAIN_FN, retrainings=30)
    found = evaluate(config, FN_API)
    exact, product = figures(found, runs["exact"]), figures(found, runs["identity"])
    # First order misses the leverage of each example, a few percent at N = 120.
    assert exact["pearson"] > 0.99 and exact["pooled_pearson"] > 0.99
    assert exact["slope"] == pytest.approx(1, abs=0.15)
    assert product["pearson"] < exact["pearson"] and product["slope"] is None
    saved = json.loads((tmp_path / "leave_one_out.json").read_text())
    assert saved["removals"] == 30 and saved["rows"][0]["pearson"] == exact["pearson"]
    # The retrainings that were saved give the same again.
    again = dataclasses.replace(
        config, train_fn=None, ground_truth=str(tmp_path / "leave_one_out-ground_truth.npz"), output=str(tmp_path / "again")
    )
    assert figures(evaluate(again), runs["exact"]) == exact


def test_lds_retrains_once_and_goes_on_where_it_stopped(
    runs: dict[str, str], convex: ConvexJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = tmp_path / "calls"
    monkeypatch.setenv(CALLS, str(calls))
    output = str(tmp_path / "out")
    words = ["evaluate", "lds", "--scores", ",".join(runs.values()), "--train_fn", TRAIN_FN, "--output", output, *FN_API]
    assert main([*words, "--retrainings", "6", "--repeats", "2"]) == 0
    first = calls.read_text().splitlines()
    assert sorted(first) == ["60 0"] * 6 + ["60 1"] * 6  # half the 120 examples, two seeds
    assert main([*words, "--retrainings", "6", "--repeats", "2"]) == 2  # there is a result
    assert "give another --output, or --overwrite" in capsys.readouterr().err
    (lost := sorted((tmp_path / "out" / "retrainings").glob("[0-9a-f]*.parquet"))[0]).unlink()
    assert main([*words, "--retrainings", "20", "--repeats", "2", "--overwrite"]) == 0
    assert len(calls.read_text().splitlines()) == 12 + 1 + 28 and lost.exists()
    text = capsys.readouterr().out
    assert "retrainings 20, training examples 120, test points 15" in text
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "lds.json").read_text())["rows"]}
    # Halves are far away from the optimum of all: the exact Hessian's LDS is well below 1, and above the gradient product's.
    assert rows[runs["exact"]]["lds"] > 0.8 and rows[runs["exact"]]["lds"] > rows[runs["identity"]]["lds"]
    assert 0 < rows[runs["exact"]]["lds_error"] < 0.1
    each = pq.read_table(tmp_path / "out" / "lds.parquet").to_pylist()
    of_exact = [row["value"] for row in each if row["method"] == runs["exact"]]
    assert len(of_exact) == 15 and np.mean(of_exact) == pytest.approx(rows[runs["exact"]]["lds"])
    truth = load_ground_truth(str(tmp_path / "out" / "lds-ground_truth.npz"))
    assert truth.subset_masks is not None and (truth.subset_masks.sum(axis=1) == TRAIN // 2).all()
    assert len(np.unique(truth.subset_masks, axis=0)) == 20
    check_baselines(convex, rows, truth)


def check_baselines(convex: ConvexJob, rows: dict[str, dict[str, float]], truth: GroundTruth) -> None:
    """The one layer sees the inputs: cosines, and losses by the weights, in NumPy."""
    masks, retrained, train_ids, test_ids = truth.subset_masks, truth.subset_test_loss, truth.train_ids, truth.test_ids
    assert masks is not None and retrained is not None and train_ids is not None and test_ids is not None
    x = convex.x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    model: Any = keras.models.load_model(convex.model)
    kernel, bias = model.get_weights()
    logits = x @ kernel + bias
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), convex.y]
    tests = unit[[TRAIN + int(str(name).split(":")[1]) for name in test_ids]]
    order = {name: row for row, name in enumerate(convex.train_ids())}
    places = [order[str(name)] for name in train_ids]
    wanted = {"nearest in features": unit[places] @ tests.T, "plain loss": np.repeat(losses[places, None], len(tests), axis=1)}
    for name, scores in wanted.items():
        assert rows[name]["lds"] == pytest.approx(linear_datamodelling_score(masks @ scores, retrained).mean)
    assert abs(rows["random"]["lds"]) < 4 * rows["random"]["lds_error"]


@pytest.mark.slow
def test_repeats_are_averaged(runs: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Training that ends anywhere near the optimum: four seeds, whose mean is not the first."""
    found = []
    for repeats in (1, 4):
        options: dict[str, Any] = {"train_fn": "tests.pipelines.convex_job:train_with_noise", "retrainings": 3, "repeats": repeats}
        evaluate(EvaluateConfig("lds", runs["exact"], str(tmp_path / "out"), overwrite=True, **options), FN_API)
        found.append(load_ground_truth(str(tmp_path / "out" / "lds-ground_truth.npz")).subset_test_loss)
    assert len(list((tmp_path / "out" / "retrainings").glob("[0-9a-f]*.parquet"))) == 12
    assert not np.array_equal(found[0], found[1]) and np.abs(found[0] - found[1]).max() < 0.2


def test_mislabelled_beside_the_plain_loss(
    runs: dict[str, str], convex: ConvexJob, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [convex.train_ids()[row] for row in convex.flipped]
    (tmp_path / "wrong.txt").write_text("\n".join(wrong) + "\n")
    (tmp_path / "wrong.csv").write_text("why,train_id\n" + "".join(f"flipped,{name}\n" for name in wrong))
    pq.write_table(pa.table({"train_id": wrong}), tmp_path / "wrong.parquet")
    texts = []
    for name in ("wrong.txt", "wrong.csv", "wrong.parquet"):
        words = ["--scores", runs["exact"], "--output", str(tmp_path / "out"), "--overwrite", "--mislabelled", str(tmp_path / name)]
        assert main(["evaluate", "mislabelled", *words, "--shares", "10,50"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].splitlines()[:4] == texts[1].splitlines()[:4] == texts[2].splitlines()[:4]
    rows = {row["method"]: row for row in json.loads((tmp_path / "out" / "mislabelled.json").read_text())["rows"]}
    assert rows[runs["exact"]]["auc"] > 0.9 and rows["plain loss"]["auc"] > 0.9
    assert rows["random"]["auc"] == 0.5 and rows["random"]["found in 10 %"] == pytest.approx(0.1)
    assert rows["plain loss"]["found in 50 %"] == 1
    x, y, bad = convex.x[:TRAIN].astype(np.float64), convex.y[:TRAIN], np.isin(np.arange(TRAIN), convex.flipped)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag(np.full(TRAIN, np.inf))
    other = np.array([(y[np.argsort(row)[:10]] != own).mean() for row, own in zip(distances, y, strict=True)])
    above = other[bad][:, None] - other[~bad][None]
    assert rows["nearest in features"]["auc"] == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())
    (tmp_path / "wrong.txt").write_text("nobody\n")
    words = ["--scores", runs["exact"], "--output", str(tmp_path / "x"), "--mislabelled", str(tmp_path / "wrong.txt")]
    assert main(["evaluate", "mislabelled", *words]) == 2
    assert "has 'nobody', which is no training example" in capsys.readouterr().err


def test_brittleness(runs: dict[str, str], tmp_path: pathlib.Path) -> None:
    found = evaluate(EvaluateConfig("brittleness", runs["exact"], str(tmp_path), train_fn=TRAIN_FN, test_points=5, k="2,8"), FN_API)
    rise = {(row.method, row.figures["k"]): row.figures["loss_rise"] for row in found.rows}
    methods = (runs["exact"], "nearest", "nearest in features", "plain loss", "random")
    assert set(rise) == {(method, k) for method in methods for k in (2, 8)}
    # The most helpful eight hurt more than two of them, than eight at random, and than the eight nearest.
    exact = rise[runs["exact"], 8]
    assert exact > rise[runs["exact"], 2] > 0
    assert exact > 2 * abs(rise["random", 8]) and exact > rise["nearest", 8]
    assert all(0 <= row.figures["flipped"] <= 1 for row in found.rows)


def test_tail_patch(runs: dict[str, str], tmp_path: pathlib.Path) -> None:
    config = EvaluateConfig("tail_patch", f"{runs['exact']},{runs['identity']}", str(tmp_path), test_points=6, k="4", learning_rate=1e-3)
    change = {row.method: row.figures for row in evaluate(config).rows}
    # A small step: the gradient product says by definition which four lower the loss most.
    assert change[runs["identity"]]["loss_change"] < change[runs["exact"]]["loss_change"] < 0
    assert change[runs["identity"]]["loss_change"] < change["nearest"]["loss_change"]
    assert change[runs["identity"]]["lowered"] == 1.0
    assert abs(change["random"]["loss_change"]) < 0.5 * abs(change[runs["identity"]]["loss_change"])


def saved_run(folder: pathlib.Path, scores: np.ndarray, normalize: str = "none") -> str:
    """A finished run with these scores [T, N]; ids are numbers."""
    (tests, trains), meta = scores.shape, {"examples": scores.shape[1], "curvature": "given", "damping": 1.0, "fingerprint": "f"}
    file = ParquetFile(str(folder), "scores", "shard-00000", schemas.SCORES, schemas.facts(meta, normalize, "first_order"))
    train, test = (np.arange(count).astype(str).astype(object) for count in (trains, tests))
    for rows in np.array_split(np.arange(trains), 7):
        file.write(scores_table(test, train[rows], scores[:, rows], trains))
    write_manifest(str(folder), [file.close()], {"config": {}, "curvature": meta})
    return str(folder)


def test_coverage_is_that_of_the_members_in_memory(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    members = random.normal(size=(10, 60)) + 0.3 * random.normal(size=(3, 10, 60))
    masks, losses = random.random((12, 60)) < 0.9, random.normal(size=(12, 10))
    truth = str(tmp_path / "truth.npz")
    np.savez(truth, subset_masks=masks, subset_test_loss=losses)
    folders = [saved_run(tmp_path / f"run-{number}", scores) for number, scores in enumerate(members)]
    words = ["evaluate", "coverage", "--ground_truth", truth, "--output", str(tmp_path / "out"), "--scores"]
    assert main([*words, ",".join(folders)]) == 0
    wanted = coverage(np.einsum("sn,mtn->mst", masks, members), masks.sum(axis=1), losses)
    rows = json.loads((tmp_path / "out" / "coverage.json").read_text())["rows"]
    for row, one in zip(rows, wanted, strict=True):
        assert row["interval_factor"] == pytest.approx(one.factor) and row["coverage"] == pytest.approx(one.share)
    assert f"beam-influence ensemble {' '.join(folders)} --interval_factor {wanted[1].factor:.4g} --output" in capsys.readouterr().out
    relative = saved_run(tmp_path / "relative", members[0], "theta")
    with pytest.raises(ValueError, match="predict no change of a loss"):
        evaluate(EvaluateConfig("coverage", f"{folders[0]},{relative}", str(tmp_path / "other"), ground_truth=truth))
    with pytest.raises(ValueError, match="at least two runs, the members of an ensemble: one has no standard error"):
        EvaluateConfig("coverage", folders[0], str(tmp_path / "other"), ground_truth=truth)


def test_the_references_retrainings_against_the_whole_matrix(tmp_path: pathlib.Path) -> None:
    """Saved ground truth without ids, on scores in Parquet: the same LDS and r as from the matrix in memory."""
    data = dict(np.load(DATA / "lds_digits.npz"))
    scores = np.random.default_rng(0).normal(size=(100, 1500))
    saved_run(tmp_path / "run", scores)
    truth = str(DATA / "lds_digits.npz")
    options: dict[str, Any] = {"ground_truth": truth, "scores": str(tmp_path / "run"), "output": str(tmp_path / "out")}
    lds = figures(evaluate(EvaluateConfig("lds", **options)), str(tmp_path / "run"))
    whole = linear_datamodelling_score(data["subset_masks"] @ scores.T, data["subset_test_loss"])
    assert lds["lds"] == pytest.approx(whole.mean) and lds["lds_error"] == pytest.approx(whole.standard_error)
    loo = figures(evaluate(EvaluateConfig("leave_one_out", **options)), str(tmp_path / "run"))
    actual = data["loo_test_loss"] - data["base_test_loss"]
    each = [np.corrcoef(scores[t, data["loo_idx"]], actual[:, t])[0, 1] for t in range(100)]
    assert loo["pearson"] == pytest.approx(np.mean(each))


def other_run(convex: ConvexJob, curvature: str, **options: Any) -> str:
    output = str(convex.folder / curvature)
    config = InfluenceConfig(
        model=str(convex.model), train=str(convex.folder / "train-*"), test=str(convex.folder / "test-*"), output=output,
        weights="all", curvature=curvature, outputs="scores,top_k", batch_size=32, threads=1, **options,
    )  # fmt: skip
    run_quietly(config)
    return output


@pytest.fixture(scope="module")
def arnoldi(convex: ConvexJob) -> str:
    """All 51 eigenpairs: the Gauss-Newton matrix itself."""
    return other_run(convex, "arnoldi", rank=51, n_samples=120, damping="0.003")


@pytest.mark.slow
def test_a_rule_by_layer_is_swept_as_it_is(convex: ConvexJob, tmp_path: pathlib.Path) -> None:
    """K-FAC's auto is no λ for all: its own row is its scores; the others are."""
    config = EvaluateConfig("lds", other_run(convex, "kfac"), str(tmp_path), train_fn=TRAIN_FN, retrainings=8)
    each = list(evaluate(config, FN_API).rows[0].each.values())
    swept = evaluate(dataclasses.replace(config, damping_sweep="auto", overwrite=True), FN_API).rows
    (own,) = [row.figures for row in swept if "the run's own" in row.figures["note"]]
    assert own["lds (even, choosing)"] == pytest.approx(np.mean(each[0::2]), abs=1e-9)  # the same products in another order
    assert len(swept) == 9


@pytest.mark.slow
def test_passes_that_solve_the_test_points_are_not_swept(convex: ConvexJob, tmp_path: pathlib.Path) -> None:
    config = EvaluateConfig("lds", other_run(convex, "gauss_newton_cg"), str(tmp_path), train_fn=TRAIN_FN, retrainings=3)
    with pytest.raises(ValueError, match="had 5 passes that solve the test points"):
        evaluate(dataclasses.replace(config, damping_sweep="auto"), FN_API)


@pytest.mark.parametrize("measure", ["lds", "leave_one_out"])
def test_a_damping_sweep_is_the_scores_of_many_runs(runs: dict[str, str], arnoldi: str, tmp_path: pathlib.Path, measure: str) -> None:
    config = EvaluateConfig(measure, arnoldi, str(tmp_path), train_fn=TRAIN_FN, retrainings=8)
    plain = evaluate(config, FN_API).rows[0]
    swept = evaluate(dataclasses.replace(config, damping_sweep="0.1, 1e-6,10", overwrite=True), FN_API).rows
    assert [row.figures["damping"] for row in swept] == [1e-6, 0.003, 0.1, 10]  # its own is always among them
    own = swept[1].figures
    assert "the run's own" in own["note"]
    name = "lds" if measure == "lds" else "pearson"
    each = list(plain.each.values())
    # The same products in another order.
    assert own[f"{name} (even, choosing)"] == pytest.approx(np.mean(each[0::2]), abs=1e-9)
    assert own[f"{name} (odd)"] == pytest.approx(np.mean(each[1::2]), abs=1e-9)
    best = max(swept, key=lambda row: row.figures[f"{name} (even, choosing)"])
    assert [row for row in swept if "chosen" in row.figures["note"]] == [best]
    assert swept[3].figures[f"{name} (odd)"] < own[f"{name} (odd)"]  # 10 is far above every eigenvalue: the gradient product
    grid = evaluate(dataclasses.replace(config, damping_sweep="auto", overwrite=True), FN_API).rows
    assert len(grid) == 9 and grid[0].figures["damping"] == pytest.approx(3e-5)


@pytest.mark.slow
def test_sweeps_that_can_not_be(runs: dict[str, str], arnoldi: str, convex: ConvexJob, tmp_path: pathlib.Path) -> None:
    options: dict[str, Any] = {"train_fn": TRAIN_FN, "retrainings": 3, "output": str(tmp_path)}
    with pytest.raises(ValueError, match="'auto', or numbers above 0"):
        EvaluateConfig("lds", arnoldi, damping_sweep="0", **options)
    with pytest.raises(ValueError, match="around the run's own damping, which is 0 here; name the values"):
        evaluate(EvaluateConfig("lds", runs["exact"], damping_sweep="auto", **options), FN_API)
    with pytest.raises(ValueError, match="keeps no spectrum; fit it again"):
        evaluate(EvaluateConfig("lds", runs["identity"], damping_sweep="1", **options), FN_API)


@pytest.mark.slow
def test_runs_beside_each_other_have_an_error_of_their_difference(runs: dict[str, str], arnoldi: str, tmp_path: pathlib.Path) -> None:
    scores = f"{runs['identity']},{arnoldi},{runs['exact']}"
    rows = evaluate(EvaluateConfig("lds", scores, str(tmp_path), train_fn=TRAIN_FN, retrainings=12), FN_API).rows
    identity, low_rank, exact, *_ = (row.figures for row in rows)
    assert "above the first" not in identity
    for other in (low_rank, exact):
        assert other["above the first"] == pytest.approx(other["lds"] - identity["lds"])
        assert 0 < other["above the first_error"] < 0.3


@pytest.mark.parametrize(
    ("train_fn", "status", "message"),
    [
        ("tests.pipelines.convex_job:train_another_shape", 1, "of the shapes [(16, 4), (4,)]; the scored model has [(16, 3), (3,)]"),
        ("tests.pipelines.convex_job:train_nothing", 1, "the train function returned NoneType"),
        ("tests.pipelines.convex_job:takes_too_little", 2, "can't be called with (examples, seed)"),
        ("tests.pipelines.convex_job:none", 2, "has no attribute 'none'"),
    ],
)
def test_train_functions_that_do_not_fit(
    runs: dict[str, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], train_fn: str, status: int, message: str
) -> None:
    words = ["--scores", runs["exact"], "--output", str(tmp_path / "out"), "--train_fn", train_fn, "--retrainings", "3", *FN_API]
    assert main(["evaluate", "lds", *words]) == status
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        ("lds", {}, "neither was given"),
        ("lds", {"train_fn": "a:b", "ground_truth": "c"}, "both were given"),
        ("lds", {"train_fn": "a"}, "--train_fn 'a' is not an import path"),
        ("lds", {"train_fn": "a:b", "retrainings": 2}, "--retrainings 2 must be at least 3"),
        ("lds", {"train_fn": "a:b", "fraction": 1.0}, "--fraction 1.0 must be above 0 and below 1"),
        ("lds", {"train_fn": "a:b", "repeats": 0}, "--repeats 0 must be at least 1"),
        ("lds", {"train_fn": "a:b", "scores": "r,r/"}, "names a folder twice"),
        ("lds", {"train_fn": "a:b", "scores": " "}, "must name the folder of a finished run"),
        ("brittleness", {}, "brittleness retrains"),
        ("brittleness", {"train_fn": "a:b", "k": "x"}, "--k 'x' must be numbers"),
        ("brittleness", {"train_fn": "a:b", "k": "0"}, "--k '0' must be numbers of at least 1"),
        ("tail_patch", {"learning_rate": 0.0}, "--learning_rate 0.0 must be above 0"),
        ("mislabelled", {}, "--mislabelled is needed"),
        ("mislabelled", {"mislabelled": "f", "shares": "0,5"}, "--shares '0,5' must be percentages"),
        ("guess", {}, "'guess' is no measure"),
    ],
)
def test_wrong_options(measure: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        EvaluateConfig(measure, **{"scores": "r", "output": "o", **options})
    assert message in str(refused.value)


def test_inputs_that_do_not_fit(runs: dict[str, str], tmp_path: pathlib.Path) -> None:
    def refused(config: EvaluateConfig) -> str:
        with pytest.raises(ValueError) as error:
            evaluate(config, FN_API)
        return str(error.value)

    options: dict[str, Any] = {"scores": runs["exact"], "output": str(tmp_path / "out")}
    truth = str(DATA / "lds_digits.npz")
    assert "of 1,500 training examples, but there are 120 ids" in refused(EvaluateConfig("lds", ground_truth=truth, **options))
    assert "no run has finished there" in refused(EvaluateConfig("lds", str(tmp_path), str(tmp_path / "o"), ground_truth=truth))
    np.savez(tmp_path / "only_masks.npz", base_test_loss=np.zeros(15))
    only = str(tmp_path / "only_masks.npz")
    assert "has no subset_masks and subset_test_loss" in refused(EvaluateConfig("lds", ground_truth=only, **options))
    assert "has no loo_idx and loo_test_loss" in refused(EvaluateConfig("leave_one_out", ground_truth=only, **options))
    assert "only 120 training examples" in refused(EvaluateConfig("tail_patch", k="120", **options))
    assert "kept 8 examples in descending order; the 9 most" in refused(EvaluateConfig("tail_patch", k="9", **options))
    too_many = EvaluateConfig("leave_one_out", train_fn=TRAIN_FN, retrainings=121, **options)
    assert "--retrainings 121 is more than the 120 training examples" in refused(too_many)


def test_a_choice_is_judged_by_lds_and_names_its_command(
    runs: dict[str, str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig("choose", runs["identity"], str(tmp_path), train_fn=TRAIN_FN, retrainings=8, budget=600)
    found = evaluate(config, FN_API)
    chosen = next(row for row in found.rows if "chosen" in row.figures["note"])
    assert chosen.method != "identity" and found.facts["retrainings"] == 8
    assert f"--curvature {chosen.method} --damping {chosen.figures['damping']:.6g}" in found.facts["run it"]
    # The same retrainings and the scores of the finished run give the LDS that it has as a candidate.
    truth = str(tmp_path / "choose-ground_truth.npz")
    lds = evaluate(EvaluateConfig("lds", runs["identity"], str(tmp_path), ground_truth=truth)).rows[0].each
    assert figures(found, "identity")["lds (odd)"] == pytest.approx(np.mean(list(lds.values())[1::2]), abs=1e-9)
    assert {"exact", "nearest in features", "plain loss", "random"} < {row.method for row in found.rows}
    # As if it had more weights: the same matrix as that of gauss_newton, solved in five passes.
    whole = figures(found, "gauss_newton")
    monkeypatch.setattr(candidate_maker, "WHOLE", 10)
    again = evaluate(dataclasses.replace(config, train_fn=None, budget=None, ground_truth=truth, output=str(tmp_path / "again")), FN_API)
    solved = figures(again, "gauss_newton_cg")
    assert not {"gauss_newton", "exact"} & {row.method for row in again.rows}
    assert solved["damping"] == pytest.approx(whole["damping"], rel=0.1)  # the mean eigenvalue as of EK-FAC, of drawn labels
    assert solved["lds (even, choosing)"] == pytest.approx(whole["lds (even, choosing)"], abs=0.05)  # ranks of eight sums


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": "a,b", "budget": 5}, "choose is of one run"),
        ({}, "--budget is needed beside --train_fn"),
        ({"budget": -1}, "--budget -1 must be above 0"),
    ],
)
def test_a_choice_has_one_run_and_seconds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**{"measure": "choose", "scores": "a", "output": "o", "train_fn": TRAIN_FN, **options})


@pytest.mark.parametrize("measure", list(MEASURES))
def test_help_of_each_measure(measure: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", measure, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(EvaluateConfig):
        assert (f"--{field.name} " in text) == (measure in field.metadata.get("measures", ())) or field.name == "overwrite", field.name
