"""Runs a sample of a run in this process and says what it took: the program of the process that `plan` starts."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult

from beam_influence.influence_ops.results.result_files import MANIFEST, read_manifest
from beam_influence.pipelines.build import build
from beam_influence.pipelines.choosing.choose import choose_and_prepare
from beam_influence.pipelines.clear_output import refuse_output
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.machine_memory import machine_memory, parse_bytes
from beam_influence.pipelines.planning.calibration import Calibration
from beam_influence.pipelines.planning.network_flops import network_flops
from beam_influence.pipelines.planning.sample import count_examples, count_points, look_up_seconds, sample_points, sample_run
from beam_influence.pipelines.planning.stage_costs import Seconds, StageCost, Timeline, stage_costs, steady
from beam_influence.pipelines.planning.undecomposed import decomposition_seconds, without_decomposition
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.pipelines.refuse_memory import matrix_bytes
from beam_influence.pipelines.run_pipeline import RunFailedError, run_pipeline
from beam_influence.pipelines.run_summary import stage_milliseconds
from beam_influence.pipelines.runners import Engine, choose_engine, open_file_systems
from beam_influence.pipelines.runners.local import count_processes, refuse_more_than_gpus
from beam_influence.transforms.file_list import FileList
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.read_shards import NAMESPACE
from beam_influence.transforms.sent_bytes import BUNDLES, SENT

_STAGES_SECONDS = 16.0  # of all stages of a sample, without their first batches
_STAGE_SECONDS = 4.0
_LOCAL = ["--runner=FnApiRunner"]


def calibrate(config: InfluenceConfig, beam_arguments: Sequence[str], started: float) -> Calibration:
    """Prepares the run as `run` does, runs a sample of it on this machine, and says what that took.

    Args:
      config, beam_arguments: as of `run`.
      started: when this process began, by `time.time`.

    Raises:
      ValueError: the run would be refused.
      RunFailedError: the sample failed.
    """
    open_file_systems(list(beam_arguments))
    engine = choose_engine(beam_arguments, config)
    processes = count_processes(engine)
    refuse_more_than_gpus(processes)
    config, prepared = choose_and_prepare(config, beam_arguments)
    refuse_output(config, MANIFEST)
    start, start_bytes = Seconds(time.time() - started, time.process_time()), _peak()
    counted = None if prepared.train_features is None else count_examples(prepared.train, prepared.train_features)
    candidates = count_examples(prepared.candidates, prepared.candidate_features)
    of_stage = min(_STAGE_SECONDS, _STAGES_SECONDS / _count_stages(config, prepared))
    fitted = config if prepared.curvature_path else without_decomposition(config, prepared.watched)
    apart, apart_bytes = Seconds(), 0
    if fitted is not config:
        apart = decomposition_seconds(config.finish_options(), prepared.watched)
        apart_bytes = matrix_bytes(config, prepared.watched) - 8 * prepared.watched**2
    with tempfile.TemporaryDirectory() as folder:
        sample = sample_run(prepared, config, counted, candidates, of_stage)
        measured = _run(fitted, sample, join(folder, "sample"))
        points, sampled = count_points(prepared), measured.counts.get("embed", 0)
        stages, peak = measured.stages, _peak()
        fewer: _Measured | None = None
        if 1 < sampled < points // prepared.queries.rounds.count:
            less = dataclasses.replace(
                sample, curvature_path=join(folder, "sample", "curvature"), test=sample_points(prepared, config, of_stage, sampled // 4)
            )
            fewer = _run(fitted, less, join(folder, "fewer"))
    rows, exact = (counted.count, counted.is_exact) if counted else _rows_of_vectors(prepared, sample, measured)
    return Calibration(
        examples=rows,
        is_exact=exact and candidates.is_exact,
        candidates=candidates.count,
        points=points,
        start=start,
        fixed=(measured.total - steady(stages)).at_least(0.0) + apart,
        stages=stages,
        sampled_points=sampled,
        start_bytes=start_bytes,
        peak_bytes=peak + apart_bytes,
        sent_bytes=measured.sent,
        network_flops=network_flops(prepared),
        processes=processes,
        is_local=engine.arguments[:1] == _LOCAL,
        memory_bytes=machine_memory() // processes if config.max_worker_memory is None else parse_bytes(config.max_worker_memory),
        look_up=look_up_seconds([*prepared.train, *prepared.candidates, *prepared.test], prepared.train_features, config.shard_size),
        stages_with_fewer={} if fewer is None else fewer.stages,
        chosen=_chosen(prepared),
        fewer_points=0 if fewer is None else fewer.counts.get("embed", 0),
        **_known(config, prepared),
    )


def _known(config: InfluenceConfig, prepared: PreparedRun) -> dict[str, int]:
    """The facts of a run that need no sample."""
    return {
        "weights": prepared.watched,
        "batch_size": prepared.batch_size,
        "train_bytes": prepared.train.total_bytes,
        "candidate_bytes": prepared.candidates.total_bytes,
        "test_bytes": prepared.test.total_bytes,
        "test_files": len(prepared.test),
        "test_readings": prepared.queries.test_readings,
        "train_shards": _count_shards(prepared.train, config),
        "candidate_shards": _count_shards(prepared.candidates, config),
        "rounds": prepared.queries.rounds.count,
        "solving_rounds": prepared.queries.solving.count,
        "point_bytes": prepared.queries.point_bytes,
        "decoded_bytes": prepared.decoded.size if prepared.decoded is not None and prepared.decoded.cache else 0,
    }


def _chosen(prepared: PreparedRun) -> str:
    """What was left to the run itself and is decided by now, in words."""
    found = [prepared.choice, *([prepared.precision] if prepared.precision and prepared.precision.is_told else [])]
    found += [prepared.decoded] if prepared.decoded and prepared.decoded.cache else []
    return "\n".join(choice.text for choice in found if choice is not None)


def _count_shards(files: FileList, config: InfluenceConfig) -> int:
    return sum(max(1, -(-shard.size // config.shard_size)) for shard in files)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A sample that was run: seconds in all, each stage's cost, how many examples it used, and the bytes that a bundle of it gave."""

    total: Seconds
    stages: dict[str, StageCost]
    counts: dict[str, int]
    sent: dict[str, int]


def _run(config: InfluenceConfig, sample: PreparedRun, output: str) -> _Measured:
    engine = Engine(_LOCAL, True)
    of_sample = dataclasses.replace(config, output=output, work_dir=None, resume=False)
    began = Seconds(time.monotonic(), time.process_time())
    with Timeline() as timeline:
        pipeline = beam.Pipeline(options=engine.options())
        build(pipeline, of_sample, sample, timeline.address)
        result = run_pipeline(pipeline, engine)
    total = Seconds(time.monotonic(), time.process_time()) - began
    counts = {stage: int(count["examples"]) for stage, count in read_manifest(output, BeamFiles())["counts"].items()}
    stages = stage_costs(timeline.events)
    if "score" in counts and "score" not in stages:  # vectors and an index are read file by file
        spent = stage_milliseconds(result)["score"] / 1000 / max(counts["score"], 1)
        stages["score"] = StageCost(counts["score"], len(sample.train), Seconds(spent, spent), Seconds())
    return _Measured(total, stages, counts, _sent(result))


def _sent(result: PipelineResult) -> dict[str, int]:
    """What a bundle of each stage gave to others, on average."""
    counters: dict[str, int] = {}
    for counter in result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]:
        name = counter.key.metric.name
        counters[name] = counters.get(name, 0) + int(counter.committed or counter.attempted or 0)
    stages = [name.removesuffix(SENT) for name in counters if name.endswith(SENT)]
    return {stage: counters[stage + SENT] // max(counters[stage + BUNDLES], 1) for stage in stages}


def _count_stages(config: InfluenceConfig, prepared: PreparedRun) -> int:
    """How many stages read files."""
    curvature = config.make_curvature()
    fitted, solving = 0 if prepared.curvature_path else curvature.passes, curvature.solves * config.solver_passes
    return max(1, fitted + solving + len(prepared.test[:1]) + 1 + config.second_order_groups + config.per_token)


def _rows_of_vectors(prepared: PreparedRun, sample: PreparedRun, measured: _Measured) -> tuple[int, bool]:
    """The rows of saved vectors or of an index, by the bytes of some files."""
    rows, part, whole = measured.counts.get("score", 0), sample.train.total_bytes, prepared.train.total_bytes
    return (rows, True) if part == whole else (round(rows * whole / max(part, 1)), False)


def _peak() -> int:
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a request: the `calibration` as JSON, or why the run is `refused` or has `failed`.

    Args:
      request: `config`, the fields of an `InfluenceConfig`; `beam_arguments`; and `started`, when this process began.
    """
    try:
        config = InfluenceConfig(**request["config"])
        return {"calibration": calibrate(config, request["beam_arguments"], request["started"]).as_json()}
    except ValueError as error:
        return {"refused": str(error)}
    except RunFailedError as error:
        return {"failed": re.sub(r"All are in .*; the first", "The first", str(error))}  # the sample's own folder goes with it


def main() -> int:
    """Reads the request from the file that is named, and writes the answer to the other one."""
    asked, answered = map(pathlib.Path, sys.argv[1:])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
