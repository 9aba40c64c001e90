"""The linear datamodelling score (LDS): do sums of scores rank the models trained on parts of the data?

    LDS(t) = Spearman_S( −ℓ_S(t), Σ_{i ∈ S} I(z_i, t) )

over retrainings S, ℓ_S(t) the loss at test point t of the model trained on the examples in S (Park et al. 2023, 2303.14186,
definition 2.3). I is positive for a helpful example: the more of them in S, the smaller the loss, so a perfect score has LDS 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from beam_influence.influence_ops.evaluation.correlation import bootstrap_error, mean_over_columns, spearman


@dataclasses.dataclass(frozen=True)
class Lds:
    """A linear datamodelling score.

    Attributes:
      per_test: [T], each test point's; NaN where its sums or its losses are all the same.
      mean: their mean, those that are NaN as 0.
      standard_error: of `mean`, by bootstrap over the retrainings.
    """

    per_test: np.ndarray
    mean: float
    standard_error: float


def linear_datamodelling_score(subset_sums: np.ndarray, subset_losses: np.ndarray, seed: int = 0) -> Lds:
    """The LDS of scores that were summed over the subsets.

    Args:
      subset_sums: [S, T], Σ of the influence on test point t over the examples that retraining s kept.
      subset_losses: [S, T], the loss at test point t after retraining s.
      seed: of the bootstrap.

    Raises:
      ValueError: fewer than 3 retrainings, shapes that differ, or numbers that are not finite.
    """
    if subset_sums.shape != subset_losses.shape or subset_sums.ndim != 2:
        raise ValueError(f"sums {subset_sums.shape} and losses {subset_losses.shape} must both be [retrainings, test points]")
    if len(subset_sums) < 3:
        raise ValueError(f"a rank correlation over {len(subset_sums)} retrainings tells nothing; give at least 3, better 50")
    if not (np.isfinite(subset_sums).all() and np.isfinite(subset_losses).all()):
        raise ValueError("sums of scores and losses must be finite")
    each = spearman(subset_sums, -subset_losses)
    error = bootstrap_error(lambda rows: mean_over_columns(spearman(subset_sums[rows], -subset_losses[rows])), len(subset_sums), seed)
    return Lds(each, mean_over_columns(each), error)


def lds_difference(sums: np.ndarray, other_sums: np.ndarray, subset_losses: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The LDS of `sums` minus that of `other_sums` (both [S, T]), and its standard error.

    Both are of the same retrainings, so most of their errors is common: the difference is known much better than either.
    """

    def difference(rows: np.ndarray) -> float:
        losses = -subset_losses[rows]
        return mean_over_columns(spearman(sums[rows], losses)) - mean_over_columns(spearman(other_sums[rows], losses))

    return difference(np.arange(len(sums))), bootstrap_error(difference, len(sums), seed)
