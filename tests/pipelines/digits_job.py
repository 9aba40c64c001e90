"""A small real job for the tests: a part of scikit-learn's digits as TFRecord shards, a trained `.keras` model, and its oracle."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from sklearn.datasets import load_digits

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.network import load_keras_file
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.reading.tfrecord_framing import write_records
from beam_influence.influence_ops.results.result_files import WrittenFile, read_manifest, written_files
from beam_influence.influence_ops.scoring.in_memory import InfluenceResult, compute_in_memory
from beam_influence.pipelines.build import PASS_TOLERANCE
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.launch import run
from beam_influence.pipelines.run_summary import RunSummary
from beam_influence.transforms.files import BeamFiles

SIZES = {"train": 300, "test": 20}

# A product's last bits depend on the shapes of the batch and on the order of the sums over files: 1e-6 of the
# largest score is what the design promises. Seen: 1e-13.
TOLERANCE = 1e-6

OUTPUTS = "top_k,self_influence,group_influence,scores,influence_vectors"

FN_API = ("--runner=FnApiRunner",)


@dataclasses.dataclass(frozen=True)
class Split:
    """N examples in the order in which files hold them: images [N, 64] float32, labels [N], their names (N,)."""

    images: np.ndarray
    labels: np.ndarray
    names: list[str]

    def example(self, row: int, changes: Mapping[str, tf.train.Feature | None] | None = None) -> bytes:
        """One serialized tf.Example; `changes` replace features, None takes one out."""
        feature: dict[str, tf.train.Feature | None] = {
            "image": floats(self.images[row]),
            "label": ints([self.labels[row]]),
            "name": strings([self.names[row]]),
            "digit": strings([f"digit {self.labels[row]}"]),
            **(changes or {}),
        }
        features = tf.train.Features(feature={name: value for name, value in feature.items() if value is not None})
        return tf.train.Example(features=features).SerializeToString()


def floats(values: Iterable[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=list(values)))


def ints(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))


def strings(values: Iterable[str]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))


def framed(records: Iterable[bytes]) -> bytes:
    """The records as the bytes of a plain TFRecord file."""
    buffer = io.BytesIO()
    write_records(buffer, list(records))
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Shards:
    """The files of one split: their pattern, and which rows each holds, in order."""

    pattern: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]

    def ids(self) -> list[str]:
        """`<file>:<index>` of every example, in the order of the rows."""
        found = {row: f"{name}:{index}" for name, rows in self.rows for index, row in enumerate(rows)}
        return [found[row] for row in sorted(found)]


class DigitsJob:
    """The data and the model below one folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.splits = _splits()
        self.model = folder / "model.keras"
        _train(self.splits["train"]).save(self.model)

    def shards(self, split: str, files: int, compressed: bool = False) -> Shards:
        """The split in a number of files of uneven sizes, written when they are asked for first."""
        suffix = "tfrecord.gz" if compressed else "tfrecord"
        folder = self.folder / f"{split}-{files}-{suffix}"
        parts = np.array_split(np.arange(SIZES[split]), files)
        if files > 1:  # odd sizes on purpose
            parts[0], parts[-1] = parts[0][:-5], np.concatenate([parts[-1], parts[0][-5:]])
        rows = tuple((f"part-{number:05d}.{suffix}", tuple(int(row) for row in part)) for number, part in enumerate(parts))
        if not folder.exists():
            folder.mkdir()
            for name, part in rows:
                data = framed(self.splits[split].example(row) for row in part)
                (folder / name).write_bytes(gzip.compress(data) if compressed else data)
        return Shards(str(folder / f"part-*.{suffix}"), rows)

    def config(self, output: pathlib.Path, files: int = 3, compressed: bool = False, **options: Any) -> InfluenceConfig:
        """A configuration over `files` training files and fewer test files."""
        chosen: dict[str, Any] = {
            "model": str(self.model),
            "train": self.shards("train", files, compressed).pattern,
            "test": self.shards("test", max(1, files // 3), compressed).pattern,
            "output": str(output),
            "group_feature": "digit",
            "outputs": OUTPUTS,
            "batch_size": 64,
            "threads": 1,
            **options,
        }
        if "top_k" in chosen["outputs"]:
            chosen.setdefault("top_k", 7)
        return InfluenceConfig(**chosen)

    def oracle(
        self,
        config: InfluenceConfig,
        train_ids: list[str],
        test_ids: list[str],
        keep: Mapping[str, list[int]] | None = None,
        preconditioner: Any = None,
    ) -> InfluenceResult:
        """What `config` must give, computed in memory from the arrays themselves, not from the files."""
        keep = keep or {split: list(range(size)) for split, size in SIZES.items()}
        batches = {
            split: [
                ExampleBatch(
                    ids=np.array(ids, dtype=object)[rows],
                    inputs=self.splits[split].images[rows],
                    labels=self.splits[split].labels[rows],
                    # Test points have groups only with an option of their own.
                    groups=np.array([f"digit {label}" for label in self.splits[split].labels[rows]], dtype=object)
                    if split == "train" and config.group_feature
                    else None,
                )
                for rows in np.array_split(np.array(keep[split]), 3)
            ]
            for split, ids in (("train", train_ids), ("test", test_ids))
        }
        finish = config.finish_options()
        return compute_in_memory(
            influence_model(str(self.model), config.weights),
            preconditioner or config.make_curvature(),
            batches["train"],
            batches["test"],
            damping=finish.damping,
            rcond=finish.rcond,
            rank=finish.rank,
            passes=config.solver_passes,
            tolerance=config.tolerance or PASS_TOLERANCE,
            options=config.score_options(),
            outputs=config.output_tables,
            top_k=config.top_k,
            order="ascending" if config.order == "ascending" else "descending",
            uncertainty=config.uncertainty,
        )


@functools.cache
def influence_model(path: str, weights: str | None = "last") -> InfluenceModel:
    """The oracle's own model."""
    return InfluenceModel(load_keras_file(path), weights=weights, loss_function="compiled")


def _splits() -> dict[str, Split]:
    digits: Any = load_digits()  # a Bunch, whose attributes its type does not tell
    images, labels = digits.data, digits.target
    order = np.random.default_rng(3).permutation(len(images))[: sum(SIZES.values())]
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    count = SIZES["train"]
    return {
        "train": Split(images[:count], labels[:count], [f"train example {row}" for row in range(count)]),
        "test": Split(images[count:], labels[count:], [f"test example {row}" for row in range(SIZES["test"])]),
    }


def _train(split: Split) -> keras.Model:
    """8 hidden units and a regularised softmax: P = 90 watched weights in the last layer."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((64,), name="image")
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    penalty = keras.regularizers.L2(1e-3)
    outputs = keras.layers.Dense(10, activation="softmax", kernel_regularizer=penalty, bias_regularizer=penalty, name="digits")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy())
    fit: Any = model.fit  # Keras types `verbose` as a string only
    fit(split.images, split.labels, epochs=20, batch_size=50, verbose=0)
    return model


def run_quietly(config: InfluenceConfig, *beam_arguments: str) -> RunSummary:
    """A run on FnApiRunner, unless another is named, without a progress bar."""
    is_named = any(argument.startswith("--runner=") for argument in beam_arguments)
    return run(config, [*(() if is_named else FN_API), *beam_arguments], io.StringIO())


def read(output: pathlib.Path | str, table: str) -> pa.Table:
    """A result table as a user reads it."""
    return pq.read_table(pathlib.Path(output) / table)


def files_below(folder: pathlib.Path) -> set[str]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def listed_files(output: str | pathlib.Path) -> list[WrittenFile]:
    """The result files of a finished run."""
    manifest = read_manifest(str(output), BeamFiles())
    return list(written_files(str(output), manifest, BeamFiles()))


def paths_of_run(output: str | pathlib.Path) -> set[str]:
    """All that a finished run leaves beside the curvature: its result files, their list and the manifest."""
    return {file.path for file in listed_files(output)} | {read_manifest(str(output), BeamFiles())["file_list"], "manifest.json"}


_NUMBERS = ("influence", "loss_change", "vector", "embedding", "scale", "residual")


def assert_same_tables(found: pathlib.Path, expected: InfluenceResult, tolerance: float = TOLERANCE) -> None:
    """Every table of `expected`: the same rows, everything but floats identical, floats to `tolerance` × the largest."""
    compared = set(expected.tables) - {"rejected"}
    assert compared
    for name in compared:
        assert_same_rows(read(found, name), expected.tables[name], tolerance)


def assert_same_rows(found: pa.Table, expected: pa.Table, tolerance: float) -> None:
    """One table: the same rows in any order, floats to `tolerance` × the largest."""
    assert found.num_rows == expected.num_rows > 0, (found.num_rows, expected.num_rows, expected.column_names)
    assert found.schema.equals(expected.schema)
    order = [(name, "ascending") for name in expected.column_names if name not in _NUMBERS]  # top_k: test_id, rank, train_id
    found, expected = found.sort_by(order), expected.sort_by(order)
    for column in expected.column_names:
        if column not in _NUMBERS:
            assert found[column].to_pylist() == expected[column].to_pylist(), column
            continue
        a, b = _matrix(found[column]), _matrix(expected[column])
        assert np.array_equal(np.isnan(a), np.isnan(b)), column  # nulls: relative scores have no unit
        if not np.isnan(b).all():
            assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(b)), column


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in column.to_pylist()], dtype=np.float64)


