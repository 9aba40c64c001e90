"""The laws by which a sample becomes a plan, against numbers that are made up for them."""

from __future__ import annotations

import dataclasses

import pytest

from beam_influence.pipelines.planning.calibration import Calibration
from beam_influence.pipelines.planning.changes import cheapest_change
from beam_influence.pipelines.planning.estimate import estimate
from beam_influence.pipelines.planning.run_plan import RunPlan, plan_text
from beam_influence.pipelines.planning.stage_costs import Event, Seconds, StageCost, stage_costs, steady

MIB = 1 << 20
COST = StageCost(1000, 2, Seconds(0.002, 0.003), Seconds(0.5, 0.25))
FOUND = Calibration(
    examples=50_000,
    is_exact=True,
    points=200,
    weights=1000,
    train_bytes=7_000_000,
    test_bytes=30_000,
    test_files=1,
    train_shards=10,
    rounds=1,
    point_bytes=8000,
    start=Seconds(5.0, 6.0),
    fixed=Seconds(3.0, 2.0),
    stages={"curvature": COST, "embed": StageCost(200, 1, Seconds(0.01, 0.01), Seconds()), "score": COST},
    sampled_points=200,
    start_bytes=800 * MIB,
    peak_bytes=1000 * MIB,
    sent_bytes={"curvature": 8_000_000, "score": 50_000},
    network_flops=2000.0,
    processes=1,
    is_local=True,
    memory_bytes=4000 * MIB,
    batch_size=256,
)


def test_the_numbers_of_a_plan() -> None:
    """8 s once, 200 test points of 10 ms, and two passes of 50,000 examples of 2 ms and 10 shards of 0.5 s."""
    plan = estimate(FOUND)
    assert plan.total.wall == pytest.approx(8 + 2 + 2 * (100 + 5))
    assert plan.total.cpu == pytest.approx(8 + 2 + 2 * (150 + 2.5))
    assert plan.passes == 2 and plan.bytes_read == 2 * 7_000_000 + 2 * 30_000 and plan.bytes_shuffled == 8_050_000
    decoded = estimate(dataclasses.replace(FOUND, decoded_bytes=9_000_000))
    assert decoded.bytes_read == 7_000_000 + 9_000_000 + 2 * 30_000 and "decoded once     8.6 MiB" in plan_text(decoded)
    assert plan.flops == 3 * 2000 * (2 * 50_000 + 200) + 2 * 50_000 * 200 * 1000
    assert plan.peak_bytes == FOUND.peak_bytes and plan.fits
    assert "220.0 s" not in plan_text(plan) and "3.7 min with one process" in plan_text(plan)


def test_twice_the_examples_are_twice_the_bytes_and_the_growing_seconds() -> None:
    once = estimate(FOUND)
    twice = estimate(dataclasses.replace(FOUND, examples=100_000, train_bytes=14_000_000, train_shards=20))
    assert twice.bytes_read - 60_000 == 2 * (once.bytes_read - 60_000)
    assert twice.total.wall - 10 == pytest.approx(2 * (once.total.wall - 10))
    assert twice.peak_bytes == once.peak_bytes


def test_more_rounds_read_more_and_hold_less() -> None:
    """Four rounds: three more passes; what a round holds is a quarter of the test points, of which 20 were in the sample."""
    few = {**FOUND.stages, "score": dataclasses.replace(COST, of_example=Seconds(0.001, 0.001))}
    sampled = dataclasses.replace(FOUND, sampled_points=40, stages_with_fewer=few, fewer_points=20)
    whole, rounds = estimate(sampled), estimate(dataclasses.replace(sampled, rounds=4))
    assert (whole.passes, rounds.passes) == (2, 5)
    assert rounds.bytes_read - whole.bytes_read == 3 * FOUND.train_bytes
    assert whole.peak_bytes - FOUND.peak_bytes == (200 - 40) * 8000 and rounds.peak_bytes - FOUND.peak_bytes == (50 - 40) * 8000
    score = {plan.rounds: next(stage for stage in plan.stages if stage.name == "score") for plan in (whole, rounds)}
    # 1 ms more for 20 more test points: 2 ms + 8 ms for 200, and 2.5 ms in each of four rounds of 50.
    assert score[1].seconds.wall == pytest.approx(50_000 * 0.010 + 5)
    assert score[4].seconds.wall == pytest.approx(4 * (50_000 * 0.0025 + 5)) and score[4].examples == 200_000


def test_workers_share_what_grows() -> None:
    plan = estimate(FOUND, 5)
    assert plan.worker_seconds == pytest.approx(8 + (2 + 210) / 5) and plan.worker_hours == pytest.approx(5 * plan.worker_seconds / 3600)
    assert estimate(FOUND, 40).worker_seconds == estimate(FOUND, 10).worker_seconds  # there are ten shards
    assert plan.bytes_shuffled == 5 * estimate(FOUND).bytes_shuffled


def test_a_calibration_comes_back_from_json() -> None:
    assert Calibration.from_json(FOUND.as_json()) == FOUND


def test_what_a_batch_and_a_shard_cost() -> None:
    """Batches of 10 examples: the first takes 5 s, each other 0.1 s; a shard's end 0.3 s. Three shards of four batches."""
    events, now = [], 0.0
    for _ in range(3):
        for _ in range(4):
            now += 0.1 if events else 5.0
            events.append(Event("score", now, 2 * now, 10, 0))
        now += 0.3
        events.append(Event("score", now, 2 * now, 0, 1))
    cost = stage_costs(events)["score"]
    assert (cost.examples, cost.shards) == (120, 3)
    assert cost.of_example == pytest.approx((0.01, 0.02)) and cost.of_shard == pytest.approx((0.3, 0.6))
    assert steady({"score": cost}) == pytest.approx((0.01 * 120 + 0.9, 0.02 * 120 + 1.8))


def test_the_change_that_is_named_is_one_that_fits() -> None:
    tight = estimate(dataclasses.replace(FOUND, memory_bytes=900 * MIB))
    tried: list[dict] = []

    def plan_with(options: dict) -> RunPlan:
        tried.append(options)
        if options.get("query_rank"):
            raise ValueError("it does not go with --passes")
        peak = 850 if options["curvature"] == "ekfac" else 950
        return dataclasses.replace(tight, peak_bytes=peak * MIB)

    options = {"batch_size": 256, "curvature": "exact", "test": "t", "query_rank": None}
    assert cheapest_change(tight, 800 * MIB, options, plan_with).startswith("with --curvature ekfac it fits: 850.0 MiB a worker")
    assert tried[0]["batch_size"] == 32 and len(tried) == 4
    assert "alone take 900.0 MiB" in cheapest_change(tight, 900 * MIB, options, plan_with)
    assert cheapest_change(estimate(FOUND), 800 * MIB, options, plan_with) == ""


def test_candidates_are_scored_in_place_of_the_training_set() -> None:
    """One pass of 50,000 examples for the curvature; 3,000 candidates of 2 ms in two rounds, of 4 shards of 0.5 s each."""
    stages = {"curvature": COST, "embed": FOUND.stages["embed"], "candidates": COST}
    of_candidates = {"candidates": 3000, "candidate_bytes": 400_000, "candidate_shards": 4, "rounds": 2}
    plan = estimate(dataclasses.replace(FOUND, stages=stages, **of_candidates))
    assert [(stage.name, stage.examples) for stage in plan.stages] == [("curvature", 50_000), ("embed", 200), ("candidates", 6000)]
    assert plan.total.wall == pytest.approx(8 + 2 + (100 + 5) + 2 * (6 + 2))
    assert plan.passes == 1 and plan.bytes_read == 7_000_000 + 2 * 400_000 + 2 * 30_000
    assert plan.flops == 3 * 2000 * (50_000 + 2 * 3000 + 200) + 2 * 3000 * 200 * 1000
    assert "candidates       3,000 examples, in 2 rounds of scoring" in plan_text(plan)
