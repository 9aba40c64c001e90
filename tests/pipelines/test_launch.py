"""What a user sees of a run: progress while it goes, and one readable message when it fails."""

from __future__ import annotations

import io
import pathlib
import shutil
import time
from typing import Any

import apache_beam as beam
import keras
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

from beam_influence.pipelines.build import build
from beam_influence.pipelines.launch import run
from beam_influence.pipelines.prepare import prepare
from beam_influence.pipelines.progress_bar import PolledProgress, ProgressBar
from beam_influence.pipelines.run_pipeline import RunFailedError, reason
from beam_influence.transforms.progress import Progress
from tests.pipelines.digits_job import FN_API, DigitsJob, run_quietly

TWO_PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


def _raise_above(values: Any) -> Any:
    if np.max(values) > 5.0:
        raise ArithmeticError("the loss has broken\nin two lines")
    return values


def fails_in_the_run(labels: Any, outputs: Any) -> Any:
    """A loss that fails at the worst of the examples, which is not among those that are tried before the start."""
    losses: Any = keras.losses.sparse_categorical_crossentropy(labels, outputs)
    checked = tf.py_function(_raise_above, [losses], losses.dtype)
    return losses + 0 * tf.stop_gradient(tf.ensure_shape(checked, losses.shape))


def is_one_message(text: str) -> None:
    """No stack, no runner's words: what a user can act on."""
    for word in ("Traceback", "File \"", "[while running", "apache_beam", "RuntimeError", "\n\n"):
        assert word not in text, text


def test_a_file_that_goes_away(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """After the run was planned."""
    folder = tmp_path / "train"
    shutil.copytree(pathlib.Path(job.shards("train", 3).pattern).parent, folder)
    config = job.config(tmp_path / "out", train=f"{folder}/*", outputs="top_k")
    plan = prepare(config)
    (folder / "part-00001.tfrecord").unlink()
    pipeline = beam.Pipeline(options=PipelineOptions(FN_API))
    build(pipeline, config, plan)
    with pytest.raises(Exception) as caught:
        pipeline.run().wait_until_finish()
    text = reason(caught.value)
    is_one_message(text)
    assert text.startswith(f"can't read train file {tmp_path}/train/part-00001.tfrecord: ")


def test_a_rejected_example(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """A message of several lines arrives whole."""
    (tmp_path / "bad.tfrecord").write_bytes(b"not a TFRecord file at all")
    train = f"{job.shards('train', 3).pattern},{tmp_path}/bad.tfrecord"
    with pytest.raises(RunFailedError) as caught:
        run_quietly(job.config(tmp_path / "out", train=train, outputs="top_k"))
    text = str(caught.value)
    is_one_message(text)
    first, second = text.splitlines()
    assert first.startswith("1 example was rejected, more than --max_rejected 0; mend them, or allow as many. All are in ")
    assert "bad.tfrecord:0 (read, damaged_length): the checksum of this record's length does not match" in second


@pytest.mark.parametrize(
    "processes", [(), pytest.param(TWO_PROCESSES, marks=[pytest.mark.slow, pytest.mark.timeout(300)])], ids=["one", "two"]
)
def test_a_users_loss_that_fails(job: DigitsJob, tmp_path: pathlib.Path, processes: tuple[str, ...]) -> None:
    config = job.config(
        tmp_path / "out", files=1, loss="tests.pipelines.test_launch:fails_in_the_run", outputs="top_k", batch_size=256
    )
    with pytest.raises(RunFailedError) as caught:
        run_quietly(config, *processes)
    text = str(caught.value)
    is_one_message(text)
    assert text == "ArithmeticError: the loss has broken\nin two lines"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plain words", "plain words"),
        ("wrong [while running 'A/B']", "wrong"),
        (
            "Graph execution error:\n\nDetected at node Add defined at (most recent call last):\n  File \"x.py\", line 1, in f\n\n"
            "shapes must be equal\n\t [[{{node Add}}]] [Op:__inference_f] [while running 'A']",
            "shapes must be equal",
        ),
        (
            "Traceback (most recent call last):\n  File \"x.py\", line 1, in f\n    g()\nKeyError: 'name' [while running 'A']\n",
            "KeyError: 'name'",
        ),
        (
            "Error received from SDK harness for instruction bundle_1: Traceback (most recent call last):\n"
            "  File \"a.py\", line 1, in f\nOSError: first\n\nThe above exception was the direct cause of the following exception:\n\n"
            "Traceback (most recent call last):\n  File \"a.py\", line 2, in g\npkg.mod.OwnError: second [while running 'X/Y']\n\n",
            "OwnError: second",
        ),
        (
            "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\nValueError: first line\n  second line: of it\n"
            "\nDuring handling of the above exception, another exception occurred:\n\n"
            "Traceback (most recent call last):\n  File \"a.py\", line 2, in g\n"
            "ValueError: first line\n  second line: of it [while running 'X']\n",
            "first line\n  second line: of it",
        ),
    ],
)
def test_reason_of_text(text: str, message: str) -> None:
    assert reason(RuntimeError(text)) == message


def test_verbose_tells_what_the_package_logs(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    told = io.StringIO()
    run(job.config(tmp_path / "out", files=1, outputs="top_k", verbose=True), FN_API, told)
    assert "scores of" in told.getvalue(), told.getvalue()


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_counts_datagrams() -> None:
    screen = _Screen()
    with ProgressBar({"score": 3, "embed": 1}, screen) as bar:
        workers = [Progress(bar.address), Progress(bar.address)]
        for worker in workers:
            worker.report("score", examples=1000)
            worker.report("score", examples=234, shards=1)
        workers[0].report("embed", examples=20, shards=1)
        workers[0].report("unknown", examples=5)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and bar._examples != {"score": 2468, "embed": 20}:
            time.sleep(0.05)
    text = screen.getvalue()
    assert "2/3 files" in text and "2,468 examples" in text
    assert "1/1 files" in text and "20 examples" in text
    assert "unknown" not in text


def test_a_job_elsewhere_is_asked_for_its_counts() -> None:
    """Until it can't be asked, which is no failure of the job."""
    answers = iter([{"score": 1000}, {"score": 2500, "embed": 20}])
    asked, screen = [], _Screen()

    def counts() -> dict[str, int]:
        asked.append(len(asked))
        return next(answers)  # then StopIteration

    with PolledProgress(lambda: "RUNNING", counts, screen, seconds=0.02):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and ("embed" not in screen.getvalue() or len(asked) < 3):
            time.sleep(0.02)
    text = screen.getvalue()
    assert "the job is running" in text and "score" in text and "20 examples" in text and len(asked) == 3
    with PolledProgress(lambda: "RUNNING", counts, io.StringIO(), seconds=0.0):
        time.sleep(0.05)
    assert len(asked) == 3  # nobody watches


def test_parts_of_a_file_are_fractions() -> None:
    screen = _Screen()
    with ProgressBar({"score": 2}, screen) as bar:
        for number, shards in enumerate((1, 1 / 3, 1 / 3, 1 / 3), 1):
            Progress(bar.address).report("score", examples=1, shards=shards)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and bar._examples != {"score": number}:
                time.sleep(0.02)
        bar._bars["score"].refresh()
    text = screen.getvalue()
    assert "2/2 files" in text


def test_nothing_is_drawn_where_nobody_watches() -> None:
    stream = io.StringIO()
    with ProgressBar({"score": 1}, stream) as bar:
        Progress(bar.address).report("score", examples=1, shards=1)
        time.sleep(0.5)
    assert stream.getvalue() == ""


def test_progress_without_a_listener_costs_nothing() -> None:
    with ProgressBar({}, io.StringIO()) as bar:
        address = bar.address
    for progress in (Progress(None), Progress(address)):
        for _ in range(3):
            progress.report("score", examples=1)  # the launcher has gone: no error


def test_a_step_that_fails_is_told_once(job: DigitsJob, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the exception, and not by Beam's log with its stack as well."""
    config = job.config(tmp_path / "out", weights="all", curvature="exact", damping="1e-9", outputs="top_k", group_feature=None)
    with pytest.raises(RunFailedError, match=r"use --damping [\d.e-]+ or more, or --curvature gauss_newton"):
        run_quietly(config)
    assert "Traceback" not in caplog.text
