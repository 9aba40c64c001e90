"""What the program itself takes for a sample of a run's files, measured in a process of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from beam_influence.pipelines.planning.stage_costs import Seconds, StageCost


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The facts of a run, and what a sample of it took.

    Attributes:
      examples: training examples, rejected ones too; of saved vectors or an index, their rows.
      is_exact: whether they were counted; else they are estimated from the files' bytes.
      candidates: examples that are scored in place of the training set; 0: the training set is.
      points: test points.
      weights: P, the watched weights.
      train_bytes, candidate_bytes, test_bytes: of the files.
      test_readings: how often the files of test points are read.
      test_files, train_shards, candidate_shards: how many files and shards there are.
      rounds: over the training set in which test points are scored.
      solving_rounds: of the passes that solve test points.
      point_bytes: what a test point takes while it is used.
      start: imports and everything that is found out before the pipeline starts.
      fixed: of the pipeline: what does not grow with the files, the operator's decomposition among it.
      stages: what grows with them, for each stage in order.
      sampled_points: test points in the sample; the stages' costs are with so many.
      stages_with_fewer: the same with `fewer_points`; empty where all test points were in the sample.
      fewer_points: see there.
      start_bytes: the largest memory of the process before it read the first file.
      peak_bytes: the largest memory of the process.
      sent_bytes: what a bundle of each stage gave to others.
      network_flops: of the network for one example, forward.
      look_up: seconds to find out where large files can be split.
      processes: of this machine that the run would work in.
      is_local: whether that is Beam's in-memory runner.
      memory_bytes: what a worker may take.
      chosen: by the run itself where it was left to it, such as by `--curvature auto`, in words.
      batch_size: how many examples are evaluated at once.
      decoded_bytes: what the first pass leaves decoded for the others; 0: nothing.
    """

    examples: int
    is_exact: bool
    points: int
    weights: int
    train_bytes: int
    test_bytes: int
    test_files: int
    train_shards: int
    rounds: int
    point_bytes: int
    start: Seconds
    fixed: Seconds
    stages: dict[str, StageCost]
    sampled_points: int
    start_bytes: int
    peak_bytes: int
    sent_bytes: dict[str, int]
    network_flops: float
    processes: int
    is_local: bool
    memory_bytes: int
    batch_size: int
    look_up: float = 0.0
    candidates: int = 0
    candidate_bytes: int = 0
    candidate_shards: int = 0
    test_readings: int = 2
    stages_with_fewer: dict[str, StageCost] = dataclasses.field(default_factory=dict)
    fewer_points: int = 0
    solving_rounds: int = 1
    chosen: str = ""
    decoded_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Calibration:
        """What `as_json` gave."""
        stages = {key: {name: _stage(cost) for name, cost in values[key].items()} for key in ("stages", "stages_with_fewer")}
        seconds = {key: Seconds(*values[key]) for key in ("start", "fixed")}
        return cls(**{**values, **stages, **seconds})


def _stage(cost: dict[str, Any]) -> StageCost:
    return StageCost(cost["examples"], cost["shards"], Seconds(*cost["of_example"]), Seconds(*cost["of_shard"]))
