"""The combined tables as Parquet: a file for each block of queries, and one for all groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam

from influence_ops import tables
from influence_ops.in_memory import run_facts
from influence_ops.scores import ScoreOptions
from transforms.broadcast import Broadcast
from transforms.elements import GroupPart, QueryReference, TopKPart, WrittenFile
from transforms.embed_queries import open_queries
from transforms.finish_curvature import open_preconditioner
from transforms.write_parquet import write_table


class _WriteDoFn(beam.DoFn):
    """What writing a table needs: where to, the number of examples, and the facts in its metadata."""

    def __init__(self, output: str, options: ScoreOptions):
        self._output = output
        self._options = options

    def _facts(self, broadcast: Broadcast) -> tuple[int, dict]:
        preconditioner = open_preconditioner(broadcast)
        n = preconditioner.examples if self._options.normalize == "none" else 0
        return n, run_facts(preconditioner, self._options)


class _WriteTopKDoFn(_WriteDoFn):
    def process(
        self, element: tuple[str, TopKPart], preconditioner: Broadcast, references: Iterable[QueryReference]
    ) -> Iterator[WrittenFile]:
        key, part = element
        _, (block,) = open_queries([reference for reference in references if reference.key == key])
        n, facts = self._facts(preconditioner)
        yield write_table(self._output, "top_k", f"block-{key}", tables.top_k_table(block.ids, part.top, n), facts)


class _WriteGroupsDoFn(_WriteDoFn):
    def process(
        self,
        _: None,
        preconditioner: Broadcast,
        references: Iterable[QueryReference],
        parts: Iterable[tuple[str, GroupPart]],
    ) -> Iterator[WrittenFile]:
        sums = dict(parts)
        keys, blocks = open_queries(references)
        n, facts = self._facts(preconditioner)
        pairs = [(block.ids, sums[key].sums) for key, block in zip(keys, blocks, strict=True) if key in sums]
        yield write_table(self._output, "group_influence", "part-00000", tables.group_influence_table(pairs, n), facts)


@dataclasses.dataclass
class WriteTopK(beam.PTransform):
    """Writes each block's top-k.

    Args:
      output: the folder of the results.
      options: how the scores were made, for the files' metadata.
      preconditioner, queries: the operator and the query blocks.

    In: (block key, `TopKPart`), each key once. Out: `WrittenFile`.
    """

    output: str
    options: ScoreOptions
    preconditioner: beam.PCollection[Broadcast]
    queries: beam.PCollection[QueryReference]

    def expand(self, tops: beam.PCollection[tuple[str, TopKPart]]) -> beam.PCollection[WrittenFile]:
        return tops | "Write" >> beam.ParDo(
            _WriteTopKDoFn(self.output, self.options),
            beam.pvalue.AsSingleton(self.preconditioner),
            beam.pvalue.AsIter(self.queries),
        ).with_output_types(WrittenFile)


@dataclasses.dataclass
class WriteGroups(beam.PTransform):
    """Writes the sums of all groups; arguments as of `WriteTopK`.

    In: (block key, `GroupPart`), each key once. Out: `WrittenFile`.
    """

    output: str
    options: ScoreOptions
    preconditioner: beam.PCollection[Broadcast]
    queries: beam.PCollection[QueryReference]

    def expand(self, sums: beam.PCollection[tuple[str, GroupPart]]) -> beam.PCollection[WrittenFile]:
        return (
            sums.pipeline
            | "Once" >> beam.Create([None], reshuffle=False)
            | "Write"
            >> beam.ParDo(
                _WriteGroupsDoFn(self.output, self.options),
                beam.pvalue.AsSingleton(self.preconditioner),
                beam.pvalue.AsIter(self.queries),
                beam.pvalue.AsIter(sums),
            ).with_output_types(WrittenFile)
        )
