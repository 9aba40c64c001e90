"""The same job gives the same tables on every engine."""

from __future__ import annotations

import pathlib

import pytest

from tests.engines.conftest import FlinkCluster, InMemory
from tests.engines.equal_runs import run_and_compare
from tests.pipelines.digits_job import DigitsJob, assert_same_tables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Beam's workers in this process end with an error in a thread when the engine closes their connection.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


def test_in_memory_is_what_loops_give(job: DigitsJob, in_memory: InMemory) -> None:
    train, test = job.shards("train", 7).ids(), job.shards("test", 2).ids()
    assert_same_tables(in_memory.output, job.oracle(in_memory.config, train, test))


def test_processes(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path) -> None:
    run_and_compare(job, in_memory, tmp_path / "out", "--runner=local", "--workers=2")


def test_bundles_delivered_twice(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path) -> None:
    run_and_compare(job, in_memory, tmp_path / "out", "--runner=local", "--direct_runner_bundle_repeat=2")


@pytest.mark.prism
@pytest.mark.timeout(900)  # it may have to be built
def test_prism(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path, prism: str) -> None:
    run_and_compare(job, in_memory, tmp_path / "out", "--runner=prism", f"--prism_location={prism}", "--time_limit=240")


@pytest.mark.flink
@pytest.mark.timeout(900)  # the jars may have to be fetched
@pytest.mark.parametrize("environment", ["EXTERNAL", "PROCESS", "LOOPBACK"])
def test_flink_cluster(job: DigitsJob, in_memory: InMemory, tmp_path: pathlib.Path, flink: FlinkCluster, environment: str) -> None:
    run_and_compare(job, in_memory, tmp_path / "out", *flink.arguments(environment))
