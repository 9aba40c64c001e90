"""Avro files of records, block by block; each field is a feature, and null is a missing value."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

import fastavro
import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.reading.arrow_features import describe_columns, select_columns
from beam_influence.influence_ops.reading.features import Description
from beam_influence.influence_ops.reading.reader import WHOLE, Reader, RowError, Rows, Span, spans

MAGIC = b"Obj\x01"


class AvroReader(Reader):
    """A row is a record, counted through the file's blocks."""

    name: ClassVar[str] = "avro"
    expects: ClassVar[str] = "Avro files of records"

    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        names = {feature.name for feature in self.features}
        fields = names | {name.partition(".")[0] for name in names}
        position, records = span.first, []
        try:
            for record in _records(file, span):
                records.append({name: record.get(name) for name in fields if name in record})
                if len(records) == size:
                    yield self._rows(records, position)
                    position, records = position + size, []
        except OSError:
            raise
        except Exception as error:  # fastavro raises what its decoder stumbles over
            lost = RowError(position + len(records), "read", "damaged_avro", _reason(error))
            yield self._rows(records, position, [lost])
            return
        if records:
            yield self._rows(records, position)

    def _rows(self, records: list[dict[str, Any]], first: int, rejected: list[RowError] | None = None) -> Rows:
        bad: dict[int, str] = {}
        columns = {name: _column(records, name, bad) for name in dict.fromkeys(name for record in records for name in record)}
        table = select_columns(_table(columns, len(records)), self.features)
        positions = np.arange(first, first + len(records))
        errors = [RowError(first + row, "decode", "wrong_type", message) for row, message in sorted(bad.items())]
        keep = np.setdiff1d(np.arange(len(records)), np.fromiter(bad, np.int64))
        return Rows(table.take(pa.array(keep)) if bad else table, positions[keep], [*errors, *(rejected or [])])

    @classmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        starts, first = [(0, 0)], 0
        try:
            for block in fastavro.block_reader(file):
                if first and block.offset - starts[-1][1] >= size:
                    starts.append((first, block.offset))
                first += block.num_records
        except OSError:
            raise
        except Exception:
            pass  # told when the last span is read
        return spans(starts)

    @classmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        records: list[Any] = []
        try:
            records += itertools.islice(_records(file, WHOLE), rows)
        except OSError:
            raise
        except Exception as error:
            if "need to install" in str(error):
                raise ValueError(f"{error}; or write the file with the codec deflate or null") from error
        columns = {name: _column(records, name, {}) for name in (records[0] if records else ())}
        return describe_columns(_table(columns, len(records))) if records else {}


def _records(file: BinaryIO, span: Span) -> Iterator[Mapping[str, Any]]:
    """The records of the blocks that begin within a span."""
    if not file.read(1):
        return  # an empty file has no rows, as in the other formats
    file.seek(0)
    blocks = fastavro.block_reader(file)  # reads the header
    if span.start:
        file.seek(span.start)
    for block in blocks:
        if span.stop is not None and block.offset >= span.stop:
            return
        for record in block:
            if not isinstance(record, dict):
                raise ValueError(f"it holds {type(record).__name__} values, not records")
            yield record


def _table(columns: Mapping[str, pa.Array], count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(dict(columns) or {"": pa.nulls(count)})


def _column(records: list[Any], name: str, bad: dict[int, str]) -> pa.Array:
    """A field of all records; where they differ in kind, as in a union, those of another than most are null and noted in `bad`."""
    values = [record.get(name) for record in records]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        pass
    kinds = [None if value is None else _kind(value) for value in values]
    most = Counter(kind for kind in kinds if kind is not None).most_common(1)[0][0]
    for row, kind in enumerate(kinds):
        if kind not in (None, most):
            bad.setdefault(row, f"feature {name!r} holds {kind}, most examples {most}")
    return pa.array([value if kind == most else None for value, kind in zip(values, kinds, strict=True)])


def _kind(value: Any) -> str:
    try:
        return str(pa.array([value]).type)
    except (pa.ArrowException, OverflowError):
        return f"a {type(value).__name__} that is no feature"


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return f"the Avro file is damaged or none: {text}; the rows from here to the end of its part are lost"
