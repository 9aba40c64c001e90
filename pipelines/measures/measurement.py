"""What every measure is given, and what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TextIO

from beam_influence.influence_ops.evaluation.score_table import ScoreTable
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Figures, Row
from beam_influence.pipelines.retrainings import Retrainer
from beam_influence.pipelines.scored_data import ScoredData

Measured = tuple[Figures, list[Row]]
"""Facts of the whole evaluation, and a row for each run or method."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a measure is computed from.

    Attributes:
      config: the options.
      runs: the finished runs, of which the first has the model and the data.
      beam_arguments: Beam's options, for retraining.
      stream: where progress is drawn (default: standard error).
    """

    config: EvaluateConfig
    runs: Sequence[ScoreTable]
    beam_arguments: Sequence[str] = ()
    stream: TextIO | None = None

    def data(self) -> ScoredData:
        """The model and the data, opened again."""
        return ScoredData(self.runs[0], self.config.code, self.config.class_feature)

    def retrainer(self, data: ScoredData, train_ids: Sequence[str]) -> Retrainer:
        """Retrains on parts of `train_ids`."""
        config = self.config
        assert config.train_fn is not None
        seeds = range(config.seed, config.seed + config.repeats)
        return Retrainer(data, config.train_fn, train_ids, config.output, seeds, self.beam_arguments, self.stream)


def curvature_of(run: ScoreTable) -> Figures:
    """The figures that tell runs apart."""
    curvature = run.manifest["curvature"]
    return {"curvature": curvature["curvature"], "damping": curvature["damping"]}
