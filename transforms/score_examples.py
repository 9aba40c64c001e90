"""Every training example against every query: partial top-k and group sums, and tables written shard by shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam import pvalue
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.results import schemas, tables
from beam_influence.influence_ops.results.result_files import ParquetFile
from beam_influence.influence_ops.scoring.group_sums import GroupSums
from beam_influence.influence_ops.scoring.in_memory import add_to_groups, run_facts
from beam_influence.influence_ops.scoring.scores import BatchScores, ScoreOptions, Scorer
from beam_influence.influence_ops.scoring.top_k import Order, TopK
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import GroupPart, QueryReference, Shard, TopKPart, WrittenFile, at_end_of_bundle
from beam_influence.transforms.embed_queries import open_queries
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.finish_curvature import open_preconditioner
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.typed import outputs

TOP_K = "top_k"
GROUPS = "groups"
FILES = "files"

GRADIENTS = "gradients"
"""The key of the groups' gradient sums, beside the keys of query blocks."""
SELF = "self"
"""The key of the top-k of self-influence."""

_SHARD_TABLES = ("self_influence", "scores", "influence_vectors")


class _Scoring:
    """What one process needs to score: made once, shared by its DoFns."""

    def __init__(self, model: ExplainedModel, broadcast: Broadcast, references: list[QueryReference], options: ScoreOptions):
        preconditioner = open_preconditioner(broadcast)
        self.keys, self.blocks = open_queries(references)
        self.scorer = Scorer(model, preconditioner, self.blocks, options)
        self.size = model.size
        self.n, self.facts = run_facts(preconditioner.meta, options)


class _ScoreDoFn(ShardDoFn):
    def __init__(self, reader: ShardReader, model: ModelSpec, wanted: ScoreExamples):
        super().__init__(reader)
        self._spec = model
        self._options = wanted.options
        self._outputs = frozenset(wanted.outputs)
        self._of_groups = bool(self._outputs & set(schemas.GROUP_OUTPUTS))
        self._k = wanted.top_k
        self._order: Order = wanted.order
        self._output = wanted.output
        self._shared = Shared()
        self._scoring: _Scoring | None = None
        self._tops: list[TopK] | None = None
        self._groups: list[GroupSums] | None = None
        self._self_top: TopK | None = None
        self._gradients: GroupSums | None = None
        self._files: dict[str, ParquetFile] = {}

    def start_bundle(self) -> None:
        self._tops = self._groups = None

    def open(self, sides: tuple) -> None:
        preconditioner, references, _ = sides  # the third makes scoring wait for the verdict on rejected examples
        references = list(references)
        digests = [reference.broadcast.digest for reference in sorted(references, key=lambda reference: reference.key)]
        self._scoring = self._shared.acquire(
            lambda: _Scoring(self._spec.session(), preconditioner, references, self._options),
            tag=f"{self._spec}|{self._options}|{preconditioner.digest}|{digests}",
        )
        assert self._scoring is not None
        if self._tops is None:
            self._tops = [TopK(len(block), self._k, self._order) for block in self._scoring.blocks]
            self._groups = [GroupSums(len(block)) for block in self._scoring.blocks]
            self._self_top = TopK(1, self._k, self._order)
            self._gradients = GroupSums(self._scoring.size)

    def begin_shard(self, shard: Shard) -> None:
        assert self._scoring is not None
        for table in _SHARD_TABLES:
            if table in self._outputs:
                self._files[table] = ParquetFile(self._output, table, f"shard-{shard.ordinal:05d}", self._scoring.facts, BeamFiles())

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._scoring is not None and self._tops is not None and self._groups is not None
        assert self._self_top is not None and self._gradients is not None
        n = self._scoring.n
        scored = self._scoring.scorer.score(batch)
        for block, scores, top in zip(self._scoring.blocks, scored.scores, self._tops, strict=True):
            if "top_k" in self._outputs:
                top.add(scores, scored.batch.ids)
            if "scores" in self._outputs:
                self._files["scores"].write(tables.scores_table(block.ids, scored.batch.ids, scores, n))
        if self._of_groups:
            add_to_groups(scored, self._groups, self._gradients)
        if scored.self_influence is not None and "self_influence_top_k" in self._outputs:
            self._self_top.add(scored.self_influence[None], scored.batch.ids)
        self._write("self_influence", scored, lambda: tables.self_influence_table(scored, n))
        self._write("influence_vectors", scored, lambda: tables.influence_vectors_table(scored))
        return scored.rejected

    def _write(self, table: str, scored: BatchScores, make: Callable[[], pa.Table]) -> None:
        if table in self._outputs and len(scored.batch):
            self._files[table].write(make())

    def end_shard(self, shard: Shard) -> Iterator[object]:
        for file in self._files.values():
            yield pvalue.TaggedOutput(FILES, file.close())
        self._files = {}

    def abandon_shard(self) -> None:
        for file in self._files.values():
            file.abandon()
        self._files = {}

    def finish_bundle(self) -> Iterator[object]:
        if self._scoring is None or self._tops is None or self._groups is None:
            return
        assert self._self_top is not None and self._gradients is not None
        tops = dict(zip(self._scoring.keys, self._tops, strict=True)) if "top_k" in self._outputs else {}
        if "self_influence_top_k" in self._outputs:
            tops[SELF] = self._self_top
        groups = dict(zip(self._scoring.keys, self._groups, strict=True)) if self._of_groups else {}
        if self._of_groups and self._options.gradients:
            groups[GRADIENTS] = self._gradients
        for key, top in tops.items():
            yield pvalue.TaggedOutput(TOP_K, at_end_of_bundle((key, TopKPart(top))))
        for key, sums in groups.items():
            yield pvalue.TaggedOutput(GROUPS, at_end_of_bundle((key, GroupPart(sums))))
        self._tops = self._groups = None


@dataclasses.dataclass
class ScoreExamples(beam.PTransform):
    """Scores the training examples where they are read; what leaves a worker are tables of k and sums.

    Args:
      reader: reads the training shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`.
      queries: `QueryReference`s.
      gate: any collection that must be complete before scoring starts.
      options: which scores.
      outputs: names of `schemas.OUTPUTS`.
      top_k, order: the size of the tables, and from which end.
      output: the folder of the results; tables with a row for each training example are written here, a file a shard.
      accelerator: Beam's resource hint for this step alone, or None.

    In: `Shard`. Out: a dictionary of PCollections: `top_k` ((block key, `TopKPart`)), `groups` ((block key,
    `GroupPart`)), `files` (`WrittenFile`), `rejected`, `counts`.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    gate: pvalue.PCollection
    options: ScoreOptions
    outputs: tuple[str, ...]
    top_k: int
    order: Order
    output: str
    accelerator: str | None = None

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        score = beam.ParDo(
            _ScoreDoFn(self.reader, self.model, self),
            pvalue.AsSingleton(self.preconditioner),
            pvalue.AsIter(self.queries),
            pvalue.AsIter(self.gate),
        )
        if self.accelerator:
            score.with_resource_hints(accelerator=self.accelerator)  # it changes `score` and returns it
        types = {TOP_K: tuple[str, TopKPart], GROUPS: tuple[str, GroupPart], FILES: WrittenFile, **REPORT_TYPES}
        scored = outputs(shards | "Score" >> score.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: scored[tag] for tag in types}
