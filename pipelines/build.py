"""The influence job as a Beam graph. The command line, the template and the TFX component call `build`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.results.result_files import written_files
from beam_influence.influence_ops.scoring.index import IndexDtype, Search
from beam_influence.influence_ops.scoring.top_k import Order
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.grow_index import BASE, source_base
from beam_influence.pipelines.prepare import Plan, prepare
from beam_influence.pipelines.resume import EMBED, OPERATOR, stage_of_pass
from beam_influence.transforms import (
    AccumulateCurvature,
    AdvanceCurvature,
    CombineTopK,
    EmbedQueries,
    FinishCurvature,
    IndexExamples,
    LoadCurvature,
    MultiplyGroups,
    ReadShards,
    RefuseOneGroup,
    ScoreExamples,
    ScoreVectors,
    SolveQueries,
    SumGroups,
    WriteGroups,
    WriteManifest,
    WriteRejected,
    WriteTopK,
)
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import QueryReference, RejectedExample, ShardCount, SolverReport, StatisticPart, WrittenFile
from beam_influence.transforms.files import join
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import COUNTS, REJECTED, ShardReader
from beam_influence.transforms.record_stage import RecordStage, StageRecord
from beam_influence.transforms.score_examples import FILES, GROUPS, TOP_K
from beam_influence.transforms.typed import collection

PASS_TOLERANCE = 1e-6
STAGES = ("curvature", "embed", "index", "score")


@dataclasses.dataclass(frozen=True)
class Job:
    """A built job.

    Attributes:
      plan: what it will read.
      manifest: the path of the manifest, the last thing it writes.
    """

    plan: Plan
    manifest: pvalue.PCollection[str]


def build(
    pipeline: beam.Pipeline,
    config: InfluenceConfig,
    plan: Plan | None = None,
    progress: tuple[str, int] | None = None,
    accelerator: str | None = None,
) -> Job:
    """Adds the whole job to `pipeline`: files in, Parquet and a manifest out.

    Args:
      pipeline: a pipeline on any runner.
      config: the options.
      plan: what `prepare(config)` gave, when it was called already.
      progress: an address for `Progress`, on local runs.
      accelerator: Beam's resource hint for the scoring step, such as `type:nvidia-l4;count:1;install-nvidia-driver`; where nothing is
        scored (`fit`, `index`), for the steps that differentiate the training set.

    Raises:
      ValueError: the configuration does not fit the files or the model; see `prepare`.
    """
    plan = plan or prepare(config)
    report = Progress(progress)

    def reader(stage: str) -> ShardReader:
        features = plan.test_features if stage == "embed" else plan.train_features
        assert features is not None
        return ShardReader(stage, features, config.batch_size, report)

    curvature = config.make_curvature()
    curvature_folder = join(config.output, "curvature")
    train = pipeline | "ReadShards[train]" >> ReadShards(plan.train)
    counts: list[pvalue.PCollection] = []
    rejected: list[pvalue.PCollection] = []
    late: list[pvalue.PCollection] = []
    written: list[pvalue.PCollection] = []
    resumed = plan.resumed
    finished = {} if resumed is None else resumed.finished
    has_pass = plan.curvature_path is None and curvature.passes > 0
    if plan.curvature_path is not None:
        preconditioner = pipeline | "LoadCurvature" >> LoadCurvature(plan.model, plan.curvature_path, curvature_folder)
    elif OPERATOR in finished:
        preconditioner = _take(pipeline, OPERATOR, finished, counts, rejected)
    else:
        passed = max((number for number in range(1, curvature.passes) if stage_of_pass(number) in finished), default=0)
        state = _take(pipeline, stage_of_pass(passed), finished, counts, rejected) if passed else None
        parts = pipeline | "NoStatistic" >> beam.Create([], reshuffle=False).with_output_types(tuple[str, StatisticPart])
        for number in range(passed + 1, curvature.passes + 1):
            stage, label = ("curvature", "") if number == 1 else (f"curvature_{number}", f"[{number}]")
            accumulate = AccumulateCurvature(reader(stage), plan.model, curvature, state, None if config.output_tables else accelerator)
            accumulated = train | f"AccumulateCurvature{label}" >> accumulate
            parts = accumulated["parts"]
            if number == 1:
                counts.append(accumulated[COUNTS])
                rejected.append(accumulated[REJECTED])
            if number < curvature.passes:
                advance = AdvanceCurvature(plan.model, curvature, state, join(config.work_folder, stage))
                state = parts | f"AdvanceCurvature{label}" >> advance
                state = _record(state, stage_of_pass(number), plan, config, counts[:1], rejected[:1])
        finish = FinishCurvature(plan.model, curvature, config.finish_options(), curvature_folder, config.work_folder, state)
        preconditioner = parts | "FinishCurvature" >> finish
        preconditioner = _record(preconditioner, OPERATOR, plan, config, counts[:1], rejected[:1])
    if plan.test and EMBED in finished:
        queries = _take(pipeline, EMBED, finished, counts, rejected)
    elif plan.test:
        test = pipeline | "ReadShards[test]" >> ReadShards(plan.test)
        embedded = test | "EmbedQueries" >> EmbedQueries(
            reader("embed"),
            plan.model,
            preconditioner,
            config.query_block_size,
            config.work_folder,
            len(plan.test),
            config.index is not None,
        )
        queries = _record(embedded["queries"], EMBED, plan, config, [embedded[COUNTS]], [embedded[REJECTED]])
        counts.append(embedded[COUNTS])
        rejected.append(embedded[REJECTED])
    else:
        queries = pipeline | "NoQueries" >> beam.Create([], reshuffle=False).with_output_types(QueryReference)
    reports = pipeline | "NoReports" >> beam.Create([], reshuffle=False).with_output_types(SolverReport)
    if config.solver_passes and curvature.systems is not None:
        readers = [reader(f"pass_{number:03d}") for number in range(config.solver_passes)]
        tolerance = config.tolerance or PASS_TOLERANCE
        solve = SolveQueries(
            readers, plan.model, curvature.systems, preconditioner, queries, tolerance, config.output, config.work_folder
        )
        solved = train | "SolveQueries" >> solve
        queries, reports = solved["queries"], solved["reports"]
        written.append(solved["files"])
    # The first pass over the training set tells what is rejected. With a curvature pass, too many end the run here, and what only
    # scoring rejects comes on top; not where scoring itself is expected to: a removal's own Newton step may not exist.
    gated = has_pass and config.removal == "first_order"
    if gated:
        early = collection(rejected | "FlattenRejected" >> beam.Flatten(pipeline=pipeline))
        gate = collection(early | "WriteRejected" >> WriteRejected(config.output, config.max_rejected))
        written.append(gate)
        if config.second_order_groups:
            gate = collection((gate, counts[0] | "RefuseOneGroup" >> RefuseOneGroup()) | "Gate" >> beam.Flatten())
    else:
        early = None
        gate = pipeline | "NoGate" >> beam.Create([], reshuffle=False).with_output_types(WrittenFile)
    if config.output_tables:
        order: Order = "descending" if config.order == "descending" else "ascending"
        if config.influence_vectors_path or config.index:
            search: Search = "faiss" if config.search == "faiss" else "linear"
            score = ScoreVectors(
                preconditioner, queries, config.score_options(), config.output_tables, config.top_k, order, config.output, search
            )
        else:
            score = ScoreExamples(
                reader("score"),
                plan.model,
                preconditioner,
                queries,
                gate,
                config.score_options(),
                config.output_tables,
                config.top_k,
                order,
                config.output,
                accelerator,
            )
        scored = train | "ScoreExamples" >> score
        counts.append(scored[COUNTS])
        written.append(scored[FILES])
        if REJECTED in scored:
            late.append(scored[REJECTED])
        written += _combine(config, plan, train, scored, preconditioner, queries, reader)
    kept = [] if plan.indexed is None else written_files(plan.indexed)
    facts = {}
    if config.only_index:
        known = [file.source for file in kept if file.source is not None]
        facts[BASE] = source_base(plan.train) if plan.indexed is None else plan.indexed[BASE]
        dtype: IndexDtype = "float16" if config.index_dtype == "float16" else "float32"
        index = IndexExamples(reader("index"), plan.model, preconditioner, gate, dtype, known, config.output, accelerator)
        indexed = train | "IndexExamples" >> index
        counts.append(indexed[COUNTS])
        written.append(indexed[FILES])
        late.append(indexed[REJECTED])
    if late or not gated:
        known = 1 if gated else sum(file.table == "rejected" for file in kept)
        together = ([] if gated else rejected) + late | "FlattenLateRejected" >> beam.Flatten(pipeline=pipeline)
        write = WriteRejected(config.output, config.max_rejected, known, early)
        written.append(collection(together | "WriteLateRejected" >> write))
    all_counts = counts | "FlattenCounts" >> beam.Flatten(pipeline=pipeline)
    manifest = (
        written
        | "FlattenFiles" >> beam.Flatten()
        | "WriteManifest"
        >> WriteManifest(
            config.output, config.as_json(), plan.model_facts, preconditioner, all_counts, reports, plan.indexed, tuple(finished), facts
        )
    )
    return Job(plan, manifest)


def _record(
    results: pvalue.PCollection,
    stage: str,
    plan: Plan,
    config: InfluenceConfig,
    counts: list[pvalue.PCollection],
    rejected: list[pvalue.PCollection],
) -> pvalue.PCollection:
    """The results, recorded for a run that has to start again."""
    if plan.resumed is None:
        return results
    digest = plan.resumed.embed if stage == EMBED else plan.resumed.curvature
    all_counts = counts | f"FlattenCounts[{stage}]" >> beam.Flatten(pipeline=results.pipeline)
    all_rejected = rejected | f"FlattenRejected[{stage}]" >> beam.Flatten(pipeline=results.pipeline)
    return collection(results | f"RecordStage[{stage}]" >> RecordStage(stage, digest, config.work_folder, all_counts, all_rejected))


def _take(
    pipeline: beam.Pipeline,
    stage: str,
    finished: dict[str, StageRecord],
    counts: list[pvalue.PCollection],
    rejected: list[pvalue.PCollection],
) -> pvalue.PCollection:
    """What an earlier run recorded, in place of the stage."""
    record = finished[stage]

    def create(name: str, elements: Iterable[Any], kind: type) -> pvalue.PCollection:
        created = beam.Create(list(elements), reshuffle=False).with_output_types(kind)
        return collection(pipeline | f"{name}[{stage}]" >> created)

    counts.append(create("KnownCounts", record.counts, ShardCount))
    rejected.append(create("KnownRejected", record.rejected, RejectedExample))
    if stage == EMBED:
        return create("Known", (QueryReference(*result) for result in record.results), QueryReference)
    return create("Known", (broadcast for _, broadcast in record.results), Broadcast)


def _combine(
    config: InfluenceConfig,
    plan: Plan,
    train: pvalue.PCollection,
    scored: dict[str, pvalue.PCollection],
    preconditioner: pvalue.PCollection[Broadcast],
    queries: pvalue.PCollection[QueryReference],
    reader: Callable[[str], ShardReader],
) -> list[pvalue.PCollection]:
    """The tables that are combined over all workers; gives the files written."""
    written: list[pvalue.PCollection] = []
    wanted = set(config.output_tables)
    options = config.score_options()
    if wanted & {"top_k", "self_influence_top_k"}:
        tops = scored[TOP_K] | "CombineTopK" >> CombineTopK()
        write_tops = WriteTopK(config.output, options, preconditioner, queries)
        written.append(collection(tops | "WriteParquet[top_k]" >> write_tops))
    if wanted & set(schemas.GROUP_OUTPUTS):
        sums = collection(scored[GROUPS] | "SumGroups" >> SumGroups())
        if config.second_order_groups:
            multiply = MultiplyGroups(reader("groups"), plan.model, preconditioner, sums, config.work_folder)
            products = train | "MultiplyGroups" >> multiply | "SumProducts" >> SumGroups()
            sums = collection([sums, products] | "FlattenSums" >> beam.Flatten())
        write_groups = WriteGroups(
            config.output, options, preconditioner, queries, plan.model, config.output_tables, config.second_order_groups
        )
        written.append(collection(sums | "WriteParquet[groups]" >> write_groups))
    return written
