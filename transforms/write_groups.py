"""The tables of what is summed over groups as Parquet: one file, or several where the sums are large."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam import pvalue

from beam_influence.influence_ops.results.result_files import write_table
from beam_influence.influence_ops.scoring.outputs.base import CombinedOutput, OutputOptions
from beam_influence.influence_ops.scoring.scores import QueryArray
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.bundle_outputs import open_scoring
from beam_influence.transforms.elements import Bucket, GroupBlock, QueryReference, WrittenFile
from beam_influence.transforms.files import BeamFiles
from beam_influence.transforms.group_blocks import MergeGroups, open_groups
from beam_influence.transforms.open_model import ModelSpec
from beam_influence.transforms.rounds import in_turn
from beam_influence.transforms.statistic_parts import FILE_BYTES
from beam_influence.transforms.typed import collection, run_once

_File = tuple[int, tuple[GroupBlock, ...]]


class _PlanDoFn(beam.DoFn):
    def __init__(self, most: int):
        self._most = most

    def process(self, _: None, blocks: Iterable[tuple[Bucket, GroupBlock]]) -> Iterator[_File]:
        """The blocks of each file; one file without any where there are no groups."""
        known = [block for _, block in sorted(blocks, key=lambda element: (element[0], element[1].saved.digest))]
        of_block = in_turn([block.size for block in known], self._most)
        for number in range(max(of_block, default=0) + 1):
            yield number, tuple(block for block, file in zip(known, of_block, strict=True) if file == number)


class _WriteDoFn(beam.DoFn):
    def __init__(self, wanted: WriteGroups):
        self._folder = wanted.output
        self._of = wanted.of
        self._options = wanted.options
        self._model = wanted.model

    def process(self, element: _File, preconditioner: Broadcast, references: Iterable[QueryReference]) -> Iterator[WrittenFile]:
        number, blocks = element
        needs: tuple[QueryArray, ...] = ("gradients",) if self._options.second_order_groups else ()
        scoring = open_scoring(self._options, preconditioner, references, self._model, needs)
        parts = open_groups(blocks, self._of.create(scoring))
        for table, _, rows in self._of.finish(parts, scoring):
            schema, rows = self._options.schema(self._of.tables[table]), self._options.written(rows)
            yield write_table(self._folder, table, f"part-{number:05d}", schema, rows, scoring.facts, BeamFiles())


@dataclasses.dataclass
class WriteGroups(beam.PTransform):
    """Writes the tables of an output that is summed over groups, rows of each file by group.

    Args:
      output: the folder of the results.
      of: what is written.
      options: what is asked for.
      preconditioner, queries: the operator and the query blocks.
      model: the model.
      work: a folder for temporary files that all workers reach.
      most: the bytes of sums that a worker may hold; those of a file are 32 MB at most.

    In: (`Bucket`, `GroupBlock`), to be added up. Out: `WrittenFile`.
    """

    output: str
    of: CombinedOutput
    options: OutputOptions
    preconditioner: pvalue.PCollection[Broadcast]
    queries: pvalue.PCollection[QueryReference]
    model: ModelSpec
    work: str
    most: int

    def expand(self, sums: pvalue.PCollection[tuple[Bucket, GroupBlock]]) -> pvalue.PCollection[WrittenFile]:
        blocks = collection(sums | MergeGroups(self.work, self.most))
        plan = _PlanDoFn(min(self.most, FILE_BYTES))  # a table of influence takes eight times its sums
        planned = run_once(sums.pipeline, "Plan", plan, _File, pvalue.AsIter(blocks))
        sides = (pvalue.AsSingleton(self.preconditioner), pvalue.AsIter(self.queries))
        write = beam.ParDo(_WriteDoFn(self), *sides).with_output_types(WrittenFile)
        return collection(planned | "Spread" >> beam.Reshuffle() | "Write" >> write)  # several workers write large sums
