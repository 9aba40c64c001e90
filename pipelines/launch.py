"""Runs a configuration on a Beam runner and tells what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from beam_influence.influence_ops.device import count_gpus, release_gpu
from beam_influence.influence_ops.redact import without_secrets
from beam_influence.influence_ops.results.result_files import MANIFEST, read_manifest
from beam_influence.influence_ops.scoring.outputs.table import TABLES
from beam_influence.pipelines import local_workers
from beam_influence.pipelines.build import STAGES, build
from beam_influence.pipelines.clear_output import clear_at_the_end, clear_output, clear_unfinished
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.flink_jobs import cancel_job
from beam_influence.pipelines.prepare import prepare
from beam_influence.pipelines.progress_bar import ProgressBar
from beam_influence.pipelines.resume import OPERATOR
from beam_influence.pipelines.runners import Engine, choose_engine, open_file_systems
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.read_shards import NAMESPACE


class RunFailedError(Exception):
    """The pipeline ran and failed; no manifest was written."""


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A finished run.

    Attributes:
      output: the folder of the results.
      manifest: the content of its manifest.
      milliseconds: work in each stage, summed over workers; empty where the runner reports none.
      seconds: wall time of the whole run.
    """

    output: str
    manifest: dict[str, Any]
    milliseconds: dict[str, int]
    seconds: float


def pipeline_options(engine: Engine) -> PipelineOptions:
    """Beam's options for an engine."""
    # DoFns are in installed modules; a pickled main session would only break.
    return PipelineOptions(engine.arguments, save_main_session=False)


def run_pipeline(pipeline: beam.Pipeline, engine: Engine) -> Any:
    """Runs a built pipeline to its end; returns Beam's result.

    Args:
      pipeline: the pipeline.
      engine: where it runs, and for how long at most.

    Raises:
      RunFailedError: it failed; the message is the reason, without the runner's stack.
    """
    local_workers.prepare_for(pipeline.options)
    try:
        result = pipeline.run()
        _wait(result, engine)
    except RunFailedError:
        raise
    except Exception as error:
        raise RunFailedError(local_workers.death() or reason(error)) from error
    return result


def _wait(result: Any, engine: Engine) -> None:
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


def _cancel(result: Any, engine: Engine) -> str:
    """Cancels a job; returns what the user must know besides."""
    result.cancel()
    if not any(argument.startswith("--job_endpoint") for argument in engine.arguments) and engine.flink is None:
        return ""
    if engine.flink is None:
        return "; Beam's job server does not pass that on to a cluster: look there, and give --flink_master HOST:8081 next time"
    master, name = engine.flink
    return "" if cancel_job(master, name) else f"; the cluster at {master} did not confirm that: cancel the job {name} there"


def run(
    config: InfluenceConfig,
    beam_arguments: Iterable[str] = (),
    stream: TextIO | None = None,
    make_pipeline: Callable[[], beam.Pipeline] | None = None,
) -> RunSummary:
    """Runs the job to its end.

    Args:
      config: the options.
      beam_arguments: the engine and its options (`beam_influence.pipelines.runners`), and any of Beam's, such as `--parallelism=8`.
      stream: where progress is drawn (default: standard error).
      make_pipeline: makes the empty pipeline, where a host program wants to (default: from the options).

    Raises:
      ValueError: wrong options or input, found before anything was started or written.
      RunFailedError: the pipeline failed; the message is the reason, without the runner's stack.
    """
    with _told(stream or sys.stderr) if config.verbose else contextlib.nullcontext():
        return _run(config, beam_arguments, stream, make_pipeline)


def _run(
    config: InfluenceConfig,
    beam_arguments: Iterable[str],
    stream: TextIO | None,
    make_pipeline: Callable[[], beam.Pipeline] | None,
) -> RunSummary:
    started = time.monotonic()
    beam_arguments = list(beam_arguments)
    open_file_systems(beam_arguments)
    engine = choose_engine(beam_arguments, config)
    _check_gpus(engine)
    plan = prepare(config)
    clear_output(config, tuple(TABLES), MANIFEST, plan.resumed)
    if _processes(engine) != 1:
        release_gpu()  # the workers are other processes
    known = set() if plan.resumed is None else set(plan.resumed.finished)
    known |= {"curvature"} if OPERATOR in known else set()
    shards = {stage: len(plan.test if stage == "embed" else plan.train) for stage in STAGES if stage not in known}
    with ProgressBar(shards, stream or sys.stderr) as bar:
        pipeline = make_pipeline() if make_pipeline else beam.Pipeline(options=pipeline_options(engine))
        build(pipeline, config, plan, bar.address if engine.is_local else None, engine.accelerator)
        result = run_pipeline(pipeline, engine)
    if not BeamFiles().exists(join(config.output, MANIFEST)):
        raise RunFailedError(f"the pipeline ended in the state {result.state} without a manifest in {config.output!r}")
    clear_unfinished(config, tuple(TABLES))
    manifest = read_manifest(config.output, BeamFiles())
    return RunSummary(config.output, manifest, _milliseconds(result), time.monotonic() - started)


def _processes(engine: Engine) -> int:
    """How many processes of this machine Beam's in-memory runner starts, or 1; 0: one for each core."""
    beam_options = PipelineOptions(engine.arguments).get_all_options()
    return int(beam_options["direct_num_workers"]) if beam_options["direct_running_mode"] == "multi_processing" else 1


def _check_gpus(engine: Engine) -> None:
    """Refuses more processes than GPUs on a machine that has some."""
    processes, gpus = _processes(engine), count_gpus()
    processes = processes or os.cpu_count() or 1
    if 0 < gpus < processes:
        raise ValueError(
            f"--workers {processes}: a GPU is used by one process, and this machine has {gpus}; use --workers {gpus}, or hide "
            "the GPUs (CUDA_VISIBLE_DEVICES= in the environment) to compute on the CPU"
        )


def submit(config: InfluenceConfig, beam_arguments: Iterable[str] = ()) -> Any:
    """Starts the job and returns Beam's result without waiting for its end; for the Flex Template, whose launcher must not wait.

    Raises:
      ValueError: as of `run`.
      RunFailedError: the engine did not take the job.
    """
    beam_arguments = list(beam_arguments)
    open_file_systems(beam_arguments)
    engine = choose_engine(beam_arguments, config)
    plan = prepare(config)
    clear_output(config, tuple(TABLES), MANIFEST, plan.resumed)
    pipeline = beam.Pipeline(options=pipeline_options(engine))
    job = build(pipeline, config, plan, accelerator=engine.accelerator)
    _ = job.manifest | "ClearWork" >> clear_at_the_end(config, tuple(TABLES))
    local_workers.prepare_for(pipeline.options)
    try:
        return pipeline.run()
    except Exception as error:
        raise RunFailedError(reason(error)) from error


@contextlib.contextmanager
def _told(stream: TextIO) -> Iterator[None]:
    """What the packages tell at level INFO, on `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("influence_ops", "transforms", "pipelines")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False  # TensorFlow gives the root logger a handler of its own
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


_STACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*")
_RAISED = re.compile(r"(?:\w+\.)*(\w+)(?:: |\Z)")
_TELL_NOTHING = ("Exception", "OSError", "RuntimeError", "TooManyRejectedError", "ValueError")


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
    return without_secrets(text if name in _TELL_NOTHING and text else f"{name}: {text}")


def _milliseconds(result: Any) -> dict[str, int]:
    try:
        counters = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    except Exception:  # a runner without metrics: the table then shows no seconds
        return {}
    found: dict[str, int] = {}
    for counter in counters:
        name = counter.key.metric.name
        if name.endswith("_milliseconds"):
            stage = name.removesuffix("_milliseconds")
            found[stage] = found.get(stage, 0) + int(counter.committed or counter.attempted or 0)
    return found


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4:,} more" if len(names) > 4 else "")


def summary_text(summary: RunSummary) -> str:
    """The closing table of a run."""
    counts = summary.manifest["counts"]
    lines = [f"{'stage':<12}{'files':>7}{'examples':>12}{'rejected':>10}{'seconds':>9}{'examples/s':>12}"]
    for stage in STAGES:
        if stage not in counts:
            continue
        count = counts[stage]
        seconds = summary.milliseconds.get(stage, 0) / 1000
        rate = f"{count['examples'] / seconds:,.0f}" if seconds else "–"
        shown = f"{seconds:.1f}" if stage in summary.milliseconds else "–"
        lines.append(
            f"{stage:<12}{count['shards']:>7,}{count['examples']:>12,}{count['rejected']:>10,}{shown:>9}{rate:>12}"
        )
    curvature = summary.manifest["curvature"]
    spectrum = ""
    if "smallest_eigenvalue" in curvature:
        spectrum = (
            f", rank {curvature['rank']:,} of {curvature['size']:,}, eigenvalues {curvature['smallest_eigenvalue']:.3g}"
            f" to {curvature['largest_eigenvalue']:.3g}"
        )
    lines.append("")
    lines.append(f"curvature   {curvature['curvature']}, damping {curvature['damping']:.4g}{spectrum}")
    if "solver" in summary.manifest:
        solver = summary.manifest["solver"]
        lines.append(
            f"solver      relative residuals {solver['mean_residual']:.2g} in the mean, {solver['largest_residual']:.2g} at most; "
            f"{solver['unsolved']:,} test points above the tolerance"
        )
    model = summary.manifest["model"]
    lines.append(f"weights     {model['watched']:,} of {model['total']:,} watched, in {model['dtype']}: {_first_names(model['weights'])}")
    if model["without_factors"]:
        lines.append(f"            gradients built example by example: {_first_names(model['without_factors'])}")
    tables: dict[str, tuple[int, int, int]] = {}
    for file in summary.manifest["files"]:
        files, rows, size = tables.get(file["table"], (0, 0, 0))
        tables[file["table"]] = (files + 1, rows + file["rows"], size + file["bytes"])
    for table, (files, rows, size) in sorted(tables.items()):
        lines.append(f"{table:<19}{rows:>12,} rows {files:>5,} files {size / 1024:>11,.1f} KiB")
    lines.append("")
    lines.append(f"{summary.seconds:.1f} s in all; results in {summary.output}")
    return "\n".join(lines)
