"""Are wrong labels found? Training examples ranked by self-influence, beside the ranking by their plain loss.

A wrong label makes an example fight all the others for its own loss, so its self-influence is large (Koh & Liang 2017,
section 5.4). So is its loss, which costs no curvature at all: only what is above the loss is a merit of the scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from beam_influence.influence_ops.evaluation.correlation import ranks


@dataclasses.dataclass(frozen=True)
class Detection:
    """How well one ranking finds the mislabelled examples.

    Attributes:
      auc: the chance that a mislabelled example ranks above a right one (ties count half).
      auc_error: its standard error (DeLong, DeLong & Clarke-Pearson 1988).
      found: for each share of the training set looked at, the share of the mislabelled ones found in it.
    """

    auc: float
    auc_error: float
    found: tuple[float, ...]


def detection(values: np.ndarray, mislabelled: np.ndarray, shares: Sequence[float]) -> Detection:
    """How well the largest `values` point at `mislabelled`.

    Args:
      values: [N], such as self-influence or the loss.
      mislabelled: [N] bool.
      shares: of the training set, each in (0, 1].

    Raises:
      ValueError: no example, or every example, is mislabelled, or a value is NaN.
    """
    wrong, right = values[mislabelled], values[~mislabelled]
    if not len(wrong) or not len(right):
        raise ValueError(f"{len(wrong):,} of {len(values):,} training examples are marked as mislabelled; some must be and some must not")
    if np.isnan(values).any():
        raise ValueError("a ranking can't have NaN in it")
    overall = ranks(values)
    # The share of the other class that each example is above: its mean over either class is the AUC.
    above_right = (overall[mislabelled] - ranks(wrong)) / len(right)
    below_wrong = 1 - (overall[~mislabelled] - ranks(right)) / len(wrong)
    variance = _variance_of_mean(above_right) + _variance_of_mean(below_wrong)
    return Detection(float(above_right.mean()), float(np.sqrt(variance)), tuple(_found(values, mislabelled, share) for share in shares))


def by_chance(mislabelled: np.ndarray, shares: Sequence[float]) -> Detection:
    """What a ranking at random gives on average."""
    looked_at = [round(share * len(mislabelled)) / len(mislabelled) for share in shares]
    return Detection(0.5, 0.0, tuple(looked_at))


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def _found(values: np.ndarray, mislabelled: np.ndarray, share: float) -> float:
    """The share of the mislabelled in the first examples; those that tie at the edge are taken in proportion."""
    count = round(share * len(values))
    if not count:
        return 0.0
    edge = np.partition(values, len(values) - count)[len(values) - count]
    above, tied = values > edge, values == edge
    places = count - above.sum()
    return float(mislabelled[above].sum() + places * mislabelled[tied].mean()) / float(mislabelled.sum())
