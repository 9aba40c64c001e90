"""The report of a finished run: what it says against the run in memory and Keras itself, what it says is missing, and how it looks in a
browser."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
from typing import Any

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.load_influence import load_influence
from beam_influence.pipelines.report import make_page
from beam_influence.pipelines.report_config import ReportConfig
from beam_influence.report.numbers import change, plain
from beam_influence.report.page import Page, render
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import TOLERANCE, DigitsJob
from tests.report.visit_page import assert_reads_well, visit, wait_for_browser


@pytest.fixture(scope="module")
def page(finished: FinishedRun) -> Page:
    return make_page(ReportConfig(str(finished.output), test_points="6", top_k=4))


def test_it_says_what_the_run_in_memory_says(page: Page, job: DigitsJob, finished: FinishedRun) -> None:
    oracle = job.oracle(finished.config, finished.train_ids, finished.test_ids).tables
    scores = np.array(oracle["scores"].column("influence")).reshape(len(finished.train_ids), len(finished.test_ids)).T
    largest = scores.max(axis=1).argsort()[::-1][:6]
    assert [point.card.id for point in page.points] == [finished.test_ids[row] for row in largest]
    network = load_keras_file(str(job.model))
    split = job.splits["test"]
    outputs = np.asarray(network(split.images[largest]), np.float64)
    for point, row, output in zip(page.points, largest, outputs, strict=True):
        order = scores[row].argsort()
        for side, rows in zip(point.sides, (order[::-1][:4], order[:4]), strict=True):
            assert side.cards is not None and [card.id for card in side.cards] == [finished.train_ids[train] for train in rows]
            found = [card.influence for card in side.cards]
            assert found == pytest.approx(scores[row][rows], rel=TOLERANCE)
            assert [card.loss_change for card in side.cards] == pytest.approx(scores[row][rows] / len(finished.train_ids), rel=TOLERANCE)
            assert [card.label for card in side.cards] == [str(job.splits["train"].labels[train]) for train in rows]
        said = point.card.prediction
        assert said is not None and said.text.split()[0] == str(output.argmax()) and point.card.label == str(split.labels[row])
        assert said.is_right == (output.argmax() == split.labels[row])
        loss = keras.losses.sparse_categorical_crossentropy(split.labels[row : row + 1], output[None])
        assert said.loss == pytest.approx(float(np.asarray(loss)[0]), rel=1e-5)  # the network's float32
        assert point.card.shown is not None and point.card.shown.picture is not None and point.card.shown.picture.pixelated
    own = np.array(oracle["self_influence"].column("influence"))
    assert page.suspicious is not None
    assert [card.influence for card in page.suspicious] == pytest.approx(np.sort(own)[::-1][:24], rel=TOLERANCE)
    sums = {row["group"]: row["influence"] for row in oracle["group_influence"].to_pylist() if row["test_id"] is None}
    assert page.groups is not None and {group.name: group.influence for group in page.groups.shown} == pytest.approx(sums, rel=TOLERANCE)
    assert page.spread is not None and not page.notes["points"]


def test_five_questions_are_answered_by_the_page_alone(page: Page) -> None:
    text = " ".join(html.unescape(re.sub(r"<style>.*?</style>|<script>.*?</script>|<[^>]+>", " ", render(page), flags=re.DOTALL)).split())
    best = (page.points[0].sides[0].cards or [])[0]
    assert f"without it, the loss there would be {plain(best.loss_change)} higher" in text and best.id in text
    assert change(best.loss_change) in text and "Positive helps: without the training example" in text
    assert page.suspicious and f"Which labels look wrong? First of all {page.suspicious[0].id}" in text
    assert "Which weights are covered? 90 of 610 trainable weights (14.8 %)" in text
    assert "Not covered 520 weights: hidden/kernel, hidden/bias" in text
    assert "Was anything left out? No: every example was used." in text


def test_what_is_gone_is_named_and_the_rest_is_shown(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    """Another model, no training files, and a run that kept one end and nothing of the examples themselves."""
    results = tmp_path / "influence"
    shutil.copytree(finished.output, results)
    manifest = json.loads((results / "manifest.json").read_text())
    manifest["config"] |= {"train": str(tmp_path / "gone-*"), "model": "somebody:model", "outputs": "top_k"}
    manifest["tables"] = {name: manifest["tables"][name] for name in ("top_k", "rejected")}
    (results / "manifest.json").write_text(json.dumps(manifest))
    output = tmp_path / "page.html"
    assert main(["report", str(results), "--output", str(output), "--test_points", finished.test_ids[3]]) == 0
    text = html.unescape(re.sub(r"</?code>", "", output.read_text()))
    assert "Training examples are named, not shown: no file matches" in text
    assert "code is taken from the command line alone" in text and "--model somebody:model" in text
    assert "The run kept only the most helpful training examples (--order descending)" in text
    assert "--outputs top_k,self_influence adds this part" in text and "--group_feature FEATURE" in text
    assert text.count('<article class="point"') == 1 and "data:image/png" in text  # the test point itself is still there


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test_points", "nobody"], "has no test point 'nobody'; one that it has is 'part-"),
        (["--test_points", "0"], "--test_points 0 must be from 1 to 1,000"),
        (["--top_k", "0"], "--top_k 0 must be at least 1"),
        (["--output", "page.txt"], "--output 'page.txt' must be a file whose name ends in .html"),
        (["--show", "os"], "--show 'os' is not an import path"),
        (["--show", "no_such_module:f"], "can't import 'no_such_module'"),
        (["--model", "other:model"], "--model other:model: the run in"),
        (["--evaluation", "."], "--evaluation '.' holds no result of beam-influence evaluate"),
        (["--class_names", "a,b"], "--class_names 'a,b' has 2 names; the model tells 10 classes: name each"),
        (["--tpo_k", "3"], "--tpo_k"),
        (["--curvature", "exact"], "--curvature is not an option of report, but of run and"),
    ],
)
def test_wrong_options_are_refused(
    words: list[str], message: str, finished: FinishedRun, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(finished.output), *words]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_measures_are_shown(finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    rows = [{"method": str(finished.output), "lds": 0.4567, "lds_error": 0.03}, {"method": "another", "lds": 0.9}]
    (tmp_path / "lds.json").write_text(json.dumps({"measure": "lds", "rows": rows}))
    page = make_page(ReportConfig(str(finished.output), test_points="1", evaluation=str(tmp_path)))
    headlines = [one.headline for one in page.trust]
    assert "Linear datamodelling score 0.457 ± 0.030" in headlines and "Not measured by retraining" not in headlines
    (tmp_path / "lds.json").write_text(json.dumps({"measure": "lds", "rows": rows[1:]}))
    with pytest.raises(ValueError, match="has figures of another, not of"):
        make_page(ReportConfig(str(finished.output), evaluation=str(tmp_path)))


def test_in_a_notebook(finished: FinishedRun) -> None:
    influence = load_influence(finished.output)
    framed = influence._repr_html_()
    assert framed.startswith("<iframe title=") and "&lt;article class=" in framed and framed.count("<") == 2
    rows = [row for row in influence.group_influence.to_pylist() if row["test_id"] is None]
    axes: Any = influence.plot_groups().axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx(sorted(row["loss_change"] for row in rows))
    x, y = influence.plot_concentration().axes[0].lines[0].get_data()
    own = np.sort(influence.self_influence.column("influence").to_numpy())[::-1]
    exact = 100 * np.interp(np.asarray(x) / 100 * len(own), np.arange(len(own) + 1), np.append(0, own.cumsum())) / own.sum()
    assert np.asarray(y) == pytest.approx(exact, rel=1 / 128)  # the bins' own width


def hostile(values: dict) -> dict:
    """An example of somebody who wants to be seen."""
    return {"<script>alert(1)</script>": "</style><img src=x onerror=alert(1)>"}


@pytest.mark.timeout(200)
def test_in_a_browser(page: Page, finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    """Nothing is asked of the network, nothing fails, axe finds nothing serious, and nothing is wider than a phone."""
    wait_for_browser()
    (tmp_path / "report.html").write_text(render(page))
    seen = visit(tmp_path / "report.html")
    assert_reads_well(seen)
    assert len(seen["points"]) == 6 and seen["gallery"] == 24
    assert seen["searched"]["points"] == ["6"] and seen["searched"]["said"].startswith("1 of 6 test points")
    wrong = [point for point in page.points if point.card.prediction and point.card.prediction.is_right is False]
    assert len(seen["wrong"]) == len(wrong)
    losses = [float(loss) for loss in seen["by_loss"]]
    assert losses == sorted(losses, reverse=True)
    assert seen["sorted"]["falling"] == sorted(seen["sorted"]["falling"], reverse=True) == seen["sorted"]["rising"][::-1]
    assert seen["sorted"]["told"] == "ascending"
    assert seen["first_stop"] == "Skip to the content" and seen["printed"] == {"nav": 0, "points": 6}
    assert seen["without_script"] == {"points": 6, "controls": 0}
    # What examples hold is text, whatever they hold.
    strange = make_page(ReportConfig(str(finished.output), test_points="2", show=f"{__name__}:hostile"))
    text = render(strange)
    assert "&lt;script&gt;alert(1)" in text and "onerror=alert(1)&gt;" in text
    assert "<script>alert" not in text and "<img src=x" not in text
