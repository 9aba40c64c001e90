"""TFRecord files of tf.Example or tf.SequenceExample, through tfx-bsl and Arrow."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import tensorflow as tf
from tensorflow_metadata.proto.v0 import schema_pb2 as _schema_pb2
from tfx_bsl.coders import example_coder, sequence_example_coder

from beam_influence.influence_ops.reading.features import RECORD, SCHEMA_TYPES, Description, Feature, Kind, Stored, most_common
from beam_influence.influence_ops.reading.reader import WHOLE, Reader, RowError, Rows, Span, spans
from beam_influence.influence_ops.reading.tfrecord_framing import DamagedRecord, compression_of_records, find_records, read_records

_KINDS: dict[str, Kind] = {"float_list": "float", "int64_list": "int", "bytes_list": "bytes"}
schema_pb2: Any = _schema_pb2  # generated: type checkers see no names in it
_SEQUENCES = "##SEQUENCES##"


class TFRecordReader(Reader):
    """The shared part: framing, and the search for the malformed records of a batch."""

    converts: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    message_name: ClassVar[str]

    def __init__(self, features: Sequence[Feature]):
        super().__init__(features)
        self._decoder = self._make_decoder()

    @abc.abstractmethod
    def _make_decoder(self) -> Any:
        """A tfx-bsl decoder of the features."""

    @classmethod
    @abc.abstractmethod
    def _describe_record(cls, record: bytes) -> Description:
        """The features of one record."""

    @classmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        described = []
        for record in itertools.islice(read_records(file), rows):
            if isinstance(record, bytes):
                try:
                    described.append(cls._describe_record(record))
                except Exception:  # protobuf's DecodeError; such a record is rejected when it is read
                    continue
        return most_common(described)

    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        records: list[bytes] = []
        positions: list[int] = []
        rejected: list[RowError] = []
        for index, record in enumerate(read_records(file, span.start, span.stop), span.first):
            if isinstance(record, DamagedRecord):
                rejected.append(RowError(index, "read", record.error, str(record)))
            else:
                records.append(record)
                positions.append(index)
            if len(records) + len(rejected) >= size:
                yield self._rows(records, positions, rejected)
                records, positions, rejected = [], [], []
        if records or rejected:
            yield self._rows(records, positions, rejected)

    def pick(self, file: BinaryIO, positions: Sequence[int]) -> Iterator[Rows]:
        """As of `Reader`: headers alone are read up to each record, and of a compressed file no other record is decoded."""
        wanted = set(positions)
        last = max(wanted, default=-1)
        places = [(index, start) for index, start in enumerate(itertools.islice(find_records(file), last + 1)) if index in wanted]
        file.seek(0)
        if places or not compression_of_records(file.read(12)):
            records = ((index, next(read_records(file, start))) for index, start in places)
        else:
            file.seek(0)
            records = enumerate(itertools.islice(read_records(file), last + 1))
        for index, record in records:
            if index in wanted and isinstance(record, bytes):
                rows = self._rows([record], [index], [])
                if len(rows.positions):
                    yield rows

    @classmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        starts = [(0, 0)]  # nothing is found in a compressed file
        for index, start in enumerate(find_records(file)):
            if start - starts[-1][1] >= size:
                starts.append((index, start))
        return spans(starts)

    def _rows(self, records: list[bytes], positions: list[int], rejected: list[RowError]) -> Rows:
        try:
            table = self._decode(records)
        except Exception:
            good = []
            for row, record in enumerate(records):
                try:
                    self._decode([record])
                    good.append(row)
                except Exception as error:
                    # tfx-bsl raises RuntimeError or ValueError with the reason on its first line.
                    reason = str(error).splitlines()[0] if str(error) else repr(error)
                    message = f"not a {self.message_name} with the features' types: {reason}"
                    rejected = [*rejected, RowError(positions[row], "decode", "not_an_example", message)]
            records, positions = [records[row] for row in good], [positions[row] for row in good]
            table = self._decode(records)
        table = self._flat(table)
        if any(feature.name == RECORD for feature in self.features) and records:
            table = table.append_column(RECORD, pa.array(records, pa.large_binary()))
        return Rows(table, np.array(positions, dtype=np.int64), rejected)

    def _decode(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """The records by feature. After an error tfx-bsl's decoder holds half of them: it is made anew."""
        if not records:
            return pa.RecordBatch.from_pylist([], schema=pa.schema([]))
        try:
            return self._decoder.DecodeBatch(list(records))
        except Exception:
            self._decoder = self._make_decoder()
            raise

    def _flat(self, table: pa.RecordBatch) -> pa.RecordBatch:
        """The table with a column for each feature."""
        return table


class ExampleReader(TFRecordReader):
    """tf.Example: every feature is a flat list."""

    name: ClassVar[str] = "tfrecord"
    expects: ClassVar[str] = "TFRecord files (plain, gzip, zlib, zstd, bz2 or xz) of serialized tf.Example"
    message_name: ClassVar[str] = "tf.Example"
    has_records: ClassVar[bool] = True

    def _make_decoder(self) -> Any:
        schema = schema_pb2.Schema()
        for feature in self.features:
            if feature.name != RECORD:
                schema.feature.add(name=feature.name, type=SCHEMA_TYPES[feature.kind])
        return example_coder.ExamplesToRecordBatchDecoder(schema.SerializeToString())

    @classmethod
    def _describe_record(cls, record: bytes) -> Description:
        return _describe(tf.train.Example.FromString(record).features)


class SequenceExampleReader(TFRecordReader):
    """tf.SequenceExample: context features are flat lists, sequence features lists of T steps."""

    name: ClassVar[str] = "sequence_example"
    expects: ClassVar[str] = "TFRecord files (plain, gzip, zlib, zstd, bz2 or xz) of serialized tf.SequenceExample"
    message_name: ClassVar[str] = "tf.SequenceExample"

    def _make_decoder(self) -> Any:
        schema = schema_pb2.Schema()
        for feature in self.features:
            if feature.stored is None:
                schema.feature.add(name=feature.name, type=SCHEMA_TYPES[feature.kind])
        sequences = [feature for feature in self.features if feature.stored is not None]
        if sequences:
            struct = schema.feature.add(name=_SEQUENCES, type=schema_pb2.STRUCT)
            for feature in sequences:
                struct.struct_domain.feature.add(name=feature.name, type=SCHEMA_TYPES[feature.kind])
        return sequence_example_coder.SequenceExamplesToRecordBatchDecoder(_SEQUENCES, schema.SerializeToString())

    def _flat(self, table: pa.RecordBatch) -> pa.RecordBatch:
        index = table.schema.get_field_index(_SEQUENCES)
        if index < 0:
            return table
        sequences = table.column(index)
        names = [field.name for field in sequences.type] if pa.types.is_struct(sequences.type) else []
        columns = {name: table.column(position) for position, name in enumerate(table.schema.names) if position != index}
        # flatten() carries the struct's own nulls into its fields.
        columns.update(zip(names, sequences.flatten(), strict=True) if names else ())
        return pa.RecordBatch.from_pydict(columns)

    @classmethod
    def _describe_record(cls, record: bytes) -> Description:
        example = tf.train.SequenceExample.FromString(record)
        found = dict(_describe(example.context))
        for name, steps in example.feature_lists.feature_list.items():
            kinds = [step.WhichOneof("kind") for step in steps.feature]
            if kinds and kinds[0] is not None:
                found[name] = Stored(_KINDS[kinds[0]], (len(kinds), len(getattr(steps.feature[0], kinds[0]).value)))
        return found


def _describe(features: Any) -> Description:
    found = {}
    for name, feature in features.feature.items():
        which = feature.WhichOneof("kind")
        if which is not None:
            found[name] = Stored(_KINDS[which], (len(getattr(feature, which).value),))
    return found
