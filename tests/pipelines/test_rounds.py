"""Test points that don't fit a worker's memory are scored in rounds over the training set, with the results of one round."""

from __future__ import annotations

import dataclasses
import pathlib
import weakref
from typing import Any

import numpy as np
import pytest

from beam_influence.influence_ops.model.gradients import Gradients
from beam_influence.influence_ops.results.result_files import read_facts, read_manifest
from beam_influence.influence_ops.scoring.contraction import Contraction
from beam_influence.pipelines.machine_memory import parse_bytes
from beam_influence.pipelines.prepare import prepare
from beam_influence.transforms.broadcast import Broadcast
from beam_influence.transforms.elements import QueryReference
from beam_influence.transforms.rounds import Rounds, in_turn
from tests.pipelines.digits_job import OUTPUTS, SIZES, DigitsJob, assert_same_tables, read, run_quietly

P = 90
MEMORY = 2 * 5 * 8 * P  # half of it is five test points in float64


def test_the_plan(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Two files of 5 and 15 test points, at most five in a round; blocks small enough that one may be there twice."""
    config = job.config(tmp_path / "out", files=6, max_worker_memory=str(MEMORY))
    plan = prepare(config).queries
    assert plan.block_size == 1 and plan.form.dtype == "float64" and plan.is_split
    assert plan.rounds == Rounds(4, 5 * P) and in_turn([P] * 20, 5 * P) == [number // 5 for number in range(SIZES["test"])]
    assert f"20 test points × {P} weights" in plan.text and "4 rounds over the training set" in plan.text
    parts = prepare(dataclasses.replace(config, shard_size=900)).queries
    assert parts.rounds.count == 4
    enough = prepare(dataclasses.replace(config, max_worker_memory="2GB")).queries
    assert enough.block_size == config.query_block_size and not enough.is_split


def test_each_block_is_in_one_round() -> None:
    """Also where blocks are larger than planned: the last round takes what is left."""
    sizes = {"b": 3, "a": 2, "d": 9, "c": 4}
    arrays = {key: {"solved-0-1": np.zeros((size, 2)), "ids": np.zeros(99)} for key, size in sizes.items()}
    references = [QueryReference(key, Broadcast.publish(each, {}, "")) for key, each in arrays.items()]
    for count, wanted in ((1, ["abcd"]), (2, ["ab", "cd"]), (3, ["ab", "c", "d"]), (4, ["ab", "c", "d", ""])):
        rounds = Rounds(count, 10)
        assert ["".join(each.key for each in rounds.choose(references, number)) for number in range(count)] == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": f"{OUTPUTS},self_influence_top_k,group_self_influence"},
        {"outputs": "top_k,scores,self_influence,group_influence", "normalize": "loss", "order": "ascending"},
        {"outputs": "top_k,scores,self_influence", "group_feature": None, "shard_size": 900},  # of test files too
    ],
)
def test_many_rounds_are_as_one(job: DigitsJob, tmp_path: pathlib.Path, options: dict[str, Any]) -> None:
    """Four rounds against plain loops in memory; what is not of test points is made once."""
    config = job.config(tmp_path / "out", files=6, max_worker_memory=str(MEMORY), **options)
    run_quietly(config)
    train, test = job.shards("train", 6), job.shards("test", 2)
    assert_same_tables(tmp_path / "out", job.oracle(config, train.ids(), test.ids()))
    counts = read_manifest(config.output)["counts"]["score"]
    assert (counts["shards"] > 6) == ("shard_size" in options) and counts["shards"] >= 6
    assert (counts["examples"], counts["rejected"]) == (SIZES["train"], 0)


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


def test_the_fewest_factors(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Four rounds of five whole solutions are planned; each is found to be a product in each layer, so that one round is enough."""
    size = 65 * 8 + 9 * 10
    options: dict[str, Any] = {"weights": "all", "curvature": "identity", "outputs": "top_k,scores", "group_feature": None}
    config = job.config(tmp_path / "out", **options, score_tolerance=1e-6, max_worker_memory=str(2 * 5 * 8 * size))
    plan = prepare(config).queries
    assert plan.form.factors and plan.rounds == Rounds(4, 5 * size) and "4 rounds over the training set at most" in plan.text
    run_quietly(config)
    oracle = job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids())
    assert_same_tables(tmp_path / "out", oracle, tolerance=1e-6)
    assert not list((tmp_path / "out" / "scores").glob("*round*"))
    assert all(0 <= read_facts(str(path))["query_error"] < 1e-6 for path in (tmp_path / "out" / "top_k").glob("*.parquet"))


def test_unsolved_test_points(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Of EK-FAC, whose dense layers are used at one position: two vectors a layer are kept, exactly, so that one round is enough for 20."""
    size, kept = 65 * 8 + 9 * 10, 65 + 8 + 9 + 10
    options: dict[str, Any] = {"weights": "all", "curvature": "ekfac", "outputs": "top_k,scores,group_influence", "normalize": "loss"}
    config = job.config(tmp_path / "out", **options, max_worker_memory=str(2 * 5 * 8 * size))
    plan = prepare(config).queries
    assert plan.rounds == Rounds(1, 5 * size) and f"{size} weights, {kept} numbers each, take {20 * kept * 8 / 1024:.1f} KiB" in plan.text
    less = prepare(dataclasses.replace(config, max_worker_memory=str(2 * 10 * 8 * kept))).queries
    assert less.rounds == Rounds(2, 10 * kept)
    run_quietly(config)
    assert_same_tables(tmp_path / "out", job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids()))
    assert all(read_facts(str(path))["query_error"] < 1e-14 for path in (tmp_path / "out" / "top_k").glob("*.parquet"))


def test_test_points_are_solved_in_rounds(job: DigitsJob, tmp_path: pathlib.Path) -> None:
    """Eight vectors in float64 for each of seven test points: three rounds of the solver, and one of the scores."""
    options: dict[str, Any] = {"curvature": "gauss_newton_cg", "passes": 2, "outputs": "top_k,scores", "group_feature": None}
    config = job.config(tmp_path / "out", **options, max_worker_memory=str(7 * 8 * 8 * P))
    plan = prepare(config).queries
    assert plan.solving == Rounds(3, 7 * P) and plan.rounds.count == 1 and plan.text.endswith("solved in 3 rounds of 2 passes")
    run_quietly(config)
    assert_same_tables(tmp_path / "out", job.oracle(config, job.shards("train", 3).ids(), job.shards("test", 1).ids()))
    solver = read_manifest(config.output)["solver"]
    residuals = read(tmp_path / "out", "residuals").column("residual").to_numpy()
    assert solver["points"] == len(residuals) == SIZES["test"]
    assert (solver["mean_residual"], solver["largest_residual"]) == pytest.approx((residuals.mean(), residuals.max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_worker_memory": str(2 * 8 * P - 2)}, f"one alone takes 720 bytes; raise it to {2 * 8 * P:,} bytes"),
        ({"max_worker_memory": "4 pounds"}, "'4 pounds' must be a number of bytes above 0, such as 4GB"),
        ({"max_worker_memory": "1GB", "outputs": "self_influence"}, "--max_worker_memory 1GB is of solved test points"),
        ({"query_rank": 3, "outputs": "self_influence"}, "--query_rank 3 is of solved test points"),
        ({"query_rank": 3, "removal": "newton", "damping": "0.1"}, "with --passes or --removal newton leave it out"),
        ({"query_rank": 3, "curvature": "gauss_newton_cg", "outputs": "top_k"}, "with --passes or --removal newton leave it out"),
        ({"curvature": "gauss_newton_cg", "outputs": "top_k", "max_worker_memory": "5000"}, "over all training examples takes 5.6 KiB"),
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
