"""In: files opened by the caller. Out: batches of decoded examples, and the rows that can't be used with their reason.

The table of readers, and how a file's format is found out.
"""

from __future__ import annotations

from typing import BinaryIO

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
from beam_influence.influence_ops.reading.csv import CsvReader
from beam_influence.influence_ops.reading.parquet import ParquetReader
from beam_influence.influence_ops.reading.reader import Reader as Reader
from beam_influence.influence_ops.reading.reader import RowError as RowError
from beam_influence.influence_ops.reading.reader import Rows as Rows
from beam_influence.influence_ops.reading.reader import Span as Span
from beam_influence.influence_ops.reading.tfrecord import ExampleReader, SequenceExampleReader

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
