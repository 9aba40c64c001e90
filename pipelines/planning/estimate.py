"""From what a sample took to what the run will take: arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping

from beam_influence.pipelines.planning.calibration import Calibration
from beam_influence.pipelines.planning.run_plan import RunPlan, StagePlan
from beam_influence.pipelines.planning.stage_costs import Seconds, StageCost

_EMBED = "embed"
_SCORE = "score"
_CANDIDATES = "candidates"  # the stage's name where these are scored in place of the training set
_SOLVE = "solve_"  # and the number of the pass
_FORWARD_AND_BACKWARD = 3  # a gradient takes two evaluations' products besides


def estimate(found: Calibration, workers: int | None = None) -> RunPlan:
    """The plan of a run.

    Args:
      found: what a sample took.
      workers: that worker-hours are wanted for; None: the processes of this machine that it would work in.
    """
    workers = found.processes if workers is None else workers
    shards = max(found.train_shards, found.candidate_shards)
    bundles = min(workers, shards) if found.is_local else shards  # other engines may cut finer
    stages = tuple(_stage(found, name, cost) for name, cost in found.stages.items())
    growing = Seconds()
    for stage in stages:
        growing = growing + stage.seconds
    fixed = found.start + found.fixed + Seconds(found.look_up, found.look_up)
    passes = sum(_rounds(found, stage) for stage in found.stages if stage not in (_EMBED, _CANDIDATES))
    round_points = -(-found.points // found.rounds)
    of_train = found.train_bytes + found.decoded_bytes * (passes - 1) if found.decoded_bytes else found.train_bytes * passes
    return RunPlan(
        examples=found.examples,
        is_exact=found.is_exact,
        candidates=found.candidates,
        points=found.points,
        weights=found.weights,
        rounds=found.rounds,
        passes=passes,
        flops=_flops(found, passes),
        bytes_read=of_train + found.candidate_bytes * found.rounds + found.test_bytes * found.test_readings,
        bytes_shuffled=sum(size * (found.rounds if stage == _SCORE else 1) for stage, size in found.sent_bytes.items()) * bundles,
        bundles=bundles,
        peak_bytes=found.peak_bytes + max(0, round_points - found.sampled_points) * found.point_bytes,
        memory_bytes=found.memory_bytes,
        stages=stages,
        fixed=fixed,
        total=fixed + growing,
        workers=workers,
        worker_seconds=fixed.wall + growing.wall / min(workers, max(shards, 1)),
        chosen=found.chosen,
        decoded_bytes=found.decoded_bytes,
        calibrated_on=max((cost.examples for name, cost in found.stages.items() if name != _EMBED), default=0),
    )


def _stage(found: Calibration, name: str, cost: StageCost) -> StagePlan:
    if name == _EMBED:
        return StagePlan(name, found.points, cost.seconds(found.points, found.test_files))
    examples, shards = (found.candidates, found.candidate_shards) if name == _CANDIDATES else (found.examples, found.train_shards)
    rounds = _rounds(found, name)
    points = -(-found.points // rounds)
    per_example = of_example(found.stages, found.stages_with_fewer, name, found.sampled_points, found.fewer_points, points)
    seconds = (per_example * examples + cost.of_shard * shards) * rounds
    return StagePlan(name, examples * rounds, seconds)


def _rounds(found: Calibration, name: str) -> int:
    """How often a stage reads its files."""
    if name.startswith(_SOLVE):
        return found.solving_rounds
    return found.rounds if name in (_SCORE, _CANDIDATES) else 1


def of_example(
    stages: Mapping[str, StageCost], with_fewer: Mapping[str, StageCost], name: str, sampled: int, fewer: int, points: int
) -> Seconds:
    """What a stage takes for one more training example with so many test points: a line through the two numbers that were measured."""
    cost = stages[name].of_example
    if name not in with_fewer or points <= sampled or fewer >= sampled:
        return cost
    of_point = ((cost - with_fewer[name].of_example) * (1 / (sampled - fewer))).at_least(0.0)
    return cost + of_point * (points - sampled)


def _flops(found: Calibration, passes: int) -> float:
    gradients = found.examples * passes + found.candidates * found.rounds + found.points
    scored = found.candidates or (found.examples if _SCORE in found.stages else 0)
    scores = 2.0 * scored * found.points * found.weights
    return _FORWARD_AND_BACKWARD * found.network_flops * gradients + scores
