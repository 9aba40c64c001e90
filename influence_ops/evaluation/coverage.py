"""Do an ensemble's intervals hold what retraining shows? And how wide must they be to do so?

A retraining s that keeps n_s examples is predicted to change the loss at test point t by −Σ_kept I / n_s, up to a number of t's own, which
the mean over the retrainings takes away on both sides. Members predict each their own; the interval is mean ± factor · standard error.
The factor of Student's t is about what other members would predict. The calibrated one is learned from retraining (split conformal
prediction: Papadopoulos et al. 2002; Lei et al. 2018, 1604.04173, with the standard error as the measure of difficulty): of every second
test point, from the first, the ratios |actual − predicted| / standard error are sorted, and the ⌈0.9 (m + 1)⌉-th of m is taken. The other
test points report how many of their intervals hold.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from beam_influence.influence_ops.ensemble.intervals import CONFIDENCE, interval_factor
from beam_influence.influence_ops.evaluation.correlation import bootstrap_error


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What one factor gives, at the test points that report.

    Attributes:
      factor: half the width of an interval in standard errors.
      share: of the intervals, those that hold what retraining showed.
      standard_error: of `share`, by bootstrap over the retrainings.
      half_width: the median, in the unit of the loss.
      per_test: each test point's own share, of all of them.
    """

    factor: float
    share: float
    standard_error: float
    half_width: float
    per_test: np.ndarray


def coverage(sums: np.ndarray, kept: np.ndarray, losses: np.ndarray, seed: int = 0) -> tuple[Coverage, Coverage]:
    """By Student's t, and calibrated.

    Args:
      sums: [M, S, T], each member's Σ of the influence on test point t over the examples that retraining s kept.
      kept: [S], how many these are.
      losses: [S, T], the loss at test point t after retraining s.
      seed: of the bootstrap.

    Raises:
      ValueError: too few members, retrainings or test points; numbers that are not finite; or members that all predict the same.
    """
    members, retrainings, tests = sums.shape
    if retrainings < 3 or tests < 2:
        raise ValueError(f"{retrainings} retrainings and {tests} test points: coverage needs 3 and 2 at least, better 20 and 20")
    if not (np.isfinite(sums).all() and np.isfinite(losses).all()):
        raise ValueError("sums of scores and losses must be finite")
    students = interval_factor(members)
    away, error = _distances(sums, kept, losses)
    if not error.all():
        raise ValueError("two members or more predict the same to the last digit, so that there is no spread; give members of other models")
    calibrated = _quantile((away / error)[:, 0::2])
    bootstrapped = {}
    for name in ("students", "calibrated"):

        def share(rows: np.ndarray, of: str = name) -> float:
            ratios = np.divide(*_distances(sums[:, rows], kept[rows], losses[rows]))
            return float((ratios[:, 1::2] <= (students if of == "students" else _quantile(ratios[:, 0::2]))).mean())

        bootstrapped[name] = bootstrap_error(share, retrainings, seed)
    found = []
    for name, factor in (("students", students), ("calibrated", calibrated)):
        holds = away <= factor * error
        width = float(np.median(factor * error[:, 1::2]))
        found.append(Coverage(factor, float(holds[:, 1::2].mean()), bootstrapped[name], width, holds.mean(axis=0)))
    return found[0], found[1]


def _distances(sums: np.ndarray, kept: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|actual − predicted| and the standard error of what is predicted: both [S, T]."""
    predicted = -sums / kept[:, None]
    predicted = predicted - predicted.mean(axis=1, keepdims=True)
    actual = losses - losses.mean(axis=0)
    return np.abs(actual - predicted.mean(axis=0)), predicted.std(axis=0, ddof=1) / np.sqrt(len(sums))


def _quantile(ratios: np.ndarray) -> float:
    """The ⌈0.9 (m + 1)⌉-th of m ratios in order; the largest where there are too few."""
    place = math.ceil(CONFIDENCE * (ratios.size + 1))
    return float(np.sort(ratios, axis=None)[min(place, ratios.size) - 1])
