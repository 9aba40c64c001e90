"""What the k first training examples of each test point are: of its class, those that were to be found, many or always the same.

    precision@k = |top k ∩ relevant| / k        recall@k = |top k ∩ relevant| / |relevant|        reciprocal rank = 1 / rank of the first

Of classes and subclasses: Hanawa et al. 2021 (2006.04528, section 3); of facts that a training example tells: Akyürek et al. 2022
(2205.11482, section 4); of the number of different examples: Barshan, Brunet & Dziugaite 2020 (2003.11630).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

_ROUNDING = 1e-12  # what is left of equal values by their sums


@dataclasses.dataclass(frozen=True)
class Found:
    """How much of what is relevant is found, for each of T test points.

    Attributes:
      precision, recall, reciprocal_rank: [T]; recall is NaN where nothing is relevant.
    """

    precision: np.ndarray
    recall: np.ndarray
    reciprocal_rank: np.ndarray


def found_relevant(tops: Sequence[Sequence[str]], relevant: Sequence[Collection[str]], counts: Sequence[int] | None = None) -> Found:
    """Compares what is found with what is relevant.

    Args:
      tops: of each test point its first training examples, best first.
      relevant: of each test point the ids that are to be found among them.
      counts: how many are relevant in all of the training set; None: as many as `relevant` has.
    """
    wanted = [set(names) for names in relevant]
    hits = [np.array([name in names for name in top], bool) for top, names in zip(tops, wanted, strict=True)]
    of_all = np.array([len(names) for names in wanted] if counts is None else counts, np.float64)
    numbers = np.array([hit.sum() for hit in hits], np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = numbers / of_all
    ranks = [1 / (1 + int(hit.argmax())) if hit.any() else 0.0 for hit in hits]
    return Found(numbers / np.array([max(len(top), 1) for top in tops]), np.where(of_all > 0, recall, np.nan), np.array(ranks))


def cardinality(tops: Sequence[Sequence[str]]) -> tuple[int, float]:
    """How many different training examples there are in all test points' tables together, and of how many rows: 1 where none is twice."""
    rows = sum(len(top) for top in tops)
    different = len({name for top in tops for name in top})
    return different, different / rows if rows else float("nan")


def overlaps(tops: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> np.ndarray:
    """The share of each test point's examples that are also in its other table: [T]."""
    return np.array([len(set(top) & set(other)) / max(len(top), 1) for top, other in zip(tops, others, strict=True)])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over test points, those that are NaN left out, and its standard error; NaN where there are too few."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    mean, error = float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")
    return mean, 0.0 if error <= _ROUNDING * abs(mean) else error
