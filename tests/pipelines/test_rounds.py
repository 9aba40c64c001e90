"""Test points that don't fit a worker's memory are scored in rounds over the training set, with the results of one round."""

from __future__ import annotations

import dataclasses
import pathlib
import weakref
from typing import Any

import pytest

from beam_influence.influence_ops.model.gradients import Gradients
from beam_influence.influence_ops.results.result_files import read_facts, read_manifest
from beam_influence.influence_ops.scoring.contraction import Contraction
from beam_influence.pipelines.machine_memory import parse_bytes
from beam_influence.pipelines.prepare import prepare
from beam_influence.transforms.score_examples import round_of
from tests.pipelines.digits_job import OUTPUTS, SIZES, DigitsJob, assert_same_tables, read, run_quietly

P = 90
MEMORY = 2 * 5 * 8 * P  # half of it is five test points in float64


def test_the_plan(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Two files of 5 and 15 test points, at most five in a round; blocks small enough that one may be there twice."""
    config = job.config(tmp_path / "out", files=6, max_worker_memory=str(MEMORY))
    plan = prepare(config).queries
    assert plan.block_size == 1 and plan.form.dtype == "float64" and plan.is_split
    keys = [f"00000-{number:05d}" for number in range(5)] + [f"00001-{number:05d}" for number in range(15)]
    assert [round_of(key, plan.first_keys) for key in keys] == [number // 5 for number in range(SIZES["test"])]
    assert f"20 test points × {P} weights" in plan.text and "4 rounds over the training set" in plan.text
    enough = prepare(dataclasses.replace(config, max_worker_memory="2GB")).queries
    assert enough.block_size == config.query_block_size and not enough.is_split


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": f"{OUTPUTS},self_influence_top_k,group_self_influence"},
        {"outputs": "top_k,scores,self_influence,group_influence", "normalize": "loss", "order": "ascending"},
    ],
)
def test_many_rounds_are_as_one(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    """Four rounds against plain loops in memory; what is not of test points is made once."""
    config = job.config(tmp_path / "out", files=6, max_worker_memory=str(MEMORY), **options)
    run_quietly(config)
    train, test = job.shards("train", 6), job.shards("test", 2)
    assert_same_tables(tmp_path / "out", job.oracle(config, train.ids(), test.ids()))
    assert read_manifest(config.output)["counts"]["score"] == {"shards": 6, "examples": SIZES["train"], "rejected": 0}


def test_a_round_lets_go_of_the_last(job: DigitsJob, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process holds on the device is never more than five test points' solutions."""
    alive: weakref.WeakSet[Contraction] = weakref.WeakSet()
    held: list[int] = []
    choose = Contraction.choose

    def counted(self: Contraction, gradients: Gradients) -> None:
        if self not in alive:
            alive.add(self)
            held.append(sum(each.queries for each in alive))
        choose(self, gradients)

    monkeypatch.setattr(Contraction, "choose", counted)
    run_quietly(job.config(tmp_path / "out", files=3, outputs="top_k", group_feature=None, max_worker_memory=str(MEMORY)))
    assert held == [1, 2, 3, 4, 5] * 4


def test_factors(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """With the identity a solved test point is its gradient: one product in each layer, so nothing but float32's rounding is lost."""
    config = job.config(
        tmp_path / "out", weights="all", curvature="identity", query_rank=1, outputs="top_k,scores", group_feature=None
    )
    run_quietly(config)
    oracle = job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids())
    assert_same_tables(tmp_path / "out", oracle, tolerance=3e-7)
    (path,) = (tmp_path / "out" / "top_k").glob("*.parquet")
    assert 0 <= read_facts(str(path))["query_error"] < 1e-7
    plan = prepare(dataclasses.replace(config, output=str(tmp_path / "other"), max_worker_memory="20000")).queries
    assert plan.form.rank == 1 and f"{65 + 8 + 9 + 10} numbers each" in plan.text and "2 rounds" in plan.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_worker_memory": str(2 * 8 * P - 2)}, f"one alone takes 720 bytes; raise it to {2 * 8 * P:,} bytes"),
        ({"max_worker_memory": "4 pounds"}, "'4 pounds' must be a number of bytes above 0, such as 4GB"),
        ({"max_worker_memory": "1GB", "outputs": "self_influence"}, "--max_worker_memory 1GB is of solved test points"),
        ({"query_rank": 3, "outputs": "self_influence"}, "--query_rank 3 is of solved test points"),
        ({"query_rank": 3, "removal": "newton", "damping": "0.1"}, "with --passes or --removal newton leave it out"),
        ({"query_rank": 3, "curvature": "gauss_newton_cg", "outputs": "top_k"}, "with --passes or --removal newton leave it out"),
        ({"query_rank": 0}, "--query_rank 0 must be at least 1"),
    ],
)
def test_refusals(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        prepare(job.config(tmp_path / "out", **options))
    assert message in str(refused.value)


def test_sizes() -> None:
    texts = {"4GB": 4 * 10**9, "512 MiB": 512 << 20, "1.5g": 1_500_000_000, "1000": 1000, "2 TiB": 2 << 40, "7b": 7}
    assert {text: parse_bytes(text) for text in texts} == texts
    for wrong in ("", "0", "GB", "-1GB", "1XB", "0.1", "1e9", "nan"):
        with pytest.raises(ValueError, match="must be a number of bytes above 0"):
            parse_bytes(wrong)


def test_a_later_round_has_files_of_its_own(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    config = job.config(tmp_path / "out", files=1, outputs="scores", group_feature=None, max_worker_memory=str(2 * MEMORY))
    run_quietly(config)
    names = sorted(path.name for path in (tmp_path / "out" / "scores").glob("*.parquet"))
    assert names == ["shard-00000-round-00001.parquet", "shard-00000.parquet"]
    assert read(tmp_path / "out", "scores").num_rows == SIZES["train"] * SIZES["test"]
