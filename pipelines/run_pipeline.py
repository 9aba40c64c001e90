"""Runs a built pipeline to its end; what fails becomes one message, without the runner's stacks."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from typing import TypeAlias

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult, PipelineState

from beam_influence.influence_ops.redact import without_secrets
from beam_influence.pipelines import local_workers
from beam_influence.pipelines.runners import Engine

_STEPS = logging.getLogger("apache_beam.runners.common")
_STACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*")
_RAISED = re.compile(r"(?:\w+\.)*(\w+)(?:: |\Z)")
_TYPES_LEFT_OUT = ("Exception", "OSError", "RuntimeError", "TooManyRejectedError", "ValueError")  # they add nothing to the message


Watch: TypeAlias = Callable[[PipelineResult], contextlib.AbstractContextManager[object]]


class RunFailedError(Exception):
    """The pipeline ran and failed; no manifest was written."""


def run_pipeline(pipeline: beam.Pipeline, engine: Engine, watch: Watch = contextlib.nullcontext) -> PipelineResult:
    """Runs a built pipeline to its end; returns Beam's result.

    Args:
      pipeline: the pipeline.
      engine: where it runs, and for how long at most.
      watch: makes a context of the job's result, which is open while the job runs.

    Raises:
      RunFailedError: it failed; the message is the reason, without the runner's stack.
    """
    local_workers.prepare_for(pipeline.options)
    _STEPS.addFilter(_is_fatal)
    try:
        result = pipeline.run()
        with watch(result):
            _wait(result, engine)
    except RunFailedError:
        raise
    except Exception as error:
        raise RunFailedError(local_workers.death() or reason(error)) from error
    finally:
        _STEPS.removeFilter(_is_fatal)
    return result


def _is_fatal(record: logging.LogRecord) -> bool:
    """Whether a record is worse than that of a step that failed, which Beam logs with its stack: `reason` has the message for the user."""
    return record.levelno >= logging.CRITICAL


def _wait(result: PipelineResult, engine: Engine) -> None:
    """Until the job has ended; it does not outlive an interrupt, nor its time."""
    limit = engine.time_limit
    try:
        result.wait_until_finish(round(1000 * limit) if limit else None)
    except Exception:
        raise
    except BaseException:  # an interrupt
        _cancel(result, engine)
        raise
    if limit and not PipelineState.is_terminal(result.state):
        raise RunFailedError(f"the job had not finished after --time_limit {limit:g} seconds and was cancelled{_cancel(result, engine)}")


def _cancel(result: PipelineResult, engine: Engine) -> str:
    """Cancels a job; returns what the user must know besides."""
    result.cancel()
    return "" if engine.after_cancel is None else engine.after_cancel()


def reason(error: BaseException) -> str:
    """A pipeline's failure as one message, out of a runner's nested stacks: what the step that failed raised."""
    text, name = str(error), type(error).__name__
    # Beam marks the end of a step's message; what follows are the runner's own stacks.
    text = text.rpartition(" [while running '")[0] or text
    # Workers give a chain of stacks as text, each before its exception; the last was raised with the causes in mind.
    *stacks, text = _STACK.split(text)
    raised = _RAISED.match(text) if stacks else None
    if raised:
        name, text = raised[1], text[raised.end() :]
    if "Graph execution error:" in text or "[[{{" in text:  # TensorFlow's message is between its own stack and its nodes
        noise = ("Graph execution error:", "Detected at node", "[[{{")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("  ")]
        text = "\n".join(line for line in lines if not line.strip().startswith(noise))
    text = text.strip()
    return without_secrets(text if name in _TYPES_LEFT_OUT and text else f"{name}: {text}")
