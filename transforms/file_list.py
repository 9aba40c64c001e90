"""The files of a split, in columns: 10⁶ of them take some 150 MB, and what a job's graph holds of them is a path."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results.listed_files import each_once
from beam_influence.transforms.dataset_folders import files_of_folder
from beam_influence.transforms.elements import FileBlock, ReadLimit, Shard, digits_of
from beam_influence.transforms.files import BeamFiles, FoundFile, common_folder, find_files, join

MAX_FILES = 2_000_000
"""Of a split, and of its shards: one worker holds the list of result files while it is written, some 100 bytes for each."""
IN_A_BLOCK = 10_000
"""Files in a block, which one worker reads at once."""
_SCHEMA = pa.schema(
    [
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("name", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modified", pa.float64(), nullable=False),
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("parts", pa.int64(), nullable=False),
        pa.field("known", pa.string(), nullable=False),
    ]
)
_MOST_FOLDERS = 16  # each is looked at, so that lists of many files are not
_FOUND = pa.schema([_SCHEMA.field(name) for name in ("path", "size", "modified")])


class FileList(Sequence[Shard]):
    """The files of one split, as shards that are made when they are asked for.

    Args:
      split: `train` or `test`.
      table: a row for each, its columns those attributes of `Shard` that differ.
      limit: how much of each is read; None: all.
    """

    def __init__(self, split: str, table: pa.Table, limit: ReadLimit | None = None):
        self.split = split
        self.limit = limit
        self.table = table.combine_chunks()
        self.digits = digits_of(1 + (pc.max(table["ordinal"]).as_py() if len(table) else 0))

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> FileList:
        """Whole files as a list of this kind."""
        if isinstance(shards, FileList):
            return shards
        columns = [[getattr(shard, name) for shard in shards] for name in _SCHEMA.names]
        split, limit = (shards[0].split, shards[0].limit) if shards else ("", None)
        return cls(split, pa.table(columns, schema=_SCHEMA), limit)

    @classmethod
    def found(cls, split: str, table: pa.Table, names: pa.Array | pa.ChunkedArray) -> FileList:
        """Files with these names, numbered as they are."""
        count = len(table)
        columns = {**dict(zip(table.column_names, table.columns, strict=True)), "name": names, "ordinal": np.arange(count)}
        columns |= {"parts": np.ones(count, np.int64), "known": pa.repeat("", count)}
        return cls(split, pa.table([columns[name] for name in _SCHEMA.names], schema=_SCHEMA))

    def with_columns(self, **columns: Any) -> FileList:
        """The list with other values of some columns."""
        table = self.table
        for name, values in columns.items():
            place = _SCHEMA.get_field_index(name)
            array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
            table = table.set_column(place, _SCHEMA.field(place), array.cast(_SCHEMA.field(place).type))
        return FileList(self.split, table, self.limit)

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> FileList: ...
    def __getitem__(self, index: int | slice) -> Shard | FileList:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            rows = self.table.slice(start, max(stop - start, 0)) if step == 1 else self.table.take(np.arange(start, stop, step))
            return FileList(self.split, rows, self.limit)
        row = range(len(self))[index]
        return next(self._shards(self.table.slice(row, 1).to_batches()[0]))

    def __iter__(self) -> Iterator[Shard]:
        return itertools.chain.from_iterable(map(self._shards, self.table.to_batches(IN_A_BLOCK)))

    def _shards(self, rows: pa.RecordBatch) -> Iterator[Shard]:
        return _shards(rows, self.split, self.digits, self.limit)

    @property
    def total_bytes(self) -> int:
        """The bytes of all files."""
        return pc.sum(self.table["size"]).as_py() or 0

    @property
    def largest(self) -> int:
        """The bytes of the largest file."""
        return pc.max(self.table["size"]).as_py() or 0

    def digest(self) -> str:
        """SHA-256 over paths, names, sizes and times of change."""
        digest = hashlib.sha256()
        for batch in self.table.select(["path", "name", "size", "modified"]).to_batches(IN_A_BLOCK):
            digest.update(repr(batch.to_pydict()).encode())
        return digest.hexdigest()

    def longest_first(self) -> FileList:
        """The list by size, then as it was."""
        order = np.argsort(-self.table["size"].to_numpy(), kind="stable")
        return self if (np.diff(order) > 0).all() else FileList(self.split, self.table.take(order), self.limit)

    def publish(self, folder: str) -> list[FileBlock]:
        """Writes the list below `folder`; returns its blocks. The file's name has the SHA-256 of its content."""
        sink = pa.BufferOutputStream()
        pq.write_table(self.table, sink, row_group_size=IN_A_BLOCK, compression="zstd")
        data = sink.getvalue().to_pybytes()
        path = join(folder, f"{self.split}-{hashlib.sha256(data).hexdigest()[:16]}.parquet")
        BeamFiles().write(path, data)
        return [FileBlock(path, number, self.split, self.digits, self.limit) for number in range(-(-len(self) // IN_A_BLOCK))]


def read_block(block: FileBlock) -> Iterator[Shard]:
    """The files of a block."""
    with BeamFiles().open_read(block.path) as file:
        rows = pq.ParquetFile(file).read_row_group(block.number)
    for batch in rows.to_batches():
        yield from _shards(batch, block.split, block.digits, block.limit)


def _shards(rows: pa.RecordBatch, split: str, digits: int, limit: ReadLimit | None) -> Iterator[Shard]:
    names = rows.schema.names
    for values in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        yield Shard(split, digits=digits, limit=limit, **dict(zip(names, values, strict=True)))


def list_shards(split: str, patterns: list[str]) -> FileList:
    """The files of a split, matched once before the pipeline starts, so that every pass sees the same ones; by path, each once.
    Up to 16 patterns may be folders of data sets; see `files_of_folder`.

    Raises:
      ValueError: a pattern matches nothing, or more than `MAX_FILES`.
    """
    if len(patterns) <= _MOST_FOLDERS:
        patterns = [found for pattern in patterns for found in files_of_folder(split, pattern)]
    table = _by_path(split, find_files(patterns))
    paths = table["path"]
    base = common_folder([paths[0].as_py(), paths[-1].as_py()])  # of the first and the last is of all between them
    return FileList.found(split, table, pc.utf8_slice_codeunits(paths, len(base)))


def _by_path(split: str, found: Iterable[FoundFile]) -> pa.Table:
    parts, waiting, files = [_FOUND.empty_table()], 0, iter(found)
    while block := list(itertools.islice(files, IN_A_BLOCK)):
        try:
            columns = [[file.path for file in block], [file.size for file in block], [float(file.modified) for file in block]]
            parts.append(pa.table(columns, schema=_FOUND))
        except UnicodeEncodeError as error:
            raise ValueError(f"--{split}: the name {error.object!r} is not UTF-8; rename the file") from error
        waiting += len(block)
        if waiting > 2 * MAX_FILES:  # several patterns may match the same
            parts = [_each_once(parts, split)]
            waiting = len(parts[0])
    return _each_once(parts, split)


def _each_once(parts: list[pa.Table], split: str) -> pa.Table:
    """The files by path.

    Raises:
      ValueError: they are more than `MAX_FILES`.
    """
    table = each_once(pa.concat_tables(parts))
    if len(table) > MAX_FILES:
        raise ValueError(f"--{split} matches {len(table):,} files, more than {MAX_FILES:,}; write the examples to fewer, larger files")
    return table


def part_bytes(shards: Sequence[Shard], shard_bytes: int) -> int:
    """What the parts of these files are at most, so that there are about `MAX_FILES` of them: `shard_bytes`, or more."""
    free = MAX_FILES - len(shards) + 1
    return max(shard_bytes, -(-FileList.of(shards).total_bytes // free))
