"""The outputs' tables as Parquet: a file for each of their parts, such as those of a block of test points."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, OutputOptions
from beam_influence.influence_ops.scoring.outputs.table import combined_outputs
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
        self, element: tuple[PartKey, Part], preconditioner: Broadcast, references: Iterable[QueryReference]
    ) -> Iterator[WrittenFile]:
        (_, key), part = element
        references = [reference for reference in references if reference.key == key]
        scoring = open_scoring(self._options, preconditioner, references, self._model)
        for table, name, rows in self._output.finish({key: part}, scoring):
            schema, rows = self._options.schema(self._output.tables[table]), self._options.written(rows)
            yield write_table(self._folder, table, name, schema, rows, scoring.facts, BeamFiles())


@dataclasses.dataclass
class WriteOutputs(beam.PTransform):
    """Writes the tables of combined outputs, but for those that are summed over groups.

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
        for output in combined_outputs(self.options.tables):
            if output.by_group:
                continue
            only = beam.Filter(lambda element, name: element[0][0] == name, output.name).with_output_types(tuple[PartKey, Part])
            write = beam.ParDo(_WriteDoFn(self, output), *sides).with_output_types(WrittenFile)
            written.append(parts | f"Only[{output.name}]" >> only | f"Write[{output.name}]" >> write)
        return collection(written | "Files" >> beam.Flatten(pipeline=parts.pipeline))
