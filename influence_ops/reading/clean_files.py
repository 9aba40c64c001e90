"""A file of training examples without the suspicious ones, or with less weight on them; in the format it came in."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from beam_influence.influence_ops.reading.tfrecord_framing import DamagedRecord, compression_of_records, read_records, write_records

REWRITTEN = ("tfrecord", "sequence_example", "parquet")
"""The formats that a file can be rewritten in."""
_ROWS = 1 << 14


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """What is done to suspicious examples.

    Attributes:
      weight: None drops them; a number from 0 to 1 multiplies their weight, and every example then has one.
      weight_feature: the float feature with the weights; an example without it has 1.

    Raises:
      ValueError: the weight is not from 0 to 1, or no feature is named.
    """

    weight: float | None = None
    weight_feature: str = "weight"

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"weight {self.weight} must be from 0 to 1; leave it out to drop the suspicious examples")
        if not self.weight_feature:
            raise ValueError("weight_feature '' must name a feature")


class Cleaned(NamedTuple):
    """What became of one file: examples read, those among them that were suspicious, and records too damaged to be kept."""

    examples: int
    suspicious: int
    damaged: int


def clean_file(data_format: str, source: BinaryIO, target: BinaryIO, suspicious: np.ndarray, cleaning: Cleaning) -> Cleaned:
    """Writes the examples of one file to another of the same format and compression, in order.

    Args:
      data_format: `tfrecord`, `sequence_example` (both plain or gzip) or `parquet`.
      source: a seekable file at its start.
      target: where the file is written.
      suspicious: (N,) bool, for every record of the file.
      cleaning: what is done.

    Raises:
      ValueError: the file has not N records, or can't be rewritten.
    """
    if data_format not in REWRITTEN:
        raise ValueError(f"files of the format {data_format} can't be rewritten, only {', '.join(REWRITTEN)}")
    if data_format == "parquet":
        return _clean_parquet(source, target, suspicious, cleaning)
    start = source.read(12)
    source.seek(0)
    damaged = [0]
    records = _kept_records(data_format, source, suspicious, cleaning, damaged)
    compression = compression_of_records(start)
    if compression not in ("", "gzip"):
        raise ValueError(f"the file is compressed by {compression}, which is read but not written here; compress it by gzip, or not at all")
    if compression:
        # No time and no name in the header: the same examples give the same bytes.
        with gzip.GzipFile(filename="", fileobj=target, mode="wb", mtime=0) as stream:
            write_records(cast(BinaryIO, stream), records)
    else:
        write_records(target, records)
    return Cleaned(len(suspicious), int(suspicious.sum()), damaged[0])


def _kept_records(
    data_format: str, source: BinaryIO, suspicious: np.ndarray, cleaning: Cleaning, damaged: list[int]
) -> Iterator[bytes]:
    count = 0
    for count, record in enumerate(read_records(source), 1):
        if count > len(suspicious):
            raise _wrong_count(f"more than {len(suspicious):,}", suspicious)
        is_suspicious = bool(suspicious[count - 1])
        if isinstance(record, DamagedRecord):
            damaged[0] += 1
        elif cleaning.weight is not None:
            yield _weighted(data_format, record, cleaning.weight if is_suspicious else 1.0, cleaning.weight_feature)
        elif not is_suspicious:
            yield record
    if count < len(suspicious):
        raise _wrong_count(f"{count:,}", suspicious)


def _weighted(data_format: str, record: bytes, factor: float, name: str) -> bytes:
    example: Any = tf.train.SequenceExample() if data_format == "sequence_example" else tf.train.Example()
    try:
        example.ParseFromString(record)
    except Exception:  # protobuf's DecodeError: not an example, so it was rejected, and stays what it is
        return record
    features = example.context if data_format == "sequence_example" else example.features
    stored = features.feature[name]
    kind = stored.WhichOneof("kind")
    if kind == "bytes_list":
        raise ValueError(f"the feature {name!r} holds bytes, not weights; name another weight_feature")
    values = list(getattr(stored, kind).value) if kind else []
    stored.float_list.value[:] = [value * factor for value in values or [1.0]]
    # The order of a map's entries is not fixed otherwise.
    return example.SerializeToString(deterministic=True)


def _clean_parquet(source: BinaryIO, target: BinaryIO, suspicious: np.ndarray, cleaning: Cleaning) -> Cleaned:
    if not source.read(1):  # an empty file has no rows, as in the other formats
        return Cleaned(0, 0, 0)
    source.seek(0)
    try:
        file = pq.ParquetFile(source)
    except pa.ArrowException as error:
        raise ValueError(f"the Parquet file is damaged and can't be rewritten: {error}") from error
    if file.metadata.num_rows != len(suspicious):
        raise _wrong_count(f"{file.metadata.num_rows:,}", suspicious)
    schema = file.schema_arrow
    if cleaning.weight is not None:
        schema = _weighted_schema(schema, cleaning.weight_feature)
    codec = file.metadata.row_group(0).column(0).compression.lower() if file.metadata.num_row_groups else "snappy"
    starts = itertools.count(0, _ROWS)
    with pq.ParquetWriter(target, schema, compression=codec.replace("uncompressed", "none")) as writer:
        for start, rows in zip(starts, file.iter_batches(_ROWS), strict=False):
            of_rows = suspicious[start : start + rows.num_rows]
            table = pa.Table.from_batches([rows])
            if cleaning.weight is None:
                writer.write_table(table.filter(pa.array(~of_rows)))
            else:
                factors = np.where(of_rows, cleaning.weight, 1.0)
                writer.write_table(_weighted_table(table, schema, factors, cleaning.weight_feature))
    return Cleaned(len(suspicious), int(suspicious.sum()), 0)


def _weighted_schema(schema: pa.Schema, name: str) -> pa.Schema:
    index = schema.get_field_index(name)
    if index < 0:
        return schema.append(pa.field(name, pa.float32()))
    kind = schema.field(index).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"the column {name!r} holds {kind}, not weights; name another weight_feature")
    return schema.set(index, pa.field(name, kind if pa.types.is_floating(kind) else pa.float32()))


def _weighted_table(table: pa.Table, schema: pa.Schema, factors: np.ndarray, name: str) -> pa.Table:
    if name in table.column_names:
        factors = factors * table.column(name).cast(pa.float64()).fill_null(1.0).to_numpy()
    columns = [
        pa.chunked_array([pa.array(factors, field.type)]) if field.name == name else table.column(field.name) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _wrong_count(found: str, suspicious: np.ndarray) -> ValueError:
    return ValueError(f"the file has {found} records, but {len(suspicious):,} were scored or rejected: the scores are of other files")
