"""How files become shards: parts of one size, as many as one worker can hear of, and what can't be split whole."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from beam_influence.influence_ops.reading.features import Feature, FeatureSpec
from beam_influence.influence_ops.reading.reader import WHOLE
from beam_influence.transforms import ReadShards, file_list
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.file_list import FileList, list_shards
from beam_influence.transforms.read_shards import _SplitDoFn
from tests.pipelines.digits_job import framed

FEATURES = FeatureSpec((("x", Feature("x", "float", ())),), (Feature("y", "int", ()),), format="tfrecord")


def files(folder: pathlib.Path, *records: int) -> FileList:
    """Files of so many records of 100 bytes, framing included."""
    for number, count in enumerate(records):
        (folder / f"{number}.tfrecord").write_bytes(framed([bytes(84)] * count))
    return list_shards("train", [f"{folder}/*.tfrecord"])


def split(wanted: ReadShards) -> list[Shard]:
    return [part for shard in wanted.shards for part in _SplitDoFn(wanted).process(shard)]


def test_a_file_is_split_into_equal_parts_that_are_told_apart(tmp_path: pathlib.Path) -> None:
    small, large = files(tmp_path, 10, 21)
    whole, *parts = split(ReadShards([small, large], FEATURES, 1000))
    assert whole == small and whole.key == "00000"
    assert [part.span.first for part in parts] == [0, 7, 14] and [part.span.start for part in parts] == [0, 700, 1400]
    assert [part.key for part in parts] == ["00001-00000", "00001-00001", "00001-00002"]
    assert {dataclasses.replace(part, span=WHOLE, part=0, parts=1) for part in parts} == {large}
    assert len(split(ReadShards([large], FEATURES, 1))) == 21
    assert split(ReadShards([small, large], None, 1)) == [small, large]  # files of results


def test_shards_are_no_more_than_one_worker_can_hear_of(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = files(tmp_path, 50, 500, 3)
    for most in (3, 4, 10):
        monkeypatch.setattr(file_list, "MAX_FILES", most)
        assert 3 <= len(split(ReadShards(shards, FEATURES, 1))) <= most + 1
    assert len(split(ReadShards(shards, FEATURES, 1))) > 8


def test_they_have_their_files_digest_where_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    shards = files(tmp_path, 3, 40)
    wanted = [hashlib.sha256(pathlib.Path(shard.path).read_bytes()).hexdigest() for shard in shards]

    def check(found: list[Shard]) -> None:
        assert sorted((shard.key, shard.sha256) for shard in found) == [
            ("00000", wanted[0]), ("00001-00000", wanted[1]), ("00001-00001", wanted[1]),
        ]  # fmt: skip

    with beam.Pipeline(FnApiRunner()) as pipeline:
        assert_that(pipeline | ReadShards(shards, FEATURES, 2500, with_digest=True), check)


def test_a_file_that_is_gone_is_named(tmp_path: pathlib.Path) -> None:
    shards = files(tmp_path, 30)
    pathlib.Path(shards[0].path).unlink()
    with pytest.raises(OSError, match=f"can't read train file {shards[0].path}: "):
        split(ReadShards(shards, FEATURES, 1000))
