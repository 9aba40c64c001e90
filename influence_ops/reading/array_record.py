"""ArrayRecord files of tf.Example, as TensorFlow Datasets and Grain write them, through their own library."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, ClassVar

from beam_influence.influence_ops.reading.features import Description, most_common
from beam_influence.influence_ops.reading.reader import WHOLE, RowError, Rows, Span, spans
from beam_influence.influence_ops.reading.tfrecord import ExampleReader

MAGIC = b"\x83\xaf\x70\xd1\x0d\x88"
"""What a file of Riegeli, the container of ArrayRecord, begins with."""
_COPIED = 1 << 20


class ArrayRecordReader(ExampleReader):
    """A row is a record. The library opens a path on this machine: another file is copied beside the temporary files first, one at a time.

    Checksums are the library's: a damaged chunk rejects the records in it.
    """

    name: ClassVar[str] = "array_record"
    expects: ClassVar[str] = "ArrayRecord files of serialized tf.Example"

    def read(self, file: BinaryIO, size: int, span: Span = WHOLE) -> Iterator[Rows]:
        with _opened(file) as records:
            if records is None:
                message = "the file is no ArrayRecord, or its end is lost, and with it where its records are"
                yield self._rows([], [], [RowError(span.first, "read", "damaged_array_record", message)])
                return
            stop = records.num_records() if span.stop is None else span.stop
            for first in range(span.start, stop, size):
                good, rejected = _read(records, range(first, min(first + size, stop)))
                yield self._rows(list(good.values()), list(good), rejected)

    def pick(self, file: BinaryIO, positions: Sequence[int]) -> Iterator[Rows]:
        """As of `Reader`: these records alone are read."""
        with _opened(file) as records:
            count = 0 if records is None else records.num_records()
            for position in sorted(set(positions)):
                good = _read(records, range(position, position + 1))[0] if position < count else {}
                if good:
                    yield self._rows(list(good.values()), list(good), [])

    @classmethod
    def split(cls, file: BinaryIO, size: int) -> list[Span]:
        with _opened(file) as records:
            count = 0 if records is None else records.num_records()
            length = file.seek(0, os.SEEK_END)
            step = max(1, -(-count * size // max(length, 1)))
            return spans([(first, first) for first in range(0, count, step)] or [(0, 0)])

    @classmethod
    def describe(cls, file: BinaryIO, rows: int) -> Description:
        described = []
        with _opened(file) as records:
            count = 0 if records is None else records.num_records()
            for record in itertools.islice(_read(records, range(min(rows, count)))[0].values(), rows):
                with contextlib.suppress(Exception):  # protobuf's DecodeError; such a record is rejected when it is read
                    described.append(cls._describe_record(record))
        return most_common(described)


def _read(records: Any, places: range) -> tuple[dict[int, bytes], list[RowError]]:
    """The records at some places that follow each other, by place; together, and one by one where one of them is damaged."""
    if not places:
        return {}, []
    try:
        return dict(zip(places, records.read(places.start, places.stop), strict=True)), []
    except RuntimeError as error:
        if len(places) == 1:
            return {}, [RowError(places.start, "read", "damaged_array_record", str(error))]
    good: dict[int, bytes] = {}
    rejected: list[RowError] = []
    for place in places:
        one, errors = _read(records, range(place, place + 1))
        good |= one
        rejected += errors
    return good, rejected


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    """The library's reader of a file, or None where it is no whole ArrayRecord file."""
    try:
        from array_record.python import array_record_module  # pyright: ignore  (compiled, without types)
    except ImportError as error:
        raise ValueError(f"ArrayRecord files need their library: pip install 'beam-influence[array_record]' ({error})") from error
    with contextlib.ExitStack() as stack:
        path = getattr(file, "name", None)
        if not isinstance(path, str) or not os.path.isfile(path):
            copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".array_record"))
            file.seek(0)
            shutil.copyfileobj(file, copy, _COPIED)
            copy.flush()
            path = copy.name
        records = array_record_module.ArrayRecordReader(path)
        if not records.ok():
            yield None  # it can't be closed either
            return
        stack.callback(records.close)
        yield records
