"""The influence job as a Beam graph. The command line, the template and the TFX component call `build`."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias, TypeVar, get_args

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.scoring.index import Search
from beam_influence.influence_ops.scoring.index_rows import IndexDtype
from beam_influence.influence_ops.scoring.outputs.table import combined_outputs, complete_options
from beam_influence.pipelines.check_uncertainty import uncertainty_facts
from beam_influence.pipelines.choosing.choose import choose_and_prepare
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.grow_index import BASE, NOTHING_KNOWN, known_contents, source_base
from beam_influence.pipelines.prepare import PreparedRun
from beam_influence.pipelines.query_plan import sums_bytes
from beam_influence.pipelines.resume import EMBED, OPERATOR, stage_of_pass
from beam_influence.transforms import (
    AccumulateCurvature,
    AdvanceCurvature,
    EmbedQueries,
    FinishCurvature,
    IndexExamples,
    LoadCurvature,
    MultiplyGroups,
    ReadShards,
    RefuseOneGroup,
    ScoreExamples,
    ScoreTokens,
    ScoreVectors,
    SolveQueries,
    WriteGroups,
    WriteManifest,
    WriteOutputs,
    WriteRejected,
)
from beam_influence.transforms.broadcast import INLINE_LIMIT, Broadcast
from beam_influence.transforms.elements import FILES, PARTS, QueryReference, ShardCount, SolverReport, StatisticPart, WrittenFile
from beam_influence.transforms.files import join
from beam_influence.transforms.group_blocks import GROUP_SUMS
from beam_influence.transforms.merging import PartsCombineFn
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import COUNTS, REJECTED, ShardReader
from beam_influence.transforms.record_stage import RecordStage, TakeStage
from beam_influence.transforms.sum_counts import SumCounts
from beam_influence.transforms.typed import collection

PASS_TOLERANCE = 1e-6
STAGES = ("curvature", "embed", "index", "score", "candidates")

Operator: TypeAlias = pvalue.PCollection[Broadcast]
Queries: TypeAlias = pvalue.PCollection[QueryReference]
Reports: TypeAlias = pvalue.PCollection[SolverReport]
Gate: TypeAlias = pvalue.PCollection[WrittenFile]
Element = TypeVar("Element")


@dataclasses.dataclass(frozen=True)
class Job:
    """A built job.

    Attributes:
      prepared: what it will read.
      manifest: the path of the manifest, which is written last.
    """

    prepared: PreparedRun
    manifest: pvalue.PCollection[str]


def build(
    pipeline: beam.Pipeline,
    config: InfluenceConfig,
    prepared: PreparedRun | None = None,
    progress: tuple[str, int] | None = None,
    accelerator: str | None = None,
) -> Job:
    """Adds the whole job to `pipeline`: files in, Parquet and a manifest out.

    Args:
      pipeline: a pipeline on any runner.
      config: the options.
      prepared: what `prepare(config)` gave, when it was called already.
      progress: an address for `Progress`, on local runs.
      accelerator: Beam's resource hint for the steps that differentiate examples, such as `type:nvidia-l4;count:1;install-nvidia-driver`.

    Raises:
      ValueError: the configuration does not fit the files or the model; see `prepare`.
    """
    if prepared is None:
        config, prepared = choose_and_prepare(config)
    job = _JobBuilder(pipeline, config, prepared, Progress(progress), accelerator)
    preconditioner = job.preconditioner()
    queries = job.embedded(preconditioner)
    queries, reports = job.solved(preconditioner, queries)
    gate = job.gate()
    if config.output_tables:
        job.score(preconditioner, queries, gate)
    if config.only_index:
        job.index(preconditioner, gate)
    job.write_late_rejected()
    return Job(prepared, job.manifest(preconditioner, reports))


class _JobBuilder:
    """A job while it is put together: what its steps give beside their results comes together in lists.

    Attributes:
      counts: `ShardCount`s of every stage, added up.
      rejected: `RejectedExample`s of the stages before scoring.
      late: those that only scoring rejects.
      written: `WrittenFile`s.
    """

    def __init__(
        self, pipeline: beam.Pipeline, config: InfluenceConfig, prepared: PreparedRun, progress: Progress, accelerator: str | None
    ):
        self._pipeline = pipeline
        self._config = config
        self._prepared = prepared
        self._progress = progress
        self._accelerator = accelerator
        self._curvature = config.make_curvature()
        self._finished = {} if prepared.resumed is None else prepared.resumed.finished
        # The first pass over the training set tells what is rejected. With a curvature pass, too many end the run before it scores, and
        # what only scoring rejects comes on top; not where scoring itself is expected to: a removal's own Newton step may not exist.
        self._is_gated = prepared.curvature_path is None and self._curvature.passes > 0 and config.removal == "first_order"
        train = ReadShards(prepared.train, prepared.train_features, config.shard_size, config.only_index, config.work_folder)
        self._train = pipeline | "ReadShards[train]" >> train
        candidates = ReadShards(prepared.candidates, prepared.candidate_features, config.shard_size, work=config.work_folder)
        self._scored = pipeline | "ReadShards[candidates]" >> candidates if config.candidates else self._train
        self.counts: list[pvalue.PCollection] = []
        self.rejected: list[pvalue.PCollection] = []
        self.late: list[pvalue.PCollection] = []
        self.written: list[pvalue.PCollection] = []
        self._early: pvalue.PCollection | None = None

    def _reader(self, stage: str) -> ShardReader:
        prepared, of_scored = self._prepared, self._prepared.candidate_features or self._prepared.train_features
        features = {"embed": prepared.test_features, "candidates": of_scored, "tokens": of_scored}.get(stage, prepared.train_features)
        assert features is not None
        rows = prepared.batch_size
        most = prepared.queries.embedded_at_once(prepared.watched, self._config.query_arrays) if stage == "embed" else rows
        return ShardReader(stage, features, min(rows, most), self._progress, prepared.decoded.cache if prepared.decoded else None)

    def _count(self, stage: str, counts: pvalue.PCollection[ShardCount]) -> None:
        self.counts.append(collection(counts | f"SumCounts[{stage}]" >> SumCounts()))

    def _nothing(self, label: str, kind: type[Element]) -> pvalue.PCollection[Element]:
        return collection(self._pipeline | label >> beam.Create([], reshuffle=False).with_output_types(kind))

    def preconditioner(self) -> Operator:
        """The operator: loaded, taken from an earlier run, or fitted."""
        config, prepared = self._config, self._prepared
        folder = join(config.output, "curvature")
        if prepared.curvature_path is not None:
            return self._pipeline | "LoadCurvature" >> LoadCurvature(prepared.model, prepared.curvature_path, folder)
        if OPERATOR in self._finished:
            return self._take(OPERATOR)
        parts, state = self._curvature_passes()
        finish = FinishCurvature(prepared.model, self._curvature, config.finish_options(), folder, config.work_folder, state)
        return self._record(collection(parts | "FinishCurvature" >> finish), OPERATOR, self.counts[:1], self.rejected[:1])

    def _curvature_passes(self) -> tuple[pvalue.PCollection[tuple[str, StatisticPart]], Operator | None]:
        """The statistic of the last pass, and the state that this pass began with."""
        prepared, curvature = self._prepared, self._curvature
        done = max((number for number in range(1, curvature.passes) if stage_of_pass(number) in self._finished), default=0)
        state = self._take(stage_of_pass(done)) if done else None
        parts: Any = self._nothing("NoStatistic", tuple[str, StatisticPart])
        for number in range(done + 1, curvature.passes + 1):
            stage, label = ("curvature", "") if number == 1 else (f"curvature_{number}", f"[{number}]")
            work, reader = join(self._config.work_folder, stage), self._reader(stage)
            accumulate = AccumulateCurvature(reader, prepared.model, curvature, join(work, "bundles"), state, self._accelerator)
            accumulated = self._train | f"AccumulateCurvature{label}" >> accumulate
            parts = accumulated["parts"]
            if number == 1:
                self._count(stage, accumulated[COUNTS])
                self.rejected.append(accumulated[REJECTED])
            if number < curvature.passes:
                state = parts | f"AdvanceCurvature{label}" >> AdvanceCurvature(prepared.model, curvature, state, work)
                state = self._record(state, stage_of_pass(number), self.counts[:1], self.rejected[:1])
        return parts, state

    def embedded(self, preconditioner: Operator) -> Queries:
        """The test points' blocks."""
        config, prepared = self._config, self._prepared
        if not prepared.test or EMBED in self._finished:
            return self._take(EMBED) if prepared.test else self._nothing("NoQueries", QueryReference)
        read = ReadShards(prepared.test, prepared.test_features, config.shard_size, work=config.work_folder)
        plan = prepared.queries
        by_path = plan.rounds.count > 1 or plan.form.is_short  # by value they would take many times their size
        inline = 0 if by_path else min(INLINE_LIMIT, sums_bytes(config)) // len(prepared.test)
        form = (plan.block_size, config.work_folder, inline, config.index is not None, config.query_arrays, plan.form)
        embed = EmbedQueries(self._reader("embed"), prepared.model, preconditioner, *form, accelerator=self._accelerator)
        embedded = self._pipeline | "ReadShards[test]" >> read | "EmbedQueries" >> embed
        self._count(EMBED, embedded[COUNTS])
        self.rejected.append(embedded[REJECTED])
        return self._record(embedded["queries"], EMBED, self.counts[-1:], [embedded[REJECTED]])

    def solved(self, preconditioner: Operator, queries: Queries) -> tuple[Queries, Reports]:
        """The test points solved over all training data where that is asked for, and how well."""
        config, system, solves = self._config, self._curvature.systems, self._curvature.solves
        if not config.solver_passes or system is None:
            return queries, self._nothing("NoReports", SolverReport)
        readers = [self._reader(f"solve_{number:03d}") for number in range(1, solves * config.solver_passes + 1)]
        how = (queries, config.tolerance or PASS_TOLERANCE, config.output, config.work_folder, self._prepared.queries.solving)
        solve = SolveQueries(readers, self._prepared.model, system, preconditioner, *how, config.uncertainty, solves)
        solved = self._train | "SolveQueries" >> solve
        self.written.append(solved[FILES])
        return solved["queries"], solved["reports"]

    def gate(self) -> Gate:
        """What must be complete before anything is scored: the verdict on rejected examples, and on groups."""
        if not self._is_gated:
            return self._nothing("NoGate", WrittenFile)
        config = self._config
        self._early = collection(self.rejected | "FlattenRejected" >> beam.Flatten(pipeline=self._pipeline))
        gate = collection(self._early | "WriteRejected" >> WriteRejected(config.output, config.max_rejected))
        self.written.append(gate)
        if config.second_order_groups:
            gate = collection((gate, self.counts[0] | "RefuseOneGroup" >> RefuseOneGroup()) | "Gate" >> beam.Flatten())
        return gate

    def score(self, preconditioner: Operator, queries: Queries, gate: Gate) -> None:
        """Every table that is asked for."""
        config, prepared = self._config, self._prepared
        options, sizes = complete_options(config.output_options(prepared.index_error)), (config.work_folder, sums_bytes(config))
        if (config.influence_vectors_path or config.index) and not options.of_candidates:
            search: Search = "faiss" if config.search == "faiss" else "linear"
            score = ScoreVectors(prepared.model, preconditioner, queries, options, config.output, search)
        else:
            wanted = (queries, gate, options, config.output, self._accelerator, prepared.queries.rounds, *sizes)
            score = ScoreExamples(self._reader("candidates" if options.of_candidates else "score"), prepared.model, preconditioner, *wanted)
        self._count("score", (scored := self._scored | "ScoreExamples" >> score)[COUNTS])
        self.written, self.late = [*self.written, scored[FILES]], [*self.late, *([scored[REJECTED]] if REJECTED in scored else [])]
        combined, of_tables = combined_outputs(options.tables), (options, preconditioner, queries, prepared.model)
        if any(not output.by_group for output in combined):
            parts = collection(scored[PARTS] | "CombineParts" >> beam.CombinePerKey(PartsCombineFn()))
            if options.per_token:
                tokens = ScoreTokens(self._reader("tokens"), prepared.model, preconditioner, queries, parts, options)
                parts = self._scored | "ScoreTokens" >> tokens
            self.written.append(collection(parts | "WriteOutputs" >> WriteOutputs(config.output, *of_tables)))
        for output in (one for one in combined if one.by_group):
            sums = scored[GROUP_SUMS]
            if config.second_order_groups:
                multiply = MultiplyGroups(self._reader("groups"), prepared.model, preconditioner, sums, *sizes)
                sums = (sums, self._train | "MultiplyGroups" >> multiply) | "FlattenGroups" >> beam.Flatten()
            self.written.append(collection(sums | "WriteGroups" >> WriteGroups(config.output, output, *of_tables, *sizes)))

    def index(self, preconditioner: Operator, gate: Gate) -> None:
        """The numbers of an index, of the training files that are not in it yet."""
        config, prepared = self._config, self._prepared
        known = NOTHING_KNOWN if prepared.indexed is None else known_contents(config.output, prepared.indexed, config.work_folder)
        dtype: IndexDtype = next(kind for kind in get_args(IndexDtype) if kind == config.index_dtype)
        index = IndexExamples(self._reader("index"), prepared.model, preconditioner, gate, dtype, known, config.output, self._accelerator)
        indexed = self._train | "IndexExamples" >> index
        self._count("index", indexed[COUNTS])
        self.written.append(indexed[FILES])
        self.late.append(indexed[REJECTED])

    def write_late_rejected(self) -> None:
        """The rejected examples that the gate has not seen."""
        if self._is_gated and not self.late:
            return
        tables = (self._prepared.indexed or {"tables": {}})["tables"]
        number = 1 if self._is_gated else tables.get("rejected", {"files": 0})["files"]
        rejected = ([] if self._is_gated else self.rejected) + self.late
        write = WriteRejected(self._config.output, self._config.max_rejected, number, self._early)
        flattened = rejected | "FlattenLateRejected" >> beam.Flatten(pipeline=self._pipeline)
        self.written.append(collection(flattened | "WriteLateRejected" >> write))

    def manifest(self, preconditioner: Operator, reports: Reports) -> pvalue.PCollection[str]:
        """The path of the manifest."""
        config, prepared = self._config, self._prepared
        base = {BASE: (prepared.indexed or {}).get(BASE) or source_base(prepared.train)} if config.only_index else uncertainty_facts(config)
        counts = self.counts | "FlattenCounts" >> beam.Flatten(pipeline=self._pipeline)
        optional = (prepared.indexed, tuple(self._finished), {**base, **prepared.choice_facts}, prepared.train.limit is not None)
        write = WriteManifest(config.output, config.as_json(), prepared.model_facts, preconditioner, counts, reports, *optional)
        return self.written | "FlattenFiles" >> beam.Flatten() | "WriteManifest" >> write

    def _record(
        self, results: pvalue.PCollection, stage: str, counts: list[pvalue.PCollection], rejected: list[pvalue.PCollection]
    ) -> pvalue.PCollection:
        """The results, recorded for a run that has to start again."""
        resumed = self._prepared.resumed
        if resumed is None:
            return results
        digest = resumed.embed if stage == EMBED else resumed.curvature
        record = RecordStage(stage, digest, self._config.work_folder, counts, rejected)
        return collection(results | f"RecordStage[{stage}]" >> record)

    def _take(self, stage: str) -> pvalue.PCollection:
        """What an earlier run recorded, in place of the stage."""
        taken = self._pipeline | f"TakeStage[{stage}]" >> TakeStage(self._finished[stage])
        self.counts.append(taken[COUNTS])
        self.rejected.append(taken[REJECTED])
        return taken["results"]
