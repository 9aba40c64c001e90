"""Does the derivative predict what a change of the training set does? Measured: some trainings with other weights, beside its prediction.

A derivative of a long training is exact and may still predict nothing, where the training is not smooth (large learning rates, sharp
minima): 2504.16430, section 5, calls this metasmoothness.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beam_influence.influence_ops.types import Float64Array, Float64Matrix, Float64Vector

SHARE = 0.01
"""The part of the training set whose weight is changed."""
ENOUGH = 0.9
"""The correlation below which scores are called no prediction."""


class Smoothness(NamedTuple):
    """How well the derivative predicted the changes.

    Attributes:
      correlation: of predicted and actual changes over the trainings (Pearson), the mean over test points; NaN: one never changed.
      relative_error: ‖actual − predicted‖ / ‖actual‖, over all.
      trainings: how many.
      examples: how many examples' weights each changed.
      step: by how much each weight was lowered from 1.
    """

    correlation: float
    relative_error: float
    trainings: int
    examples: int
    step: float

    @property
    def is_enough(self) -> bool:
        """Whether scores can be taken as predictions."""
        return self.correlation >= ENOUGH


def changed_weights(count: int, number: int, seed: int, step: float) -> Float64Vector:
    """w of the training `number`: 1 − step for a random `SHARE` of the examples (at least one), else 1; [n]."""
    weights = np.ones(count)
    weights[np.random.default_rng([seed, 1, number]).choice(count, share_of(count), replace=False)] -= step
    return weights


def share_of(count: int) -> int:
    """How many examples' weights are changed."""
    return max(1, round(SHARE * count))


def predicted_changes(by_weight: Float64Matrix, weights: Float64Matrix) -> Float64Matrix:
    """The predicted changes of the test losses, [R, T], from their derivatives [T, n] and the weights of R trainings, [R, n]."""
    return (weights - 1) @ by_weight.T


def measure_smoothness(predicted: Float64Array, actual: Float64Array, examples: int, step: float) -> Smoothness:
    """From predicted and actual changes, [R, T] each, R at least 2."""
    x, y = predicted - predicted.mean(axis=0), actual - actual.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        of_points = (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
        error = float(np.linalg.norm(actual - predicted) / np.linalg.norm(actual))
    return Smoothness(float(of_points.mean()), error, len(actual), examples, step)
