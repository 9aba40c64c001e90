"""A run killed at any moment leaves no manifest, and the next one into the same folder is as if it had been the first."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from beam_influence.influence_ops.results.array_folder import LocalFiles
from beam_influence.pipelines.clear_output import clear_output, clear_unfinished
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.transforms.files import BeamFiles
from tests.pipelines.digits_job import DigitsJob, assert_same_tables, files_below, listed_files, paths_of_run, read, run_quietly

# The stages write into these, in this order; the run is killed as soon as one holds a file, finished or not.
MOMENTS: dict[str, Callable[[pathlib.Path], bool]] = {
    "curvature": lambda output: any((output / "curvature").glob("*")),
    "while-scoring": lambda output: any((output / "scores").glob("*")),
    "all-tables-written": lambda output: any((output / "group_influence").glob("*.parquet")),
}


def command(config: InfluenceConfig) -> list[str]:
    options = ["model", "train", "test", "output", "group_feature", "outputs", "top_k", "batch_size", "threads"]
    words = [word for name in options for word in (f"--{name}", str(getattr(config, name)))]
    return [sys.executable, "-m", "beam_influence.pipelines.cli", "run", *words, "--runner=FnApiRunner"]


def kill_when(config: InfluenceConfig, moment: Callable[[pathlib.Path], bool]) -> bool:
    """Runs the job in a process of its own and kills it; False when it had ended before."""
    output = pathlib.Path(config.output)
    return kill_command(command(config), lambda: moment(output))


def kill_command(words: list[str], moment: Callable[[], bool]) -> bool:
    """Runs a command in a process of its own and kills it at a moment; False when it had ended before."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not moment():
            assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()
            assert time.monotonic() < deadline
            time.sleep(0.0005)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: nothing else is in it
        process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", sorted(MOMENTS))
def test_a_killed_run_and_the_next(job: DigitsJob, tmp_path: pathlib.Path, moment: str) -> None:
    output = tmp_path / "out"
    # Small batches: the stages last long enough to be killed inside.
    config = job.config(output, files=7, batch_size=1)
    assert kill_when(config, MOMENTS[moment])
    assert files_below(output), "killed before it wrote anything: the moment is not the one meant"
    assert not (output / "manifest.json").exists()
    # The next run reads fewer files: none of the killed one's may be left among its own.
    config = job.config(output, files=3)
    run_quietly(config)
    assert_no_strays(output)
    assert_same_tables(output, job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids()))


def assert_no_strays(output: pathlib.Path) -> None:
    assert {path for path in files_below(output) if not path.startswith("curvature/")} == paths_of_run(output)
    described = json.loads((output / "curvature" / "meta.json").read_text())["arrays"]
    assert set(described) == {"eigenvalues", "kept", "vectors"}
    assert files_below(output / "curvature") == {"meta.json", *(array["file"] for array in described.values())}


def test_what_any_kill_can_leave_is_removed(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Half-written and finished files in every place that a run writes to; the user's own files stay."""
    output = tmp_path / "out"
    config = job.config(output, outputs="top_k")
    strays = [
        ".manifest.json.0123abcd.tmp",
        ".files-0123456789abcdef.parquet.0123abcd.tmp",
        "files-0123456789abcdef.parquet",
        "top_k/block-00009-00000.parquet",
        "scores/.shard-00000.parquet.0123abcd.tmp",
        "curvature/.inverse.npy.0123abcd.tmp",
        "curvature/other.npy",
        ".work/queries/00000-00000/solved.npy",
        ".work/statistic/block-0-0/.part.npy.0123abcd.tmp",
    ]
    mine = ["mine.txt", "manifest.json.txt", ".mine.tmp", "files-mine.parquet"]
    for path in [*strays, *mine]:
        LocalFiles().write(str(output / path), b"")
    clear_output(config, ("top_k", "scores"), "manifest.json")
    assert files_below(output) == set(mine)
    run_quietly(config)
    for path in mine:
        (output / path).unlink()
    assert_no_strays(output)


def test_unfinished_files_are_in_nobodys_way(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """A worker that was killed leaves half a file; readers of the folder don't see it, and at the end it is removed."""
    output = tmp_path / "out"
    config = job.config(output, outputs="top_k")
    stray = ""
    with pytest.raises(OSError), BeamFiles().open_write(str(output / "top_k" / "block.parquet")) as file:
        file.write(b"half")
        (stray,) = files_below(output)
        raise OSError
    assert files_below(output) == set()
    run_quietly(config)
    expected = files_below(output)
    LocalFiles().write(str(output / stray), b"half")
    assert read(output, "top_k").num_rows > 0
    clear_unfinished(config, ("top_k", "scores"))
    assert files_below(output) == expected


def test_the_manifest_comes_last(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment at which the manifest appears, all that it lists is in place."""
    output = tmp_path / "out"
    seen: list[set[str]] = []
    rename = os.rename

    def watched(source: str, target: str, *args: object, **kwargs: object) -> None:
        if str(target).endswith("manifest.json"):
            seen.append(files_below(output))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    run_quietly(job.config(output))
    assert len(seen) == 1
    assert {file.path for file in listed_files(output)} <= seen[0]
