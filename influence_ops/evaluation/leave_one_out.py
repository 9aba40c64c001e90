"""Leave-one-out: do scores predict how the loss at a test point changes when one example is removed and the model retrained?

predicted = I(z_i, t) / n, actual = ℓ_{−i}(t) − ℓ(t), both from training to the end (Koh & Liang 2017, section 4.1).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from beam_influence.influence_ops.evaluation.correlation import bootstrap_error, mean_over_columns, pearson, spearman


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Agreement of R removals at T test points.

    Attributes:
      pearson, spearman: the mean over test points of the correlation over removals.
      pearson_error, spearman_error: their standard errors, by bootstrap over removals.
      pooled_pearson, pooled_spearman: over all R × T pairs at once.
      slope: of actual on predicted, least squares over all pairs; 1: changes have the right size.
      per_test: [T], each test point's Pearson correlation; NaN where one side is constant.
    """

    pearson: float
    pearson_error: float
    spearman: float
    spearman_error: float
    pooled_pearson: float
    pooled_spearman: float
    slope: float
    per_test: np.ndarray


def leave_one_out(predicted: np.ndarray, actual: np.ndarray, seed: int = 0) -> LeaveOneOut:
    """Compares predicted with actual changes of the loss.

    Args:
      predicted, actual: [R, T].
      seed: of the bootstrap.

    Raises:
      ValueError: fewer than 3 removals, shapes that differ, or numbers that are not finite.
    """
    if predicted.shape != actual.shape or predicted.ndim != 2:
        raise ValueError(f"predicted {predicted.shape} and actual {actual.shape} must both be [removals, test points]")
    if len(predicted) < 3:
        raise ValueError(f"a correlation over {len(predicted)} removals tells nothing; give at least 3, better 100")
    if not (np.isfinite(predicted).all() and np.isfinite(actual).all()):
        raise ValueError("predicted and actual changes must be finite")

    def mean_of(correlation):
        return lambda rows: mean_over_columns(correlation(predicted[rows], actual[rows]))

    everything = np.arange(len(predicted))
    flat_predicted, flat_actual = predicted.reshape(-1, 1), actual.reshape(-1, 1)
    centred = flat_predicted - flat_predicted.mean()
    variance = float(np.sum(centred**2))
    return LeaveOneOut(
        mean_of(pearson)(everything),
        bootstrap_error(mean_of(pearson), len(predicted), seed),
        mean_of(spearman)(everything),
        bootstrap_error(mean_of(spearman), len(predicted), seed),
        mean_over_columns(pearson(flat_predicted, flat_actual)),
        mean_over_columns(spearman(flat_predicted, flat_actual)),
        float(np.sum(centred * flat_actual)) / variance if variance else float("nan"),
        pearson(predicted, actual),
    )
