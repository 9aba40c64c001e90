"""The outputs' tables as Parquet: a file for each block of test points, or one for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, OutputOptions
from beam_influence.influence_ops.scoring.outputs.table import outputs_of
from beam_influence.influence_ops.scoring.query_block import QueryArray
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.bundle_outputs import open_scoring
from beam_influence.transforms.elements import Part, PartKey, QueryReference, WrittenFile
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.typed import collection


class _WriteDoFn(beam.DoFn):
    def __init__(self, wanted: WriteOutputs, output: CombinedOutput):
        self._folder = wanted.output
        self._options = wanted.options
        self._model = wanted.model
        self._output = output

    def process(
        self,
        element: tuple[PartKey, Part] | None,
        preconditioner: Broadcast,
        references: Iterable[QueryReference],
        all_parts: Iterable[tuple[PartKey, Part]] = (),
    ) -> Iterator[WrittenFile]:
        parts = {key: part for (_, key), part in (all_parts if element is None else [element])}
        if self._output.by_part:
            references = [reference for reference in references if reference.key in parts]
        needs: tuple[QueryArray, ...] = ("gradients",) if self._options.second_order_groups else ()
        scoring = open_scoring(self._options, preconditioner, references, self._model, needs)
        for table, name, rows in self._output.finish(parts, scoring):
            schema, rows = self._options.schema(self._output.tables[table]), self._options.written(rows)
            yield write_table(self._folder, table, name, schema, rows, scoring.facts, BeamFiles())


@dataclasses.dataclass
class WriteOutputs(beam.PTransform):
    """Writes the tables of combined outputs.

    Args:
      output: the folder of the results.
      options: what is asked for.
      preconditioner, queries: the operator and the query blocks.
      model: the model.

    In: (`PartKey`, `Part`), each key once. Out: `WrittenFile`.
    """

    output: str
    options: OutputOptions
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    model: ModelSpec

    def expand(self, parts: pvalue.PCollection[tuple[PartKey, Part]]) -> pvalue.PCollection[WrittenFile]:
        sides = (pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.queries))
        written = []
        for output in outputs_of(self.options.tables):
            if not isinstance(output, CombinedOutput):
                continue
            only = beam.Filter(lambda element, name: element[0][0] == name, output.name).with_output_types(tuple[PartKey, Part])
            start = of_output = collection(parts | f"Only[{output.name}]" >> only)
            if not output.by_part:
                start = collection(parts.pipeline | f"Once[{output.name}]" >> beam.Create([None], reshuffle=False))
            all_parts = () if output.by_part else (pvalue.AsIter(of_output),)
            write = beam.ParDo(_WriteDoFn(self, output), *sides, *all_parts).with_output_types(WrittenFile)
            written.append(start | f"Write[{output.name}]" >> write)
        return collection(written | "Files" >> beam.Flatten(pipeline=parts.pipeline))
