"""The pairs of the tables of the best, position by position: one more pass over the files that have their training examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.scoring.outputs.base import OutputOptions
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.token_scores import Pair, add_token_scores, pairs_by_example
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import PARTS, Part, PartKey, QueryReference, Shard
from beam_influence.transforms.embed_queries import open_block
from beam_influence.transforms.finish_curvature import open_operator
from beam_influence.transforms.merging import PartsCombineFn
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.read_shards import REPORT_TYPES, ShardDoFn, ShardReader
from beam_influence.transforms.sent_bytes import count_sent
from beam_influence.transforms.typed import collection, outputs

_BEST = "top_k"


class _TokensDoFn(ShardDoFn):
    def __init__(self, wanted: ScoreTokens):
        super().__init__(wanted.reader)
        self._spec = wanted.model
        self._options = wanted.options
        self._pairs: dict[str, list[Pair]] | None = None

    def start_bundle(self) -> None:
        self._pairs = None

    def process(self, shard: Shard, *sides: Any) -> Iterator[object]:
        if self._pairs is None:
            self._open(*sides)
        if self._reader.ids_are_places and shard.name not in self._files:
            return
        yield from super().process(shard)

    def _open(self, preconditioner: Broadcast, references: Iterable[QueryReference], parts: Iterable[tuple[PartKey, TopK]]) -> None:
        self._model, self._operator = open_operator(self._spec, preconditioner)
        self._tables = {key: part for (_, key), part in parts}
        self._pairs = pairs_by_example(self._tables)
        self._files = {name.rpartition(":")[0] for name in self._pairs}
        # Read from their files row by row, as pairs need them.
        self._queries: dict[str, QueryBlock] = {one.key: open_block(one, ("solved", "placed")) for one in references}

    def begin_shard(self, shard: Shard) -> None:
        self._found = {key: TopK(len(table.ids), table.k) for key, table in self._tables.items()}

    def use(self, batch: ExampleBatch) -> list[Rejected]:
        assert self._pairs is not None
        how = (self._model, self._operator, self._queries, batch, self._options.score.normalize)
        add_token_scores(self._found, self._pairs, *how)
        return []

    def end_shard(self, shard: Shard) -> Iterator[object]:
        found = {key: part for key, part in self._found.items() if part.tokens}
        count_sent(self._reader.stage, list(found.values()))
        yield from (((_BEST, key), part) for key, part in found.items())

    def finish_bundle(self) -> None:
        self._pairs = None


@dataclasses.dataclass
class ScoreTokens(beam.PTransform):
    """Splits the scores in the tables of the best by position; see `token_scores`.

    Args:
      reader: reads the shards.
      model: the model.
      preconditioner: the operator, one `Broadcast`.
      queries: `QueryReference`s, whose blocks have solutions and gradients by position.
      parts: (`PartKey`, `Part`), over all training data; the tables of the best are among them.
      options: what is asked for.

    In: `Shard`. Out: `parts`, in which the tables of the best have scores by position.
    """

    reader: ShardReader
    model: ModelSpec
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    parts: pvalue.PCollection[tuple[PartKey, Part]]
    options: OutputOptions

    def expand(self, shards: pvalue.PCollection[Shard]) -> pvalue.PCollection[tuple[PartKey, Part]]:
        only = beam.Filter(lambda element: element[0][0] == _BEST).with_output_types(tuple[PartKey, Part])
        best = collection(self.parts | "Best" >> only)
        sides = (pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.queries), pvalue.AsIter(best))
        score = beam.ParDo(_TokensDoFn(self), *sides).with_output_types(tuple[PartKey, Part], **REPORT_TYPES)
        scored = outputs(shards | "Score" >> score.with_outputs(*REPORT_TYPES, main=PARTS))
        return collection((self.parts, scored[PARTS]) | "Both" >> beam.Flatten() | "Add" >> beam.CombinePerKey(PartsCombineFn()))
