"""Correlations along the first axis, ranks with ties, and the bootstrap over the units that were retrained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BOOTSTRAP_SAMPLES = 500


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the first axis, equal values having the mean of their ranks: [S, ...] -> [S, ...] float64."""
    count = len(values)
    if not count:
        return np.zeros(values.shape)
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    places = np.broadcast_to(np.arange(count).reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    begins = np.concatenate([np.ones((1, *values.shape[1:]), bool), ordered[1:] != ordered[:-1]])
    ends = np.concatenate([begins[1:], np.ones((1, *values.shape[1:]), bool)])
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=0)
    last = np.minimum.accumulate(np.where(ends, places, count)[::-1], axis=0)[::-1]
    found = np.empty(values.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, axis=0)
    return found


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The correlation of each column: [S, T], [S, T] -> [T]; NaN where a column is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(axis=0) / np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The correlation of the ranks of each column: [S, T], [S, T] -> [T]; NaN where a column is constant."""
    return pearson(ranks(a), ranks(b))


def mean_over_columns(correlations: np.ndarray) -> float:
    """Their mean; one that is not defined counts as 0, for it predicts nothing."""
    return float(np.nan_to_num(correlations).mean())


def bootstrap_error(statistic: Callable[[np.ndarray], float], count: int, seed: int = 0, samples: int = BOOTSTRAP_SAMPLES) -> float:
    """The standard error of `statistic(rows)` when `count` rows are drawn again with replacement (Efron 1979)."""
    generator = np.random.default_rng(seed)
    return float(np.std([statistic(generator.integers(0, count, count)) for _ in range(samples)], ddof=1))
