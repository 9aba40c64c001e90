"""Decoded examples as a file that is read without being decoded: an Arrow IPC stream, uncompressed, a record batch for each batch.

An array [B, ...] is a column of B rows of bytes, as they lie in memory, so that a file that is mapped is not copied; text and bytes are
columns of their own kinds. The reasons of rejected rows stand beside their batch. The last record batch says that it is the last.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected, place_ids

_FACTS, _REJECTED, _END = b"beam_influence", b"rejected", b"end"
_WAITING = 10_000  # rejected rows before the first row that can be used
_TEXT = {"bytes": pa.large_binary(), "str": pa.large_string()}

ReadBatch = tuple[ExampleBatch, list[Rejected]]
"""A batch, and the rows that were rejected on the way to it."""


class NotKept(Exception):
    """These examples can't be kept as they are; the message says why."""


class _Column(NamedTuple):
    """What an array [B, ...] is: `bytes` or `str` of objects, else its dtype; and the shape of one example."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class DecodedWriter:
    """Writes the batches of one file in their order.

    Args:
      file: open for writing.
      with_ids: whether examples have ids of their own; else they are made of the file's name and their positions again.
      most_bytes: so many bytes of columns are written at most.
    """

    def __init__(self, file: BinaryIO, with_ids: bool, most_bytes: float = float("inf")):
        self._file = file
        self._with_ids = with_ids
        self._left = most_bytes
        self._columns: list[_Column] | None = None
        self._schema = pa.schema([])
        self._stream: ipc.RecordBatchStreamWriter | None = None
        self._waiting: list[Rejected] = []

    def add(self, batch: ExampleBatch, rejected: list[Rejected]) -> None:
        """Writes a batch.

        Raises:
          NotKept: its arrays are unlike those before it, or none that can be kept, or too many bytes.
        """
        self._waiting += rejected
        if not len(batch):
            if self._stream is not None:
                self._write([])
            elif len(self._waiting) > _WAITING:
                raise NotKept(f"the first {len(self._waiting):,} rows are all rejected")
            return
        arrays = _arrays(batch, self._with_ids)
        encoded = [_encode(name, array) for name, array in arrays.items()]
        columns = [column for column, _ in encoded]
        if self._stream is None:
            self._begin(batch, columns)
        elif columns != self._columns:
            raise NotKept(f"a batch has other arrays than those before it: {columns}, not {self._columns}")
        self._left -= sum(values.nbytes for _, values in encoded)
        if self._left < 0:
            raise NotKept("it takes more bytes than its share")
        self._write([values for _, values in encoded])

    def end(self, file: str) -> None:
        """Ends the file; nothing is a whole file before. `file`: the name of the examples' own."""
        if self._stream is None:
            self._begin(ExampleBatch(np.zeros(0, object), np.zeros(0), np.zeros(0), file=file), [])
        self._write([], {_END: b"1"})
        assert self._stream is not None
        self._stream.close()

    def _begin(self, batch: ExampleBatch, columns: list[_Column]) -> None:
        facts = {"columns": columns, "file": batch.file, "with_ids": self._with_ids}
        fields = [pa.field(column.name, _arrow_type(column)) for column in columns]
        self._schema = pa.schema(fields, metadata={_FACTS: json.dumps(facts).encode()})
        self._columns, self._stream = columns, ipc.new_stream(self._file, self._schema)

    def _write(self, values: list[pa.Array], more: Mapping[bytes, bytes] | None = None) -> None:
        assert self._stream is not None
        facts = dict(more or {})
        if self._waiting:
            facts[_REJECTED] = json.dumps([dataclasses.astuple(one) for one in self._waiting]).encode()
            self._waiting = []
        values = values or [pa.array([], kind) for kind in self._schema.types]
        self._stream.write_batch(pa.RecordBatch.from_arrays(values, schema=self._schema), custom_metadata=facts)


def read_decoded(source: pa.NativeFile | BinaryIO) -> Iterator[ReadBatch]:
    """What `DecodedWriter` wrote, bit for bit; arrays of a mapped file are parts of it, and can't be written to.

    Raises:
      ValueError: its end is missing.
    """
    with ipc.open_stream(source) as stream:
        facts = json.loads(stream.schema.metadata[_FACTS])
        columns = [_Column(name, dtype, tuple(shape)) for name, dtype, shape in facts["columns"]]
        while True:
            try:
                rows, said = stream.read_next_batch_with_custom_metadata()
            except (StopIteration, pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None) is not None:
                    raise  # the storage failed, not the file's content
                raise ValueError("a file of decoded examples is cut off; start the run again with --no-resume") from error
            told = dict(said or {})
            rejected = [Rejected(*one) for one in json.loads(told.get(_REJECTED, b"[]"))]
            is_end = _END in told
            if rows.num_rows or rejected:
                yield _batch(rows, columns, facts["file"], facts["with_ids"]), rejected
            if is_end:
                return


def _arrays(batch: ExampleBatch, with_ids: bool) -> dict[str, np.ndarray]:
    """The batch's arrays by name: `ids`, and `inputs` or `inputs/<name>`."""
    found: dict[str, np.ndarray] = {"ids": batch.ids} if with_ids else {}
    for part in ("inputs", "labels", "weights", "groups", "positions"):
        value = getattr(batch, part)
        if isinstance(value, Mapping):
            found |= {f"{part}/{name}": array for name, array in value.items()}
        elif isinstance(value, np.ndarray):
            found[part] = value
        elif value is not None:
            raise NotKept(f"{part} are a {type(value).__name__}")
    return found


def _batch(rows: pa.RecordBatch, columns: list[_Column], file: str, with_ids: bool) -> ExampleBatch:
    arrays = {column.name: _decode(rows.column(place), column) for place, column in enumerate(columns)}

    def of(part: str) -> np.ndarray | dict[str, np.ndarray]:
        named = {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{part}/")}
        return named or arrays.get(part, np.zeros(0))

    positions = arrays.get("positions", np.zeros(0, np.int64))
    ids = arrays["ids"] if with_ids and columns else place_ids(file, positions)
    return ExampleBatch(ids, of("inputs"), of("labels"), arrays.get("weights"), arrays.get("groups"), positions, file)


def _encode(name: str, array: np.ndarray) -> tuple[_Column, pa.Array]:
    shape = array.shape[1:]
    if array.dtype.hasobject:
        flat = array.reshape(-1).tolist()
        kind = type(flat[0]).__name__
        if kind not in _TEXT or any(type(value) is not type(flat[0]) for value in flat):
            raise NotKept(f"{name} are objects of the kind {kind}")
        column = _Column(name, kind, shape)
        try:
            values = pa.array(flat, _TEXT[kind])
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise NotKept(f"{name}: {error}") from error
        return column, _in_rows(values, column)
    column = _Column(name, array.dtype.str, shape)
    if np.dtype(column.dtype) != array.dtype or not array.size:
        raise NotKept(f"{name} are arrays of {array.dtype} {list(shape)}")
    data = pa.py_buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return column, pa.FixedSizeBinaryArray.from_buffers(_arrow_type(column), len(array), [None, data])


def _decode(values: pa.Array, column: _Column) -> np.ndarray:
    shape = (len(values), *column.shape)
    if column.dtype in _TEXT:
        flat = values.flatten() if isinstance(values, pa.FixedSizeListArray) else values
        return flat.to_numpy(zero_copy_only=False).reshape(shape)
    dtype = np.dtype(column.dtype)
    if not len(values):
        return np.zeros(shape, dtype)
    first = values.offset * values.type.byte_width
    return np.frombuffer(values.buffers()[1], dtype, int(np.prod(shape)), first).reshape(shape)


def _arrow_type(column: _Column) -> pa.DataType:
    length = int(np.prod(column.shape, dtype=np.int64))
    if column.dtype in _TEXT:
        return pa.list_(_TEXT[column.dtype], length) if column.shape else _TEXT[column.dtype]
    return pa.binary(length * np.dtype(column.dtype).itemsize)


def _in_rows(values: pa.Array, column: _Column) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, type=_arrow_type(column)) if column.shape else values
