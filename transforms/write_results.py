"""The combined tables as Parquet: a file for each block of queries, and one for all groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results import tables
from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.influence_ops.scoring.groups import first_steps, group_tables, group_vectors, second_order_vectors
from beam_influence.influence_ops.scoring.in_memory import run_facts
from beam_influence.influence_ops.scoring.scores import ScoreOptions
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import GroupPart, QueryReference, TopKPart, WrittenFile
from beam_influence.transforms.embed_queries import open_queries
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.finish_curvature import open_preconditioner
from beam_influence.transforms.group_products import PRODUCTS
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.score_examples import GRADIENTS, SELF
from beam_influence.transforms.typed import collection


class _WriteDoFn(beam.DoFn):
    """What writing a table needs: where to, the number of examples, and the facts in its metadata."""

    def __init__(self, output: str, options: ScoreOptions):
        self._output = output
        self._options = options

    def _facts(self, broadcast: Broadcast) -> tuple[int, dict]:
        return run_facts(broadcast.description, self._options)


class _WriteTopKDoFn(_WriteDoFn):
    def process(
        self, element: tuple[str, TopKPart], preconditioner: Broadcast, references: Iterable[QueryReference]
    ) -> Iterator[WrittenFile]:
        key, part = element
        if key == SELF:
            n, facts = self._facts(preconditioner)
            table = tables.self_influence_top_k_table(part.top, n)
            yield write_table(self._output, "self_influence_top_k", "part-00000", table, facts, BeamFiles())
            return
        _, (block,) = open_queries([reference for reference in references if reference.key == key])
        n, facts = self._facts(preconditioner)
        yield write_table(self._output, "top_k", f"block-{key}", tables.top_k_table(block.ids, part.top, n), facts, BeamFiles())


class _WriteGroupsDoFn(_WriteDoFn):
    def __init__(self, wanted: WriteGroups):
        super().__init__(wanted.output, wanted.options)
        self._model = wanted.model
        self._outputs = wanted.outputs
        self._second_order = wanted.second_order

    def process(
        self, _: None, preconditioner: Broadcast, references: Iterable[QueryReference], parts: Iterable[tuple[str, GroupPart]]
    ) -> Iterator[WrittenFile]:
        sums = {key: part.sums for key, part in parts}
        keys, queries = open_queries(references)
        n, facts = self._facts(preconditioner)
        groups = None
        if GRADIENTS in sums:
            model = self._model.session()
            operator = open_preconditioner(preconditioner).bind(model)
            groups = group_vectors(operator, sums[GRADIENTS])
            if self._second_order:
                steps = first_steps(model, operator, groups)
                groups = second_order_vectors(model, operator, groups, steps, sums[PRODUCTS])
        found = group_tables(queries, [sums[key] for key in keys], groups, self._options.normalize, self._second_order, n)
        for name, table in found.items():
            if name in self._outputs:
                yield write_table(self._output, name, "part-00000", table, facts, BeamFiles())


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
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]

    def expand(self, tops: pvalue.PCollection[tuple[str, TopKPart]]) -> pvalue.PCollection[WrittenFile]:
        write = beam.ParDo(
            _WriteTopKDoFn(self.output, self.options),
            pvalue.AsSingleton(self.preconditioner),
            pvalue.AsIter(self.queries),
        )
        return collection(tops | "Write" >> write.with_output_types(WrittenFile))


@dataclasses.dataclass
class WriteGroups(beam.PTransform):
    """Writes the tables of all groups.

    Args:
      output, options, preconditioner, queries: as of `WriteTopK`.
      model: the model, for the groups' vectors.
      outputs: which tables; the others are left out.
      second_order: whether the groups' Hessian products are among the sums.

    In: (key, `GroupPart`), each key once: query blocks, `GRADIENTS` and `PRODUCTS`. Out: `WrittenFile`.
    """

    output: str
    options: ScoreOptions
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    model: ModelSpec
    outputs: tuple[str, ...]
    second_order: bool

    def expand(self, sums: pvalue.PCollection[tuple[str, GroupPart]]) -> pvalue.PCollection[WrittenFile]:
        return (
            sums.pipeline
            | "Once" >> beam.Create([None], reshuffle=False)
            | "Write"
            >> beam.ParDo(
                _WriteGroupsDoFn(self),
                pvalue.AsSingleton(self.preconditioner),
                pvalue.AsIter(self.queries),
                pvalue.AsIter(sums),
            ).with_output_types(WrittenFile)
        )
