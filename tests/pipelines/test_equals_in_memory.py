"""The Beam job gives what plain loops in memory give, however the data is cut and run."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from beam_influence.influence_ops.curvature import dense, load_preconditioner
from beam_influence.transforms import finish_curvature, statistic_parts
from tests.pipelines.conftest import FinishedRun
from tests.pipelines.digits_job import OUTPUTS, DigitsJob, assert_same_rows, assert_same_tables, read, run_quietly


def check(job: DigitsJob, output: pathlib.Path, files: int, *beam_arguments: str, **options: Any) -> None:
    config = job.config(output, files=files, **options)
    run_quietly(config, *beam_arguments)
    train, test = job.shards("train", files), job.shards("test", max(1, files // 3))
    assert_same_tables(output, job.oracle(config, train.ids(), test.ids()))


@pytest.mark.parametrize(("files", "batch_size", "query_block_size"), [(1, 256, 1024), (7, 5, 3)])
def test_any_number_of_files_and_batch_size(
    job: DigitsJob, tmp_path: pathlib.Path, files: int, batch_size: int, query_block_size: int
) -> None:
    check(job, tmp_path / "out", files, batch_size=batch_size, query_block_size=query_block_size)


def test_compressed_files(job: DigitsJob, finished: FinishedRun) -> None:
    assert_same_tables(finished.output, job.oracle(finished.config, finished.train_ids, finished.test_ids))


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": "theta", "outputs": "top_k,self_influence,scores,influence_vectors", "group_feature": None},
        {"normalize": "loss", "outputs": "top_k,scores", "group_feature": None, "curvature": "exact", "order": "ascending"},
        {"removal": "newton", "damping": "0.01"},
        {"curvature": "identity", "order": "ascending", "top_k": 1},
        {"group_feature": None, "outputs": "top_k", "top_k": 1000},  # more than there are examples
        {"curvature": "arnoldi", "rank": 12, "damping": "0.01"},
        {"curvature": "arnoldi", "rank": 12, "passes": 3, "group_feature": None, "outputs": "top_k,scores"},
        {"curvature": "random_projection", "projection_dim": 20, "seed": 3},
        {"curvature": "random_projection", "projection": "two_sided", "projection_dim": 30, "n_samples": 200},
        {"curvature": "random_projection", "projection": "sjlt", "projection_dim": 30, "weights": "all", "outputs": "top_k,scores"},
        {"curvature": "kfac", "weights": "all", "normalize": "theta"},
        {"curvature": "ekfac", "weights": "all", "fisher": "empirical", "outputs": "top_k,group_influence,influence_vectors"},
        {"curvature": "ekfac", "weights": "all", "n_samples": 60, "batch_size": 13},
        {"curvature": "gauss_newton_cg", "weights": "all", "passes": 3, "outputs": "top_k,scores,group_influence"},
        {"curvature": "gauss_newton_cg", "weights": "all", "tolerance": 0.2, "outputs": "top_k", "group_feature": None},
    ],
    ids=lambda options: "-".join(str(value) for name, value in options.items() if name not in ("outputs", "group_feature")),
)
def test_methods(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    check(job, tmp_path / "out", 3, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"curvature": "ekfac", "weights": "all"}, {"curvature": "exact", "n_samples": 60}],
    ids=["gauss_newton", "ekfac", "sample"],
)
def test_statistics_that_travel_by_path(
    job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bundle's runs twice, so that files are left over; all are gone at the end."""
    monkeypatch.setattr(statistic_parts, "INLINE_LIMIT", 0)
    monkeypatch.setattr(statistic_parts, "INLINE_PART_LIMIT", 64)
    monkeypatch.setattr(statistic_parts, "FILE_BYTES", 1_000)
    opened: list[int] = []
    merged = statistic_parts.merged_array
    monkeypatch.setattr(finish_curvature, "merged_array", lambda part: opened.append(len(part.saved)) or merged(part))
    check(job, tmp_path / "out", 3, "--direct_runner_bundle_repeat=1", **options)
    assert (max(opened) > 1) == ("n_samples" not in options)  # a sample is no sum
    assert not list(tmp_path.rglob("rows*.npy"))


@pytest.mark.parametrize("options", [{"normalize": "theta"}, {"removal": "newton", "damping": "0.01"}], ids=["theta", "newton"])
def test_a_cholesky_factor_in_place_of_eigenvalues(
    job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle's are by eigenvalues."""
    config = job.config(tmp_path / "out", files=3, **options)
    train, test = job.shards("train", 3), job.shards("test", 1)
    wanted = job.oracle(config, train.ids(), test.ids())
    monkeypatch.setattr(dense, "SPECTRUM_SIZE", 0)
    run_quietly(config)
    assert load_preconditioner(str(tmp_path / "out" / "curvature")).kind == "cholesky"
    assert_same_tables(tmp_path / "out", wanted)


def test_bundles_run_twice(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    check(job, tmp_path / "out", 3, "--direct_runner_bundle_repeat=1")


def test_id_feature_names_examples_whatever_the_files(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "seven"]
    for output, files in zip(outputs, (1, 7), strict=True):
        config = job.config(output, files=files, id_feature="name", outputs="top_k,self_influence", group_feature=None)
        run_quietly(config)
        names = (job.splits["train"].names, job.splits["test"].names)
        assert_same_tables(output, job.oracle(config, *names))
    one, seven = (read(output, "top_k") for output in outputs)
    # Only the order of float64 sums over files differs.
    assert_same_rows(seven, one, 1e-9)


def test_saved_curvature_is_used_again(job: DigitsJob, finished: FinishedRun, tmp_path: pathlib.Path) -> None:
    saved = str(finished.output / "curvature")
    output = tmp_path / "out"
    config = job.config(output, compressed=True, batch_size=17, query_block_size=7, curvature_path=saved)
    summary = run_quietly(config)
    assert set(summary.manifest["counts"]) == {"embed", "score"}  # no pass for the curvature
    for table in OUTPUTS.split(","):
        # The same operator, files and batches: the same numbers, bit for bit.
        assert_same_rows(read(output, table), read(finished.output, table), 0.0)
    assert summary.manifest["curvature"] == finished.summary.manifest["curvature"]
    assert load_preconditioner(str(output / "curvature")).meta == load_preconditioner(saved).meta


def test_input_order_decides_no_score(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Patterns that are listed twice or backwards are one set of files, in the order of their paths."""
    outputs = [tmp_path / "forward", tmp_path / "backward"]
    pattern = job.shards("train", 3).pattern
    folder = pattern.rsplit("/", 1)[0]
    backward = ",".join(f"{folder}/part-{number:05d}.tfrecord" for number in (2, 1, 0, 1))
    for output, train in zip(outputs, (pattern, backward), strict=True):
        run_quietly(job.config(output, train=train, outputs="top_k", group_feature=None))
    a, b = (json.loads((output / "manifest.json").read_text())["counts"] for output in outputs)
    assert a == b
    assert read(outputs[0], "top_k").equals(read(outputs[1], "top_k"))
