"""Damaged, incomplete and not finite examples: each has its row in `rejected`, and all others count as if it had never been."""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.pipelines.cli import main
from beam_influence.pipelines.prepare import prepare
from beam_influence.pipelines.run_pipeline import RunFailedError
from beam_influence.pipelines.scored_data import ScoredData
from beam_influence.transforms.progress import Progress
from beam_influence.transforms.read_shards import ShardReader
from tests.pipelines.digits_job import (
    SIZES,
    DigitsJob,
    Split,
    assert_same_tables,
    floats,
    framed,
    ints,
    read,
    run_quietly,
    strings,
)

# The kept examples are the same, only in batches of other shapes: what is left is rounding (seen: 1e-13).
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A damaged file: its bytes, which of its positions are kept, and the rows of `rejected` (position, stage, error)."""

    data: bytes
    kept: list[int]
    rejected: list[tuple[int, str, str]]


def _lengths(records: list[bytes]) -> np.ndarray:
    """Where each record starts in a plain file; the last number is the file's size."""
    return np.cumsum([0] + [len(record) + 16 for record in records])


def truncated(records: list[bytes]) -> Damaged:
    last = len(records) - 1
    return Damaged(framed(records)[:-20], list(range(last)), [(last, "read", "truncated")])


def truncated_in_header(records: list[bytes]) -> Damaged:
    last = len(records) - 1
    return Damaged(framed(records)[: _lengths(records)[last] + 5], list(range(last)), [(last, "read", "truncated")])


def corrupt_data(records: list[bytes]) -> Damaged:
    data = bytearray(framed(records))
    data[_lengths(records)[3] + 12 + 40] ^= 1
    return Damaged(bytes(data), [p for p in range(len(records)) if p != 3], [(3, "read", "damaged_data")])


def corrupt_length(records: list[bytes]) -> Damaged:
    data = bytearray(framed(records))
    data[_lengths(records)[4]] ^= 1
    return Damaged(bytes(data), [0, 1, 2, 3], [(4, "read", "damaged_length")])  # what follows can't be found


def cut_gzip(records: list[bytes]) -> Damaged:
    whole = gzip.compress(framed(records))
    data = whole[: len(whole) * 2 // 3]
    readable = len(zlib.decompressobj(wbits=31).decompress(data))
    count = int(np.searchsorted(_lengths(records), readable, side="right")) - 1
    assert 0 < count < len(records)
    return Damaged(data, list(range(count)), [(count, "read", "damaged_gzip")])


def not_tfrecord(records: list[bytes]) -> Damaged:
    return Damaged(b"id,label\n" * 50, [], [(0, "read", "damaged_length")])


def empty(records: list[bytes]) -> Damaged:
    return Damaged(b"", [], [])


def _with(record: Callable[[Split, int], bytes], stage: str, error: str) -> Callable[[Split, list[int]], Damaged]:
    """The second record of a file replaced."""

    def make(split: Split, rows: list[int]) -> Damaged:
        records = [split.example(row) for row in rows]
        records[1] = record(split, rows[1])
        return Damaged(framed(records), [p for p in range(len(rows)) if p != 1], [(1, stage, error)])

    return make


def _whole(damage: Callable[[list[bytes]], Damaged]) -> Callable[[Split, list[int]], Damaged]:
    return lambda split, rows: damage([split.example(row) for row in rows])


def _replaced(split: Split, row: int, position: int, value: float) -> list[float]:
    return [value if index == position else float(pixel) for index, pixel in enumerate(split.images[row])]


DAMAGES: dict[str, Callable[[Split, list[int]], Damaged]] = {
    "truncated": _whole(truncated),
    "truncated_in_header": _whole(truncated_in_header),
    "corrupt_data": _whole(corrupt_data),
    "corrupt_length": _whole(corrupt_length),
    "cut_gzip": _whole(cut_gzip),
    "not_tfrecord": _whole(not_tfrecord),
    "empty": _whole(empty),
    "garbage": _with(lambda s, r: b"\xff\xfe not a tf.Example", "decode", "not_an_example"),
    "empty_record": _with(lambda s, r: b"", "decode", "missing_feature"),
    "missing_input": _with(lambda s, r: s.example(r, {"image": None}), "decode", "missing_feature"),
    "missing_label": _with(lambda s, r: s.example(r, {"label": None}), "decode", "missing_feature"),
    "wrong_length": _with(lambda s, r: s.example(r, {"image": floats(s.images[r][:63])}), "decode", "wrong_shape"),
    "no_values": _with(lambda s, r: s.example(r, {"image": floats([])}), "decode", "wrong_shape"),
    "two_labels": _with(lambda s, r: s.example(r, {"label": ints([1, 2])}), "decode", "wrong_shape"),
    "wrong_type": _with(lambda s, r: s.example(r, {"image": strings(["a"] * 64)}), "decode", "not_an_example"),
    "nan": _with(lambda s, r: s.example(r, {"image": floats(_replaced(s, r, 30, math.nan))}), "evaluate", "not_finite"),
    "inf": _with(lambda s, r: s.example(r, {"image": floats(_replaced(s, r, 30, math.inf))}), "evaluate", "not_finite"),
}


@dataclasses.dataclass(frozen=True)
class BadJob:
    """Patterns of files with every kind of damage, and what must come of them."""

    train: str
    test: str
    kept: dict[str, list[int]]
    ids: dict[str, list[str]]
    rejected: set[tuple[str, str, int, str, str]]


def _write(job: DigitsJob, folder: pathlib.Path, split: str, names: list[str]) -> tuple[list[int], list[str], set]:
    kept: list[int] = []
    ids = [""] * SIZES[split]
    rejected = set()
    for name, rows in zip(names, np.array_split(np.arange(SIZES[split]), len(names)), strict=True):
        damaged = DAMAGES[name](job.splits[split], rows.tolist())
        file = f"{name}.{split}"
        (folder / file).write_bytes(damaged.data)
        kept += [int(rows[position]) for position in damaged.kept]
        for position, row in enumerate(rows):
            ids[row] = f"{file}:{position}"
        rejected |= {(split, file, *reason) for reason in damaged.rejected}
    return kept, ids, rejected


@pytest.fixture(scope="module")
def bad(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> BadJob:
    folder = tmp_path_factory.mktemp("bad")
    # By file name `corrupt_data` and `cut_gzip` come first, so the first records are good ones here.
    train, train_ids, train_rejected = _write(job, folder, "train", sorted(DAMAGES))
    test, test_ids, test_rejected = _write(job, folder, "test", ["missing_label", "nan", "truncated"])
    return BadJob(
        f"{folder}/*.train",
        f"{folder}/*.test",
        {"train": train, "test": test},
        {"train": train_ids, "test": test_ids},
        train_rejected | test_rejected,
    )


@pytest.mark.parametrize(("curvature", "batch_size"), [("gauss_newton", 4), ("identity", 256)])
def test_every_damage_has_its_row_and_nothing_else_changes(
    job: DigitsJob, bad: BadJob, tmp_path: pathlib.Path, curvature: str, batch_size: int
) -> None:
    count = len(bad.rejected)
    config = job.config(
        tmp_path / "out", train=bad.train, test=bad.test, max_rejected=count, curvature=curvature, batch_size=batch_size
    )
    summary = run_quietly(config)
    rows = read(tmp_path / "out", "rejected").to_pylist()
    assert {(r["split"], r["file"], r["index"], r["stage"], r["error"]) for r in rows} == bad.rejected
    assert len(rows) == count and all(row["message"] for row in rows)
    expected = job.oracle(config, bad.ids["train"], bad.ids["test"], bad.kept)
    assert_same_tables(tmp_path / "out", expected, ROUNDING)
    assert summary.manifest["counts"]["score"]["examples"] == len(bad.kept["train"])
    if curvature != "identity":
        assert expected.preconditioner.examples == summary.manifest["curvature"]["examples"] == len(bad.kept["train"])


def test_one_more_than_allowed_ends_the_run(job: DigitsJob, bad: BadJob, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "out"
    allowed = len(bad.rejected) - 1
    with pytest.raises(RunFailedError) as caught:
        run_quietly(job.config(output, train=bad.train, test=bad.test, max_rejected=allowed, outputs="top_k"))
    message = str(caught.value)
    assert f"{allowed + 1} examples were rejected, more than --max_rejected {allowed}" in message
    assert str(output / "rejected") in message
    assert "Traceback" not in message and "running" not in message
    assert read(output, "rejected").num_rows == len(bad.rejected)  # the table that the message names is there
    assert not (output / "manifest.json").exists()
    assert not (output / "top_k").exists() or not list((output / "top_k").iterdir())


def test_by_default_one_is_too_many(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    damaged = corrupt_data([job.splits["train"].example(row) for row in range(20)])
    (tmp_path / "one.tfrecord").write_bytes(damaged.data)
    with pytest.raises(RunFailedError, match=r"(?s)^1 example was rejected, .*one\.tfrecord:3 \(read, damaged_data\)"):
        run_quietly(job.config(tmp_path / "out", train=str(tmp_path / "one.tfrecord"), outputs="top_k"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["missing_input", "missing_label", "wrong_length", "two_labels", "wrong_type", "garbage", "nan"])
def test_a_bad_first_record_is_rejected_too(job: DigitsJob, tmp_path: pathlib.Path, name: str) -> None:
    """What the features are is not decided by one record, or a bad first one would reject all good ones."""
    split = job.splits["train"]
    rows = list(range(20))
    first = DAMAGES[name](split, [19, 0])  # its second record is the bad one
    bad_record = first.data[len(framed([split.example(19)])) :]
    (tmp_path / "bad.tfrecord").write_bytes(bad_record + framed(split.example(row) for row in rows))
    plan = prepare(job.config(tmp_path / "out", train=str(tmp_path / "bad.tfrecord")))
    assert plan.train_features is not None
    reader = ShardReader("score", plan.train_features, 256, Progress(None))
    ((batch, rejected),) = reader.read(plan.train[0])
    assert batch.ids.tolist()[-len(rows) :] == [f"bad.tfrecord:{row + 1}" for row in rows]
    assert [r.index for r in rejected] == ([] if name == "nan" else [0])  # a NaN shows when it is evaluated


def test_a_training_set_of_which_nothing_is_left(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    train = job.splits["train"]
    columns = {"image": list(train.images.reshape(len(train.images), -1)), "label": train.labels, "pair": [["a", "b"]] * len(train.labels)}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    config = job.config(tmp_path / "out", train=str(tmp_path / "train.parquet"), group_feature="pair", max_rejected=1000)
    with pytest.raises(ValueError, match=r"every training example would be rejected, the first, train.parquet:0, since .* has 2 values"):
        run_quietly(config)


def test_measures_leave_out_what_the_run_rejected(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    train = job.splits["train"]
    images = train.images.reshape(len(train.images), -1)[:40].copy()
    images[3, 0] = np.nan
    pq.write_table(pa.table({"image": list(images), "label": train.labels[:40]}), tmp_path / "train.parquet")
    options: dict[str, Any] = {"group_feature": None, "outputs": "scores,top_k", "max_rejected": 1}
    run_quietly(job.config(tmp_path / "out", train=str(tmp_path / "train.parquet"), **options))
    ids = ScoredData(ScoreTable(str(tmp_path / "out")), {}).ids("train")
    assert ids == [f"train.parquet:{row}" for row in range(40) if row != 3]
    arguments = ["--scores", str(tmp_path / "out"), "--k", "3", "--output", str(tmp_path / "evaluation")]
    assert main(["evaluate", "cardinality", *arguments]) == 0
