"""`--runner flink`: a Flink cluster, through Beam's job server or by the cluster's address, and cancelling a job on it."""

from __future__ import annotations

import functools
import json
import shutil
import time
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

from beam_influence.pipelines.runners.runner import TIME_LIMIT, Engine, Request, Runner
from beam_influence.pipelines.runners.workers import ENVIRONMENT, WORKER_COMMAND, connect, worker_arguments

# A worker process needs some ten seconds to import TensorFlow; without this, Flink would end it after each stage. It
# can't be long: a worker that has died is kept as well, and what is tried on it fails, until the cluster gives up.
_KEEP_WORKERS_MILLISECONDS = 30_000
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "[local]", "[auto]", "")
_ANSWER_SECONDS = 10.0
_ENDED = ("FINISHED", "FAILED", "CANCELED")


class Flink(Runner):
    """A cluster, by `--job_endpoint` of a job server, or by `--flink_master`, with which Beam starts a job server of its own."""

    name = "flink"
    beam_prefix = "flink_"
    options = (ENVIRONMENT, TIME_LIMIT)
    instead = {"workers": "give --parallelism N"}
    knows_more_options = True

    def engine(self, request: Request) -> Engine:
        beam = request.beam
        address = _address(beam)
        is_local = _host(address) in _THIS_MACHINE
        workers = request.own.environment or ("LOOPBACK" if is_local and "environment_type" not in beam else None)
        if workers is None and "environment_type" not in beam:
            raise ValueError(
                f"say where the workers of a cluster elsewhere come from: --environment EXTERNAL (a pool beside each task manager: "
                f"{WORKER_COMMAND} --worker_pool), PROCESS, or DOCKER with --environment_config IMAGE"
            )
        more = list(worker_arguments(workers, beam, is_local))  # before any connection: what is wrong in itself is told first
        endpoint, master = beam.get("job_endpoint"), str(beam.get("flink_master") or "[auto]")
        if not address.startswith("["):
            option = "--job_endpoint" if endpoint else "--flink_master"
            connect(option, address, "start it (engines/flink/flink.sh cluster), or give its address")
        if "environment_cache_millis" not in beam:
            more.append(f"--environment_cache_millis={_KEEP_WORKERS_MILLISECONDS}")
        job = beam.get("job_name") or f"beam-influence-{uuid.uuid4().hex[:12]}"
        if "job_name" not in beam:
            more.append(f"--job_name={job}")
        if master.startswith("["):  # no address to ask at
            after_cancel = tell_that_it_goes_on if endpoint else None
        else:
            after_cancel = functools.partial(cancel_on_cluster, master, job)
        # FlinkRunner starts a job server; PortableRunner uses the one that runs.
        arguments = [f"--runner={'PortableRunner' if endpoint else 'FlinkRunner'}", *more]
        return Engine(arguments, is_local and workers == "LOOPBACK", after_cancel=after_cancel)


def _address(beam: Mapping[str, Any]) -> str:
    """Of the job server, else of the cluster."""
    endpoint, master = beam.get("job_endpoint"), beam.get("flink_master") or ""
    if not endpoint and not master:
        raise ValueError(
            "--runner flink needs a cluster: --job_endpoint HOST:8099, where Beam's job server listens (engines/flink/flink.sh cluster "
            "starts a cluster and a job server on this machine), or --flink_master HOST:8081"
        )
    if not endpoint and not master.startswith("[") and not (beam.get("flink_submit_uber_jar") or shutil.which("java")):
        raise ValueError(
            f"--flink_master {master}: Beam starts a job server of its own for it, which needs Java; install it, or give "
            "--job_endpoint HOST:8099 of a job server that runs"
        )
    return endpoint or master


def _host(address: str) -> str:
    host = address.partition("://")[2] or address
    return host if host.startswith("[") else host.rpartition(":")[0] or host


def tell_that_it_goes_on() -> str:
    """What the user must know when only a job server was asked to cancel a job: it does not pass that on."""
    return "; Beam's job server does not pass that on to a cluster: look there, and give --flink_master HOST:8081 next time"


def cancel_on_cluster(master: str, name: str) -> str:
    """Cancels a job on the cluster; returns what the user must know besides."""
    return "" if cancel_job(master, name) else f"; the cluster at {master} did not confirm that: cancel the job {name} there"


def cancel_job(master: str, name: str, patience: float = 60.0) -> bool:
    """Cancels a job by the cluster's REST interface and waits until it has ended.

    Beam's job server takes a request to cancel a job, but does not pass it on: the cluster would work on for nobody.

    Args:
      master: HOST:PORT of the cluster's REST interface, or its URL.
      name: the job's name, which no other has. It may still be on its way from the job server to the cluster.
      patience: for how many seconds to wait.

    Returns:
      Whether the cluster knows the job and it has ended.
    """
    address = master if "://" in master else f"http://{master}"
    deadline = time.monotonic() + patience
    asked: set[str] = set()
    try:
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{address}/jobs/overview", timeout=_ANSWER_SECONDS) as answer:
                found = {job["jid"]: job["state"] for job in json.load(answer)["jobs"] if job["name"] == name}
            if found and set(found.values()) <= set(_ENDED):
                return True
            for job in set(found) - asked:
                request = urllib.request.Request(f"{address}/jobs/{job}?mode=cancel", method="PATCH")
                urllib.request.urlopen(request, timeout=_ANSWER_SECONDS).close()
                asked.add(job)
            time.sleep(0.5)
    except (OSError, ValueError, KeyError):  # no answer, or not a cluster's
        return False
    return False
