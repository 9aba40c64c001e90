"""Saved influence vectors, or an index, against every query: the scoring of a run whose training gradients are known already."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics.metric import Metrics
from apache_beam.typehints.decorators import IOTypeHints
from apache_beam.utils.shared import Shared

from beam_influence.influence_ops.results import tables
from beam_influence.influence_ops.results.result_files import ParquetFile, iterate_table
from beam_influence.influence_ops.scoring.in_memory import run_facts
from beam_influence.influence_ops.scoring.index import Search, best_of_file, stored_vectors
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.influence_ops.scoring.top_k import Order, TopK
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import QueryReference, Shard, ShardCount, TopKPart, WrittenFile
from beam_influence.transforms.embed_queries import open_queries
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.read_shards import COUNTS, NAMESPACE
from beam_influence.transforms.score_examples import FILES, TOP_K, at_end_of_bundle
from beam_influence.transforms.typed import outputs

_STAGE = "score"


class _Queries:
    """The query blocks of one process (`Shared` can't hold a list)."""

    def __init__(self, preconditioner: Broadcast, references: Iterable[QueryReference], options: ScoreOptions):
        self.keys, self.blocks = open_queries(references)
        self.n, self.facts = run_facts(preconditioner.description, options)


class _ScoreVectorsDoFn(beam.DoFn):
    def __init__(self, wanted: ScoreVectors):
        self._options = wanted.options
        self._outputs = frozenset(wanted.outputs)
        self._k = wanted.top_k
        self._order: Order = wanted.order
        self._output = wanted.output
        self._search: Search = wanted.search
        self._shared = Shared()
        self._queries: _Queries | None = None
        self._tops: list[TopK] | None = None
        self._milliseconds = Metrics.counter(NAMESPACE, f"{_STAGE}_milliseconds")

    def default_type_hints(self) -> IOTypeHints:
        """The outputs are declared by the transform."""
        return IOTypeHints.empty()

    def start_bundle(self) -> None:
        self._tops = None

    def process(self, shard: Shard, preconditioner: Broadcast, references: Iterable[QueryReference]) -> Iterator[Any]:
        started = time.monotonic()
        references = list(references)
        digests = sorted(reference.broadcast.digest for reference in references)
        self._queries = queries = self._shared.acquire(
            lambda: _Queries(preconditioner, references, self._options), tag=f"{self._options}|{preconditioner.digest}|{digests}"
        )
        if self._tops is None:
            self._tops = [TopK(len(block), self._k, self._order) for block in queries.blocks]
        scores_file = None
        if "scores" in self._outputs:
            scores_file = ParquetFile(self._output, "scores", f"shard-{shard.ordinal:05d}", queries.facts, BeamFiles())
        examples = 0
        if self._search == "faiss":
            found, examples = best_of_file(iterate_table(shard.path, BeamFiles()), queries.blocks, self._k, self._order)
            for top, best in zip(self._tops, found, strict=True):
                top.merge(best)
        try:
            for rows in iterate_table(shard.path, BeamFiles()) if self._search == "linear" else ():
                ids, vectors = stored_vectors(rows)
                examples += rows.num_rows
                for block, top in zip(queries.blocks, self._tops, strict=True):
                    scores = block.gradients @ vectors.T
                    if "top_k" in self._outputs:
                        top.add(scores, ids)
                    if scores_file is not None:
                        scores_file.write(tables.scores_table(block.ids, ids, scores, queries.n))
            if scores_file is not None:
                yield pvalue.TaggedOutput(FILES, scores_file.close())
        except BaseException:
            if scores_file is not None:
                scores_file.abandon()
            raise
        self._milliseconds.inc(round(1000 * (time.monotonic() - started)))
        yield pvalue.TaggedOutput(COUNTS, ShardCount(_STAGE, shard.split, shard.name, examples, 0))

    def finish_bundle(self) -> Iterator[Any]:
        if self._queries is not None and self._tops is not None and "top_k" in self._outputs:
            for key, top in zip(self._queries.keys, self._tops, strict=True):
                yield pvalue.TaggedOutput(TOP_K, at_end_of_bundle((key, TopKPart(top))))
        self._tops = None


@dataclasses.dataclass
class ScoreVectors(beam.PTransform):
    """Scores saved influence vectors or an index, a file at a time; arguments as of `ScoreExamples`.

    Args:
      search: `linear`: every pair, in the precision that is stored; `faiss`: each file's best by FAISS, for `top_k` alone.

    In: `Shard`s, files of the table `influence_vectors` or `index`, whose inner products with the queries are influence.
    Out: a dictionary of PCollections: `top_k`, `files`, `counts`.
    """

    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    options: ScoreOptions
    outputs: tuple[str, ...]
    top_k: int
    order: Order
    output: str
    search: Search = "linear"

    def expand(self, shards: pvalue.PCollection[Shard]) -> dict[str, pvalue.PCollection]:
        score = beam.ParDo(
            _ScoreVectorsDoFn(self), pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.queries)
        )
        types = {TOP_K: tuple[str, TopKPart], FILES: WrittenFile, COUNTS: ShardCount}
        scored = outputs(shards | "Score" >> score.with_output_types(type(None), **types).with_outputs(*types))
        return {tag: scored[tag] for tag in types}
