"""An ensemble of finished runs, through the command line, against the mean of their tables in NumPy."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.ensemble.intervals import interval_factor
from beam_influence.influence_ops.ensemble.mean_rows import mean_rows
from beam_influence.influence_ops.results.result_files import read_manifest, write_manifest
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.ensemble import ensemble
from beam_influence.pipelines.ensemble_options import EnsembleOptions
from beam_influence.pipelines.inspect_folder import inspect_folder
from beam_influence.pipelines.load_influence import load_influence
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import FN_API, listed_files, read

TABLES = ("scores", "self_influence", "group_influence")


def another(finished: FinishedRun, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """A run as the first, of a model whose scores are others."""
    shutil.copytree(finished.output, folder)
    generator = np.random.default_rng(seed)
    files = [file for file in listed_files(folder) if file.table != "influence_vectors"]
    for file in files:
        table = pq.read_table(folder / file.path)
        if "influence" in table.column_names:
            changed = np.asarray(table["influence"]) + 0.05 * generator.normal(size=len(table))
            place = table.column_names.index("influence")
            table = table.set_column(place, table.schema.field(place), pa.array(changed))
            pq.write_table(table, folder / file.path, row_group_size=seed * 37)
    manifest = read_manifest(str(folder))
    kept = {name: value for name, value in manifest.items() if name not in ("tables", "file_list", "manifest_version")}
    kept["curvature"] = {**kept["curvature"], "fingerprint": f"of seed {seed}"}
    write_manifest(str(folder), files, kept)
    return folder


@pytest.fixture(scope="module")
def members(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    folder = tmp_path_factory.mktemp("members")
    return [finished.output, another(finished, folder / "one", 1), another(finished, folder / "two", 2)]


@pytest.fixture(scope="module")
def output(members: list[pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("ensemble") / "mean"
    assert main(["ensemble", *map(str, members), "--output", str(output), "--runner=FnApiRunner"]) == 0
    return output


def test_every_table_is_the_mean(members: list[pathlib.Path], output: pathlib.Path) -> None:
    for name in TABLES:
        mean, tables = read(output, name), [read(member, name) for member in members]
        influence = np.stack([np.asarray(table["influence"]) for table in tables])
        assert np.allclose(mean["influence"], influence.mean(axis=0), rtol=1e-12)
        assert np.allclose(mean["standard_error"], influence.std(axis=0, ddof=1) / 3**0.5, rtol=1e-12)
        others = [column for column in tables[0].column_names if column not in ("influence", "loss_change")]
        assert mean.select(others).equals(tables[0].select(others))
    assert read(output, "rejected").equals(read(members[0], "rejected"))


def test_top_k_is_that_of_the_mean(members: list[pathlib.Path], output: pathlib.Path, finished: FinishedRun) -> None:
    scores = read(output, "scores").to_pandas().sort_values(["influence"], ascending=False, kind="stable")
    top, k = read(output, "top_k").to_pandas(), finished.config.top_k
    assert len(top) == k * len(finished.test_ids)
    for test_id, rows in top.groupby("test_id"):
        best = scores[scores.test_id == test_id].head(k + 1)
        assert rows.train_id.tolist() == best.train_id.tolist()[:k] and rows["rank"].tolist() == list(range(1, k + 1))
        low = rows.influence - interval_factor(3) * rows.standard_error
        assert rows.stable.tolist() == (low > best.influence.iloc[-1]).tolist()
    assert 0 < top.stable.sum() < len(top)


def test_it_is_a_result_as_any_other(members: list[pathlib.Path], output: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    influence = load_influence(output)
    assert influence.explain(read(output, "top_k")["test_id"][0].as_py()).column_names[-2:] == ["standard_error", "stable"]
    assert influence.n == 300 and [member["folder"] for member in influence.manifest["ensemble"]["members"]] == list(map(str, members))
    assert main(["inspect", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "ensemble" and found["command"].startswith(f"beam-influence ensemble {members[0]} {members[1]}")


def test_a_factor_from_retraining_takes_the_place_of_students(members: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    summary = ensemble(EnsembleOptions(results=tuple(map(str, members)), output=str(tmp_path), interval_factor=50.0), FN_API)
    assert summary.interval_factor == read_manifest(str(tmp_path))["ensemble"]["interval_factor"] == 50
    assert str(inspect_folder(str(tmp_path), 0).command).endswith("--interval_factor 50")
    scores, top = (read(tmp_path, table).to_pandas() for table in ("scores", "top_k"))
    for test_id, rows in top.groupby("test_id"):
        others = scores[(scores.test_id == test_id) & ~scores.train_id.isin(rows.train_id)].influence.max()
        assert rows.stable.tolist() == (rows.influence - 50 * rows.standard_error > others).tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}"], "at least 2 finished runs: one has no standard error"),
        (["{0}", "{0}/"], "twice: a run that counts twice"),
        (["{0}", "{0}/."], "twice: a run that counts twice"),
        (["{0}", "{1}", "--output", "{1}"], "is the folder of a member"),
        (["{0}", "{1}", "--output", "{1}/.", "--overwrite"], "is the folder of a member"),
        (["{0}", "{1}", "--output", "{mean}"], "already holds finished results; give another --output, or --overwrite"),
        (["{0}", "{mean}"], "is an ensemble itself; give its members"),
        (["{0}", "nowhere"], "'nowhere' holds no manifest.json"),
        (["{0}", "{1}", "--top_k", "0"], "--top_k 0 must be at least 1"),
        (["{0}", "{1}", "--interval_factor", "0"], "--interval_factor 0.0 must be above 0"),
    ],
)
def test_what_is_refused(
    members: list[pathlib.Path],
    output: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    given = [word.format(*members, mean=output) for word in words]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "out")]
    assert main(["ensemble", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_run_elsewhere_is_refused(finished: FinishedRun, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished.output, tmp_path / "copy")
    assert main(["ensemble", str(finished.output), str(tmp_path / "copy"), "--output", str(tmp_path / "out")]) == 2
    assert "runs of the same model with the same options: a run that counts twice" in capsys.readouterr().err


def test_members_with_errors_of_their_own() -> None:
    """Of `--uncertainty`: the mean's own error takes their place."""
    rows = {"test_id": ["t"], "train_id": ["i"], "influence": [1.0], "loss_change": [0.5], "standard_error": [0.1]}
    members = [pa.table(rows), pa.table({**rows, "influence": [3.0], "standard_error": [0.4]})]
    mean = mean_rows(members)
    assert mean.column_names == ["test_id", "train_id", "influence", "loss_change", "standard_error"]
    assert mean["influence"].to_pylist() == [2.0] and mean["standard_error"].to_pylist() == pytest.approx([1.0])


def test_members_of_other_data_are_refused(finished: FinishedRun, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = another(finished, tmp_path / "other", 3)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["test"] = "another.tfrecord"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert main(["ensemble", str(finished.output), str(other), "--output", str(tmp_path / "out")]) == 2
    assert "--test 'another.tfrecord'" in capsys.readouterr().err
    manifest["config"]["test"] = finished.config.test
    known = manifest["curvature"]
    manifest["curvature"] = {**known, "curvature": "identity", "examples": 0}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert main(["ensemble", str(finished.output), str(other), "--output", str(tmp_path / "out")]) == 2
    assert f"the run in {str(other)!r} has --curvature identity" in capsys.readouterr().err
    manifest["curvature"] = known
    (other / "manifest.json").write_text(json.dumps(manifest))
    path = sorted((other / "scores").iterdir())[0]
    table = pq.read_table(path)
    pq.write_table(table.take(np.r_[1, 0, 2 : len(table)]), path)  # as of another order of test points
    words = ["ensemble", str(finished.output), str(other), "--output", str(tmp_path / "out"), "--runner=FnApiRunner"]
    assert main(words) == 1
    assert "run 2 has a row of test_id" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
