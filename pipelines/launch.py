"""Runs a configuration on a Beam runner, to its end or without waiting for it."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult

from beam_influence.influence_ops.device import release_gpu
from beam_influence.influence_ops.results.result_files import MANIFEST, read_manifest
from beam_influence.influence_ops.scoring.outputs.table import TABLES
from beam_influence.pipelines import local_workers
from beam_influence.pipelines.build import STAGES, build
from beam_influence.pipelines.choosing.choose import choose_and_prepare
from beam_influence.pipelines.clear_output import clear_at_the_end, clear_output, clear_unfinished
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.planning.short_plan import short_plan
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.pipelines.progress_bar import PolledProgress, ProgressBar
from beam_influence.pipelines.resume import OPERATOR
from beam_influence.pipelines.run_pipeline import RunFailedError, reason, run_pipeline
from beam_influence.pipelines.run_summary import RunSummary, stage_counters, stage_milliseconds
from beam_influence.pipelines.runners import choose_engine, open_file_systems
from beam_influence.pipelines.runners.local import count_processes, refuse_more_than_gpus
from beam_influence.pipelines.runners.runner import Engine
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.open_model import forget_models


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
    if isinstance(beam_arguments, str) or not isinstance(config, InfluenceConfig):
        raise ValueError("run takes an InfluenceConfig, and Beam's arguments as a list, such as ['--runner=prism']")
    terminal = stream or sys.stderr
    with _log_to(terminal) if config.verbose else contextlib.nullcontext():
        return _run(config, list(beam_arguments), terminal, make_pipeline)


def _run(
    config: InfluenceConfig, beam_arguments: list[str], stream: TextIO, make_pipeline: Callable[[], beam.Pipeline] | None
) -> RunSummary:
    started = time.monotonic()
    engine, processes = open_engine(config, beam_arguments)
    config, prepared = choose_and_prepare(config, beam_arguments)
    if prepared.choice is not None:
        print(prepared.choice.text, file=stream)
    clear_output(config, tuple(TABLES), MANIFEST, prepared.kept(config))
    if prepared.precision is not None and (prepared.precision.is_told or config.verbose):
        print(prepared.precision.text, file=stream)
    print(short_plan(config, prepared), file=stream)
    if prepared.decoded is not None and (prepared.decoded.cache or config.verbose):
        print(prepared.decoded.text, file=stream)

    def add(pipeline: beam.Pipeline, progress: tuple[str, int] | None) -> object:
        return build(pipeline, config, prepared, progress, engine.accelerator)

    return run_built(config, engine, processes, _files_to_read(prepared), stream, make_pipeline, add, started)


def open_engine(config: InfluenceConfig, beam_arguments: list[str]) -> tuple[Engine, int]:
    """Where the job runs, and in how many processes.

    Raises:
      ValueError: an option is wrong, or there are fewer GPUs than processes.
    """
    open_file_systems(beam_arguments)
    engine = choose_engine(beam_arguments, config)
    processes = count_processes(engine)
    refuse_more_than_gpus(processes)
    return engine, processes


def run_built(
    config: InfluenceConfig,
    engine: Engine,
    processes: int,
    files: dict[str, int],
    stream: TextIO,
    make_pipeline: Callable[[], beam.Pipeline] | None,
    add: Callable[[beam.Pipeline, tuple[str, int] | None], object],
    started: float,
) -> RunSummary:
    """Runs a job that is prepared, to its manifest.

    Args:
      config: what names the output.
      engine, processes: as of `open_engine`.
      files: how many files each stage reads.
      stream: where progress is drawn.
      make_pipeline: as of `run`.
      add: adds the job to a pipeline, with the address for progress where the workers are on this machine.
      started: when the job began, by `time.monotonic`.

    Raises:
      RunFailedError: the pipeline failed.
    """
    if processes != 1 or not engine.is_local:  # the workers are other processes
        forget_models()
    if processes != 1:
        release_gpu()
    with ProgressBar(files, stream) as bar:
        pipeline = make_pipeline() if make_pipeline else beam.Pipeline(options=engine.options())
        add(pipeline, bar.address if engine.is_local else None)
        result = run_pipeline(pipeline, engine, contextlib.nullcontext if engine.is_local else functools.partial(_polled, stream))
    if not BeamFiles().exists(join(config.output, MANIFEST)):
        raise RunFailedError(f"the pipeline ended in the state {result.state} without a manifest in {config.output!r}")
    clear_unfinished(config, tuple(TABLES))
    manifest = read_manifest(config.output, BeamFiles())
    return RunSummary(config.output, manifest, stage_milliseconds(result), time.monotonic() - started)


def _polled(stream: TextIO, result: PipelineResult) -> PolledProgress:
    return PolledProgress(lambda: str(result.state), lambda: stage_counters(result, "examples"), stream)


def _files_to_read(prepared: PreparedRun) -> dict[str, int]:
    """How many files each stage reads that an earlier run has not finished."""
    finished = set() if prepared.resumed is None else set(prepared.resumed.finished)
    if OPERATOR in finished:
        finished.add("curvature")
    of_stage = {"embed": prepared.test, "candidates": prepared.candidates}
    files = {stage: len(of_stage.get(stage, prepared.train)) for stage in STAGES if stage not in finished}
    rounds = prepared.queries.rounds.count
    return {**files, "score": files["score"] * rounds, "candidates": files["candidates"] * rounds}


def submit(config: InfluenceConfig, beam_arguments: Iterable[str] = ()) -> PipelineResult:
    """Starts the job and returns Beam's result without waiting for its end; for the Flex Template, whose launcher must not wait.

    Raises:
      ValueError: as of `run`.
      RunFailedError: the engine did not take the job.
    """
    beam_arguments = list(beam_arguments)
    open_file_systems(beam_arguments)
    engine = choose_engine(beam_arguments, config)
    config, prepared = choose_and_prepare(config, beam_arguments)
    clear_output(config, tuple(TABLES), MANIFEST, prepared.kept(config))
    forget_models()
    pipeline = beam.Pipeline(options=engine.options())
    job = build(pipeline, config, prepared, accelerator=engine.accelerator)
    _ = job.manifest | "ClearWork" >> clear_at_the_end(config, tuple(TABLES))
    local_workers.prepare_for(pipeline.options)
    try:
        return pipeline.run()
    except Exception as error:
        raise RunFailedError(reason(error)) from error


@contextlib.contextmanager
def _log_to(stream: TextIO) -> Iterator[None]:
    """While it is open, what this package logs at level INFO and above goes to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("beam_influence")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # TensorFlow gives the root logger a handler of its own
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
