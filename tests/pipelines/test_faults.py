"""What breaks without an engine: a full disk, a file that vanishes, bundles delivered twice. Complete and identical, or no manifest."""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
from typing import Any

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.run_pipeline import RunFailedError
from beam_influence.transforms.files import TEMPORARY
from tests.pipelines.digits_job import DigitsJob, assert_same_rows, files_below, read, run_quietly

pytestmark = pytest.mark.timeout(300)

# Bundles that run twice merge the same partial sums; what is left is the order of the sums over files (seen: 0).
ROUNDING = 1e-9


class _FullDisk:
    """A file on a disk that takes `room` bytes more, of all its files together."""

    def __init__(self, file: Any, room: list[int]):
        self._file = file
        self._room = room

    def write(self, data: Any) -> int:
        self._room[0] -= len(memoryview(data).cast("B"))
        if self._room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    left, create = [room], LocalFileSystem.create

    def limited(self: LocalFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
        return _FullDisk(create(self, path, *args, **kwargs), left)

    monkeypatch.setattr(LocalFileSystem, "create", limited)


def assert_same_results(config: InfluenceConfig, undisturbed: InfluenceConfig, tolerance: float) -> None:
    for table in config.output_tables:
        assert_same_rows(read(config.output, table), read(undisturbed.output, table), tolerance)
    assert files_below(pathlib.Path(config.output)) == files_below(pathlib.Path(undisturbed.output))


def size_of_run(job: DigitsJob, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes a whole run writes."""
    written = [0]
    create = LocalFileSystem.create

    class Counting(_FullDisk):
        def write(self, data: Any) -> int:
            written[0] += len(memoryview(data).cast("B"))
            return self._file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "create", lambda self, path, *a, **k: Counting(create(self, path, *a, **k), written))
        run_quietly(job.config(folder))
    return written[0]


def test_a_disk_that_fills(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every tenth of what a run writes: it fails and says so, leaves no manifest, and goes on when there is room again."""
    total = size_of_run(job, tmp_path / "measured", monkeypatch)
    undisturbed = job.config(tmp_path / "measured")
    for tenth in (0, 1, 4, 7, 9):
        output = tmp_path / f"out-{tenth}"
        config = dataclasses.replace(undisturbed, output=str(output))
        with monkeypatch.context() as patch:
            fill_disk(patch, total * tenth // 10)
            with pytest.raises(RunFailedError, match="No space left on device"):
                run_quietly(config)
        assert not (output / "manifest.json").exists()
        assert not [path for path in files_below(output) if path.endswith(TEMPORARY)]  # half a file is no file
        run_quietly(config)
        assert_same_results(config, undisturbed, 0.0)


@pytest.mark.parametrize("stage", ["curvature", "score"])
@pytest.mark.parametrize("how", ["gone", "shorter"])
def test_a_file_that_changes_after_it_was_found(
    job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stage: str, how: str
) -> None:
    from beam_influence.transforms.read_shards import ShardReader

    (tmp_path / "data").mkdir()
    source = pathlib.Path(job.config(tmp_path / "out").train or "").parent
    for path in source.iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    last = tmp_path / "data" / "part-00002.tfrecord"
    config = job.config(tmp_path / "out", train=str(tmp_path / "data" / "part-*"))
    real = ShardReader.read

    def reading(self: ShardReader, shard: Any) -> Any:
        if self.stage == stage and last.exists():
            from tests.pipelines.digits_job import framed

            last.unlink() if how == "gone" else last.write_bytes(framed([job.splits["train"].example(0)]))
        return real(self, shard)

    monkeypatch.setattr(ShardReader, "read", reading)
    if how == "shorter" and stage == "curvature":
        run_quietly(config)  # every pass saw the same files: the answer is of these
        assert read(config.output, "self_influence").num_rows < 300
        return
    wanted = r"can't read train file .*part-00002\.tfrecord" if how == "gone" else "the training files changed during the run"
    with pytest.raises(RunFailedError, match=wanted):
        run_quietly(config)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"curvature": "ekfac", "outputs": "top_k", "group_feature": None},
        {"outputs": "top_k,group_influence", "second_order_groups": True},
    ],
    ids=["all-outputs", "two-passes", "second-order"],
)
def test_bundles_that_are_delivered_twice(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    config = job.config(tmp_path / "out", **options)
    undisturbed = dataclasses.replace(config, output=str(tmp_path / "undisturbed"))
    run_quietly(undisturbed)
    summary = run_quietly(config, "--direct_runner_bundle_repeat=2")
    assert_same_results(config, undisturbed, ROUNDING)
    assert summary.manifest["counts"]["score"]["examples"] == 300


