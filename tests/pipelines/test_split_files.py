"""Files that are split give the ids, ranks and scores of whole ones, and each part is told of once."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from beam_influence.influence_ops.results.result_files import read_manifest
from beam_influence.pipelines.clean import CleanConfig, clean
from beam_influence.pipelines.config import InfluenceConfig
from tests.pipelines.digits_job import (
    FN_API,
    SIZES,
    DigitsJob,
    assert_same_rows,
    assert_same_tables,
    files_below,
    framed,
    listed_files,
    read,
    run_quietly,
)
from tests.pipelines.test_formats_job import FORMATS, written
from tests.pipelines.test_index import embeddings, indexed, queried

ALL = "top_k,self_influence,group_influence,scores,influence_vectors"


def counts(output: pathlib.Path, stage: str) -> dict[str, int]:
    return read_manifest(str(output))["counts"][stage]


def formatted(job: DigitsJob, folder: pathlib.Path, name: str, **options: Any) -> tuple[InfluenceConfig, dict[str, list[str]]]:
    """A job over one file of each split in a format, and the ids of their examples."""
    files = written(job, folder, name)
    config = job.config(folder / "out", outputs=ALL, query_block_size=7, **{**files, **options})
    return config, {split: [f"{pathlib.Path(files[split]).name}:{row}" for row in range(SIZES[split])] for split in SIZES}


@pytest.mark.parametrize(("name", "shard_size"), [("tfrecord", 9000), ("csv", 9000), ("parquet", 9000), ("sequence_example", 1)])
def test_a_split_job_is_the_one_in_memory(job: DigitsJob, tmp_path: pathlib.Path, name: str, shard_size: int) -> None:
    """Both splits; the sequences are gzip, which is read whole."""
    assert name in FORMATS
    config, ids = formatted(job, tmp_path, name, shard_size=shard_size)
    run_quietly(config)
    assert_same_tables(tmp_path / "out", job.oracle(config, ids["train"], ids["test"]))
    shards = {stage: counts(tmp_path / "out", stage)["shards"] for stage in ("curvature", "embed", "score")}
    assert shards["curvature"] == shards["score"] and (shards["score"] > 2) == (name != "sequence_example")
    assert {stage: counts(tmp_path / "out", stage)["examples"] for stage in ("embed", "score")} == {"embed": 20, "score": 300}
    files = sorted(file for file in files_below(tmp_path / "out") if file.startswith("scores/"))
    parts = [f"-{part:05d}" for part in range(shards["score"])] if shards["score"] > 1 else [""]
    assert files == [f"scores/shard-00000{part}.parquet" for part in parts]


def test_whatever_a_shard_is_the_numbers_are_the_same(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """The curvature, a sum over shards in their order, may differ in last bits alone; with passes over the data, and bundles run again."""
    options: dict[str, Any] = {"curvature": "gauss_newton_cg", "weights": "all", "passes": 2, "group_feature": None}
    base = job.config(tmp_path / "whole", files=1, outputs="top_k,scores", **options)
    run_quietly(base)
    for shard_size, arguments in ((50_000, ()), (20_000, ("--direct_runner_bundle_repeat=1",))):
        output = tmp_path / str(shard_size)
        run_quietly(dataclasses.replace(base, output=str(output), shard_size=shard_size), *arguments)
        for table in ("top_k", "scores"):
            assert_same_rows(read(output, table), read(tmp_path / "whole", table), 1e-9)


def test_bad_records_at_the_borders_of_shards(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    split = job.splits["train"]
    all_records = [split.example(row, {"label": None} if row in (0, 40) else {}) for row in range(SIZES["train"])]
    starts = np.cumsum([0, *(len(record) + 16 for record in all_records)])
    data = bytearray(framed(all_records))
    for row in (9, 10, 11, 150):
        data[starts[row] + 20] ^= 255
    data[starts[280]] ^= 255
    (tmp_path / "bad.tfrecord").write_bytes(data)
    tables = {}
    for shard_size in (1 << 26, 8000):
        output = tmp_path / str(shard_size)
        run_quietly(job.config(output, train=f"{tmp_path}/bad.tfrecord", max_rejected=7, outputs="top_k", shard_size=shard_size))
        tables[shard_size] = read(output, "rejected").sort_by("index"), read(output, "top_k")
        assert counts(output, "score")["rejected"] == 7
    (rejected, top), (split_rejected, split_top) = tables.values()
    assert split_rejected.equals(rejected) and rejected["index"].to_pylist() == [0, 9, 10, 11, 40, 150, 280]
    assert_same_rows(split_top, top, 1e-9)


def test_cleaning_takes_the_parts_of_a_file_together(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    split = job.splits["train"]
    for number, rows in enumerate((range(0, 200), range(200, 300))):
        records = [split.example(row, {"label": None} if row == 120 else {}) for row in rows]
        (folder / f"part-{number}.tfrecord").write_bytes(framed(records))
    pattern = f"{folder}/*"
    for shard_size in (1 << 26, 15_000):
        scores = tmp_path / f"scores-{shard_size}"
        config = job.config(scores, train=pattern, outputs="self_influence", max_rejected=1, group_feature=None, shard_size=shard_size)
        run_quietly(dataclasses.replace(config, test=None))
        facts = clean(CleanConfig(str(scores), str(folder), (pattern,), (), str(tmp_path / f"clean-{shard_size}"), 0.1), FN_API)
        assert (facts["files"], facts["examples"], facts["suspicious"], facts["scored"]) == (2, 300, 29, 299)
    assert len([file for file in files_below(tmp_path / "scores-15000") if file.startswith("self_influence")]) > 4
    for number in range(2):
        whole, parts = ((tmp_path / f"clean-{size}" / f"part-{number}.tfrecord").read_bytes() for size in (1 << 26, 15_000))
        assert whole == parts


def test_an_index_of_split_files_grows_and_answers(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """The first half of the data in one file; then the second, with another size of shards, beside a copy of the first."""
    split = job.splits["train"]
    for name, rows in (("a", range(0, 150)), ("b", range(150, 300))):
        (tmp_path / f"{name}.tfrecord").write_bytes(framed(split.example(row) for row in rows))
    (tmp_path / "copy-of-a.tfrecord").write_bytes((tmp_path / "a.tfrecord").read_bytes())
    indexed(job, tmp_path / "index", train=f"{tmp_path}/a.tfrecord", shard_size=15_000)
    assert counts(tmp_path / "index", "index")["shards"] > 2
    indexed(job, tmp_path / "index", train=f"{tmp_path}/*.tfrecord", shard_size=25_000, update=True)
    manifest = read_manifest(str(tmp_path / "index"))
    sources = [(f.source.name, f.path.split("-")[1]) for f in listed_files(tmp_path / "index") if f.source is not None]
    assert len(sources) > len(set(sources)) == 2 and {name for name, _ in sources} == {"a.tfrecord", "b.tfrecord"}
    assert manifest["counts"]["index"]["examples"] == 300
    queried(job, tmp_path / "answer", tmp_path / "index", outputs="scores", shard_size=1000)
    ids = [f"{name}.tfrecord:{row}" for name in "ab" for row in range(150)]
    assert sorted(set(read(tmp_path / "answer", "scores")["train_id"].to_pylist())) == sorted(ids)
    whole = tmp_path / "whole"
    indexed(job, whole, train=f"{tmp_path}/a.tfrecord,{tmp_path}/b.tfrecord", curvature_path=str(tmp_path / "index" / "curvature"))
    assert embeddings(whole).keys() == embeddings(tmp_path / "index").keys() == set(ids)
    assert all(np.allclose(vector, embeddings(whole)[name], rtol=1e-5) for name, vector in embeddings(tmp_path / "index").items())


def test_two_processes_share_a_file(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """With a curvature of the user's own, which each of them imports, and bundles that are repeated."""
    own = "tests.pipelines.test_sources:HalvedIdentity"
    config, ids = formatted(job, tmp_path, "tfrecord", shard_size=4000, curvature=own)
    run_quietly(config, "--runner=local", "--workers=2", "--direct_runner_bundle_repeat=1")
    assert_same_tables(tmp_path / "out", job.oracle(config, ids["train"], ids["test"]))
