"""In: files opened by the caller. Out: batches of decoded examples, and the rows that can't be used with their reason.

The table of readers, and how a file's format is found out.
"""

from __future__ import annotations

from typing import BinaryIO

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
from beam_influence.influence_ops.reading import array_record
from beam_influence.influence_ops.reading.array_record import ArrayRecordReader
from beam_influence.influence_ops.reading.arrow import CONTINUATION, FILE_MAGIC, ArrowReader
from beam_influence.influence_ops.reading.avro import MAGIC, AvroReader
from beam_influence.influence_ops.reading.csv import CsvReader
from beam_influence.influence_ops.reading.parquet import ParquetReader
from beam_influence.influence_ops.reading.reader import Reader as Reader
from beam_influence.influence_ops.reading.reader import RowError as RowError
from beam_influence.influence_ops.reading.reader import Rows as Rows
from beam_influence.influence_ops.reading.reader import Span as Span
from beam_influence.influence_ops.reading.tfrecord import ExampleReader, SequenceExampleReader

READERS: dict[str, type[Reader]] = {
    reader.name: reader
    for reader in (ExampleReader, SequenceExampleReader, ParquetReader, CsvReader, ArrowReader, AvroReader, ArrayRecordReader)
}

_SUFFIXES = {".parquet": ParquetReader.name, ".pq": ParquetReader.name, ".csv": CsvReader.name, ".tsv": CsvReader.name}
_SUFFIXES |= {".avro": AvroReader.name, ".arrow": ArrowReader.name, ".feather": ArrowReader.name}
_SUFFIXES |= {".array_record": ArrayRecordReader.name, ".arrayrecord": ArrayRecordReader.name}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def detect_format(path: str, file: BinaryIO) -> str:
    """The format by the path's suffix, else by the first bytes; TFRecord of tf.Example where neither tells."""
    lower = path.lower()
    for suffix in _COMPRESSED:
        lower = lower.removesuffix(suffix)
    for suffix, name in _SUFFIXES.items():
        if lower.endswith(suffix):
            return name
    start = file.read(len(FILE_MAGIC))
    magics = {b"PAR1": ParquetReader, MAGIC: AvroReader, FILE_MAGIC: ArrowReader, CONTINUATION: ArrowReader}
    magics[array_record.MAGIC] = ArrayRecordReader
    return next((reader.name for magic, reader in magics.items() if start.startswith(magic)), ExampleReader.name)
