"""A run that was ended and is started again computes no finished stage twice, and ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from apache_beam.metrics.metric import MetricsFilter

from beam_influence.pipelines import launch
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.run_pipeline import RunFailedError
from beam_influence.transforms.read_shards import NAMESPACE, ShardReader
from tests.pipelines.digits_job import DigitsJob, assert_same_rows, files_below, listed_files, read, run_quietly
from tests.pipelines.test_killed import kill_when

pytestmark = pytest.mark.timeout(300)

# A resumed run multiplies the same arrays; batches of one example (to be killed inside a stage) round otherwise (seen: 1e-14).
ROUNDING = 1e-9


class Stopped(Exception):
    pass


def read_stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stage of each file that is read from now on."""
    seen: list[str] = []
    real = ShardReader.read

    def watched(self: ShardReader, shard: Any) -> Any:
        seen.append(self.stage)
        return real(self, shard)

    monkeypatch.setattr(ShardReader, "read", watched)
    return seen


def stop_at(monkeypatch: pytest.MonkeyPatch, stage: str) -> Callable[[], None]:
    """Ends the run when a file is read in this stage; returns what takes that back."""
    real = ShardReader.read

    def failing(self: ShardReader, shard: Any) -> Any:
        if self.stage == stage:
            raise Stopped(f"stopped in {stage}")
        return real(self, shard)

    monkeypatch.setattr(ShardReader, "read", failing)
    return lambda: monkeypatch.setattr(ShardReader, "read", real)


def stopped_run(config: InfluenceConfig, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    again = stop_at(monkeypatch, stage)
    with pytest.raises(RunFailedError, match=f"stopped in {stage}"):
        run_quietly(config)
    again()


def assert_same_run(config: InfluenceConfig, undisturbed: InfluenceConfig, tolerance: float = 0.0) -> None:
    for table in config.output_tables:
        assert_same_rows(read(config.output, table), read(undisturbed.output, table), tolerance)
    first, second = (json.loads((pathlib.Path(c.output) / "manifest.json").read_text()) for c in (config, undisturbed))
    assert first["counts"] == second["counts"]
    assert first["tables"].keys() == second["tables"].keys()
    assert {file.path for file in listed_files(config.output)} == {file.path for file in listed_files(undisturbed.output)}
    assert _names(config) == _names(undisturbed)


def _names(config: InfluenceConfig) -> list[str]:
    """Every file; without the digest of an array, and of the list of files with their bytes, which differ when scores' last bits do."""
    return sorted(re.sub(r"-[0-9a-f]{16}\.(npy|parquet)$", r".\1", path) for path in files_below(pathlib.Path(config.output)))


@pytest.mark.slow
def test_killed_while_scoring_and_started_again(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = job.config(tmp_path / "out", files=7, batch_size=1)
    assert kill_when(config, lambda output: any((output / "scores").glob("*")) or any((output / "scores").glob(".*")))
    assert not (tmp_path / "out" / "manifest.json").exists()
    results: list[Any] = []
    real = launch.run_pipeline
    monkeypatch.setattr(launch, "run_pipeline", lambda *args: results.append(real(*args)) or results[-1])
    summary = run_quietly(config)
    assert summary.manifest["resumed"] == ["embed", "operator"]
    counters = results[0].metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    worked = {counter.key.metric.name for counter in counters if counter.committed and counter.key.metric.name.endswith("_examples")}
    assert worked == {"score_examples"}
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    run_quietly(undisturbed)
    assert_same_run(config, undisturbed)


@pytest.mark.parametrize(
    ("stage", "options", "resumed"),
    [
        ("score", {}, {"embed", "operator"}),
        ("embed", {}, {"operator"}),
        ("curvature_2", {"curvature": "ekfac", "outputs": "top_k", "group_feature": None}, {"pass_001"}),
        ("curvature_3", {"curvature": "arnoldi", "passes": 3, "outputs": "top_k", "group_feature": None}, {"pass_001", "pass_002"}),
        ("score", {"curvature": "ekfac", "outputs": "top_k", "group_feature": None}, {"embed", "operator", "pass_001"}),
        ("score", {"curvature": "identity", "outputs": "top_k", "group_feature": None}, {"embed", "operator"}),
    ],
    ids=["score", "embed", "second-pass", "third-pass", "after-two-passes", "no-pass"],
)
def test_finished_stages_are_not_repeated(
    job: DigitsJob,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    options: dict[str, Any],
    resumed: set[str],
) -> None:
    config = job.config(tmp_path / "out", **options)
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    all_stages = read_stages(monkeypatch)
    run_quietly(undisturbed)
    order = list(dict.fromkeys(name for name in all_stages if name != "prepare"))
    stopped_run(config, monkeypatch, stage)
    seen = read_stages(monkeypatch)
    summary = run_quietly(config)
    assert set(summary.manifest["resumed"]) == resumed
    assert set(seen) - {"prepare"} == set(order[order.index(stage) :])
    assert_same_run(config, undisturbed)


@pytest.mark.parametrize(
    "change",
    [{"damping": "0.5"}, {"weights": "all"}, {"resume": False}, "file", "touched", "model"],
    ids=str,
)
def test_what_was_made_from_something_else_is_not_used(
    job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    own = DigitsJob(tmp_path) if change == "model" else job
    config = own.config(tmp_path / "out", outputs="top_k", group_feature=None)
    if change in ("file", "touched"):
        (tmp_path / "copy").mkdir()
        for path in pathlib.Path(config.train or "").parent.iterdir():
            (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
        config = dataclasses.replace(config, train=str(tmp_path / "copy" / "part-*"))
    stopped_run(config, monkeypatch, "score")
    if isinstance(change, dict):
        config = dataclasses.replace(config, **change)
    elif change == "file":
        (tmp_path / "copy" / "part-00002.tfrecord").unlink()
    elif change == "touched":
        os.utime(tmp_path / "copy" / "part-00002.tfrecord", (1, 1))
    else:
        import keras

        model: Any = keras.models.load_model(own.model)
        model.set_weights([weight + 0.01 for weight in model.get_weights()])
        model.save(own.model)
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"), resume=False)
    run_quietly(undisturbed)
    seen = read_stages(monkeypatch)
    summary = run_quietly(config)
    assert "resumed" not in summary.manifest and {"curvature", "embed", "score"} <= set(seen)
    assert_same_run(config, undisturbed)


def test_other_test_points_use_the_curvature(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage has a digest of its own; and what does not change a result is in none."""
    config = job.config(tmp_path / "out", outputs="top_k", group_feature=None)
    stopped_run(config, monkeypatch, "score")
    config = dataclasses.replace(config, test=job.shards("test", 2).pattern, top_k=3, threads=2, batch_size=30)
    assert run_quietly(config).manifest["resumed"] == ["operator"]
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    run_quietly(undisturbed)
    assert_same_run(config, undisturbed, ROUNDING)


def test_more_rejected_examples_are_allowed_afterwards(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """What is rejected is recorded too: the curvature is not fitted again to learn it."""
    split = job.splits["train"]
    from tests.pipelines.digits_job import framed

    (tmp_path / "bad.tfrecord").write_bytes(framed([*(split.example(row) for row in range(50)), b"\xff\xfe"]))
    config = job.config(tmp_path / "out", train=str(tmp_path / "bad.tfrecord"), outputs="top_k", group_feature=None)
    with pytest.raises(RunFailedError, match="1 example was rejected"):
        run_quietly(config)
    config = dataclasses.replace(config, max_rejected=1)
    assert "operator" in run_quietly(config).manifest["resumed"]
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    run_quietly(undisturbed)
    assert_same_run(config, undisturbed)
    assert_same_rows(read(config.output, "rejected"), read(undisturbed.output, "rejected"), 0.0)


@pytest.mark.parametrize("damage", ["record", "arrays", "operator"])
def test_a_damaged_record_is_computed_again(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    config = job.config(tmp_path / "out", outputs="top_k", group_feature=None)
    stopped_run(config, monkeypatch, "score")
    work = tmp_path / "out" / ".work" / "finished"
    if damage == "record":
        (work / "operator.json").write_bytes((work / "operator.json").read_bytes()[:-30])
    elif damage == "arrays":
        (work / "operator" / "result" / "meta.json").unlink()
    else:
        (tmp_path / "out" / "curvature" / "meta.json").unlink()
    assert "resumed" not in run_quietly(config).manifest
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    run_quietly(undisturbed)
    assert_same_run(config, undisturbed)


