"""A cleaned file has exactly the other records, in order, in its own format and compression; or new weights."""

from __future__ import annotations

import gzip
import io
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading.clean_files import Cleaned, Cleaning, clean_file
from beam_influence.influence_ops.reading.tfrecord_framing import read_records, write_records

N = 11
SUSPICIOUS = np.isin(np.arange(N), [0, 3, 4, 10])
KEPT = [row for row in range(N) if not SUSPICIOUS[row]]


def example(row: int, weight: Any = None, sequence: bool = False) -> bytes:
    features = {"row": tf.train.Feature(int64_list=tf.train.Int64List(value=[row]))}
    if isinstance(weight, float):
        features["w"] = tf.train.Feature(float_list=tf.train.FloatList(value=[weight]))
    elif isinstance(weight, int):
        features["w"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[weight]))
    elif isinstance(weight, bytes):
        features["w"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[weight]))
    if sequence:
        return tf.train.SequenceExample(context=tf.train.Features(feature=features)).SerializeToString()
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def framed(records: list[bytes]) -> bytes:
    file = io.BytesIO()
    write_records(file, records)
    return file.getvalue()


def cleaned(data: bytes, cleaning: Cleaning, data_format: str = "tfrecord", mask: np.ndarray = SUSPICIOUS) -> tuple[bytes, Cleaned]:
    target = io.BytesIO()
    target.close, close = (lambda: None), target.close  # Arrow closes what it writes to
    facts = clean_file(data_format, io.BytesIO(data), target, mask, cleaning)
    result = target.getvalue()
    close()
    return result, facts


@pytest.mark.parametrize("compressed", [False, True])
def test_drops_records_byte_for_byte(tmp_path: pathlib.Path, compressed: bool) -> None:
    records = [example(row) for row in range(N)]
    data = gzip.compress(framed(records)) if compressed else framed(records)
    result, facts = cleaned(data, Cleaning())
    assert facts == Cleaned(N, 4, 0)
    (tmp_path / "file").write_bytes(result)
    read = tf.data.TFRecordDataset(str(tmp_path / "file"), "GZIP" if compressed else "")
    assert [record.numpy() for record in read] == [records[row] for row in KEPT]
    assert cleaned(data, Cleaning())[0] == result


def test_damaged_records_are_left_out_and_counted() -> None:
    data = bytearray(framed([example(row) for row in range(N)]))
    size = len(data) // N
    data[size + 14] ^= 1  # in the second record's data
    result, facts = cleaned(bytes(data), Cleaning())
    assert facts == Cleaned(N, 4, 1)
    assert list(read_records(io.BytesIO(result))) == [example(row) for row in KEPT if row != 1]


@pytest.mark.parametrize("sequence", [False, True])
def test_weights_are_multiplied(sequence: bool) -> None:
    weights: list[Any] = [None, 2.0, 3, 0.5, None, 1.0, *[None] * (N - 6)]
    data = framed([example(row, weight, sequence) for row, weight in enumerate(weights)])
    kind: Any = tf.train.SequenceExample if sequence else tf.train.Example
    result, facts = cleaned(data, Cleaning(0.25, "w"), "sequence_example" if sequence else "tfrecord")
    assert facts == Cleaned(N, 4, 0)
    found, rows = [], []
    for record in read_records(io.BytesIO(result)):
        assert isinstance(record, bytes)
        parsed = kind.FromString(record)
        features = (parsed.context if sequence else parsed.features).feature
        found.append(list(features["w"].float_list.value))
        rows.append(features["row"].int64_list.value[0])
    assert rows == list(range(N))
    assert found == [[0.25], [2.0], [3.0], [0.125], [0.25], [1.0], [1.0], [1.0], [1.0], [1.0], [0.25]]


def test_what_is_no_example_keeps_its_bytes() -> None:
    records = [b"no example"] + [example(row) for row in range(1, N)]
    result, _ = cleaned(framed(records), Cleaning(0.5, "w"), mask=SUSPICIOUS & (np.arange(N) > 0))
    assert next(iter(read_records(io.BytesIO(result)))) == b"no example"


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    table = pa.table({"row": np.arange(N), "pixels": [[float(row)] * 3 for row in range(N)], **columns})
    pq.write_table(table, file, row_group_size=4, compression="gzip")
    return file.getvalue()


def test_parquet() -> None:
    data = parquet()
    result, facts = cleaned(data, Cleaning(), "parquet")
    assert facts == Cleaned(N, 4, 0)
    table = pq.read_table(io.BytesIO(result))
    assert table.schema == pq.read_schema(io.BytesIO(data))
    assert table.column("row").to_pylist() == KEPT
    assert table.column("pixels").to_pylist() == [[float(row)] * 3 for row in KEPT]
    assert pq.ParquetFile(io.BytesIO(result)).metadata.row_group(0).column(0).compression == "GZIP"


@pytest.mark.parametrize("stored", [None, pa.array([2.0] * N), pa.array([2] * N), pa.array([2, None] * 5 + [2])], ids=str)
def test_parquet_weights(stored: Any) -> None:
    result, _ = cleaned(parquet(**({} if stored is None else {"w": stored})), Cleaning(0.5, "w"), "parquet")
    table = pq.read_table(io.BytesIO(result))
    before = [1.0] * N if stored is None else [1.0 if value is None else value for value in stored.to_pylist()]
    assert table.column("w").to_pylist() == [value * (0.5 if SUSPICIOUS[row] else 1) for row, value in enumerate(before)]
    assert table.column("row").to_pylist() == list(range(N))


@pytest.mark.parametrize("data_format", ["tfrecord", "parquet"])
@pytest.mark.parametrize("count", [N - 1, N + 1])
def test_scores_of_other_files_are_refused(data_format: str, count: int) -> None:
    data = parquet() if data_format == "parquet" else framed([example(row) for row in range(N)])
    with pytest.raises(ValueError, match=f"but {count} were scored or rejected"):
        cleaned(data, Cleaning(), data_format, np.zeros(count, bool))


def test_wrong_options_and_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="weight 1.5 must be from 0 to 1; leave it out to drop"):
        Cleaning(1.5)
    with pytest.raises(ValueError, match="weight_feature '' must name a feature"):
        Cleaning(0.5, "")
    with pytest.raises(ValueError, match="'w' holds bytes, not weights"):
        cleaned(framed([example(row, b"heavy") for row in range(N)]), Cleaning(0.5, "w"))
    with pytest.raises(ValueError, match="'w' holds string, not weights"):
        cleaned(parquet(w=["heavy"] * N), Cleaning(0.5, "w"), "parquet")
    with pytest.raises(ValueError, match="the Parquet file is damaged and can't be rewritten"):
        cleaned(b"PAR1 and no more", Cleaning(), "parquet")


def test_empty_files() -> None:
    nothing = np.zeros(0, bool)
    assert cleaned(b"", Cleaning(), "parquet", nothing) == (b"", Cleaned(0, 0, 0))
    assert cleaned(b"", Cleaning(), "tfrecord", nothing) == (b"", Cleaned(0, 0, 0))
    result, _ = cleaned(gzip.compress(b""), Cleaning(), "tfrecord", nothing)
    assert gzip.decompress(result) == b""
