"""Examples with missing values, given defaults, are those whose values are written out; in every format that has missing values."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_influence.influence_ops.reading import READERS
from beam_influence.influence_ops.reading.decode import RowDecoder
from beam_influence.influence_ops.reading.defaults import Defaults
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.reading.features import ModelInput, Roles
from beam_influence.influence_ops.reading.resolve_features import FeatureResolver
from beam_influence.influence_ops.reading.schema import parse_schema
from tests.pipelines.digits_job import floats, framed, ints, strings

ROWS: list[dict[str, Any]] = [
    {"company": "Blue", "miles": 1.5, "seconds": 60, "tips": 1},
    {"company": None, "miles": 0.25, "seconds": None, "tips": 0},
    {"company": "Ünïon", "miles": None, "seconds": 0, "tips": 1},
    {"company": None, "miles": None, "seconds": None, "tips": 0},
]
FILLED = {
    "company": [b"Blue", b"unknown", "Ünïon".encode(), b"unknown"],
    "miles": [1.5, 0.25, -1, -1],
    "seconds": [60, 7, 0, 7],
}
INPUTS = [ModelInput("company", (1,), "string"), ModelInput("miles", (1,), "float32"), ModelInput("seconds", (), "int64")]
DEFAULTS = {"company": "unknown", "m*": "-1", "seconds": "7"}


def of_features(name: str, value: Any) -> tf.train.Feature:
    if isinstance(value, list):
        return floats(value) if name in ("x", "values") else ints(value)
    return {"company": lambda: strings([value]), "miles": lambda: floats([value])}.get(name, lambda: ints([value]))()


def examples(rows: Sequence[Mapping[str, Any]], empty: tf.train.Feature | None = None) -> bytes:
    """As TFRecord; a value that is None has no feature, or `empty`."""
    records = []
    for row in rows:
        features = {name: of_features(name, value) for name, value in row.items() if value is not None}
        absent = {} if empty is None else {name: empty for name, value in row.items() if value is None}
        records.append(tf.train.Example(features=tf.train.Features(feature={**features, **absent})).SerializeToString())
    return framed(records)


def parquet_file(rows: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(map(dict, rows))), buffer)
    return buffer.getvalue()


def csv_file(rows: Sequence[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def decoded(
    name: str, data: bytes, inputs: Sequence[ModelInput], defaults: Mapping[str, str], schema: str = "", **roles: Any
) -> tuple[ExampleBatch, list[Rejected]]:
    reader = READERS[name]
    described = reader.describe(io.BytesIO(data), 100)
    known = parse_schema(schema) if schema else None
    resolver = FeatureResolver(described, known, reader.converts, reader.ordered, Defaults(defaults))
    spec = resolver.resolve(inputs, Roles(**{"inputs": {}, "labels": ("tips",)} | roles))
    (rows,) = reader(spec.features()).read(io.BytesIO(data), 100)
    return RowDecoder(spec).decode(rows, "f")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("tfrecord", examples),
        ("tfrecord", lambda rows: examples(rows, tf.train.Feature())),
        ("parquet", parquet_file),
        ("csv", csv_file),
    ],
)
def test_what_is_missing_is_the_default(name: str, write: Callable[[Any], bytes]) -> None:
    batch, rejected = decoded(name, write(ROWS), INPUTS, DEFAULTS)
    assert rejected == [] and isinstance(batch.inputs, dict)
    assert {key: values.reshape(-1).tolist() for key, values in batch.inputs.items()} == FILLED
    assert [array.dtype for array in batch.inputs.values()] == [object, np.float32, np.int64]
    _, rejected = decoded(name, write(ROWS), INPUTS, {key: value for key, value in DEFAULTS.items() if key != "seconds"})
    assert [(one.index, one.error) for one in rejected] == [(1, "missing_feature"), (3, "missing_feature")]
    assert "--default seconds=VALUE" in rejected[0].message


def test_an_empty_list_of_a_kind_and_a_column_that_a_file_lacks() -> None:
    rows = [{"x": [1.0, 2.0], "tips": 1}, {"x": [], "tips": 0}, {"x": [], "tips": 0}, {"x": None, "tips": 1}]
    batch, rejected = decoded("tfrecord", examples(rows), [ModelInput("x", (2,), "float32")], {"x": "nan"})
    assert rejected == []
    np.testing.assert_array_equal(batch.inputs, [[1, 2], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2])
    batch, _ = decoded(
        "parquet", parquet_file([{"tips": 1}] * 2), INPUTS[:1], {"company": "none"},
        'feature { name: "company" type: BYTES } feature { name: "tips" type: INT }',
    )  # fmt: skip
    assert np.asarray(batch.inputs).tolist() == [[b"none"]] * 2


@pytest.mark.parametrize(("shape", "longest"), [((5,), 5), ((None,), 4), ((2, None), 4)])
def test_short_lists_are_completed(shape: tuple[int | None, ...], longest: int) -> None:
    lists = [[1, 2, 3, 4], [5], [], None, [6, 7, 8]]
    rows = [{"tokens": tokens, "tips": 1} for tokens in lists]
    batch, rejected = decoded("tfrecord", examples(rows), [ModelInput("tokens", shape, "int64")], {"tokens": "-1"})
    assert rejected == []
    wanted = [[*(tokens or []), *[-1] * longest][:longest] for tokens in lists]
    assert np.asarray(batch.inputs).reshape(5, -1).tolist() == wanted
    too_long = examples([*rows, {"tokens": [1] * 9, "tips": 1}])
    _, rejected = decoded("tfrecord", too_long, [ModelInput("tokens", (5,), "int64")], {"tokens": "0"})
    assert [(one.index, one.error) for one in rejected] == [(5, "wrong_shape")]
    with_nulls = parquet_file([{"tokens": [1, None], "tips": 0}, {"tokens": [None], "tips": 0}])
    batch, _ = decoded("parquet", with_nulls, [ModelInput("tokens", (3,), "int64")], {"tokens": "9"})
    assert np.asarray(batch.inputs).tolist() == [[1, 9, 9], [9, 9, 9]]


SCHEMA = """
feature { name: "tips" type: INT presence { min_fraction: 1 } value_count { min: 1 max: 1 } }
feature { name: "company" type: BYTES presence { min_count: 1 } value_count { min: 1 max: 1 } }
feature { name: "miles" type: FLOAT presence { min_fraction: 0.5 } shape { dim { size: 1 } } }
feature { name: "seconds" type: INT value_count { min: 0 max: 3 } }
feature { name: "at" type: INT int_domain { min: 0 max: 5 } }
feature { name: "values" type: FLOAT }
sparse_feature { name: "bag" index_feature { name: "at" } value_feature { name: "values" } }
tensor_representation_group { key: "" value { tensor_representation { key: "miles" value {
  dense_tensor { column_name: "miles" shape { dim { size: 1 } } default_value { float_value: -2 } } } } } }
"""


def test_a_schema_says_defaults_lengths_and_what_is_sparse() -> None:
    rows = [{**row, "at": at, "values": values} for row, at, values in zip(
        ROWS, [[5, 0], [], [2], None], [[1.5, 2.0], [], [3.0], None], strict=True)]  # fmt: skip
    inputs = [*INPUTS[:2], ModelInput("seconds", (None,), "int64"), ModelInput("bag", (6,), "float32")]
    batch, rejected = decoded("tfrecord", examples(rows), inputs, {"company": "", "seconds": "7"}, SCHEMA)
    assert rejected == [] and isinstance(batch.inputs, dict)
    assert batch.inputs["company"][:, 0].tolist() == [b"Blue", b"", "Ünïon".encode(), b""]
    assert batch.inputs["miles"][:, 0].tolist() == [1.5, 0.25, -2, -2]
    assert batch.inputs["seconds"].tolist() == [[60, 7, 7], [7, 7, 7], [0, 7, 7], [7, 7, 7]]
    assert batch.inputs["bag"].tolist() == [[2, 0, 0, 0, 0, 1.5], [0] * 6, [0, 0, 3, 0, 0, 0], [0] * 6]
    for place, (at, values) in enumerate([([6], [1.0]), ([1, 1], [1.0, 2.0]), ([1], [1.0, 2.0]), ([-1], [1.0])]):
        bad = examples([rows[0], rows[0] | {"at": at, "values": values}, rows[2]])
        batch, rejected = decoded("tfrecord", bad, inputs, {"company": "", "seconds": "7"}, SCHEMA)
        assert [(one.index, one.error) for one in rejected] == [(1, "wrong_shape")], place
        assert isinstance(batch.inputs, dict) and batch.inputs["bag"].tolist() == [[2, 0, 0, 0, 0, 1.5], [0, 0, 3, 0, 0, 0]]


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"seconds": "1.5"}, "--default seconds=1.5: the feature 'seconds' holds int values; give a whole number of 64 bits"),
        ({"miles": ""}, "--default miles=: the feature 'miles' holds float values; give a number"),
        ({"tips": "0"}, "--default names 'tips', the ids"),
    ],
)
def test_a_default_that_is_none_is_refused(defaults: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded("tfrecord", examples(ROWS), INPUTS, defaults, labels=("seconds",), id="tips" if "tips" in defaults else None)
    with pytest.raises(ValueError, match="--default b.=1 is of no feature that is read; the features are a, c"):
        Defaults({"a": "1", "b*": "1"}).check_used(["a", "c"], ["c", "a"])


def test_a_sparse_feature_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say how large the sparse feature 'bag' is; write dense_shape { dim { size: N } }"):
        parse_schema(SCHEMA.replace("int_domain { min: 0 max: 5 }", ""))
    with pytest.raises(ValueError, match="'bag' is made of 'at', which is not among"):
        parse_schema('sparse_feature { name: "bag" index_feature { name: "at" } value_feature { name: "values" } }')
