"""Brittleness: take a test point's most helpful examples out, retrain, and see how far its loss rises and whether its class flips.

A better score finds examples whose removal hurts more, so it is read beside the removal of as many random examples and of the
nearest neighbours (Ilyas et al. 2022, 2202.00622, section 4.3.1).
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Effect:
    """What was done to test points, on average.

    Attributes:
      rise, rise_error: the mean rise of the loss over test points, and its standard error.
      flipped, flipped_error: the share of test points whose predicted class changed; NaN where outputs are no classes.
      per_test: each test point's rise.
    """

    rise: float
    rise_error: float
    flipped: float
    flipped_error: float
    per_test: np.ndarray


def effect(before: np.ndarray, after: np.ndarray, class_before: np.ndarray | None = None, class_after: np.ndarray | None = None) -> Effect:
    """Compares T test points before and after.

    Args:
      before, after: losses; a row for each repetition, whose mean is taken: [R, T].
      class_before, class_after: predicted classes, likewise; −1: none.

    Raises:
      ValueError: there is no test point.
    """
    if not before.size or before.shape != after.shape:
        raise ValueError(f"losses before {before.shape} and after {after.shape} must both be [repetitions, test points], and not empty")
    rises = (after - before).mean(axis=0)
    flips = np.full(len(rises), np.nan)
    if class_before is not None and class_after is not None and (class_before >= 0).all():
        flips = (class_before != class_after).mean(axis=0)
    return Effect(float(rises.mean()), _error(rises), float(flips.mean()), _error(flips), rises)


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
