"""However many examples are rejected: each once in the table, in bounded memory; the message has the count and the first of each kind."""

from __future__ import annotations

import pathlib
import tracemalloc

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from beam_influence.influence_ops.reading.example_batch import Rejected
from beam_influence.transforms import write_rejected
from beam_influence.transforms.elements import MESSAGE_LIMIT, RejectedBlock, RejectedExample
from beam_influence.transforms.write_rejected import BLOCK, WriteRejected, _first_of_each_kind, _VerdictDoFn, _WriteBlockDoFn, may_hold


def example(index: int, file: str = "f", stage: str = "read", error: str = "damaged_data", message: str = "bad") -> RejectedExample:
    return RejectedExample.of("train", Rejected(file, index, stage, error, message))


def write(output: pathlib.Path, rejected: list[RejectedExample], allowed: int) -> None:
    with beam.Pipeline(FnApiRunner()) as pipeline:
        created = pipeline | beam.Create(rejected, reshuffle=False).with_output_types(RejectedExample)
        _ = created | WriteRejected(str(output), allowed)


def test_each_once_in_files_of_bounded_size(tmp_path: pathlib.Path) -> None:
    rejected = [example(index, file) for file in ("f", "g/f") for index in (*range(5), BLOCK - 1, BLOCK, 3 * BLOCK + 2)]
    write(tmp_path, rejected + rejected[::-1], len(rejected))  # a second pass rejects the same
    found = pq.read_table(tmp_path / "rejected").to_pylist()
    assert sorted((row["file"], row["index"]) for row in found) == sorted((one.file, one.index) for one in rejected)
    assert len(list((tmp_path / "rejected").iterdir())) == 6  # two files with three blocks each


def test_many_files_share_a_few(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example once, in files of a bounded number of rows; one file of the run's is found by its bucket."""
    monkeypatch.setattr(write_rejected, "BUCKETS", 4)
    monkeypatch.setattr(write_rejected, "BLOCK", 30)
    rejected = [example(0, f"{number}") for number in range(200)]
    write(tmp_path, rejected + rejected, 200)
    paths = sorted((tmp_path / "rejected").iterdir())
    assert sum(pq.read_table(path).num_rows for path in paths) == 200 and 8 <= len(paths) <= 12
    assert set(pq.read_table(tmp_path / "rejected")["file"].to_pylist()) == {f"{number}" for number in range(200)}
    for number in range(0, 200, 17):
        holding = [path for path in paths if may_hold(str(path), "train", f"{number}")]
        assert len(holding) < len(paths) and f"{number}" in {name for path in holding for name in pq.read_table(path)["file"].to_pylist()}
    assert may_hold("rejected/part-00000-train-0123456789abcdef-00000.parquet", "train", "x")  # of an earlier version


def test_none_is_an_empty_table(tmp_path: pathlib.Path) -> None:
    write(tmp_path, [], 0)
    assert [path.name for path in (tmp_path / "rejected").iterdir()] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "rejected").num_rows == 0


def test_the_message_has_the_first_of_each_kind(tmp_path: pathlib.Path) -> None:
    many = [example(index) for index in range(100, 400)]
    others = [example(7, "g"), example(9, stage="evaluate", error="not_finite", message="its loss is nan")]
    with pytest.raises(Exception) as caught:
        write(tmp_path, many + others, 301)
    message = str(caught.value)
    assert "302 examples were rejected, more than --max_rejected 301" in message and str(tmp_path / "rejected") in message
    assert "train f:9 (evaluate, not_finite): its loss is nan\n  train f:100 (read, damaged_data): bad" in message
    assert "f:101" not in message and "g:7" not in message
    assert pq.read_table(tmp_path / "rejected").num_rows == 302


def test_kinds_without_end_stay_few() -> None:
    kinds = [example(index, error=f"error {index}") for index in range(1000)]
    assert [one.index for one in _first_of_each_kind(reversed(kinds))] == [0, 1, 2, 3, 4]


def test_a_long_message_is_cut() -> None:
    assert len(example(0, message="x" * 10**6).message) == MESSAGE_LIMIT and example(0, message="short").message == "short"


def test_memory_is_that_of_one_block(tmp_path: pathlib.Path) -> None:
    """A block with messages as long as they may be, each rejected twice, and the verdict over 100,000 blocks."""
    write_block, verdict = _WriteBlockDoFn(str(tmp_path), 0), _VerdictDoFn(str(tmp_path), 10**12, 0, False)
    block = RejectedBlock(BLOCK, tuple(example(index, error=f"{index}", message="x" * MESSAGE_LIMIT) for index in range(5)))
    tracemalloc.start()
    try:
        twice = ((False, example(index, message=f"{index} {'x' * MESSAGE_LIMIT}")) for _ in range(2) for index in range(BLOCK))
        assert len(list(write_block.process((("train", 7, 0), twice)))) == 2
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert list(verdict.process(None, (block for _ in range(100_000)))) == []
        assert tracemalloc.get_traced_memory()[1] - before < 1 << 20
    finally:
        tracemalloc.stop()
