"""Where the Python workers of Prism and Flink come from: `--environment` and Beam's options that it becomes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from beam_influence.pipelines.runners.runner import Option

WORKER_COMMAND = "beam-influence-worker"
POOL_ADDRESS = "localhost:50000"
_CONNECT_SECONDS = 5.0

ENVIRONMENT = Option(
    "environment",
    "With --runner flink or prism, where the Python workers come from: LOOPBACK, this process, for a cluster on this "
    f"machine (default there); EXTERNAL, a pool beside each task manager ({WORKER_COMMAND} --worker_pool), at {POOL_ADDRESS} "
    f"or --environment_config HOST:PORT; PROCESS, started by the task managers ({WORKER_COMMAND}, or --environment_config); "
    "DOCKER, the image --environment_config.",
    type=str.upper,
    choices=("LOOPBACK", "EXTERNAL", "PROCESS", "DOCKER"),
)


def worker_arguments(kind: str | None, beam: Mapping[str, Any], is_local: bool) -> Iterator[str]:
    """Beam's options for the workers.

    Args:
      kind: the value of `--environment`, or None for what Beam does on its own.
      beam: Beam's options that were given.
      is_local: whether the engine is on this machine.

    Raises:
      ValueError: they don't go together, or there are no such workers.
    """
    config = beam.get("environment_config")
    if kind is None:
        return
    if "environment_type" in beam:
        raise ValueError(f"--environment {kind} and --environment_type {beam['environment_type']} say the same; leave one out")
    if kind == "LOOPBACK":
        if not is_local:
            raise ValueError(
                "--environment LOOPBACK runs the workers in this process, which a cluster on other machines can't reach; "
                "use --environment EXTERNAL or PROCESS"
            )
        if config is not None:
            raise ValueError("--environment LOOPBACK takes no --environment_config; leave it out, or use --environment EXTERNAL")
    if kind == "DOCKER" and config is None:
        raise ValueError("--environment DOCKER needs --environment_config IMAGE, an image in which this package is installed")
    yield f"--environment_type={kind}"
    if kind == "EXTERNAL":
        if config is None:
            yield f"--environment_config={POOL_ADDRESS}"
        if is_local:
            connect("--environment EXTERNAL", config or POOL_ADDRESS, f"start {WORKER_COMMAND} --worker_pool, or give its address")
    if kind == "PROCESS":
        if config is None:
            yield f"--environment_config={json.dumps({'command': _worker_command()})}"
        else:
            _check_process(config, is_local)


def connect(option: str, address: str, mend: str) -> None:
    """Looks whether something listens at an address; a client of Beam would wait for minutes, or for ever.

    Raises:
      ValueError: nothing does, or it is no address.
    """
    name = (address.partition("://")[2] or address).rstrip("/")
    host, _, port = name.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{option} {address!r} must be HOST:PORT")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"{option}: nothing answers at {name} ({error}); {mend}") from error


def _worker_command() -> str:
    beside = os.path.dirname(sys.executable)
    found = shutil.which(WORKER_COMMAND, path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if found is None:
        raise ValueError(
            f"--environment PROCESS: there is no program {WORKER_COMMAND}; install this package (pip install), or give the path that it "
            'has on the task managers\' machines: --environment_config \'{"command": "/path/to/' + WORKER_COMMAND + "\"}'"
        )
    return os.path.abspath(found)


def _check_process(config: str, is_local: bool) -> None:
    shape = '{"command": "/path/to/' + WORKER_COMMAND + '"}'
    try:
        command = json.loads(config)["command"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--environment_config {config!r} must be JSON like {shape} with --environment PROCESS") from error
    if is_local and shutil.which(command) is None:
        raise ValueError(f"--environment_config: {command!r} is not a program on this machine")
