"""The tables of several finished runs as one: file by file, the rows of all members side by side."""

from __future__ import annotations

import dataclasses
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam import pvalue

from beam_influence.influence_ops.ensemble.mean_rows import AVERAGED, mean_rows, mean_schema, side_by_side
from beam_influence.influence_ops.ensemble.ranked_rows import RankedRows, ranked_schema
from beam_influence.influence_ops.results.result_files import (
    ParquetFile,
    iterate_table,
    list_batches,
    read_facts,
    read_manifest,
    write_manifest,
    write_table,
)
from beam_influence.transforms.elements import FILES, PARTS, ListedFiles, WrittenFile, at_end_of_bundle, digits_of
from beam_influence.transforms.files import BeamFiles, join
from beam_influence.transforms.merging import PartsCombineFn
from beam_influence.transforms.typed import collection, outputs, run_once
from beam_influence.transforms.write_manifest import ListFiles, read_lists

KEPT = "rejected"
"""The table that is the first member's: all have rejected the same training examples, else their scores would differ in rows."""
_ROWS = 1 << 16  # of each member at once: some 4 MB of ids and scores
_ROWS_IN_A_BUCKET = 500_000


@dataclasses.dataclass(frozen=True)
class MemberTable:
    """One file of a table, which every member has: the table, and the path below a member's folder."""

    table: str
    path: str


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How an ensemble's `top_k` is made.

    Attributes:
      k: how many training examples of each test point.
      descending: whether the most helpful come first.
      factor: half the width of a 90 % interval in standard errors.
      test_points: how many there are.
    """

    k: int
    descending: bool
    factor: float
    test_points: int

    @property
    def buckets(self) -> int:
        """In how many files the table is, each of test points that one worker holds."""
        return -(-self.test_points * (self.k + 1) // _ROWS_IN_A_BUCKET) or 1


def _listed(number: int, folder: str, tables: tuple[str, ...]) -> Iterator[MemberTable]:
    """The files in the batch of this number of a run's list."""
    manifest = read_manifest(folder, BeamFiles())
    for rows in itertools.islice(list_batches(folder, manifest, BeamFiles()), number, number + 1):
        for table, path in zip(rows.column("table").to_pylist(), rows.column("path").to_pylist(), strict=True):
            if table in tables:
                yield MemberTable(table, path)


class _AverageDoFn(beam.DoFn):
    def __init__(self, wanted: AverageRuns):
        self._members, self._output = wanted.members, wanted.output
        self._facts, self._ranking = dict(wanted.facts), wanted.ranking
        self._parts: dict[str, RankedRows] = {}

    def start_bundle(self) -> None:
        self._parts = {}

    def process(self, file: MemberTable) -> Iterator[pvalue.TaggedOutput]:
        paths = [join(folder, file.path) for folder in (self._members if file.table in AVERAGED else self._members[:1])]
        missing = next((path for path in paths if not BeamFiles().exists(path)), None)
        if missing is not None:
            raise ValueError(f"{paths[0]!r} has no counterpart {missing!r}: the runs read other files, or in other parts")
        with BeamFiles().open_read(paths[0]) as source:
            schema = pq.read_schema(source).remove_metadata()
        facts = {**read_facts(paths[0], BeamFiles()), **(self._facts if file.table in AVERAGED else {})}
        written = mean_schema(schema) if file.table in AVERAGED else schema
        name = file.path.partition("/")[2].removesuffix(".parquet")
        target = ParquetFile(self._output, file.table, name, written, facts, BeamFiles())
        try:
            for rows in self._rows(file, paths):
                target.write(rows)
            yield pvalue.TaggedOutput(FILES, target.close())
        except ValueError as error:
            target.abandon()
            raise ValueError(f"{file.path}: {error}; the runs are {', '.join(self._members)}") from error
        except BaseException:
            target.abandon()
            raise

    def _rows(self, file: MemberTable, paths: list[str]) -> Iterator[pa.Table]:
        members = [iterate_table(path, BeamFiles(), _ROWS) for path in paths]
        for tables in side_by_side(members):
            rows = mean_rows(tables) if file.table in AVERAGED else tables[0].replace_schema_metadata(None)
            if file.table == "scores" and self._ranking is not None:
                self._rank(rows, self._ranking)
            yield rows

    def _rank(self, rows: pa.Table, ranking: Ranking) -> None:
        encoded = rows["test_id"].combine_chunks().dictionary_encode()
        buckets = np.array([zlib.crc32(name.encode()) % ranking.buckets for name in encoded.dictionary.to_pylist()], np.int64)
        of_row = buckets[encoded.indices.to_numpy()]
        for bucket in np.unique(of_row).tolist():
            key = f"{bucket:0{digits_of(ranking.buckets)}d}"
            part = self._parts.setdefault(key, RankedRows(ranking.k, ranking.descending))
            part.add(rows if ranking.buckets == 1 else rows.filter(pa.array(of_row == bucket)))

    def finish_bundle(self) -> Iterator[pvalue.TaggedOutput]:
        for key, part in self._parts.items():
            yield pvalue.TaggedOutput(PARTS, at_end_of_bundle((key, part)))


class _WriteRankedDoFn(beam.DoFn):
    def __init__(self, wanted: AverageRuns):
        self._output, self._facts, self._ranking = wanted.output, dict(wanted.facts), wanted.ranking

    def process(self, ranked: tuple[str, RankedRows]) -> Iterator[WrittenFile]:
        key, part = ranked
        assert self._ranking is not None and part.rows is not None
        rows = part.finish(self._ranking.factor)
        yield write_table(self._output, "top_k", f"block-{key}", ranked_schema(part.rows.schema), rows, self._facts, BeamFiles())


@dataclasses.dataclass
class AverageRuns(beam.PTransform):
    """Writes the mean of each table's scores over the members, row by row, with its standard error; and the `top_k` of the mean.

    Args:
      members: the runs' folders, M ≥ 2.
      output: the folder of the results.
      tables: which tables.
      lists: how many batches the first run's list of files has.
      facts: what each file's metadata says beside what the first member's has.
      ranking: of `top_k`; None: it is not made.

    Out: `WrittenFile`.
    """

    members: tuple[str, ...]
    output: str
    tables: tuple[str, ...]
    lists: int
    facts: Mapping[str, Any]
    ranking: Ranking | None

    def expand(self, pbegin: pvalue.PBegin) -> pvalue.PCollection[WrittenFile]:
        list_files = beam.FlatMap(_listed, self.members[0], self.tables).with_output_types(MemberTable)
        files = pbegin | "Lists" >> beam.Create(range(self.lists)) | "ListMembers" >> list_files
        # A list is one element: without this, all of its files would be one worker's.
        files = files | "Reshuffle" >> beam.Reshuffle()
        types = {FILES: WrittenFile, PARTS: tuple[str, RankedRows]}
        average = beam.ParDo(_AverageDoFn(self)).with_output_types(type(None), **types).with_outputs(*types)
        averaged = outputs(files | "Average" >> average)
        written = collection(averaged[FILES])
        if self.ranking is None:
            return written
        write = beam.ParDo(_WriteRankedDoFn(self)).with_output_types(WrittenFile)
        ranked = averaged[PARTS] | "CombineParts" >> beam.CombinePerKey(PartsCombineFn()) | "WriteTopK" >> write
        return collection((written, ranked) | "All" >> beam.Flatten())


class _WriteDoFn(beam.DoFn):
    def __init__(self, output: str, content: Mapping[str, Any]):
        self._output, self._content = output, json.dumps(dict(content))

    def process(self, _: None, files: Iterable[ListedFiles]) -> Iterator[str]:
        yield write_manifest(self._output, pa.concat_tables(read_lists(files)), json.loads(self._content), BeamFiles())


@dataclasses.dataclass
class WriteEnsembleManifest(beam.PTransform):
    """Commits an ensemble.

    Args:
      output: the folder of the results.
      content: what the manifest tells beside its files.

    In: `WrittenFile`s, all of them. Out: the manifest's path.
    """

    output: str
    content: Mapping[str, Any]

    def expand(self, files: pvalue.PCollection[WrittenFile]) -> pvalue.PCollection[str]:
        lists = collection(files | "ListFiles" >> ListFiles())
        return run_once(files.pipeline, "Write", _WriteDoFn(self.output, self.content), str, pvalue.AsIter(lists))
