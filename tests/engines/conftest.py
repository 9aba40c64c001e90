"""The engines, started once and ended with the tests; where their tools are missing, their tests are skipped.

`BEAM_INFLUENCE_ENGINES=required`, which `.ci/run` sets, makes a missing tool a failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.run_summary import RunSummary
from tests.pipelines.digits_job import DigitsJob, run_quietly

ROOT = pathlib.Path(__file__).parents[2]

# Every kind of table, over files of uneven sizes and several blocks of queries.
OPTIONS = {
    "files": 7,
    "query_block_size": 7,
    "outputs": "top_k,self_influence,self_influence_top_k,group_influence,group_self_influence,group_vectors,scores,influence_vectors",
}
"""Options of `DigitsJob.config` for the one job that every engine runs."""


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> DigitsJob:
    return DigitsJob(tmp_path_factory.mktemp("digits"))


@dataclasses.dataclass(frozen=True)
class InMemory:
    """The run in memory that every engine must equal."""

    config: InfluenceConfig
    output: pathlib.Path
    summary: RunSummary


@pytest.fixture(scope="session")
def in_memory(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> InMemory:
    output = tmp_path_factory.mktemp("in-memory") / "influence"
    config = job.config(output, **OPTIONS)
    return InMemory(config, output, run_quietly(config))


def need_tools(*names: str) -> None:
    """Skips the test where a program is missing; in CI it fails."""
    missing = [name for name in names if shutil.which(name) is None]
    if not missing:
        return
    text = f"needs {', '.join(missing)} on the PATH"
    if os.environ.get("BEAM_INFLUENCE_ENGINES") == "required":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def prism() -> str:
    """The path of the Prism program, which is built when it is not there."""
    given = shutil.which("prism")
    if given:
        return given
    need_tools("go")
    command = [str(ROOT / "engines" / "prism" / "get_prism.sh")]
    done = subprocess.run(command, env={**os.environ, "PRISM_PYTHON": sys.executable}, stdout=subprocess.PIPE, text=True, timeout=900)
    assert done.returncode == 0
    return done.stdout.strip()


@dataclasses.dataclass(frozen=True)
class FlinkCluster:
    """A running cluster: one job manager, two task managers, a job server, a pool of workers."""

    endpoint: str
    rest: str
    pool: str
    folder: pathlib.Path
    settings: dict[str, str]

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def mend(self) -> None:
        """Starts task managers again that have died."""
        _flink("cluster", self.settings)

    def jobs(self) -> dict[str, str]:
        """The state of every job by its name, as the job manager tells."""
        with urllib.request.urlopen(f"http://{self.rest}/jobs/overview", timeout=30) as answer:
            return {job["name"]: job["state"] for job in json.load(answer)["jobs"]}

    def arguments(self, environment: str) -> list[str]:
        """The options of a run on this cluster; it may not last for ever."""
        place = [f"--job_endpoint={self.endpoint}", f"--flink_master={self.rest}"]
        arguments = ["--runner=flink", *place, f"--environment={environment}", "--time_limit=240"]
        return [*arguments, f"--environment_config={self.pool}"] if environment == "EXTERNAL" else arguments


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    need_tools("java", "javac", "jar", "mvn", "curl", "setsid", "flock", "ps")
    # Whoever names the folder can stop the cluster, should these tests be killed.
    given = os.environ.get("FLINK_RUN")
    with flink_cluster(pathlib.Path(given) if given else tmp_path_factory.mktemp("flink")) as cluster:
        yield cluster


@contextlib.contextmanager
def flink_cluster(folder: pathlib.Path) -> Iterator[FlinkCluster]:
    """A cluster on free ports, with process ids and logs in `folder`."""
    ports = free_ports(4)
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # the pool imports what the tests import
    settings = {"FLINK_RUN": str(folder), "FLINK_PORTS": ",".join(map(str, ports)), "FLINK_PYTHON": sys.executable, "PYTHONPATH": search}
    try:
        endpoint = _flink("cluster", settings)
        job_server, rest, _, pool = ports
        assert endpoint == f"localhost:{job_server}"
        yield FlinkCluster(endpoint, f"localhost:{rest}", f"localhost:{pool}", folder, settings)
    finally:
        _flink("stop", settings)


def _flink(mode: str, settings: dict[str, str]) -> str:
    """Runs the script; returns what it prints."""
    command = [str(ROOT / "engines" / "flink" / "flink.sh"), mode]
    done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, timeout=500)
    assert done.returncode == 0
    return done.stdout.strip()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
