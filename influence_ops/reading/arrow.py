"""Arrow files, as IPC streams or IPC files (Feather, the folders of Hugging Face's `save_to_disk`), record batch by record batch.

An IPC file is a stream behind eight bytes, with a footer that is not needed here: both are read as streams. Messages are found by
their headers (https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format): no body is read to split a file.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO, ClassVar, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from beam_influence.influence_ops.reading.arrow_features import describe_columns, select_columns
from beam_influence.influence_ops.reading.features import Description
from beam_influence.influence_ops.reading.reader import WHOLE, Prefixed, Reader, RowError, Rows, Span, open_span, spans

FILE_MAGIC = b"ARROW1\0\0"
CONTINUATION = b"\xff\xff\xff\xff"
_LARGEST = 1 << 30  # bytes of a record batch: it is in memory whole
_SCHEMA, _BATCH = 1, 3  # what a message is


class _Message(NamedTuple):
    """A message: what it is, where it begins and its body ends, how many rows it has."""

    kind: int
    start: int
    end: int
    rows: int


class ArrowReader(Reader):
    """A row is a row of the file, counted through its record batches."""

    name: ClassVar[str] = "arrow"
    expects: ClassVar[str] = "Arrow files (IPC streams or IPC files, such as Feather)"

    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        position = span.first
        try:
            for batch in _batches(file, span):
                table = select_columns(batch, self.features)
                for start in range(0, table.num_rows, size):
                    part = table.slice(start, size)
                    yield Rows(part, np.arange(position + start, position + start + part.num_rows), [])
                position += table.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the storage failed, not the file's content
            message = f"the Arrow file is damaged or none: {error}; the rows from here to the end of its part are lost"
            empty = pa.RecordBatch.from_pylist([], schema=pa.schema([]))
            yield Rows(empty, np.zeros(0, np.int64), [RowError(position, "read", "damaged_arrow", message)])

    @classmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        starts, first = [(0, 0)], 0
        try:
            for message in itertools.islice(_messages(file), 1, None):
                if message.kind != _BATCH:
                    return [WHOLE]  # a dictionary, which batches behind it need
                if first and message.start - starts[-1][1] >= size:
                    starts.append((first, message.start))
                first += message.rows
        except ValueError:
            pass  # told when the last span is read
        return spans(starts)

    @classmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        try:
            first = next((batch for batch in _batches(file, WHOLE) if batch.num_rows), None)
        except (pa.ArrowException, OSError, ValueError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            return {}
        return {} if first is None else describe_columns(first.slice(0, rows))


def _batches(file: BinaryIO, span: Span) -> Iterator[pa.RecordBatch]:
    """The record batches of a span.

    Raises:
      ValueError, pa.ArrowException: the file is damaged, or a record batch too large.
    """
    messages = _messages(file)
    schema = next(messages, None)
    if schema is None:
        return
    if schema.kind != _SCHEMA:
        raise ValueError("it does not begin with a schema")
    start, stop, damage = max(span.start, schema.end), schema.end, None
    try:
        for message in itertools.takewhile(lambda message: span.stop is None or message.start < span.stop, messages):
            if message.start >= start and message.end - message.start > _LARGEST:
                size = message.end - message.start
                raise ValueError(f"a record batch of {size:,} bytes is larger than {_LARGEST:,}; write batches of fewer rows")
            stop = message.end
    except ValueError as error:
        damage = error
    file.seek(schema.start)
    beginning = file.read(schema.end - schema.start)
    if stop > start:
        for batch in ipc.open_stream(cast(BinaryIO, Prefixed(beginning, open_span(file, start, stop)))):
            batch.validate(full=True)  # a place outside of its buffers would end the process
            yield batch
    if damage is not None:
        raise damage


def _messages(file: BinaryIO) -> Iterator[_Message]:
    """The messages of a file in order, up to its end.

    Raises:
      ValueError: what is there is no message.
    """
    size = file.seek(0, 2)
    file.seek(0)
    start = len(FILE_MAGIC) if file.read(len(FILE_MAGIC)) == FILE_MAGIC else 0
    while start < size:
        file.seek(start)
        head = file.read(8)
        if head == CONTINUATION + b"\0\0\0\0":
            return  # the end of the stream
        if len(head) < 8 or head[:4] != CONTINUATION:
            raise ValueError(f"no Arrow message begins at byte {start:,}")
        length = int.from_bytes(head[4:], "little")
        kind, body, rows = _header(file.read(length) if length <= size - start else b"")
        end = start + 8 + length + body
        if end > size:
            raise ValueError(f"the file ends inside the message at byte {start:,}")
        yield _Message(kind, start, end, rows)
        start = end


def _header(metadata: bytes) -> tuple[int, int, int]:
    """Of a message's flatbuffer: what it is, the bytes of its body, and the rows of a record batch.

    Source: `Message.fbs` and `Schema.fbs` of Arrow; a table begins with the distance to the list of its fields' places.
    """

    def place(table: int, field: int) -> int:
        fields = table - struct.unpack_from("<i", metadata, table)[0]
        if 4 + 2 * field >= struct.unpack_from("<H", metadata, fields)[0]:
            return 0
        offset = struct.unpack_from("<H", metadata, fields + 4 + 2 * field)[0]
        return table + offset if offset else 0

    try:
        message = struct.unpack_from("<I", metadata)[0]
        kind, header, body = (place(message, field) for field in (1, 2, 3))
        what = metadata[kind] if kind else 0
        rows = 0
        if what == _BATCH:
            batch = header + struct.unpack_from("<I", metadata, header)[0]
            at = place(batch, 0)
            rows = struct.unpack_from("<q", metadata, at)[0] if at else 0
        length = struct.unpack_from("<q", metadata, body)[0] if body else 0
    except (struct.error, IndexError) as error:
        raise ValueError("the header of a message is damaged") from error
    if length < 0 or rows < 0:
        raise ValueError("the header of a message is damaged")
    return what, length, rows
