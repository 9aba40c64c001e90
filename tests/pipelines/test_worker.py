"""The worker of other engines: a pool that task managers share, and flags like those of Beam's `boot`."""

from __future__ import annotations

import dataclasses
import pathlib
import signal
import socket
import subprocess
import sys

import pytest
from apache_beam.portability.api import beam_fn_api_pb2

from beam_influence.pipelines.worker import WorkerPool, main


@dataclasses.dataclass(frozen=True)
class Caller:
    """What gRPC tells of who calls."""

    address: str

    def peer(self) -> str:
        return self.address


def start(pool: WorkerPool, caller: Caller) -> subprocess.Popen:
    """A worker with the name that every task manager gives its first one; its engine does not answer."""
    assert not pool.StartWorker(beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1"), caller).error
    return pool._processes[caller.peer(), "1-1"]


@pytest.mark.timeout(120)
def test_task_managers_end_their_own_workers_only() -> None:
    pool = WorkerPool()
    one, other = Caller("ipv4:127.0.0.1:1"), Caller("ipv4:127.0.0.1:2")
    stop = beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1")
    try:
        first, second = start(pool, one), start(pool, other)
        pool.StopWorker(stop, one)
        assert first.poll() == -signal.SIGTERM and second.poll() is None
        pool.StopWorker(stop, one)  # again, or after a restart: nothing of another's
        assert second.poll() is None
    finally:
        pool.close()
    assert second.poll() == -signal.SIGTERM


@pytest.mark.timeout(120)
def test_a_pool_serves_until_it_is_terminated() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "beam_influence.pipelines.worker", "--worker_pool", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert f"workers are started at localhost:{port}" in process.stderr.readline()
            socket.create_connection(("localhost", port), 10).close()
            again = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
            assert again.returncode == 1 and f"can't listen at localhost:{port}" in again.stderr
        finally:
            process.terminate()
        assert process.wait(30) == 0


def test_words_that_are_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--port", "1"])
    assert "give --worker_pool; a single worker is started by the engine" in capsys.readouterr().err


def test_the_command_is_installed() -> None:
    """The name that the presets use is the one that setup.py installs."""
    from beam_influence.pipelines.runners.workers import WORKER_COMMAND

    assert f'"{WORKER_COMMAND}=beam_influence.pipelines.worker:main"' in (pathlib.Path(__file__).parents[2] / "setup.py").read_text()
