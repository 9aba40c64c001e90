"""Parquet files: columns of scalars, lists, fixed-size lists or lists of lists, read row group by row group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.reading.arrow_features import describe_columns, has_column, select_columns
from beam_influence.influence_ops.reading.features import Description
from beam_influence.influence_ops.reading.reader import WHOLE, Reader, RowError, Rows, Span, spans

_ROWS = 256


class ParquetReader(Reader):
    """A row is a row of the file, counted through its row groups."""

    name: ClassVar[str] = "parquet"
    expects: ClassVar[str] = "Parquet files"

    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        if not file.seek(0, 2):
            return  # an empty file has no rows, as in the other formats
        file.seek(0)
        start, end = span.first, None
        try:
            parquet = pq.ParquetFile(file)
            groups = range(parquet.num_row_groups)[span.start : span.stop]
            end = start + sum(parquet.metadata.row_group(group).num_rows for group in groups)
            wanted = [feature.name for feature in self.features if has_column(parquet.schema_arrow, feature.name)]
            for table in self._batches(parquet, wanted, size, groups, end - start):
                yield Rows(select_columns(table, self.features), np.arange(start, start + table.num_rows), [])
                start += table.num_rows
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the storage failed, not the file's content
            last = "on" if span.stop is None else f"to the end of row group {span.stop - 1}"
            lost = f"the {end - start:,} rows from here {last} are" if end is not None else "all of it is"
            message = f"the Parquet file is damaged or none: {error}; {lost} lost"
            empty = pa.RecordBatch.from_pylist([], schema=pa.schema([]))
            yield Rows(empty, np.zeros(0, np.int64), [RowError(start, "read", "damaged_parquet", message)])

    def pick(self, file: BinaryIO, positions: Sequence[int]) -> Iterator[Rows]:
        """As of `Reader`: only row groups that have one of the rows are read."""
        try:
            metadata = pq.ParquetFile(file).metadata
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            return
        first = 0
        for group in range(metadata.num_row_groups):
            rows = range(first, first + metadata.row_group(group).num_rows)
            within = [position for position in positions if position in rows]
            if within:
                file.seek(0)
                yield from self._pick(self.read(file, min(len(rows), _ROWS), Span(first, group, group + 1)), within)
            first = rows.stop

    @classmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        try:
            metadata = pq.ParquetFile(file).metadata
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            return [WHOLE]
        of_row = file.seek(0, 2) / max(metadata.num_rows, 1)
        starts, first = [(0, 0)], 0
        for group in range(metadata.num_row_groups):
            if (first - starts[-1][0]) * of_row >= size:
                starts.append((first, group))
            first += metadata.row_group(group).num_rows
        return spans(starts)

    @staticmethod
    def _batches(parquet: Any, wanted: list[str], size: int, groups: range, rows: int) -> Iterator[pa.RecordBatch]:
        if wanted:
            yield from parquet.iter_batches(size, groups, wanted)
            return
        # No column that is wanted: the rows are still there, each to be rejected.
        for start in range(0, rows, size):
            yield pa.RecordBatch.from_pydict({"": pa.nulls(min(size, rows - start))})

    @classmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        try:
            parquet = pq.ParquetFile(file)
            tables = list(itertools.islice(parquet.iter_batches(rows), 1))
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            return {}
        if not tables or not tables[0].num_rows:
            return {}
        return describe_columns(tables[0])
