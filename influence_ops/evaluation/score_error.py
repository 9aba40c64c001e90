"""How far scores that were computed in a narrower precision are from those in float64, in the terms that users look at: ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.evaluation.correlation import spearman


class ScoreError(NamedTuple):
    """What a narrower precision did to scores [T, N].

    Attributes:
      points, examples: T and N.
      rank: the least Spearman correlation of a test point's scores with those in float64; 0 where one of both is constant.
      top: the mean share of the k highest of a test point that are among its k highest in float64.
      k: how many.
      relative: ‖difference‖ / ‖scores in float64‖, over all.
    """

    points: int
    examples: int
    rank: float
    top: float
    k: int
    relative: float

    @property
    def text(self) -> str:
        """The numbers in words."""
        return (
            f"of {self.examples:,} training examples × {self.points:,} test points, rank correlation {self.rank:.7g} at least, "
            f"{self.top:.1%} of the top {self.k:,} the same, relative error {self.relative:.1g}"
        )


def score_error(exact: np.ndarray, other: np.ndarray, k: int) -> ScoreError:
    """Compares two tables of scores, both [T, N]; at most N are the top."""
    points, examples = exact.shape
    k = min(k, examples)
    ranks = np.nan_to_num(spearman(exact.T, other.T))
    shared = [len(np.intersect1d(_top(one, k), _top(two, k))) / k for one, two in zip(exact, other, strict=True)]
    relative = float(np.linalg.norm(other - exact) / max(float(np.linalg.norm(exact)), np.finfo(np.float64).tiny))
    return ScoreError(points, examples, float(ranks.min()), float(np.mean(shared)), k, relative)


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:k]
