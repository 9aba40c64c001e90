"""Whole jobs against a real S3 server, through Beam's S3 file system: the same tables as on the local disk, and nothing left over."""

from __future__ import annotations

import json
import pathlib

import pytest

from beam_influence.influence_ops.scoring.index import INDEX
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.launch import submit
from beam_influence.transforms.files import BeamFiles
from tests.pipelines.convex_job import ConvexJob
from tests.pipelines.digits_job import FN_API, assert_same_rows, assert_same_tables, paths_of_run, read, run_quietly
from tests.pipelines.test_killed import command, kill_command
from tests.stores.conftest import Bucket

pytestmark = [pytest.mark.stores, pytest.mark.timeout(600)]


def assert_holds_only_the_run(bucket: Bucket, prefix: str) -> dict:
    """The manifest; beside what it lists, there is the curvature and nothing."""
    found = bucket.keys(prefix)
    manifest = json.loads(BeamFiles().read(bucket.path(f"{prefix}/manifest.json")))
    wanted, lists = paths_of_run(bucket.path(prefix)), {key for key in found if key.startswith("files-")}
    assert {key for key in found if not key.startswith("curvature/")} == wanted | lists
    assert len(lists) <= 1 + bool(manifest["config"].get("update"))  # the list before stays for who reads it
    assert "curvature/meta.json" in found and not any(key.endswith(".tmp") for key in found)
    return manifest


def assert_is_right(bucket: Bucket, prefix: str, folder: pathlib.Path, files: int = 3, **options: str) -> None:
    config = bucket.config(prefix, files, **options)
    train, test = (bucket.job.shards(split, count).ids() for split, count in (("train", files), ("test", max(1, files // 3))))
    assert_same_tables(bucket.get(prefix, folder), bucket.job.oracle(config, train, test))


def test_a_run_and_another_over_it(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    """The second reads fewer files and writes fewer tables: none of the first's may be left among its own."""
    run_quietly(bucket.config("over", outputs="top_k,scores,group_influence"), *bucket.options)
    assert_holds_only_the_run(bucket, "over")
    assert_is_right(bucket, "over", tmp_path / "first", outputs="top_k,scores,group_influence")
    with pytest.raises(ValueError, match="already holds a finished run"):
        run_quietly(bucket.config("over"), *bucket.options)
    for stray in ("notes.txt", ".work/queries/00009-00000/solved.npy", "curvature/other.npy", f"{INDEX}/shard-00009.parquet"):
        bucket.client.put_object(Bucket=bucket.name, Key=f"over/{stray}", Body=b"x")
    run_quietly(bucket.config("over", files=1, outputs="top_k", overwrite=True), *bucket.options)
    assert "curvature/other.npy" not in bucket.keys("over")
    bucket.client.delete_object(Bucket=bucket.name, Key="over/notes.txt")  # the user's own: it was left alone, or this is an error
    assert set(assert_holds_only_the_run(bucket, "over")["tables"]) == {"top_k", "rejected"}
    assert_is_right(bucket, "over", tmp_path / "second", files=1, outputs="top_k")


def test_killed_and_started_again(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    config = bucket.config("killed", batch_size=1, outputs="top_k,scores")
    assert kill_command([*command(config), *bucket.options], lambda: bool(bucket.keys("killed/scores")))
    assert "manifest.json" not in bucket.keys("killed")
    summary = run_quietly(config, *bucket.options)
    assert summary.manifest["resumed"] == ["embed", "operator"]
    assert_holds_only_the_run(bucket, "killed")
    assert_is_right(bucket, "killed", tmp_path, outputs="top_k,scores")


def test_worker_processes_and_a_launcher_that_does_not_wait(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    """Other processes reach the bucket with the options of the command line alone; the job itself clears up. In two rounds over parts
    of files."""
    config = bucket.config("submitted", outputs="top_k", shard_size=20_000, max_worker_memory=str(2 * 10 * 8 * 90))
    submit(config, ["--runner=local", "--workers=2", *bucket.options]).wait_until_finish()
    assert_holds_only_the_run(bucket, "submitted")
    assert_is_right(bucket, "submitted", tmp_path, outputs="top_k")


def test_an_index_that_grows_and_a_query(bucket: Bucket, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"group_feature": None, "outputs": "scores", "curvature": "random_projection", "projection_dim": 40, "seed": 2}
    run_quietly(bucket.config("wanted", **options), *bucket.options)
    model = ["--model", bucket.path("model.keras"), *FN_API, *bucket.options]
    folder = str(bucket.config("wanted").train).rpartition("/")[0]
    of_index = ["--curvature_path", bucket.path("wanted/curvature")]
    index = ["index", *model, "--output", bucket.path("indexed")]
    assert main([*index, "--train", f"{folder}/part-00000.tfrecord", *of_index]) == 0
    bucket.client.put_object(Bucket=bucket.name, Key=f"indexed/{INDEX}/shard-00007.parquet", Body=b"of a killed update")
    assert main([*index, "--train", f"{folder}/part-*.tfrecord", "--update"]) == 0
    assert assert_holds_only_the_run(bucket, "indexed")["tables"][INDEX]["files"] == 3
    query = ["query", *model, "--index", bucket.path("indexed"), "--test", bucket.config("wanted").test or "", "--outputs", "scores"]
    assert main([*query, "--output", bucket.path("queried")]) == 0, capsys.readouterr().err
    assert_holds_only_the_run(bucket, "queried")
    queried, wanted = (read(bucket.get(name, tmp_path / name), "scores") for name in ("queried", "wanted"))
    assert_same_rows(queried, wanted, 1e-5)  # an index holds float32


def test_evaluate(bucket: Bucket, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    bucket.put(ConvexJob(tmp_path).folder, "convex")
    at = bucket.path("convex")
    model = ["--model", f"{at}/model.keras", "--train", f"{at}/train-*", "--test", f"{at}/test-*", *FN_API, *bucket.options]
    assert main(["run", *model, "--output", f"{at}/exact", "--weights", "all", "--damping", "0", "--outputs", "scores"]) == 0
    words = ["evaluate", "lds", "--scores", f"{at}/exact", "--output", f"{at}/lds", *FN_API, *bucket.options, "--retrainings", "4"]
    assert main([*words, "--train_fn", "tests.pipelines.convex_job:train"]) == 0, capsys.readouterr().err
    found = json.loads(BeamFiles().read(f"{at}/lds/lds.json"))
    assert found["retrainings"] == 4 and {row["method"].rpartition("/")[2] for row in found["rows"]} >= {"exact", "random"}
    assert main([*words, "--train_fn", "tests.pipelines.convex_job:train"]) == 2
    assert "give another --output, or --overwrite" in capsys.readouterr().err
