"""Examples and Model artifacts over the shared digits job, in every format that TFX has."""

from __future__ import annotations

import gzip
import json
import pathlib
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from beam_influence.pipelines.tfx.artifacts import standard_artifacts
from tests.pipelines.digits_job import SIZES, DigitsJob, framed

FORMATS = ("gzip", "plain", "sequence", "parquet", "custom")
"""TFRecords of tf.Example, gzip and plain; tf.SequenceExample; Parquet; and tf.Example under custom patterns."""


def write_examples(job: DigitsJob, uri: pathlib.Path, kind: str = "gzip", files: int = 2) -> Any:
    """An Examples artifact with the job's training and test points, called train and eval, or otherwise with custom patterns."""
    examples = standard_artifacts.Examples()
    examples.uri = str(uri)
    names = {"train": "training", "test": "validation"} if kind == "custom" else {"train": "train", "test": "eval"}
    examples.splits = list(names.values())
    for split, name in names.items():
        folder = uri / ("all" if kind == "custom" else f"Split-{name}")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(files):
            rows = range(number, SIZES[split], files)
            _write(job, split, rows, folder / f"{name}-{number:05d}", kind)
    if kind == "custom":
        patterns = {name: f"all/{name}-*" for name in names.values()}
        examples.set_string_custom_property("custom_split_pattern", json.dumps(patterns))
    elif kind == "parquet":
        examples.set_string_custom_property("payload_format", "FORMAT_PARQUET")
        examples.set_string_custom_property("file_format", "parquet")
    elif kind == "sequence":
        examples.set_string_custom_property("payload_format", "FORMAT_TF_SEQUENCE_EXAMPLE")
        examples.set_string_custom_property("file_format", "tfrecords_gzip")
    else:
        examples.set_string_custom_property("payload_format", "FORMAT_TF_EXAMPLE")
    return examples


def _write(job: DigitsJob, split: str, rows: range, path: pathlib.Path, kind: str) -> None:
    data = job.splits[split]
    if kind == "parquet":
        columns = {
            "image": pa.array(data.images[rows].tolist(), pa.list_(pa.float32())),
            "label": data.labels[rows],
            "name": [data.names[row] for row in rows],
            "digit": [f"digit {data.labels[row]}" for row in rows],
        }
        pq.write_table(pa.table(columns), path, row_group_size=40)
        return
    records = [data.example(row) for row in rows]
    if kind == "sequence":
        parsed = [tf.train.Example.FromString(record) for record in records]
        records = [tf.train.SequenceExample(context=example.features).SerializeToString() for example in parsed]
    content = framed(records)
    path.write_bytes(content if kind == "plain" else gzip.compress(content))


def keras_model(job: DigitsJob, uri: pathlib.Path) -> Any:
    """A Model artifact with the job's `.keras` file."""
    model = standard_artifacts.Model()
    model.uri = str(uri)
    folder = uri / "Format-Serving"
    folder.mkdir(parents=True)
    shutil.copy(job.model, folder / "model.keras")
    return model
