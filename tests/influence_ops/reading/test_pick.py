"""Rows at some positions are those of the whole file, in every format, however they lie in it."""

from __future__ import annotations

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.features import Feature
from tests.pipelines.digits_job import floats, framed, ints

ROWS = 700
Y = Feature("y", "int", ())


def tfrecord() -> bytes:
    features = [{"y": ints([row]), "x": floats(range(row % 5))} for row in range(ROWS)]
    records = [tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString() for feature in features]
    records[3] = b"no example"
    return framed(records)


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"y": list(range(ROWS))}), buffer, row_group_size=150)
    return buffer.getvalue()


def csv() -> bytes:
    return ("y,word\n" + "".join(f'{row},"a\nb"\n' for row in range(ROWS))).encode()


FILES = {
    "tfrecord": (tfrecord, {3}),
    "tfrecord.gz": (lambda: gzip.compress(tfrecord()), {3}),
    "parquet": (parquet, set()),
    "csv": (csv, set()),
    "csv.gz": (lambda: gzip.compress(csv()), set()),
}


class CountedFile(io.BytesIO):
    """How many bytes of it were read."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


@pytest.mark.parametrize("name", FILES)
def test_they_are_those_of_the_whole_file(name: str) -> None:
    make, unreadable = FILES[name]
    reader = READERS[name.partition(".")[0]]([Y])
    for wanted in ([0], [699], [5, 3, 149, 150, 151, 600, 601], [], [5000], [2, 5000]):
        parts = list(reader.pick(io.BytesIO(make()), wanted))
        positions = [position for part in parts for position in part.positions.tolist()]
        assert positions == sorted(position for position in wanted if position < ROWS and position not in unreadable)
        values = [row["y"] for part in parts for row in part.table.to_pylist()]
        assert [value[0] if isinstance(value, list) else value for value in values] == positions


def test_only_what_is_needed_is_read() -> None:
    """Of TFRecord one record, of Parquet one row group."""
    features = [{"y": ints([row]), "x": floats(range(20_000))} for row in range(80)]
    file = CountedFile(framed(tf.train.Example(features=tf.train.Features(feature=one)).SerializeToString() for one in features))
    assert [part.positions.tolist() for part in READERS["tfrecord"]([Y]).pick(file, [40])] == [[40]]
    whole = len(file.getvalue())
    assert whole > 6_000_000 and file.taken < whole  # headers are read in blocks of 1 MiB
    assert list(READERS["parquet"]([Y]).pick(io.BytesIO(b"no parquet"), [0])) == []
