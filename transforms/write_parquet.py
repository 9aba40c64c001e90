"""Parquet files that are complete or absent, with the run's facts in their metadata."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influence_ops import schemas
from transforms.elements import WrittenFile
from transforms.files import BeamFiles, join

_ROWS_IN_A_GROUP = 1 << 17


class ParquetFile:
    """One result file, written table by table in bounded memory; it appears when it is closed.

    Args:
      output: the output folder.
      table: a name of `schemas.TABLES`, also the folder.
      name: the file's name without `.parquet`, the same on every try, so that a retry replaces it.
      facts: written as the schema's metadata.
    """

    def __init__(self, output: str, table: str, name: str, facts: Mapping[str, Any]):
        self.table = table
        self.path = f"{table}/{name}.parquet"
        self._full_path = join(output, table, f"{name}.parquet")
        self._schema = schemas.with_facts(schemas.TABLES[table], facts)
        self._stack = contextlib.ExitStack()
        self._waiting: list[pa.Table] = []
        self._rows_waiting = 0
        self._rows = 0
        self._file = self._stack.enter_context(BeamFiles().open_write(self._full_path))
        self._sink = pa.PythonFile(self._file, mode="w")
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Adds rows."""
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        if self._rows_waiting >= _ROWS_IN_A_GROUP:
            self._flush()

    def close(self) -> WrittenFile:
        """Finishes the file and puts it in its place."""
        self._flush()
        self._writer.close()
        size = self._sink.tell()
        self._stack.close()
        return WrittenFile(self.table, self.path, self._rows, size)

    def abandon(self) -> None:
        """Leaves nothing behind."""
        with contextlib.suppress(_Abandoned):
            with self._stack:
                raise _Abandoned

    def _flush(self) -> None:
        if self._waiting:
            whole = pa.concat_tables(self._waiting).replace_schema_metadata(self._schema.metadata)
            self._writer.write_table(whole, row_group_size=max(whole.num_rows, 1))
            self._rows += whole.num_rows
        self._waiting, self._rows_waiting = [], 0


class _Abandoned(Exception):
    """Unwinds the open file as an error would."""


def write_table(output: str, table: str, name: str, content: pa.Table, facts: Mapping[str, Any]) -> WrittenFile:
    """Writes one whole table as one file with one row group."""
    file = ParquetFile(output, table, name, facts)
    try:
        file.write(content)
        return file.close()
    except BaseException:
        file.abandon()
        raise
