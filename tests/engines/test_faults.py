"""Processes killed in the middle of a run: the result is complete and identical, or the run fails clearly without a manifest."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from beam_influence.pipelines.run_pipeline import RunFailedError
from tests.engines.conftest import OPTIONS, FlinkCluster, InMemory
from tests.engines.equal_runs import assert_equal_runs, run_and_compare
from tests.pipelines.digits_job import DigitsJob, run_quietly

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # The broken connections are noticed in threads of Beam's, too.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

# A batch for each example: the stages last long enough to be hit inside.
SLOW = {**OPTIONS, "batch_size": 1}


class Killer(threading.Thread):
    """Kills processes with -9 as soon as `moment` has come.

    Args:
      moment: whether it has come.
      victims: their process ids, found at that moment.
      then: what is done after it.
    """

    def __init__(self, moment: Callable[[], bool], victims: Callable[[], list[int]], then: Callable[[], None] = lambda: None):
        super().__init__(daemon=True)
        self._then = then
        self._moment = moment
        self._victims = victims
        self.killed: list[int] = []

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self._moment():
                victims = self._victims()
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)
                self.killed = victims
                while any(is_running(pid) for pid in victims):  # its memory is given back first
                    time.sleep(0.01)
                self._then()
                return
            time.sleep(0.001)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started, as /proc tells, the oldest first."""
    found = []
    for status in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended since
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(status.parent.name))
    return sorted(found)


def is_written(output: pathlib.Path, table: str) -> Callable[[], bool]:
    """Whether a file of the table has been begun."""
    return lambda: any((output / table).glob("*"))


MOMENTS: dict[str, Callable[[pathlib.Path], bool]] = {
    "as-it-starts": lambda output: True,
    "while-scoring": lambda output: any((output / "scores").glob("*")),
}


def local_workers() -> list[int]:
    """Beam's worker processes below this one; between them and it are shells."""
    found = []
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            if b"sdk_worker_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                found += children(pid) or [pid]
    return found


@pytest.mark.parametrize("moment", sorted(MOMENTS))
def test_a_worker_of_local_processes(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path, moment: str) -> None:
    """The in-memory runner repeats nothing: the run fails at once and says why, and the next one is whole."""
    output = tmp_path / "out"
    killer = Killer(lambda: len(local_workers()) == 2 and MOMENTS[moment](output), lambda: local_workers()[:1])
    killer.start()
    with pytest.raises(RunFailedError) as caught:
        run_quietly(job.config(output, **SLOW), "--runner=local", "--workers=2")
    assert killer.killed
    assert str(caught.value).startswith("a worker process was killed by signal 9; when that was for want of memory, use fewer --workers")
    assert not (output / "manifest.json").exists()
    assert local_workers() == []  # the other one has ended, too
    if moment == "while-scoring":
        run_and_compare(job, in_memory, output, "--runner=local")


def workers_of_task_manager(cluster: FlinkCluster) -> list[int]:
    return children(cluster.pid("task-manager-1"))


def task_manager(cluster: FlinkCluster) -> list[int]:
    return [cluster.pid("task-manager-1")]


def run_with_a_kill(
    job: DigitsJob,
    in_memory: InMemory,
    output: pathlib.Path,
    flink: FlinkCluster,
    arguments: list[str],
    stage: str,
    victims: Callable[[FlinkCluster], list[int]],
    then: Callable[[], None],
) -> None:
    killer = Killer(lambda: any((output / stage).glob("*")), lambda: victims(flink)[:1], then)
    killer.start()
    try:
        run_quietly(job.config(output, **SLOW), *arguments)
    finally:
        killer.join(60)
        flink.mend()
    assert killer.killed
    assert_equal_runs(output, in_memory.output)


@pytest.mark.flink
def test_a_worker_on_flink(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path, flink: FlinkCluster) -> None:
    """Flink repeats what was lost."""
    arguments = flink.arguments("PROCESS")
    run_with_a_kill(job, in_memory, tmp_path / "out", flink, arguments, "scores", workers_of_task_manager, lambda: None)


@pytest.mark.flink
def test_a_task_manager_that_is_replaced(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path, flink: FlinkCluster) -> None:
    """As Kubernetes does it; with it goes what it had from the stages before."""
    run_with_a_kill(job, in_memory, tmp_path / "out", flink, flink.arguments("PROCESS"), "scores", task_manager, flink.mend)


@pytest.mark.flink
def test_a_job_on_flink_does_not_outlive_its_time(job: DigitsJob, tmp_path: pathlib.Path, flink: FlinkCluster) -> None:
    arguments = [argument for argument in flink.arguments("EXTERNAL") if not argument.startswith("--time_limit")]
    with pytest.raises(RunFailedError, match="^the job had not finished after --time_limit 5 seconds and was cancelled$"):
        run_quietly(job.config(tmp_path / "out", **SLOW), *arguments, "--time_limit=5", "--job_name=out-of-time")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert flink.jobs()["out-of-time"] == "CANCELED"


@pytest.mark.flink
def test_an_interrupt_cancels_the_job(job: DigitsJob, tmp_path: pathlib.Path, flink: FlinkCluster) -> None:
    ended = threading.Event()

    def interrupt() -> None:
        while flink.jobs().get("interrupted") != "RUNNING":
            time.sleep(0.1)
        while not ended.is_set():  # an interrupt that arrives in a callback of gRPC's is lost: a user presses the keys again
            signal.raise_signal(signal.SIGINT)
            ended.wait(10)

    # A shell starts its background jobs, CI's among them, with the interrupt ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        try:
            run_quietly(job.config(tmp_path / "out", **SLOW), *flink.arguments("EXTERNAL"), "--job_name=interrupted")
        finally:
            ended.set()
            signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert flink.jobs()["interrupted"] == "CANCELED"


@pytest.mark.flink
def test_a_failure_on_flink_is_one_message(job: DigitsJob, tmp_path: pathlib.Path, flink: FlinkCluster) -> None:
    """The stages are tried again, by workers that cost no start here, then the run fails with the words of the step that failed."""
    (tmp_path / "bad.tfrecord").write_bytes(b"not a TFRecord file at all")
    options: dict[str, Any] = {**OPTIONS, "train": f"{job.shards('train', 7).pattern},{tmp_path}/bad.tfrecord"}
    with pytest.raises(RunFailedError) as caught:
        run_quietly(job.config(tmp_path / "out", **options), *flink.arguments("LOOPBACK"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("1 example was rejected, more than --max_rejected 0; mend them, or allow as many. All are in ")
    assert "bad.tfrecord:0 (read, damaged_length): the checksum of this record's length does not match" in second
    assert not (tmp_path / "out" / "manifest.json").exists()
