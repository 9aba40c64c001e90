"""The same examples in every input format give the same result, and a bad row of any format is rejected alone."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import pathlib
from collections.abc import Callable
from typing import Any

import fastavro
import keras
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import zstandard

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.tfrecord_framing import write_records
from beam_influence.influence_ops.scoring.in_memory import compute_in_memory
from beam_influence.pipelines.config import InfluenceConfig
from tests.pipelines.digits_job import SIZES, DigitsJob, Split, assert_same_rows, floats, ints, read, run_quietly, strings

# One image row a step, one batch of 64, the same float32 values: only the order of sums could differ.
EXACT = 1e-12


def sequence_example(split: Split, row: int, steps: int = 8) -> bytes:
    image = split.images[row].reshape(8, 8)[:steps]
    sequence = tf.train.FeatureLists(feature_list={"image": tf.train.FeatureList(feature=[floats(step) for step in image])})
    context = tf.train.Features(feature={"label": ints([split.labels[row]]), "digit": strings([f"digit {split.labels[row]}"])})
    return tf.train.SequenceExample(context=context, feature_lists=sequence).SerializeToString()


def write_tfrecord(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    with open(folder / "part.tfrecord", "wb") as file:
        write_records(file, [split.example(row) for row in rows])
    return "part.tfrecord"


def write_sequences(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    with gzip.open(folder / "part.sequence", "wb") as file:
        write_records(file, [sequence_example(split, row) for row in rows])  # type: ignore[arg-type]
    return "part.sequence"


def parquet_columns(split: Split, rows: list[int]) -> dict[str, Any]:
    labels = split.labels[rows]
    return {"label": pa.array(labels.astype(np.int32)), "digit": [f"digit {label}" for label in labels]}


def write_parquet(folder: pathlib.Path, split: Split, rows: list[int], images: Callable[[np.ndarray], pa.Array]) -> str:
    table = pa.table({**parquet_columns(split, rows), "image": images(split.images[rows])})
    pq.write_table(table, folder / "part.parquet", row_group_size=37)
    return "part.parquet"


def as_lists(images: np.ndarray) -> pa.Array:
    return pa.array(images.astype(np.float64).tolist(), pa.list_(pa.float64()))


def as_fixed(images: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 64)


def as_nested(images: np.ndarray) -> pa.Array:
    return pa.array(images.reshape(-1, 8, 8).tolist(), pa.list_(pa.list_(pa.float32())))


def write_csv(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    with open(folder / "part.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", *(f"pixel_{number}" for number in range(64)), "digit"])
        for row in rows:
            writer.writerow([split.labels[row], *split.images[row].tolist(), f"digit {split.labels[row]}"])
    return "part.csv"


def write_arrow(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    """As Hugging Face's `save_to_disk` does: a folder is the data set."""
    table = pa.table({**parquet_columns(split, rows), "image": as_lists(split.images[rows])})
    with ipc.new_stream(folder / "part.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=37)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "part.arrow"}]}')
    return ""


def write_avro(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    fields = [("label", "int"), ("digit", "string"), ("image", {"type": "array", "items": "float"})]
    schema = {"type": "record", "name": "row", "fields": [{"name": name, "type": kind} for name, kind in fields]}
    columns = {**parquet_columns(split, rows), "image": as_lists(split.images[rows])}
    with open(folder / "part.avro", "wb") as file:
        fastavro.writer(file, schema, pa.table(columns).to_pylist(), sync_interval=5000)
    return "part.avro"


def write_array_record(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    """As TensorFlow Datasets does: a folder is the data set."""
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    file = writer(str(folder / f"digits-{folder.name}.array_record-00000-of-00001"), "group_size:7")
    for row in rows:
        file.write(split.example(row))
    file.close()
    info = {"name": "digits", "fileFormat": "array_record", "splits": [{"name": folder.name}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return ""


def write_tsv(folder: pathlib.Path, split: Split, rows: list[int]) -> str:
    data = (folder / write_csv(folder, split, rows)).read_bytes()
    (folder / "part.tsv.zst").write_bytes(zstandard.compress(data.replace(b",", b"\t")))
    return "part.tsv.zst"


CSV_OPTIONS = {"input_features": "image=pixel_*"}
FORMATS: dict[str, tuple[Callable[[pathlib.Path, Split, list[int]], str], dict[str, Any]]] = {
    "tfrecord": (write_tfrecord, {}),
    "sequence_example": (write_sequences, {"data_format": "sequence_example"}),
    "parquet": (functools.partial(write_parquet, images=as_lists), {}),
    "parquet_fixed": (functools.partial(write_parquet, images=as_fixed), {}),
    "parquet_nested": (functools.partial(write_parquet, images=as_nested), {"data_format": "parquet"}),
    "csv": (write_csv, CSV_OPTIONS),
    "arrow": (write_arrow, {}),
    "avro": (write_avro, {}),
    "array_record": (write_array_record, {}),
    "tsv": (write_tsv, CSV_OPTIONS),
    "csv_sum": (write_csv, {"input_features": "image=" + "+".join(f"pixel_{number}" for number in range(64))}),
}


def written(job: DigitsJob, folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Both splits in a format, and the options that read them."""
    write, options = FORMATS[name]
    patterns = {}
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        patterns[split] = str(folder / split / write(folder / split, job.splits[split], list(range(SIZES[split]))))
    return {**patterns, **options}


def config(job: DigitsJob, folder: pathlib.Path, **options: Any) -> InfluenceConfig:
    return job.config(folder / "out", outputs="top_k,group_influence", **options)


def result(folder: pathlib.Path, table: str) -> pa.Table:
    """A table without the files' names, which differ: `part.csv:3` is `3`."""
    found = read(folder / "out", table)
    for name in ("train_id", "test_id"):
        if name in found.column_names:
            plain = pa.array([None if one is None else one.split(":")[1] for one in found[name].to_pylist()])
            found = found.set_column(found.column_names.index(name), name, plain)
    return found


@pytest.fixture(scope="module")
def expected(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tfrecord")
    run_quietly(config(job, folder, **written(job, folder, "tfrecord")))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("sequence_example", "parquet", "parquet_nested", "csv", "arrow", "avro", "array_record", "tsv"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("parquet_fixed", "csv_sum")),
    ],
)
def test_every_format_gives_the_same(job: DigitsJob, expected: pathlib.Path, tmp_path: pathlib.Path, name: str) -> None:
    run_quietly(config(job, tmp_path, **written(job, tmp_path, name)))
    for table in ("top_k", "group_influence"):
        assert_same_rows(result(tmp_path, table), result(expected, table), EXACT)


def damage_sequences(path: pathlib.Path, split: Split) -> list[tuple[int, str, str]]:
    records = [sequence_example(split, row) for row in range(SIZES["train"])]
    records[3] = sequence_example(split, 3, steps=7)
    records[5] = b"\xff\xff"
    records[9] = tf.train.SequenceExample().SerializeToString()
    with open(path, "wb") as file:
        write_records(file, records)
    return [(3, "decode", "wrong_shape"), (5, "decode", "not_an_example"), (9, "decode", "missing_feature")]


def damage_parquet(path: pathlib.Path, split: Split) -> list[tuple[int, str, str]]:
    rows = list(range(SIZES["train"]))
    images: list[Any] = split.images.tolist()
    images[3], images[5], images[9] = images[3][:63], None, [None, *images[9][1:]]
    labels: list[Any] = split.labels.tolist()
    labels[11] = None
    columns = {**parquet_columns(split, rows), "image": pa.array(images, pa.list_(pa.float32())), "label": pa.array(labels)}
    pq.write_table(pa.table(columns), path, row_group_size=37)
    return [
        (3, "decode", "wrong_shape"),
        (5, "decode", "missing_feature"),
        (9, "decode", "null_value"),
        (11, "decode", "missing_feature"),
    ]


def damage_csv(path: pathlib.Path, split: Split) -> list[tuple[int, str, str]]:
    lines = path.read_bytes().split(b"\r\n")  # the header is the first
    lines[1 + 3] += b",more"
    lines[1 + 5] = lines[1 + 5].replace(b",", b",x", 1)
    lines[1 + 9] = lines[1 + 9].partition(b",")[2].join([b",", b""])  # no label
    lines[1 + 11] = b"\r\n" + lines[1 + 11]  # a blank line counts for nothing
    path.write_bytes(b"\r\n".join(lines))
    return [(3, "read", "wrong_columns"), (5, "decode", "wrong_type"), (9, "decode", "missing_feature")]


@pytest.mark.parametrize(
    ("name", "damage"), [("sequence_example", damage_sequences), ("parquet", damage_parquet), ("csv", damage_csv)]
)
def test_bad_rows_are_rejected_alone(job: DigitsJob, tmp_path: pathlib.Path, name: str, damage: Callable[..., Any]) -> None:
    options = written(job, tmp_path, name)
    bad = damage(pathlib.Path(options["train"]), job.splits["train"])
    run = config(job, tmp_path, max_rejected=len(bad), **options)
    run_quietly(run)
    found = [(row["index"], row["stage"], row["error"]) for row in read(tmp_path / "out", "rejected").to_pylist()]
    assert found == bad
    keep = {"train": np.setdiff1d(np.arange(SIZES["train"]), [index for index, _, _ in bad]).tolist(), "test": list(range(SIZES["test"]))}
    ids = {split: [f"{pathlib.Path(options[split]).name}:{row}" for row in range(SIZES[split])] for split in keep}
    oracle = job.oracle(run, ids["train"], ids["test"], keep)
    assert_same_rows(read(tmp_path / "out", "top_k"), oracle.tables["top_k"], 1e-9)  # other batches, so other last bits


def test_encoded_images_are_decoded_on_the_workers(tmp_path: pathlib.Path) -> None:
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (40, 6, 5, 1), dtype=np.uint8)
    labels = generator.integers(0, 3, 40)
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    encoded[4] = b"no image"
    encoded[7] = tf.io.encode_png(images[7][:5]).numpy()
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 5, 1), name="pixels")
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(2, 3, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden))
    model.save(tmp_path / "model.keras")
    pq.write_table(pa.table({"image": encoded, "label": labels}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": encoded[10:13], "label": labels[10:13]}), tmp_path / "test.parquet")
    run = InfluenceConfig(
        model=str(tmp_path / "model.keras"),
        train=str(tmp_path / "train.parquet"),
        test=str(tmp_path / "test.parquet"),
        output=str(tmp_path / "out"),
        loss="softmax_cross_entropy",
        preprocess="examples.decode_images:decode_images",
        max_rejected=2,
        batch_size=16,
        threads=1,
    )
    run_quietly(run)
    rejected = [(row["index"], row["stage"], row["error"]) for row in read(tmp_path / "out", "rejected").to_pylist()]
    assert rejected == [(4, "decode", "preprocess"), (7, "decode", "wrong_shape")]
    floats_01 = images.astype(np.float32) / 255
    keep = np.setdiff1d(np.arange(40), [4, 7])

    def batch(name: str, rows: np.ndarray, first: int = 0) -> list[ExampleBatch]:
        ids = np.array([f"{name}:{row - first}" for row in rows], dtype=object)
        return [ExampleBatch(ids, floats_01[rows], labels[rows])]

    oracle = compute_in_memory(
        InfluenceModel(model, weights="last", loss_function="softmax_cross_entropy"),
        run.curvature,
        batch("train.parquet", keep),
        batch("test.parquet", np.arange(10, 13), 10),
    )
    assert_same_rows(read(tmp_path / "out", "top_k"), oracle.tables["top_k"], 1e-9)
