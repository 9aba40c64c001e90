"""The readers on files that are odd or damaged; the job's tests hold the formats together."""

from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading import READERS, detect_format
from beam_influence.influence_ops.reading.columns import dense_column
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.features import Feature, FeatureSpec, ModelInput, Roles, Stored
from beam_influence.influence_ops.reading.resolve_features import FeatureResolver
from beam_influence.influence_ops.reading.tfrecord_framing import write_records

HERE = "tests.influence_ops.reading.test_readers"

X = Feature("x", "float", (2,))
Y = Feature("y", "int", ())
WORD = Feature("word", "bytes", ())


def read(name: str, data: bytes, features: list[Feature], size: int = 3) -> tuple[list[tuple[int, dict]], list[tuple[int, str, str]]]:
    """All rows with their positions, and the rejected ones."""
    rows, rejected = [], []
    for part in READERS[name](features).read(io.BytesIO(data), size):
        assert part.table.num_rows == len(part.positions) <= size
        rows += list(zip(part.positions.tolist(), part.table.to_pylist(), strict=True))
        rejected += [error[:3] for error in part.rejected]
    return rows, rejected


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def test_formats_by_name_and_content() -> None:
    parquet_file = parquet({"x": [1]})
    for path, data, name in [
        ("a.parquet", b"", "parquet"),
        ("a.CSV", b"", "csv"),
        ("a.csv.gz", b"", "csv"),
        ("part-00000", parquet_file, "parquet"),
        ("part-00000", b"\n\0\0\0", "tfrecord"),
        ("a.tfrecord.gz", b"\x1f\x8b", "tfrecord"),
    ]:
        assert detect_format(path, io.BytesIO(data)) == name


def test_csv_with_quotes_spaces_and_other_bytes() -> None:
    data = '\ufeffy,word,extra\r\n 1 ,"a, ""b""\r\nc",\r\n\r\n2,\xe9\r\n3.0,,z\r\n+4,d,z\r\n'.encode().replace("é".encode(), b"\xff,z")
    for compressed in (data, gzip.compress(data)):
        rows, rejected = read("csv", compressed, [Y, WORD])
        assert rejected == []
        assert rows == [
            (0, {"y": 1, "word": b'a, "b"\r\nc'}),
            (1, {"y": 2, "word": b"\xff"}),
            (2, {"y": 3, "word": b""}),
            (3, {"y": 4, "word": b"d"}),
        ]


def test_csv_numbers_that_are_none() -> None:
    data = b"y,f\n1,nan\n1.5,1\n1_0,2\n,3\n9223372036854775808,4\n5,1e-3\n"
    rows, rejected = read("csv", data, [Y, Feature("f", "float", ())])
    assert [position for position, _ in rows] == [0, 3, 5]
    assert rows[1][1] == {"y": None, "f": 3.0} and rows[2][1] == {"y": 5, "f": 1e-3}
    assert rejected == [(index, "decode", "wrong_type") for index in (1, 2, 4)]


def test_csv_kinds_are_those_of_most_cells() -> None:
    data = b"a,b,c,d,e\n1,1,1.5,x,\n2,x,2,1,\n3,2.5,,y,\nbad\n"
    described = READERS["csv"].describe(io.BytesIO(data), 100)
    assert described == {name: Stored(kind, ()) for name, kind in zip("abcde", ("int", "float", "float", "bytes", "bytes"), strict=True)}
    assert READERS["csv"].describe(io.BytesIO(b""), 100) == {}
    with pytest.raises(ValueError, match="'a' more than once"):
        READERS["csv"].describe(io.BytesIO(b"a,a\n1,2\n"), 100)


def test_a_cut_gzip_csv_is_rejected_where_it_stops() -> None:
    text = "y\n" + "".join(f"{number}\n" for number in range(5000))
    whole = gzip.compress(text.encode())
    rows, rejected = read("csv", whole[: len(whole) // 2], [Y], 100)
    assert rejected == [(len(rows), "read", "damaged_csv")]
    assert [position for position, _ in rows] == list(range(len(rows)))


def test_damaged_parquet_is_rejected_where_it_stops() -> None:
    data = bytearray(parquet({"y": np.arange(100)}, row_group_size=10, compression="zstd", use_dictionary=False))
    offset = pq.ParquetFile(io.BytesIO(bytes(data))).metadata.row_group(3).column(0).data_page_offset
    data[offset : offset + 40] = bytes(40)
    rows, rejected = read("parquet", bytes(data), [Y], 10)
    assert [position for position, _ in rows] == list(range(30))
    assert rejected == [(30, "read", "damaged_parquet")]
    for broken in (b"y\n1\n", bytes(data)[:-9]):
        assert read("parquet", broken, [Y]) == ([], [(0, "read", "damaged_parquet")])
        assert READERS["parquet"].describe(io.BytesIO(broken), 100) == {}
    assert read("parquet", b"", [Y]) == ([], [])


def test_an_error_of_the_storage_is_no_damage() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        list(READERS["parquet"]([Y]).read(Failing(parquet({"y": [1]})), 10))


def test_parquet_types_become_kinds() -> None:
    data = parquet(
        {
            "bool": [True, False],
            "small": pa.array([1, 2], pa.uint8()),
            "half": pa.array(np.array([1, 2], np.float16)),
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "date": pa.array([1, 2], pa.date32()),
            "matrix": [[[1.0, 2.0]], [[3.0, 4.0]]],
        }
    )
    described = READERS["parquet"].describe(io.BytesIO(data), 100)
    assert described == {
        "bool": Stored("int", ()),
        "small": Stored("int", ()),
        "half": Stored("float", ()),
        "text": Stored("bytes", ()),
        "matrix": Stored("float", (1, 2)),
    }


@pytest.mark.parametrize(
    ("column", "feature", "errors"),
    [
        (pa.array([[1, 2], [1], None, [1, None]]), X, {1: "wrong_shape", 2: "missing_feature", 3: "null_value"}),
        (pa.array([[[1], [2]], [[1, 2]], [[1], [2]]]), Feature("x", "float", (2,), stored=(2, 1)), {1: "wrong_shape"}),
        (pa.array([1.0, 2.5, None]), Feature("x", "int", ()), {1: "wrong_type", 2: "missing_feature"}),
        (pa.array(["a", "b"]), Feature("x", "float", ()), {0: "wrong_type", 1: "wrong_type"}),
        (pa.array([1, 2]), Feature("x", "bytes", ()), {0: "wrong_type", 1: "wrong_type"}),
        (pa.nulls(2), Feature("x", "float", ()), {0: "missing_feature", 1: "missing_feature"}),
    ],
)
def test_rows_that_do_not_fit(column: pa.Array, feature: Feature, errors: dict[int, str]) -> None:
    reasons: dict[int, tuple[str, str]] = {}
    dense = dense_column(pa.RecordBatch.from_pydict({"x": column}), feature, False, reasons)
    assert {row: error for row, (error, _) in reasons.items()} == errors
    assert dense.shape == (len(column), *feature.shape)
    good = [row for row in range(len(column)) if row not in errors]
    for row in good:
        assert np.array_equal(dense[row].ravel(), np.ravel(column[row].as_py()))


def test_sequence_examples_without_some_features() -> None:
    def record(context: int | None, steps: list[list[float]] | None) -> bytes:
        example = tf.train.SequenceExample()
        if context is not None:
            example.context.feature["y"].int64_list.value.append(context)
        for step in steps or []:
            example.feature_lists.feature_list["x"].feature.add().float_list.value.extend(step)
        return example.SerializeToString()

    buffer = io.BytesIO()
    write_records(buffer, [record(1, [[1, 2], [3, 4]]), record(2, None), record(None, [[1, 2], [3, 4]]), record(3, [[1, 2], [3]])])
    features = [Feature("x", "float", (2, 2), stored=(2, 2)), Y]
    spec = FeatureSpec((("x", features[0]),), (Y,), format="sequence_example")
    decoder = RowDecoder(spec)
    batches = [decoder.decode(rows, "f") for rows in READERS[spec.format](spec.features()).read(io.BytesIO(buffer.getvalue()), 10)]
    ((batch, rejected),) = batches
    assert batch.ids.tolist() == ["f:0"] and np.array_equal(np.asarray(batch.inputs), [[[1, 2], [3, 4]]])
    assert [(r.index, r.error) for r in rejected] == [(1, "missing_feature"), (2, "missing_feature"), (3, "wrong_shape")]
    described = READERS["sequence_example"].describe(io.BytesIO(buffer.getvalue()), 10)
    assert described == {"x": Stored("float", (2, 2)), "y": Stored("int", (1,))}


def _double(features: dict[str, np.ndarray]) -> np.ndarray:
    if (features["x"] < 0).any():
        raise ArithmeticError("below 0")
    return 2 * features["x"]


def _with_label(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"in": features["x"], "word": np.array([len(word) for word in features["word"]])}


def test_a_preprocess_function_fails_for_one_row_only() -> None:
    spec = FeatureSpec(
        (("in", Feature("in", "float", (2,))),), (Y,), preprocess=f"{HERE}:_double", raw=(X,), format="parquet"
    )
    data = parquet({"x": [[1, 2], [-1, 2], [3, 4]], "y": [0, 1, 2]})
    (rows,) = READERS["parquet"](spec.features()).read(io.BytesIO(data), 10)
    batch, rejected = RowDecoder(spec).decode(rows, "f")
    assert np.array_equal(np.asarray(batch.inputs), [[2, 4], [6, 8]]) and np.array_equal(np.asarray(batch.labels), [0, 2])
    assert [(r.index, r.stage, r.error) for r in rejected] == [(1, "decode", "preprocess")]
    assert rejected[0].message.endswith("_double: ArithmeticError: below 0")


def test_a_preprocess_function_may_return_the_label() -> None:
    spec = FeatureSpec(
        (("in", Feature("in", "float", (2,))),), (WORD,), preprocess=f"{HERE}:_with_label", raw=(X, WORD), format="parquet"
    )
    (rows,) = READERS["parquet"](spec.features()).read(io.BytesIO(parquet({"x": [[1, 2]], "word": ["abc"]})), 10)
    batch, _ = RowDecoder(spec).decode(rows, "f")
    assert np.array_equal(np.asarray(batch.labels), [3])


def test_a_feature_named_like_a_pattern_is_itself() -> None:
    data = {"a+b": Stored("float", (2,)), "a": Stored("float", ()), "b": Stored("float", ()), "y": Stored("int", ())}
    inputs = [ModelInput("in", (2,), "float32")]
    whole = FeatureResolver(data, None).resolve(inputs, Roles({"in": "a+b"}, ("y",)))
    assert not whole.inputs[0][1].parts
    parts = FeatureResolver(data, None).resolve(inputs, Roles({"in": "b + a"}, ("y",)))
    assert [part.name for part in parts.inputs[0][1].parts] == ["b", "a"]
