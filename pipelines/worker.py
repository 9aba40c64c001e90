"""The Python worker of engines that run elsewhere: one process for one set of tasks, and the pool that starts them.

It keeps the flags of the `boot` program in Beam's own container images, so that one command serves both ways in which
Flink starts workers:

    --environment PROCESS    a task manager runs `beam-influence-worker --id=… --provision_endpoint=…` itself
    --environment EXTERNAL   a task manager asks the pool `beam-influence-worker --worker_pool --port 50000` for a worker

Beam's `worker_pool_main` is the model of the pool. It differs in three points, each seen to hang a run: it starts
workers with the Python that runs it, not with whatever is called `python`; what they print is not lost in a pipe that
nobody reads; and task managers that share a pool can't stop each other's workers, which bear the same names.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent import futures
from typing import Protocol

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

_log = logging.getLogger(__name__)

POOL_PORT = 50000
_GRACE_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a worker, or with `--worker_pool` the pool, to its end."""
    parser = argparse.ArgumentParser(
        prog="beam-influence-worker", description="The Python worker of Flink and other engines.", allow_abbrev=False
    )
    parser.add_argument("--worker_pool", action="store_true", help="start workers when a task manager asks for them")
    parser.add_argument("--host", default="localhost", help="the address at which the pool listens (default: localhost)")
    parser.add_argument("--port", type=int, default=POOL_PORT, help=f"the port at which the pool listens (default: {POOL_PORT})")
    parser.add_argument("--id", help="the name of the one worker to run; the engine gives it")
    for name in ("control", "provision", "logging", "artifact"):
        parser.add_argument(f"--{name}_endpoint", help="the engine gives it")
    options, _ = parser.parse_known_args(arguments)  # engines give more than is needed
    if options.worker_pool:
        return run_pool(options.host, options.port)
    if not options.id or not options.provision_endpoint:
        parser.error("give --worker_pool; a single worker is started by the engine, with --id and --provision_endpoint")
    run_worker(options.id, options.provision_endpoint, options.control_endpoint, options.logging_endpoint)
    return 0


def run_worker(name: str, provision: str, control: str | None = None, log: str | None = None) -> None:
    """Runs one worker until the engine ends it.

    Args:
      name: its name, unique within a task manager.
      provision: where the engine tells the run's options and its other addresses.
      control, log: addresses that were given already.
    """
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
    from apache_beam.runners.worker import sdk_worker_main
    from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
    from google.protobuf import json_format, text_format

    with grpc.insecure_channel(provision) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(grpc.intercept_channel(channel, WorkerIdInterceptor(name)))
        info = stub.GetProvisionInfo(beam_provision_api_pb2.GetProvisionInfoRequest()).info

    def address(url: str) -> str:
        return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))

    os.environ["WORKER_ID"] = name
    os.environ["PIPELINE_OPTIONS"] = json_format.MessageToJson(info.pipeline_options)
    os.environ["RUNNER_CAPABILITIES"] = " ".join(info.runner_capabilities)
    os.environ["CONTROL_API_SERVICE_DESCRIPTOR"] = address(control or info.control_endpoint.url)
    os.environ["LOGGING_API_SERVICE_DESCRIPTOR"] = address(log or info.logging_endpoint.url)
    if info.status_endpoint.url:
        os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = address(info.status_endpoint.url)
    sdk_worker_main.main(sys.argv[:1])


class _Caller(Protocol):
    """What gRPC tells of who calls."""

    def peer(self) -> str: ...


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts a process for each worker that a task manager asks for, and ends it when that one says so."""

    def __init__(self) -> None:
        self._processes: dict[tuple[str, str], subprocess.Popen] = {}
        self._lock = threading.Lock()

    def StartWorker(self, request: beam_fn_api_pb2.StartWorkerRequest, context: _Caller) -> beam_fn_api_pb2.StartWorkerResponse:
        """Starts a worker; an error is told to the task manager."""
        given = {
            "id": request.worker_id,
            "provision_endpoint": request.provision_endpoint.url,
            "control_endpoint": request.control_endpoint.url,
            "logging_endpoint": request.logging_endpoint.url,
        }
        command = [sys.executable, "-m", "beam_influence.pipelines.worker", *(f"--{name}={value}" for name, value in given.items())]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        _log.info("worker %s: process %d", request.worker_id, process.pid)
        with self._lock:
            self._processes[context.peer(), request.worker_id] = process
        threading.Thread(target=process.wait, daemon=True).start()  # no zombie stays when it ends by itself
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: beam_fn_api_pb2.StopWorkerRequest, context: _Caller) -> beam_fn_api_pb2.StopWorkerResponse:
        """Ends a worker that the same task manager has started; one whose task manager has gone ends by itself."""
        with self._lock:
            process = self._processes.pop((context.peer(), request.worker_id), None)
        if process is not None:
            _end([process])
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Ends all workers."""
        with self._lock:
            processes = list(self._processes.values())
            self._processes.clear()
        _end(processes)


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def run_pool(host: str, port: int) -> int:
    """Serves until it is interrupted or terminated; then ends the workers that it has started."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    pool = WorkerPool()
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        print(f"beam-influence-worker: can't listen at {host}:{port}: {error}; give another --port", file=sys.stderr)
        return 1
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    server.start()
    _log.info("workers are started at %s:%d", host, bound)
    ended.wait()
    server.stop(0)
    pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
