"""Input formats: the table of readers, and how a file's format is found out. Files are opened by the caller."""

from __future__ import annotations

from typing import BinaryIO

from influence_ops.readers.base import Reader as Reader
from influence_ops.readers.base import RowError as RowError
from influence_ops.readers.base import Rows as Rows
from influence_ops.readers.csv import CsvReader
from influence_ops.readers.parquet import ParquetReader
from influence_ops.readers.tfrecord import ExampleReader, SequenceExampleReader

READERS: dict[str, type[Reader]] = {
    reader.name: reader for reader in (ExampleReader, SequenceExampleReader, ParquetReader, CsvReader)
}

_SUFFIXES = {".parquet": ParquetReader.name, ".pq": ParquetReader.name, ".csv": CsvReader.name, ".csv.gz": CsvReader.name}


def detect_format(path: str, file: BinaryIO) -> str:
    """The format by the path's suffix, else by the first bytes; TFRecord of tf.Example where neither tells."""
    for suffix, name in _SUFFIXES.items():
        if path.lower().endswith(suffix):
            return name
    return ParquetReader.name if file.read(4) == b"PAR1" else ExampleReader.name
