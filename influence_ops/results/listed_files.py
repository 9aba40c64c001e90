"""The list of a run's result files: a Parquet table beside the manifest, which stays small however many there are."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.arrow_compute import pc

_ROWS = 10_000
LIST_BEGINNING = "files-"
_NAME = re.compile(rf"{LIST_BEGINNING}[0-9a-f]{{16}}\.parquet")

LISTED = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("source", pa.string()),  # these three: of an index, the input file that it is made from
        pa.field("source_bytes", pa.int64()),
        pa.field("source_sha256", pa.string()),
        pa.field("error", pa.float64()),  # of an index too: the largest relative error of its rows as they are stored
    ]
)
"""A row for each result file: its table, its path below the output folder, rows, bytes."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An input file that a result file was made from: its name, bytes, and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class WrittenFile:
    """A finished result file: its table, its path below the output folder, its rows and bytes, and its source where it is told.

    `error` is the largest relative error of its rows as they are stored, of an index's files.
    """

    table: str
    path: str
    rows: int
    size: int
    source: SourceFile | None = None
    error: float | None = None


def listed(written: Iterable[WrittenFile]) -> pa.Table:
    """The files as rows of `LISTED`, in their order."""
    tables, files = [LISTED.empty_table()], iter(written)
    while some := list(itertools.islice(files, _ROWS)):
        sources = [(None,) * 3 if file.source is None else dataclasses.astuple(file.source) for file in some]
        rows = ((file.table, file.path, file.rows, file.size, *source, file.error) for file, source in zip(some, sources, strict=True))
        tables.append(pa.table([list(column) for column in zip(*rows, strict=True)], schema=LISTED))
    return pa.concat_tables(tables)


def each_once(files: pa.Table) -> pa.Table:
    """Rows by their `path`, each path once: what was written twice was written over."""
    ordered = files.combine_chunks().sort_by("path")
    if len(ordered) < 2:
        return ordered
    paths = ordered["path"].combine_chunks()
    is_new = np.concatenate([[True], pc.not_equal(paths[1:], paths[:-1]).to_numpy(zero_copy_only=False)])
    return ordered if is_new.all() else ordered.filter(pa.array(is_new))


def to_parquet(files: pa.Table) -> tuple[str, bytes]:
    """The list as a Parquet file, and a name for it which has the SHA-256 of its content: none is ever written over."""
    sink = pa.BufferOutputStream()
    pq.write_table(files, sink, row_group_size=_ROWS, compression="zstd")
    data = sink.getvalue().to_pybytes()
    return f"{LIST_BEGINNING}{hashlib.sha256(data).hexdigest()[:16]}.parquet", data


def is_list_name(name: object) -> bool:
    """Whether a name is one that `to_parquet` gives."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def read_list(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    """The rows of a list, some thousands at a time.

    Raises:
      ValueError: it is damaged, or lists a file that is not below its table's folder.
    """
    stored = pq.ParquetFile(file)
    if not stored.schema_arrow.remove_metadata().equals(LISTED):
        raise ValueError(f"its columns are {', '.join(stored.schema_arrow.names)}")
    for rows in stored.iter_batches(_ROWS):
        check_listed(rows)
        yield rows


def check_listed(rows: pa.RecordBatch) -> None:
    """Refuses rows that can't be a run's.

    Raises:
      ValueError: a file is not below its table's folder, or has less than no rows or bytes.
    """
    if not all(map(_is_below, rows.column("table").to_pylist(), rows.column("path").to_pylist())):
        raise ValueError("it lists a file outside its table's folder")
    if any((pc.min(rows.column(name)).as_py() or 0) < 0 for name in ("rows", "bytes", "source_bytes", "error")):
        raise ValueError("a number in it is below 0")


def _is_below(table: str, path: str) -> bool:
    """Whether a path is that of a file in the table's folder, below the output folder."""
    parts = path.split("/")
    return len(parts) > 1 and parts[0] == table and not {"", ".", ".."} & set(parts) and "\\" not in path and "\0" not in path


def files_of(rows: pa.RecordBatch) -> Iterator[WrittenFile]:
    """The rows as they were given to `listed`."""
    for table, path, count, size, *source, error in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        yield WrittenFile(table, path, count, size, None if source[0] is None else SourceFile(*source), error)


def totals(files: pa.Table) -> dict[str, dict[str, int]]:
    """How many files, rows and bytes each table has."""
    summed = files.group_by("table").aggregate([("path", "count"), ("rows", "sum"), ("bytes", "sum")])
    columns = [summed[name].to_pylist() for name in ("table", "path_count", "rows_sum", "bytes_sum")]
    return {table: {"files": count, "rows": rows, "bytes": size} for table, count, rows, size in sorted(zip(*columns, strict=True))}
