"""Saved influence vectors, or an index, against every query: the scoring of a run whose training gradients are known already."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics.metric import Metrics
from apache_beam.typehints.decorators import IOTypeHints

from beam_influence.influence_ops.results.result_files import iterate_table
from beam_influence.influence_ops.scoring.index import Search, best_of_file, rows_at_once
from beam_influence.influence_ops.scoring.index_rows import as_stored, stored_vectors
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions, Scoring
from beam_influence.influence_ops.scoring.scores import BatchScores
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.bundle_outputs import BundleOutputs
from beam_influence.transforms.elements import FILES, PARTS, Part, PartKey, QueryReference, Shard, ShardCount, WrittenFile
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import COUNTS, NAMESPACE
from beam_influence.transforms.typed import outputs

_STAGE = "score"


class _ScoreVectorsDoFn(beam.DoFn):
    def __init__(self, wanted: ScoreVectors):
        self._options = wanted.options
        self._search: Search = wanted.search
        self._outputs = BundleOutputs(wanted.options, wanted.model, wanted.output, ("gradients",))
        self._milliseconds = Metrics.counter(NAMESPACE, f"{_STAGE}_milliseconds")

    def default_type_hints(self) -> IOTypeHints:
        """The outputs are declared by the transform."""
        return IOTypeHints.empty()

    def start_bundle(self) -> None:
        self._outputs.start_bundle()

    def process(self, shard: Shard, preconditioner: Broadcast, references: Iterable[QueryReference]) -> Iterator[pvalue.TaggedOutput]:
        started = time.monotonic()
        scoring = self._outputs.open(preconditioner, references)
        try:
            self._outputs.begin_shard(shard, scoring)
            examples = self._find_best(shard, scoring) if self._search == "faiss" else self._score(shard, scoring)
            yield from self._outputs.end_shard()
        except BaseException:
            self._outputs.abandon_shard()
            raise
        self._milliseconds.inc(round(1000 * (time.monotonic() - started)))
        yield pvalue.TaggedOutput(COUNTS, ShardCount(_STAGE, shard.split, shard.key, examples, 0))

    def _score(self, shard: Shard, scoring: Scoring) -> int:
        """Every pair; gives the number of examples."""
        examples = 0
        queries = [block.gradients for block in scoring.queries.values()]
        at_once = rows_at_once(sum(map(len, queries)), max((block.shape[1] for block in queries), default=0))
        for rows in iterate_table(shard.path, BeamFiles(), at_once):
            if not examples:
                queries = [as_stored(block, rows.schema) for block in queries]
            ids, vectors = stored_vectors(rows)
            scores = [block @ vectors.T for block in queries]
            self._outputs.add(BatchScores(ids, scores, scores))
            examples += len(ids)
        return examples

    def _find_best(self, shard: Shard, scoring: Scoring) -> int:
        """The file's best by FAISS, for the output `top_k` alone; gives the number of examples."""
        blocks = list(scoring.queries.values())
        found, examples = best_of_file(iterate_table(shard.path, BeamFiles()), blocks, self._options.top_k, self._options.order)
        for part, best in zip(self._outputs.collector.parts["top_k"].values(), found, strict=True):
            part.merge(best)
        return examples

    def finish_bundle(self) -> Iterator[pvalue.TaggedOutput]:
        return self._outputs.finish_bundle()


@dataclasses.dataclass
class ScoreVectors(beam.PTransform):
    """Scores saved influence vectors or an index, a file at a time; arguments as of `ScoreExamples`.

    Args:
      search: `linear`: every pair, in the precision that is stored; `faiss`: each file's best by FAISS, for `top_k` alone.

    In: `Shard`s, files of the table `influence_vectors` or `index`, whose inner products with the queries are influence.
    Out: a dictionary of PCollections: `parts`, `files`, `counts`.
    """

    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    options: OutputOptions
    output: str
    search: Search = "linear"

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        score = beam.ParDo(
            _ScoreVectorsDoFn(self), pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.queries)
        )
        types = {PARTS: tuple[PartKey, Part], FILES: WrittenFile, COUNTS: ShardCount}
        scored = outputs(shards | "Score" >> score.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: scored[tag] for tag in types}
