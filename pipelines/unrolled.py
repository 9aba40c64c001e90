"""`beam-influence unrolled`: influence as the exact derivative through the training, as a Beam graph."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.redact import without_secrets
from beam_influence.influence_ops.results.result_files import MANIFEST
from beam_influence.influence_ops.scoring.outputs.table import TABLES
from beam_influence.pipelines.clear_output import clear_output
from beam_influence.pipelines.launch import open_engine, run_built
from beam_influence.pipelines.machine_memory import size_text
from beam_influence.pipelines.prepare_unrolled import PreparedUnrolled, prepare_unrolled
from beam_influence.pipelines.run_summary import RunSummary
from beam_influence.pipelines.unrolled_config import UnrolledConfig
from beam_influence.pipelines.unrolled_words import warnings_of
from beam_influence.transforms import (
    CutTestPoints,
    MeasureSmoothness,
    ReadShards,
    ReplayTraining,
    UnrollTestPoints,
    WriteManifest,
    WriteRejected,
)
from beam_influence.transforms.elements import FILES, SolverReport
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import COUNTS, REJECTED, ShardReader
from beam_influence.transforms.replay_training import STAGE as REPLAY
from beam_influence.transforms.sum_counts import SumCounts
from beam_influence.transforms.typed import collection
from beam_influence.transforms.unroll_test_points import PREDICTED, ChangedTrainings
from beam_influence.transforms.unroll_test_points import STAGE as UNROLL


def build_unrolled(
    pipeline: beam.Pipeline, config: UnrolledConfig, prepared: PreparedUnrolled, progress: tuple[str, int] | None = None
) -> pvalue.PCollection[str]:
    """Adds the whole job to `pipeline`: files in, Parquet and a manifest out; gives the manifest's path."""
    run, as_run = prepared.run, config.as_run(**config.as_trained(), precision=prepared.run.model.precision)
    work, far = as_run.work_folder, Progress(progress)
    assert run.train_features is not None and run.test_features is not None
    train = pipeline | "ReadShards[train]" >> ReadShards(run.train, run.train_features, as_run.shard_size, work=work)
    test = pipeline | "ReadShards[test]" >> ReadShards(run.test, run.test_features, as_run.shard_size, work=work)
    trained = dataclasses.replace(run.model, path=as_run.model, model_weights=as_run.model_weights, digest="", agreement=None)
    replaying = ReplayTraining(prepared.recipe, ShardReader(REPLAY, run.train_features, 1024, far), work, trained, config.trained)
    replayed = train | "ReplayTraining" >> replaying
    reader = ShardReader(UNROLL, run.test_features, prepared.block_size, far)
    cut = test | "CutTestPoints" >> CutTestPoints(reader)
    changed = ChangedTrainings(config.smoothness, 0, config.smoothness_step)
    of_first = (prepared.recipe, reader, replayed[REPLAY], cut["first"], changed)
    order = "descending" if config.order == "descending" else "ascending"
    unroll = UnrollTestPoints(*of_first, config.output, config.tables, config.top_k, order)
    unrolled = cut["blocks"] | "UnrollTestPoints" >> unroll
    description = unrolled[PREDICTED] | "MeasureSmoothness" >> MeasureSmoothness(*of_first)
    rejected = [part[REJECTED] for part in (replayed, cut, unrolled)] | "FlattenRejected" >> beam.Flatten()
    of_rejected = rejected | "WriteRejected" >> WriteRejected(config.output, config.max_rejected)
    written = (unrolled[FILES], of_rejected) | "FlattenFiles" >> beam.Flatten()
    counts = [part[COUNTS] | f"SumCounts[{name}]" >> SumCounts() for name, part in ((REPLAY, replayed), (UNROLL, cut))]
    facts: Mapping[str, Any] = {"unrolled": {**_as_json(config), "off_keras": prepared.off_keras}}
    write = WriteManifest(
        config.output,
        as_run.as_json(),
        run.model_facts,
        collection(description),
        collection(counts | "FlattenCounts" >> beam.Flatten()),
        collection(pipeline | "NoReports" >> beam.Create([], reshuffle=False).with_output_types(SolverReport)),
        facts=facts,
    )
    return collection(written | "WriteManifest" >> write)


def unroll(
    config: UnrolledConfig,
    beam_arguments: Iterable[str] = (),
    stream: TextIO | None = None,
    make_pipeline: Callable[[], beam.Pipeline] | None = None,
) -> RunSummary:
    """Runs the job to its end.

    Args:
      config: the options.
      beam_arguments: the engine and its options (`beam_influence.pipelines.runners`), and any of Beam's.
      stream: where progress and warnings go (default: standard error).
      make_pipeline: makes the empty pipeline, where a host program wants to (default: from the options).

    Raises:
      ValueError: wrong options or input, found before anything was started or written.
      RunFailedError: the pipeline failed; the message is the reason, without the runner's stack.
    """
    if isinstance(beam_arguments, str) or not isinstance(config, UnrolledConfig):
        raise ValueError("unroll takes an UnrolledConfig, and Beam's arguments as a list, such as ['--runner=prism']")
    started, terminal, arguments = time.monotonic(), stream or sys.stderr, list(beam_arguments)
    engine, processes = open_engine(config.as_run(), arguments)
    prepared = prepare_unrolled(config)
    clear_output(config.as_run(), tuple(TABLES), MANIFEST)
    if why := prepared.run.model.session().network.why_native:
        print(f"precision: {prepared.run.dtype}, the model's own: {why}", file=terminal)
    state = size_text(prepared.recipe.step().state_bytes)
    print(f"a state of the training is {state}; {prepared.block_size} test points go backward together", file=terminal)

    def add(pipeline: beam.Pipeline, progress: tuple[str, int] | None) -> object:
        return build_unrolled(pipeline, config, prepared, progress)

    files = {REPLAY: len(prepared.run.train)}
    summary = run_built(config.as_run(), engine, processes, files, terminal, make_pipeline, add, started)
    for warning in warnings_of(summary.manifest):
        print(f"WARNING: {warning}", file=terminal)
    return summary


def _as_json(config: UnrolledConfig) -> dict[str, Any]:
    return {name: without_secrets(value) if isinstance(value, str) else value for name, value in dataclasses.asdict(config).items()}
