"""Cancelling a job on a cluster, against a stand-in for Flink's REST interface."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from beam_influence.pipelines.run_pipeline import RunFailedError, run_pipeline
from beam_influence.pipelines.runners import Engine
from beam_influence.pipelines.runners.flink import cancel_job, cancel_on_cluster, tell_that_it_goes_on


class Cluster(http.server.ThreadingHTTPServer):
    """Jobs by id, with their names and states; a cancelled one is CANCELLING at first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, list[str]] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"localhost:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Cluster  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        jobs = [{"jid": name, "name": job[0], "state": job[1]} for name, job in self.server.jobs.items()]
        self.answer({"jobs": jobs})
        for job in self.server.jobs.values():
            job[1] = "CANCELED" if job[1] == "CANCELLING" else job[1]

    def do_PATCH(self) -> None:
        self.server.requests.append(self.path)
        name = self.path.removeprefix("/jobs/").removesuffix("?mode=cancel")
        self.server.jobs[name][1] = "CANCELLING"
        self.answer({})

    def answer(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def test_one_job_of_several(cluster: Cluster) -> None:
    cluster.jobs = {"a": ["mine", "RUNNING"], "b": ["another", "RUNNING"]}
    assert cancel_job(cluster.address, "mine")
    assert cluster.requests == ["/jobs/a?mode=cancel"]
    assert cluster.jobs == {"a": ["mine", "CANCELED"], "b": ["another", "RUNNING"]}
    assert cancel_job(f"http://{cluster.address}", "mine")  # it has ended already
    assert len(cluster.requests) == 1


def test_a_job_on_its_way(cluster: Cluster) -> None:
    """The job server may hand it over after it was told to cancel."""
    threading.Timer(1, lambda: cluster.jobs.update(late=["mine", "CREATED"])).start()
    assert cancel_job(cluster.address, "mine")
    assert cluster.jobs["late"][1] == "CANCELED"


def test_what_can_not_be_confirmed(cluster: Cluster) -> None:
    assert not cancel_job(cluster.address, "mine", patience=1)  # it never comes
    cluster.shutdown()
    cluster.server_close()
    assert not cancel_job(cluster.address, "mine")


class SlowPipeline:
    """A pipeline, and its own result, that has not finished when its time is over."""

    state = PipelineState.RUNNING
    cancelled = False
    options = PipelineOptions([])

    def run(self) -> SlowPipeline:
        return self

    def wait_until_finish(self, duration: int | None) -> None:
        assert duration == 2500

    def cancel(self) -> None:
        self.cancelled = True


@pytest.mark.parametrize(
    ("after_cancel", "ending"),
    [
        (None, "and was cancelled"),
        (tell_that_it_goes_on, "does not pass that on to a cluster: look there, and give --flink_master HOST:8081 next time"),
        (
            functools.partial(cancel_on_cluster, "localhost:1", "mine"),
            "the cluster at localhost:1 did not confirm that: cancel the job mine there",
        ),
    ],
)
def test_out_of_time(after_cancel: Callable[[], str] | None, ending: str) -> None:
    pipeline: Any = SlowPipeline()
    with pytest.raises(RunFailedError) as caught:
        run_pipeline(pipeline, Engine([], False, time_limit=2.5, after_cancel=after_cancel))
    assert pipeline.cancelled
    assert str(caught.value).startswith("the job had not finished after --time_limit 2.5 seconds and was cancelled")
    assert str(caught.value).endswith(ending)
