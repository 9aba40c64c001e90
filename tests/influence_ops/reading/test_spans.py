"""A file that is read span by span has the rows, positions and rejected rows of the whole file."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading import READERS, Span
from beam_influence.influence_ops.reading.features import Feature
from beam_influence.influence_ops.reading.tfrecord_framing import masked_crc
from tests.pipelines.digits_job import floats, framed, ints

Y = Feature("y", "int", ())
WORD = Feature("word", "bytes", ())


def read(name: str, data: bytes, features: list[Feature], spans: Sequence[Span] = (Span(),)) -> list[tuple[int, Any]]:
    """What is at each position: a row, or why it was rejected."""
    found: list[tuple[int, Any]] = []
    for span in spans:
        of_span: list[tuple[int, Any]] = []
        for part in READERS[name](features).read(io.BytesIO(data), 3, span):
            of_span += zip(part.positions.tolist(), part.table.to_pylist(), strict=True)
            of_span += [(error.row, error[1:]) for error in part.rejected]
        found += sorted(of_span, key=lambda row: row[0])
    return found


def split(name: str, data: bytes, size: int) -> list[Span]:
    spans = READERS[name].split(io.BytesIO(data), size)
    assert spans[0][:2] == (0, 0) and spans[-1].stop is None
    assert [span.stop for span in spans[:-1]] == [span.start for span in spans[1:]]
    return spans


def records(count: int) -> list[bytes]:
    """tf.Examples of odd sizes, among them one of 5,000 numbers."""
    sizes = [5000 if row == 4 else row % 7 for row in range(count)]
    features = [{"y": ints([row]), "x": floats(range(size))} for row, size in enumerate(sizes)]
    return [tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString() for feature in features]


@pytest.mark.parametrize("size", [1, 100, 700, 10**6])
def test_tfrecord(size: int) -> None:
    data = framed(records(30))
    spans = split("tfrecord", data, size)
    assert len(spans) == {1: 30, 10**6: 1}.get(size, len(spans)) and (size != 700 or 2 < len(spans) < 10)
    rows = read("tfrecord", data, [Y], spans)
    assert rows == read("tfrecord", data, [Y]) == [(row, {"y": [row]}) for row in range(30)]


@pytest.mark.parametrize("damage", ["data", "length", "both", "cut", "too_large", "at_the_start"])
@pytest.mark.parametrize("size", [1, 150])
def test_damaged_tfrecord(damage: str, size: int) -> None:
    """At the borders too: with a size of 1 every record is a span."""
    all_records = records(30)
    starts = np.cumsum([0, *(len(record) + 16 for record in all_records)])
    data = bytearray(framed(all_records))
    if damage in ("data", "both"):
        for row in (0, 6, 7, 29):
            data[starts[row] + 12] ^= 255
    if damage in ("length", "both"):
        data[starts[20]] ^= 255
    if damage == "cut":
        del data[starts[29] + 14 :]
    if damage == "too_large":
        data[starts[20] : starts[20] + 12] = _header(1 << 40)
    if damage == "at_the_start":
        data[0] ^= 255
    whole = read("tfrecord", bytes(data), [Y])
    assert any(isinstance(what, tuple) for _, what in whole)
    assert read("tfrecord", bytes(data), [Y], split("tfrecord", bytes(data), size)) == whole


def _header(length: int) -> bytes:
    packed = length.to_bytes(8, "little")
    return packed + masked_crc(packed).to_bytes(4, "little")


def csv_file(rows: int, beginning: bytes = b"") -> bytes:
    """Cells with quotes, every kind of line end in and behind them, blank lines, bytes that are no UTF-8, and a row of too few cells."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["y", "a\nb", "word"])
    for row in range(rows):
        cell = ('plain', 'quo"ted', 'two\r\nlines', "\n\n", "ünï€", 'a"b', ",", "\r")[row % 8]
        writer.writerow([row, cell, f"{cell}{row}"])
        if row % 5 == 0:
            text.write(("\r\n", "\n", "\r")[row % 3])
    data = beginning + text.getvalue().encode()
    # An unquoted cell with a quote in it, a quoted cell that goes on behind its end, a row of one cell.
    return data + b'1,x"y,w"\n2,"a"b,"c"d\r3\r\n4,\xff,\xfe"\n'


@pytest.mark.parametrize("beginning", [b"", b"\xef\xbb\xbf", b"\r\n\n"])
@pytest.mark.parametrize("size", [1, 64, 10**6])
def test_csv(beginning: bytes, size: int) -> None:
    data = csv_file(40, beginning)
    spans = split("csv", data, size)
    assert len(spans) == {1: 44, 10**6: 1}.get(size, len(spans)) and (size != 64 or 5 < len(spans) < 30)
    rows = read("csv", data, [Y, WORD], spans)
    assert rows == read("csv", data, [Y, WORD]) and [position for position, _ in rows] == list(range(44))
    assert rows[42][1][1] == "wrong_columns" and rows[10][1] == {"y": 10, "word": b"two\r\nlines10"}


def test_csv_that_ends_inside_a_quote_or_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_influence.influence_ops.reading.csv._LARGEST_CELL", 200)
    limit = csv.field_size_limit(200)
    try:
        for end in (b'1,"a,b\n2,c,d\n3,e,f\n', b"1," + b"x" * 300 + b",b\n2,c,d\n"):
            data = b"y,a,word\n" + b"7,b,c\n" * 20 + end
            spans = split("csv", data, 10)
            assert len(spans) > 5
            assert read("csv", data, [Y, WORD], spans) == read("csv", data, [Y, WORD])
    finally:
        csv.field_size_limit(limit)


def parquet(rows: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"y": np.arange(rows), "word": [str(row) for row in range(rows)]}), buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [1, 1500, 10**6])
def test_parquet(size: int) -> None:
    data = parquet(100, row_group_size=7)
    spans = split("parquet", data, size)
    assert len(spans) == {1: 15, 10**6: 1}.get(size, len(spans)) and (size != 1500 or 2 < len(spans) < 15)
    for features in ([Y, WORD], [Feature("another", "int", ())]):
        rows = read("parquet", data, features, spans)
        assert rows == read("parquet", data, features) and [position for position, _ in rows] == list(range(100))
    for odd in (parquet(0), b"", b"y\n1\n", data[:-9]):
        assert read("parquet", odd, [Y], split("parquet", odd, 1)) == read("parquet", odd, [Y])


def test_damage_in_a_row_group_loses_the_rest_of_its_span_alone() -> None:
    """The one difference to the whole file, which is lost from there on: the spans behind it are read."""
    data = bytearray(parquet(100, row_group_size=10, compression="zstd", use_dictionary=False))
    offset = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(3).column(0).data_page_offset
    data[offset : offset + 40] = bytes(40)
    spans = [Span(0, 0, 2), Span(20, 2, 6), Span(60, 6, None)]
    rows = read("parquet", bytes(data), [Y], spans)
    stage, error, message = rows.pop(29)[1]  # batches of 3: that of 29 to 31 can't be read
    assert (stage, error) == ("read", "damaged_parquet")
    assert "the 31 rows from here to the end of row group 5 are lost" in message
    assert rows == [(row, {"y": row}) for row in (*range(29), *range(60, 100))]


def test_what_is_compressed_is_one_span() -> None:
    for name, data, features in (("tfrecord", framed(records(30)), [Y]), ("csv", csv_file(40), [Y, WORD])):
        compressed = gzip.compress(data)
        spans = split(name, compressed, 1)
        assert spans == [Span()] and read(name, compressed, features, spans) == read(name, data, features)
