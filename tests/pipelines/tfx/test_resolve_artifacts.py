"""Where the files of an artifact are, for every layout that TFX writes; and what is said when they are not there."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from tests.pipelines.tfx import needs_tfx as needs_tfx  # first: skips without the extra

# isort: split
from beam_influence.pipelines.tfx.artifacts import standard_artifacts
from beam_influence.pipelines.tfx.resolve_artifacts import data_format, model_path, schema_path, single, split_names, split_patterns


def make(uri: str = "/data/7", **custom: Any) -> Any:
    examples = standard_artifacts.Examples()
    examples.uri = uri
    examples.splits = ["train", "eval"]
    for name, value in custom.items():
        if isinstance(value, int):
            examples.set_int_custom_property(name, value)
        else:
            examples.set_string_custom_property(name, value)
    return examples


def test_splits_are_folders() -> None:
    assert split_names(make()) == ["train", "eval"]
    assert split_patterns([make()], ["eval"]) == ("/data/7/Split-eval/*",)
    both = split_patterns([make(), make("gs://bucket/8")], ["train", "eval"])
    assert both == ("/data/7/Split-train/*", "/data/7/Split-eval/*", "gs://bucket/8/Split-train/*", "gs://bucket/8/Split-eval/*")
    assert split_patterns([make()], []) == ()
    with pytest.raises(ValueError, match="the Examples at '/data/7' have no split 'test'; they have train, eval"):
        split_patterns([make()], ["test"])


def test_custom_patterns_decide() -> None:
    examples = make(custom_split_pattern=json.dumps({"a": "x/a-*", "b": "b*.gz"}))
    assert split_names(examples) == ["a", "b"]
    assert split_patterns([examples], ["b", "a"]) == ("/data/7/b*.gz", "/data/7/x/a-*")
    with pytest.raises(ValueError, match="no split 'train'; they have a, b"):
        split_patterns([examples], ["train"])


@pytest.mark.parametrize(
    ("custom", "expected"),
    [
        ({}, "tfrecord"),
        ({"payload_format": "FORMAT_TF_EXAMPLE", "file_format": "tfrecords_gzip"}, "tfrecord"),
        ({"payload_format": 6, "file_format": "FORMAT_TFRECORDS_GZIP"}, "tfrecord"),
        ({"payload_format": "FORMAT_TF_SEQUENCE_EXAMPLE"}, "sequence_example"),
        ({"payload_format": 7, "file_format": "tfrecord"}, "sequence_example"),
        ({"payload_format": "FORMAT_PARQUET", "file_format": "parquet"}, "parquet"),
        ({"payload_format": 15, "file_format": "FILE_FORMAT_PARQUET"}, "parquet"),
    ],
    ids=str,
)
def test_formats(custom: dict, expected: str) -> None:
    assert data_format([make(**custom)]) == expected


@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ({"payload_format": "FORMAT_PROTO"}, "payload format FORMAT_PROTO; it must be one of FORMAT_TF_EXAMPLE"),
        ({"payload_format": 11}, "payload format FORMAT_PROTO"),
        ({"file_format": "recordio"}, "file format recordio; with FORMAT_TF_EXAMPLE it must be tfrecord"),
        ({"payload_format": "FORMAT_PARQUET", "file_format": "tfrecords_gzip"}, "with FORMAT_PARQUET it must be parquet"),
    ],
    ids=str,
)
def test_other_formats_are_refused(custom: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_format([make(**custom)])


def test_mixed_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="all Examples must have one payload format, not tfrecord .*, parquet"):
        data_format([make(), make("/data/8", payload_format="FORMAT_PARQUET")])


def model_at(uri: pathlib.Path) -> Any:
    model = standard_artifacts.Model()
    model.uri = str(uri)
    return model


def test_models(tmp_path: pathlib.Path) -> None:
    serving = tmp_path / "Format-Serving"
    serving.mkdir()
    with pytest.raises(ValueError, match="neither saved_model.pb nor a .keras file in Format-Serving"):
        model_path(model_at(tmp_path))
    (tmp_path / "outside.keras").touch()
    assert model_path(model_at(tmp_path)) == str(tmp_path / "outside.keras")
    (serving / "model.keras").touch()
    assert model_path(model_at(tmp_path)) == str(serving / "model.keras")
    (serving / "second.keras").touch()
    with pytest.raises(ValueError, match="several .keras files"):
        model_path(model_at(tmp_path))
    (serving / "saved_model.pb").touch()
    assert model_path(model_at(tmp_path)) == str(serving)


def test_schema_and_single() -> None:
    schema = standard_artifacts.Schema()
    schema.uri = "/data/9"
    assert schema_path(schema) == "/data/9/schema.pbtxt"
    assert single([schema], "schema") is schema
    with pytest.raises(ValueError, match="schema must be one artifact, not 2"):
        single([schema, schema], "schema")
