"""What a run will take: the numbers, and the table that shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from beam_influence.pipelines.machine_memory import size_text
from beam_influence.pipelines.planning.stage_costs import Seconds


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One reading of files: how many examples it uses in all its rounds, and what that takes one process of this machine."""

    name: str
    examples: int
    seconds: Seconds


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """What a run will take, before it.

    Attributes:
      examples: training examples (of saved vectors or an index: its rows).
      is_exact: whether they were counted, rather than estimated from the files' sizes.
      candidates: examples that are scored in their place.
      points, weights: test points, and P.
      rounds: in which test points are scored.
      passes: readings of the training set in all, rounds of scoring among them.
      flops: floating-point operations of the network in all passes (a gradient counted as three evaluations) and of the scores; what a
        curvature computes besides is not in it.
      bytes_read: of files, by all passes.
      bytes_shuffled: what bundles give to other workers, or write for them.
      bundles: in how many the training set is taken by each pass.
      peak_bytes: the largest memory of a worker process.
      memory_bytes: what it may take.
      stages: each reading of files.
      fixed: imports, the model, what is compiled, the operator, writing: once a process, or once a run.
      total: of the run with one process of this machine, from the first import to the last file.
      workers: how many are asked about, each like one process alone on this machine.
      worker_seconds: of the run with so many, by a clock.
      calibrated_on: training examples of the sample, by stage the most.
      plan_seconds: what the plan took.
      change: what to do where it does not fit; empty where it does.
      chosen: by the run itself where it was left to it, such as by `--curvature auto`, in words.
      decoded_bytes: what the first pass leaves decoded in the work folder for the others; 0: nothing.
    """

    examples: int
    is_exact: bool
    points: int
    weights: int
    rounds: int
    passes: int
    flops: float
    bytes_read: int
    bytes_shuffled: int
    bundles: int
    peak_bytes: int
    memory_bytes: int
    stages: tuple[StagePlan, ...]
    fixed: Seconds
    total: Seconds
    workers: int
    worker_seconds: float
    calibrated_on: int
    plan_seconds: float = 0.0
    change: str = ""
    candidates: int = 0
    chosen: str = ""
    decoded_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether a worker's memory is enough."""
        return self.peak_bytes <= self.memory_bytes

    @property
    def worker_hours(self) -> float:
        """Of all workers together."""
        return self.workers * self.worker_seconds / 3600

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        stages = [{"name": stage.name, "examples": stage.examples, **stage.seconds._asdict()} for stage in self.stages]
        numbers = {**dataclasses.asdict(self), "fixed": self.fixed._asdict(), "total": self.total._asdict(), "stages": stages}
        return {**numbers, "fits": self.fits, "worker_hours": self.worker_hours}


def plan_text(plan: RunPlan) -> str:
    """The plan as a table."""
    return "\n".join(_lines(plan))


def _lines(plan: RunPlan) -> Iterator[str]:
    about = "" if plan.is_exact else "about "
    yield f"training set     {about}{plan.examples:,} examples × {plan.weights:,} weights; {plan.points:,} test points"
    if plan.candidates:
        yield f"candidates       {about}{plan.candidates:,} examples, in {plan.rounds:,} round{'s' * (plan.rounds > 1)} of scoring"
    among = f", {plan.rounds:,} of them rounds of scoring" if plan.rounds > 1 and not plan.candidates else ""
    yield f"passes           {plan.passes:,}{among}"
    yield f"FLOPs            {plan.flops:.2g} of the network and the scores"
    yield f"bytes read       {size_text(plan.bytes_read)}"
    if plan.decoded_bytes:
        yield f"decoded once     {size_text(plan.decoded_bytes)} in the work folder, which passes after the first read in place of files"
    yield f"bytes shuffled   {size_text(plan.bytes_shuffled)} in {plan.bundles:,} bundle{'s' * (plan.bundles != 1)} a pass"
    fit = "fits" if plan.fits else "DOES NOT FIT"
    yield f"peak memory      {size_text(plan.peak_bytes)} a worker; it may take {size_text(plan.memory_bytes)}: {fit}"
    yield f"this machine     {time_text(plan.total.wall)} with one process ({time_text(plan.total.cpu)} of its processors)"
    if plan.workers > 1:
        yield f"{f'{plan.workers:,} workers':<17}{time_text(plan.worker_seconds)}, {plan.worker_hours:,.2f} worker-hours"
    else:
        yield f"one worker       {plan.worker_hours:,.2f} worker-hours"
    yield ""
    yield f"{'stage':<14}{'examples':>13}{'seconds':>11}{'CPU s':>11}"
    for stage in plan.stages:
        yield f"{stage.name:<14}{stage.examples:>13,}{stage.seconds.wall:>11,.1f}{stage.seconds.cpu:>11,.1f}"
    yield f"{'all else':<14}{'':>13}{plan.fixed.wall:>11,.1f}{plan.fixed.cpu:>11,.1f}"
    yield ""
    if plan.chosen:
        yield plan.chosen
    if plan.change:
        yield plan.change
    yield f"from a sample of {plan.calibrated_on:,} examples; this plan took {plan.plan_seconds:.0f} s"


def time_text(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
