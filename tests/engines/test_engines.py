"""The same jobs, of a last layer and of whole networks, give the same tables on every engine (processes: test_split_files.py)."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.engines.conftest import OPTIONS, FlinkCluster, InMemory
from tests.engines.equal_runs import assert_equal_runs
from tests.pipelines.digits_job import DigitsJob, assert_same_tables, run_quietly

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Beam's workers in this process end with an error in a thread when the engine closes their connection.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


def test_in_memory_is_what_loops_give(job: DigitsJob, in_memory: InMemory) -> None:
    train, test = job.shards("train", 7).ids(), job.shards("test", 2).ids()
    assert_same_tables(in_memory.output, job.oracle(in_memory.config, train, test))


WHOLE_NETWORKS: dict[str, dict[str, Any]] = {
    "ekfac": {"curvature": "ekfac", "outputs": "top_k,self_influence", "shard_size": 20_000},
    "gauss_newton_cg": {"curvature": "gauss_newton_cg", "passes": 2, "outputs": "top_k"},
    "index": {"curvature": "random_projection", "projection_dim": 64, "outputs": "index", "test": None},
}
P = 65 * 8 + 9 * 10
# In rounds on the engine, in one in memory: 10 of the 20 test points' solutions, and 10 that are solved, each with 8 vectors in float64.
IN_ROUNDS = {"ekfac": 2 * 10 * 8 * P, "gauss_newton_cg": 10 * 8 * 8 * P}
JOBS = ["last-layer", *WHOLE_NETWORKS]
# Every job, and every way to start workers: those that are processes cost some 30 CPU seconds a run.
ON_FLINK = [("last-layer", "PROCESS"), ("ekfac", "EXTERNAL"), ("gauss_newton_cg", "LOOPBACK"), ("index", "LOOPBACK")]


@pytest.fixture(scope="session")
def known(job: DigitsJob, in_memory: InMemory, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[pathlib.Path, dict]]:
    """The folder of a job's run in memory, which is made once, and the job's options."""

    @functools.cache
    def run_once(name: str) -> tuple[pathlib.Path, dict]:
        if name == "last-layer":
            return in_memory.output, OPTIONS
        options = {"files": 7, "weights": "all", "group_feature": None, **WHOLE_NETWORKS[name]}
        output = tmp_path_factory.mktemp(name) / "influence"
        run_quietly(job.config(output, **options))
        return output, options

    return run_once


@pytest.fixture(params=JOBS)
def same(request: pytest.FixtureRequest, job: DigitsJob, known: Callable, tmp_path: pathlib.Path) -> Callable[..., None]:
    """Runs a job on an engine and compares it with the run in memory."""
    expected, options = known(request.param)
    if request.param in IN_ROUNDS:
        options = {**options, "max_worker_memory": str(IN_ROUNDS[request.param])}

    def run(*arguments: str) -> None:
        run_quietly(job.config(tmp_path / "out", **options), *arguments)
        assert_equal_runs(tmp_path / "out", expected)

    return run


@pytest.mark.parametrize("same", ["last-layer", "ekfac"], indirect=True)
def test_threads(same: Callable[..., None]) -> None:
    same("--runner=local", "--direct_running_mode=multi_threading", "--direct_num_workers=4")


@pytest.mark.parametrize("same", ["last-layer", "gauss_newton_cg"], indirect=True)
def test_bundles_delivered_twice(same: Callable[..., None]) -> None:
    same("--runner=local", "--direct_runner_bundle_repeat=2")


@pytest.mark.prism
@pytest.mark.timeout(900)  # it may have to be built
def test_prism(same: Callable[..., None], prism: str) -> None:
    same("--runner=prism", f"--prism_location={prism}", "--time_limit=240")


@pytest.mark.flink
@pytest.mark.timeout(900)  # the jars may have to be fetched
@pytest.mark.parametrize(("same", "environment"), ON_FLINK, indirect=["same"])
def test_flink_cluster(same: Callable[..., None], flink: FlinkCluster, environment: str) -> None:
    same(*flink.arguments(environment))
