"""What `export` writes is opened in the tools themselves, and is what the tables and the files of the run have."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from cleanlab.classification import CleanLearning
from sklearn.naive_bayes import GaussianNB

from beam_influence.pipelines.cli import main
from beam_influence.pipelines.export_config import ExportConfig
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import SIZES, DigitsJob, files_below, read


def export(finished: FinishedRun, output: pathlib.Path, *words: str) -> None:
    assert main(["export", str(finished.output), "--output", str(output), *words]) == 0


def test_duckdb_has_views_joined_to_the_examples(finished: FinishedRun, job: DigitsJob, tmp_path: pathlib.Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    export(finished, tmp_path / "influence.duckdb", "--to", "duckdb")
    assert files_below(tmp_path) == {"influence.duckdb"}
    scores = read(finished.output, "self_influence").to_pandas().set_index("train_id").influence
    labels = pd.Series(job.splits["train"].labels, index=finished.train_ids)
    with duckdb.connect(str(tmp_path / "influence.duckdb"), read_only=True) as connection:
        rows = connection.execute("SELECT train_id, influence, train_label, train_image FROM suspicious_labels").fetchall()
        assert [row[0] for row in rows] == list(scores.sort_values(ascending=False, kind="stable").index)
        assert all(influence == scores[name] and label == labels[name] for name, influence, label, _ in rows)
        assert np.array_equal(rows[0][3], job.splits["train"].images[finished.train_ids.index(rows[0][0])])
        query = "SELECT count(*), count(train_label), count(test_label), sum(influence) FROM scores_with_examples"
        count, train, test, total = connection.execute(query).fetchone()
        assert count == train == test == SIZES["train"] * SIZES["test"]
        assert total == pytest.approx(read(finished.output, "scores").to_pandas().influence.sum(), rel=1e-12)  # the order of a sum
        sign = connection.execute("SELECT value FROM facts WHERE name = 'sign'").fetchone()[0]
        assert sign.startswith("positive = removing") and connection.execute("SELECT count(*) FROM rejected").fetchone() == (0,)


def test_frames_have_the_examples_beside_their_scores(finished: FinishedRun, job: DigitsJob, tmp_path: pathlib.Path) -> None:
    export(finished, tmp_path / "frame.parquet", "--to", "pandas", "--table", "top_k", "--features", "label,digit")
    frame = pd.read_parquet(tmp_path / "frame.parquet")
    expected = read(finished.output, "top_k").to_pandas()
    pd.testing.assert_frame_equal(frame.reindex(columns=expected.columns), expected)
    labels = dict(zip(finished.train_ids, job.splits["train"].labels, strict=True))
    assert list(frame.label) == [labels[name] for name in frame.train_id]
    assert list(frame.digit) == [f"digit {label}" for label in frame.label]
    assert list(frame.file + ":" + frame.position.astype(str)) == list(frame.train_id)
    export(finished, tmp_path / "pictures.parquet", "--to", "spotlight")
    pictures = pd.read_parquet(tmp_path / "pictures.parquet")
    assert len(pictures) == 300 and all(image.startswith(b"\x89PNG") for image in pictures.picture)


def test_cleanlab_s_columns_and_ids_to_drop(finished: FinishedRun, job: DigitsJob, tmp_path: pathlib.Path) -> None:
    export(finished, tmp_path / "issues.parquet", "--to", "cleanlab", "--share", "0.1")
    issues = pd.read_parquet(tmp_path / "issues.parquet")
    scores = read(finished.output, "self_influence").to_pandas()
    worst = scores.sort_values("influence", ascending=False).train_id[:30]
    assert list(issues.train_id) == list(scores.train_id)
    assert set(issues.train_id[issues.is_label_issue]) == set(worst)
    middle = np.sort(scores.influence.to_numpy())[::-1][149]  # the 150th largest of 300
    np.testing.assert_allclose(issues.label_score, middle / (middle + scores.influence), rtol=1e-15)
    assert issues.label_score.between(0, 1).all()
    images, labels = (getattr(job.splits["train"], name) for name in ("images", "labels"))
    cleaned: Any = CleanLearning(GaussianNB()).fit(images, labels, label_issues=issues)
    kept = ~issues.is_label_issue.to_numpy()
    on_the_rest: Any = GaussianNB().fit(images[kept], labels[kept])
    np.testing.assert_array_equal(cleaned.clf.theta_, on_the_rest.theta_)
    export(finished, tmp_path / "drop.txt", "--to", "ids", "--share", "0.1")
    ids = (tmp_path / "drop.txt").read_text().splitlines()
    assert set(ids) == set(worst) and len(ids) == 30
    # The filter of docs/command_line.md.
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(ids, tf.ones(len(ids), tf.int64)), 0)
    kept = tf.data.Dataset.from_tensor_slices(finished.train_ids).filter(lambda name: table.lookup(name) == 0)
    assert [bytes(name).decode() for name in kept.as_numpy_iterator()] == [name for name in finished.train_ids if name not in set(ids)]


def test_clean_takes_the_ids_and_the_share(finished: FinishedRun, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(finished, tmp_path / "drop.txt", "--to", "ids", "--share", "0.1")
    capsys.readouterr()
    words = ["clean", str(finished.output)]
    assert main([*words, "--ids", str(tmp_path / "drop.txt"), "--output", str(tmp_path / "by_ids"), "--json"]) == 0
    by_ids = json.loads(capsys.readouterr().out)
    assert main([*words, "--share", "0.1", "--output", str(tmp_path / "by_share")]) == 0
    assert by_ids["suspicious"] == 30 and by_ids["examples"] == 300 and "30 dropped" in capsys.readouterr().out
    found = {name for name in files_below(tmp_path / "by_share") if not name.startswith("cleaning/")}
    assert len(found) == 3 and found == {name for name in files_below(tmp_path / "by_ids") if not name.startswith("cleaning/")}
    for name in found:
        assert (tmp_path / "by_ids" / name).read_bytes() == (tmp_path / "by_share" / name).read_bytes()
    assert main(["inspect", str(tmp_path / "by_ids")]) == 0
    assert "30 were dropped" in capsys.readouterr().out
    (tmp_path / "drop.txt").write_text("nobody\n")
    assert main([*words, "--ids", str(tmp_path / "drop.txt"), "--output", str(tmp_path / "none")]) == 1
    assert "1 of the 1 ids are of no example that was scored: 'nobody'" in capsys.readouterr().err
    assert main([*words, "--share", "0.1", "--output", str(tmp_path / "by_share")]) == 2
    assert main([*words, "--share", "0.1", "--output", str(pathlib.Path(finished.config.train or "").parent)]) == 2
    assert main([*words, "--share", "0.003", "--output", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "--share 0.003 of 300 examples is less than one; give at least 0.003334" in error
    assert "holds a cleaned training set already" in error and "is the folder of the training set itself" in error
    assert not files_below(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "excel"}, "--to 'excel' must be one of duckdb"),
        ({"to": "ids"}, "--to ids needs --share"),
        ({"to": "pandas", "share": 0.1}, "--share 0.1 goes with --to cleanlab and ids"),
        ({"to": "cleanlab", "share": 2.0}, "--share 2.0 must be above 0 and below 1"),
        ({"to": "duckdb", "table": "top_k"}, "--table 'top_k' goes with --to pandas and spotlight"),
        ({"to": "ids", "share": 0.1, "features": "a"}, "--features 'a' goes with --to duckdb, pandas, spotlight"),
    ],
)
def test_wrong_options_of_an_export(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(results="r", output="o", **options)
