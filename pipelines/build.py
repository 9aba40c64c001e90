"""The influence job as a Beam graph. The command line, the template and the TFX component call `build`."""

from __future__ import annotations

import dataclasses

import apache_beam as beam

from influence_ops import schemas
from pipelines.config import InfluenceConfig
from pipelines.prepare import Plan, prepare
from transforms import (
    AccumulateCurvature,
    CombineTopK,
    EmbedQueries,
    FinishCurvature,
    LoadCurvature,
    MultiplyGroups,
    ReadShards,
    ScoreExamples,
    SumGroups,
    WriteGroups,
    WriteManifest,
    WriteRejected,
    WriteTopK,
)
from transforms.elements import WrittenFile
from transforms.files import join
from transforms.progress import Progress
from transforms.read_shards import COUNTS, REJECTED, ShardReader

STAGES = ("curvature", "embed", "score")


@dataclasses.dataclass(frozen=True)
class Job:
    """A built job.

    Attributes:
      plan: what it will read.
      manifest: the path of the manifest, the last thing it writes.
    """

    plan: Plan
    manifest: beam.PCollection[str]


def build(
    pipeline: beam.Pipeline, config: InfluenceConfig, plan: Plan | None = None, progress: tuple[str, int] | None = None
) -> Job:
    """Adds the whole job to `pipeline`: files in, Parquet and a manifest out.

    Args:
      pipeline: a pipeline on any runner.
      config: the options.
      plan: what `prepare(config)` gave, when it was called already.
      progress: an address for `Progress`, on local runs.

    Raises:
      ValueError: the configuration does not fit the files or the model; see `prepare`.
    """
    plan = plan or prepare(config)
    report = Progress(progress)

    def reader(stage: str) -> ShardReader:
        features = plan.test_features if stage == "embed" else plan.train_features
        return ShardReader(stage, features, config.batch_size, report)

    curvature = config.make_curvature()
    curvature_folder = join(config.output, "curvature")
    train = pipeline | "ReadShards[train]" >> ReadShards(plan.train)
    test = pipeline | "ReadShards[test]" >> ReadShards(plan.test)
    counts: list[beam.PCollection] = []
    early_rejected: list[beam.PCollection] = []
    has_pass = False
    if config.curvature_path:
        preconditioner = pipeline | "LoadCurvature" >> LoadCurvature(plan.model, config.curvature_path, curvature_folder)
    elif curvature.passes == 0:
        nothing = pipeline | "NoStatistic" >> beam.Create([], reshuffle=False)
        preconditioner = nothing | "FinishCurvature" >> FinishCurvature(
            plan.model, curvature, config.finish_options(), curvature_folder, config.work_folder
        )
    else:
        has_pass = True
        accumulated = train | "AccumulateCurvature" >> AccumulateCurvature(reader("curvature"), plan.model, curvature)
        counts.append(accumulated[COUNTS])
        early_rejected.append(accumulated[REJECTED])
        preconditioner = accumulated["parts"] | "FinishCurvature" >> FinishCurvature(
            plan.model, curvature, config.finish_options(), curvature_folder, config.work_folder
        )
    embedded = test | "EmbedQueries" >> EmbedQueries(
        reader("embed"), plan.model, preconditioner, config.query_block_size, config.work_folder
    )
    counts.append(embedded[COUNTS])
    early_rejected.append(embedded[REJECTED])
    # The first pass over the training set tells what is rejected. With a curvature pass, too many end the run here,
    # unless scoring itself rejects some: a removal's own Newton step may not exist.
    write_rejected = WriteRejected(config.output, config.max_rejected)
    gated = has_pass and config.removal == "first_order"
    if gated:
        rejected_file = early_rejected | "FlattenRejected" >> beam.Flatten() | "WriteRejected" >> write_rejected
        gate = rejected_file
    else:
        gate = pipeline | "NoGate" >> beam.Create([], reshuffle=False).with_output_types(WrittenFile)
    scored = train | "ScoreExamples" >> ScoreExamples(
        reader("score"),
        plan.model,
        preconditioner,
        embedded["queries"],
        gate,
        config.score_options(),
        config.output_tables,
        config.top_k,
        "descending" if config.order == "descending" else "ascending",
        config.output,
    )
    counts.append(scored[COUNTS])
    if not gated:
        rejected_file = (
            [*early_rejected, scored[REJECTED]] | "FlattenRejected" >> beam.Flatten() | "WriteRejected" >> write_rejected
        )
    written: list[beam.PCollection] = [rejected_file, scored["files"]]
    wanted = set(config.output_tables)
    if wanted & {"top_k", "self_influence_top_k"}:
        tops = scored["top_k"] | "CombineTopK" >> CombineTopK()
        write_top_k = WriteTopK(config.output, config.score_options(), preconditioner, embedded["queries"])
        written.append(tops | "WriteParquet[top_k]" >> write_top_k)
    if wanted & set(schemas.GROUP_OUTPUTS):
        sums = scored["groups"] | "SumGroups" >> SumGroups()
        if config.second_order_groups:
            multiply = MultiplyGroups(reader("groups"), plan.model, preconditioner, sums, config.work_folder)
            products = train | "MultiplyGroups" >> multiply | "SumProducts" >> SumGroups()
            sums = [sums, products] | "FlattenSums" >> beam.Flatten()
        write_groups = WriteGroups(
            config.output,
            config.score_options(),
            preconditioner,
            embedded["queries"],
            plan.model,
            config.output_tables,
            config.second_order_groups,
        )
        written.append(sums | "WriteParquet[groups]" >> write_groups)
    all_counts = counts | "FlattenCounts" >> beam.Flatten()
    manifest = (
        written
        | "FlattenFiles" >> beam.Flatten()
        | "WriteManifest" >> WriteManifest(config.output, config.as_json(), preconditioner, all_counts)
    )
    return Job(plan, manifest)
