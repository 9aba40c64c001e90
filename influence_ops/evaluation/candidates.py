"""The choice among curvatures and λ by their LDS, on test points that do not report it.

The even test points choose, the odd ones report. The best is taken even where it is hardly better than a cheaper one: that it is the best
is likelier than not, and on the trainings of docs/truth.md taking a cheaper one within a standard error was never better at the odd ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from beam_influence.influence_ops.evaluation.correlation import mean_over_columns, spearman
from beam_influence.influence_ops.evaluation.lds import Lds, linear_datamodelling_score


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A curvature with its λ.

    Attributes:
      curvature, damping: which.
      is_auto: whether λ is that of its own rule.
      predicted: [S, T], the sums of its scores over what each retraining kept.
    """

    curvature: str
    damping: float
    is_auto: bool
    predicted: np.ndarray


@dataclasses.dataclass(frozen=True)
class Judged:
    """What retraining says of a candidate.

    Attributes:
      candidate: which.
      choosing: its LDS at the even test points.
      reporting: at the odd ones.
      chosen: whether it is taken.
    """

    candidate: Candidate
    choosing: float
    reporting: Lds
    chosen: bool


def choose_candidate(candidates: Sequence[Candidate], losses: np.ndarray, seed: int = 0) -> list[Judged]:
    """Judges all candidates, in their order.

    Args:
      candidates: those of a cheaper curvature first, which is taken of equals.
      losses: [S, T] after the retrainings.
      seed: of the bootstrap.

    Raises:
      ValueError: fewer than 2 test points, or 3 retrainings.
    """
    if losses.shape[1] < 2:
        raise ValueError("a choice needs at least 2 test points: some choose, the others report")
    even = losses[:, 0::2]
    choosing = [mean_over_columns(spearman(one.predicted[:, 0::2], -even)) for one in candidates]
    best = int(np.argmax(choosing))
    return [
        Judged(one, choosing[place], linear_datamodelling_score(one.predicted[:, 1::2], losses[:, 1::2], seed), place == best)
        for place, one in enumerate(candidates)
    ]
