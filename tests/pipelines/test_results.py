"""What is written: schemas, compression, the facts in each file, the manifest, and the unit of the scores."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.scoring.outputs.table import TABLES
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import OUTPUTS, SIZES, DigitsJob, files_below, influence_model, listed_files, read, run_quietly


def test_the_manifest_lists_exactly_the_files(finished: FinishedRun) -> None:
    manifest = json.loads((finished.output / "manifest.json").read_text())
    assert manifest == finished.summary.manifest
    listed = listed_files(finished.output)
    paths = [file.path for file in listed]
    assert paths == sorted(path for path in files_below(finished.output) if path.endswith(".parquet") and "/" in path)
    found = {path for path in files_below(finished.output) if not path.startswith("curvature/")}
    assert found == {*paths, manifest["file_list"], "manifest.json"}
    for file in listed:
        stored = pq.ParquetFile(finished.output / file.path)
        assert file.rows == stored.metadata.num_rows
        assert file.size == (finished.output / file.path).stat().st_size
        assert file.table == file.path.split("/")[0]
    of_scores = [file for file in listed if file.table == "scores"]
    assert manifest["tables"]["scores"] == {
        "files": 3, "rows": sum(file.rows for file in of_scores), "bytes": sum(file.size for file in of_scores),
    }  # fmt: skip


def test_the_manifest_tells_how_the_run_was_made(finished: FinishedRun, job: DigitsJob) -> None:
    manifest = finished.summary.manifest
    assert manifest["config"] == finished.config.as_json()
    assert manifest["counts"] == {
        "curvature": {"shards": 3, "examples": SIZES["train"], "rejected": 0},
        "embed": {"shards": 1, "examples": SIZES["test"], "rejected": 0},
        "score": {"shards": 3, "examples": SIZES["train"], "rejected": 0},
    }
    assert manifest["curvature"]["fingerprint"] == influence_model(str(job.model)).fingerprint()
    assert {"apache-beam", "tensorflow", "keras", "numpy", "pyarrow", "python"} <= set(manifest["versions"])


def test_numbers_of_rows(finished: FinishedRun) -> None:
    train, test = SIZES["train"], SIZES["test"]
    rows = {table: read(finished.output, table).num_rows for table in TABLES if (finished.output / table).exists()}
    assert rows == {
        "top_k": test * finished.config.top_k,
        "self_influence": train,
        "group_influence": 10 * (test + 1),  # ten digits; each test point, and all together
        "scores": train * test,
        "influence_vectors": train,
        "rejected": 0,
    }


@pytest.mark.parametrize("table", [*OUTPUTS.split(","), "rejected"])
def test_schema_and_compression(finished: FinishedRun, table: str) -> None:
    files = sorted((finished.output / table).glob("*.parquet"))
    assert files
    for path in files:
        stored = pq.ParquetFile(path)
        assert stored.schema_arrow.remove_metadata().equals(TABLES[table])
        for group in range(stored.metadata.num_row_groups):
            columns = [stored.metadata.row_group(group).column(c) for c in range(stored.metadata.num_columns)]
            assert {column.compression for column in columns} == {"ZSTD"}


def test_a_block_of_queries_is_one_row_group(finished: FinishedRun) -> None:
    files = [pq.ParquetFile(path) for path in sorted((finished.output / "top_k").glob("*.parquet"))]
    assert [file.metadata.num_row_groups for file in files] == [1, 1, 1]  # 20 test points in blocks of 7
    order = [row["test_id"] for file in files for row in file.read(["test_id"]).to_pylist()]
    assert order == [test_id for test_id in finished.test_ids for _ in range(finished.config.top_k)]


@pytest.mark.parametrize("table", OUTPUTS.split(","))
def test_facts_in_every_file(finished: FinishedRun, job: DigitsJob, table: str) -> None:
    curvature = finished.summary.manifest["curvature"]
    for path in (finished.output / table).glob("*.parquet"):
        facts = json.loads(pq.read_schema(path).metadata[schemas.METADATA_KEY])
        assert facts["sign"].startswith("positive = removing the training example raises the loss")
        assert "divide by n" in facts["unit"]
        assert facts["n"] == SIZES["train"]
        assert facts["curvature"] == "gauss_newton"
        assert facts["damping"] == curvature["damping"] > 0
        assert (facts["normalize"], facts["removal"]) == ("none", "first_order")
        assert facts["model_fingerprint"] == influence_model(str(job.model)).fingerprint()


@pytest.mark.parametrize("table", ["top_k", "self_influence", "group_influence", "scores"])
def test_loss_change_is_influence_over_n(finished: FinishedRun, table: str) -> None:
    rows = read(finished.output, table)
    influence, change = (rows[column].to_numpy() for column in ("influence", "loss_change"))
    assert np.array_equal(change, influence / SIZES["train"])  # one division: the same bits
    assert np.abs(change).max() > 0


def test_relative_scores_have_no_unit(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    run_quietly(job.config(tmp_path / "out", outputs="top_k", normalize="theta"))
    rows = read(tmp_path / "out", "top_k")
    assert rows["loss_change"].null_count == rows.num_rows > 0
    (path,) = (tmp_path / "out" / "top_k").iterdir()
    assert "relative (theta-RelatIF)" in json.loads(pq.read_schema(path).metadata[schemas.METADATA_KEY])["unit"]
