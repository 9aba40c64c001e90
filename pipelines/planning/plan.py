"""`plan`: what a run will take, before it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from beam_influence.pipelines.planning.calibration import Calibration
from beam_influence.pipelines.planning.changes import cheapest_change
from beam_influence.pipelines.planning.estimate import estimate
from beam_influence.pipelines.planning.run_plan import RunPlan

if TYPE_CHECKING:
    from beam_influence.pipelines.config import InfluenceConfig

_STDERR = 2
_CALIBRATE = "beam_influence.pipelines.planning.calibrate"


def plan(config: InfluenceConfig, beam_arguments: Iterable[str] = (), workers: int | None = None) -> RunPlan:
    """What `run(config, beam_arguments)` will take: everything is checked as `run` checks it, and a sample of the files is run in a
    process of its own on this machine. Nothing is written to the run's output.

    Args:
      config, beam_arguments: as of `run`.
      workers: that worker-hours are wanted for, each like one process alone on this machine; None: as many processes as run on this
        machine, or one.

    Raises:
      ValueError: the run would be refused; the message says why.
      RunFailedError: the sample failed, as the run would.
    """
    return plan_options(dataclasses.asdict(config), list(beam_arguments), workers)


def plan_options(options: Mapping[str, Any], beam_arguments: list[str], workers: int | None = None) -> RunPlan:
    """`plan` of an `InfluenceConfig` with these fields, which the other process makes: this one imports neither Beam nor TensorFlow."""
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise ValueError(f"--plan_workers {workers} must be at least 1")
    found = _measure(options, beam_arguments)
    planned = estimate(found, workers)
    known = {**options, "batch_size": found.batch_size}
    change = cheapest_change(planned, found.start_bytes, known, lambda others: estimate(_measure(others, beam_arguments), workers))
    return dataclasses.replace(planned, plan_seconds=time.monotonic() - started, change=change)


def _measure(options: Mapping[str, Any], beam_arguments: list[str]) -> Calibration:
    with tempfile.TemporaryDirectory() as folder:
        request, answer = pathlib.Path(folder, "request.json"), pathlib.Path(folder, "answer.json")
        asked: dict[str, Any] = {"config": dict(options), "beam_arguments": beam_arguments, "started": time.time()}
        request.write_text(json.dumps(asked))
        paths = os.pathsep.join(path for path in sys.path if path)  # a model or loss of the user's is found where it is here
        command = [sys.executable, "-P", "-m", _CALIBRATE, str(request), str(answer)]  # -P: its path is this one's, and no more
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, stdout=_STDERR)  # what the user's model prints
        if not answer.exists():
            raise _failed(_death(done.returncode))
        told = json.loads(answer.read_text())
    if "refused" in told:
        raise ValueError(told["refused"])
    if "failed" in told:
        raise _failed(told["failed"])
    return Calibration.from_json(told["calibration"])


def _failed(message: str) -> Exception:
    from beam_influence.pipelines.run_pipeline import RunFailedError  # Beam

    return RunFailedError(message)


def _death(status: int) -> str:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"the process that ran a sample {how}; when that was for want of memory, use a smaller --batch_size"
