"""The cleaned training set lacks exactly the examples of the largest self-influence, and nothing else."""

from __future__ import annotations

import gzip
import json
import pathlib
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo

from beam_influence.influence_ops.reading.tfrecord_framing import read_records
from beam_influence.pipelines.clean import CleanConfig, build_cleaning, clean
from beam_influence.pipelines.run_pipeline import RunFailedError
from beam_influence.transforms.clean_shards import CopiedFile, FileTotals
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.select_threshold import ScoreHistogram, _Search
from tests.pipelines.digits_job import FN_API, SIZES, DigitsJob, files_below, framed, read, run_quietly
from tests.pipelines.test_graph import crossings

SHARE = 0.1


class Source:
    """A folder with three gzip training files, one of whose examples has no label, an evaluation file, and the scores."""

    def __init__(self, job: DigitsJob, folder: pathlib.Path, **options: Any):
        self.root = folder / "examples"
        self.train, self.eval = self.root / "Split-train", self.root / "Split-eval"
        self.train.mkdir(parents=True)
        self.eval.mkdir()
        self.records = {}
        split = job.splits["train"]
        for number, rows in enumerate(np.array_split(np.arange(SIZES["train"]), 3)):
            bad = {int(rows[4]): {"label": None}} if number == 1 else {}
            records = [split.example(int(row), bad.get(int(row))) for row in rows]
            name = f"part-{number}.gz"
            self.records[name] = records
            (self.train / name).write_bytes(gzip.compress(framed(records)))
        (self.eval / "part-0").write_bytes(framed(job.splits["test"].example(row) for row in range(SIZES["test"])))
        self.scores = folder / "scores"
        config = job.config(self.scores, outputs="self_influence", max_rejected=1, group_feature=None, **options)
        values = {**config.as_json(), "train": str(self.train / "*"), "test": None}
        run_quietly(type(config)(**values))

    def config(self, output: pathlib.Path, **options: Any) -> CleanConfig:
        values = {
            "scores": str(self.scores),
            "source": str(self.root),
            "train": (str(self.train / "*"),),
            "others": (str(self.eval / "*"),),
            "output": str(output),
            "share": SHARE,
        }
        return CleanConfig(**{**values, **options})

    def ids(self) -> dict[str, list[str]]:
        """The name of each record, by file: `<file>:<index>`, or its feature."""
        return {name: [f"{name}:{index}" for index in range(len(records))] for name, records in self.records.items()}


@pytest.fixture(scope="module")
def source(job: DigitsJob, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(job, tmp_path_factory.mktemp("source"))


def records_of(path: pathlib.Path) -> list[bytes]:
    with open(path, "rb") as file:
        records = list(read_records(file))
    assert all(isinstance(record, bytes) for record in records)
    return [record for record in records if isinstance(record, bytes)]


def suspicious_ids(source: Source) -> set[str]:
    """By sorting the whole table."""
    rows = read(source.scores, "self_influence").to_pylist()
    rows.sort(key=lambda row: -row["influence"])
    count = int(SHARE * len(rows))
    assert len(rows) == SIZES["train"] - 1 and count == 29
    return {row["train_id"] for row in rows[:count]}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("arguments", [(), ("--direct_runner_bundle_repeat=1",)], ids=["once", "repeated"])
def test_drops_the_largest_self_influence(source: Source, tmp_path: pathlib.Path, arguments: tuple[str, ...]) -> None:
    facts = clean(source.config(tmp_path / "out"), [*FN_API, *arguments])
    suspicious = suspicious_ids(source)
    for name, records in source.records.items():
        path = tmp_path / "out" / "Split-train" / name
        assert path.read_bytes()[:2] == b"\x1f\x8b"
        # The example without a label has no score: it stays.
        assert records_of(path) == [
            record for record, id in zip(records, source.ids()[name], strict=True) if id not in suspicious
        ]
    copied = tmp_path / "out" / "Split-eval" / "part-0"
    assert copied.read_bytes() == (source.eval / "part-0").read_bytes()
    assert files_below(tmp_path / "out") == {"Split-eval/part-0", "cleaning/facts.json", *(f"Split-train/{n}" for n in source.records)}
    scores = {row["train_id"]: row["influence"] for row in read(source.scores, "self_influence").to_pylist()}
    assert facts == json.loads((tmp_path / "out/cleaning/facts.json").read_text())
    assert facts.pop("options")["scores"] == str(source.scores)
    assert facts == {
        "share": SHARE,
        "weight": None,
        "weight_feature": "weight",
        "scored": 299,
        "threshold": min(scores[id] for id in suspicious),
        "files": 3,
        "files_copied": 1,
        "examples": 300,
        "suspicious": 29,
        "damaged": 0,
    }


@pytest.mark.timeout(120)
def test_down_weights(source: Source, tmp_path: pathlib.Path) -> None:
    facts = clean(source.config(tmp_path / "out", weight=0.2, weight_feature="w"), FN_API)
    assert facts["suspicious"] == 29 and facts["weight"] == 0.2
    suspicious = suspicious_ids(source)
    for name, records in source.records.items():
        found = records_of(tmp_path / "out" / "Split-train" / name)
        for before, after, id in zip(records, found, source.ids()[name], strict=True):
            example: Any = tf.train.Example.FromString(after)
            assert list(example.features.feature["w"].float_list.value) == [np.float32(0.2 if id in suspicious else 1)]
            del example.features.feature["w"]
            assert example == tf.train.Example.FromString(before)


@pytest.mark.timeout(120)
def test_ids_of_a_feature(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """The names need not tell where an example is: the order of the scores does."""
    named = Source(job, tmp_path, id_feature="name")
    clean(named.config(tmp_path / "out"), FN_API)
    suspicious = suspicious_ids(named)
    assert all(id.startswith("train example ") for id in suspicious)
    kept = [record for name in named.records for record in records_of(tmp_path / "out" / "Split-train" / name)]
    features: list[Any] = [tf.train.Example.FromString(record).features for record in kept]
    names = {feature.feature["name"].bytes_list.value[0].decode() for feature in features}
    assert len(kept) == 300 - 29 and len(names) == 271 and not names & suspicious


def test_wrong_options_are_refused(source: Source, tmp_path: pathlib.Path, finished: Any) -> None:
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=f"share {share} must be above 0 and below 1"):
            source.config(tmp_path, share=share)
    with pytest.raises(ValueError, match="data_format 'csv' must be one of tfrecord"):
        source.config(tmp_path, data_format="csv")
    with pytest.raises(ValueError, match="weight 2 must be from 0 to 1"):
        source.config(tmp_path, weight=2)
    with pytest.raises(ValueError, match=r"are of 3 files at .*part-\*.*, not of 3 at"):
        clean(source.config(tmp_path, scores=str(finished.output)), FN_API)
    with pytest.raises(ValueError, match="is not below the folder"):
        clean(source.config(tmp_path, source=str(tmp_path)), FN_API)
    with pytest.raises(ValueError, match="no run has finished there"):
        clean(source.config(tmp_path, scores=str(tmp_path)), FN_API)
    assert not files_below(tmp_path)


@pytest.mark.timeout(120)
def test_files_that_changed_are_refused(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    changed = Source(job, tmp_path)
    one = changed.train / "part-2.gz"
    one.write_bytes(gzip.compress(framed(changed.records["part-2.gz"][1:])))
    with pytest.raises(RunFailedError, match=r"can't clean .*part-2\.gz: the file has 99 records, but 100 were scored or rejected"):
        clean(changed.config(tmp_path / "out"), FN_API)
    assert not (tmp_path / "out" / "cleaning").exists()


def test_no_example_crosses_a_shuffle(source: Source, tmp_path: pathlib.Path) -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    build_cleaning(pipeline, source.config(tmp_path))
    found = crossings(pipeline)
    # References to files, histograms of fixed size, one number; and Beam's own.
    ours = {Shard, CopiedFile, FileTotals, ScoreHistogram, _Search, float, str, type(None), None}
    bad = [crossing for crossing in found if crossing.types - ours - {Timestamp, PaneInfo, int}]
    assert found and not bad, bad
    assert {Shard, CopiedFile, ScoreHistogram} <= frozenset().union(*(crossing.types for crossing in found))
