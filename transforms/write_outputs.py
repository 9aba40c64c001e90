"""The outputs' tables as Parquet: a file for each block of test points, or one for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, OutputOptions
from beam_influence.influence_ops.scoring.outputs.table import outputs_of
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

    def _write(
        self, parts: dict[str, Part], preconditioner: Broadcast, references: Iterable[QueryReference]
    ) -> Iterator[WrittenFile]:
        scoring = open_scoring(self._options, preconditioner, references, self._model)
        for table, name, rows in self._output.finish(parts, scoring):
            yield write_table(self._folder, table, name, self._output.tables[table], rows, scoring.facts, BeamFiles())


class _WritePartDoFn(_WriteDoFn):
    def process(
        self, element: tuple[PartKey, Part], preconditioner: Broadcast, references: Iterable[QueryReference]
    ) -> Iterator[WrittenFile]:
        (_, key), part = element
        yield from self._write({key: part}, preconditioner, [reference for reference in references if reference.key == key])


class _WriteAllDoFn(_WriteDoFn):
    def process(
        self, _: None, preconditioner: Broadcast, references: Iterable[QueryReference], parts: Iterable[tuple[PartKey, Part]]
    ) -> Iterator[WrittenFile]:
        yield from self._write({key: part for (_, key), part in parts}, preconditioner, references)


@dataclasses.dataclass
class OnlyOutput(beam.PTransform):
    """The parts of one output; with `key`, the one of this key.

    In and out: (`PartKey`, `Part`).
    """

    output: str
    key: str | None = None

    def expand(self, parts: pvalue.PCollection[tuple[PartKey, Part]]) -> pvalue.PCollection[tuple[PartKey, Part]]:
        def is_wanted(element: tuple[PartKey, Part], output: str, key: str | None) -> bool:
            return element[0][0] == output and key in (None, element[0][1])

        only = beam.Filter(is_wanted, self.output, self.key).with_output_types(tuple[PartKey, Part])
        return collection(parts | "Only" >> only)


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
            of_output = collection(parts | f"Parts[{output.name}]" >> OnlyOutput(output.name))
            if output.by_part:
                write = beam.ParDo(_WritePartDoFn(self, output), *sides)
                files = of_output | f"Write[{output.name}]" >> write.with_output_types(WrittenFile)
            else:
                once = parts.pipeline | f"Once[{output.name}]" >> beam.Create([None], reshuffle=False)
                write = beam.ParDo(_WriteAllDoFn(self, output), *sides, pvalue.AsIter(of_output))
                files = once | f"Write[{output.name}]" >> write.with_output_types(WrittenFile)
            written.append(files)
        return collection(written | "Files" >> beam.Flatten(pipeline=parts.pipeline))
