"""Sums of influence over named groups of training examples, on each of T queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from beam_influence.influence_ops.scoring.part import Part


class GroupSums(Part):
    """Σ_{i∈G} I(z_i, t) and the size of each group G: tables that merge in any order.

    Args:
      queries: T.
      names, sums, counts: what there is already: G different names, [G, T] float64 and [G] int64, which are taken over.
    """

    __slots__ = ("_counts", "_rows", "_sums", "queries")

    def __init__(self, queries: int, names: Sequence[str] = (), sums: np.ndarray | None = None, counts: np.ndarray | None = None):
        self.queries = queries
        self._rows = {name: row for row, name in enumerate(names)}
        self._sums = np.zeros((0, queries)) if sums is None else sums
        self._counts = np.zeros(0, dtype=np.int64) if counts is None else counts

    @property
    def names(self) -> list[str]:
        """The groups, in the order of their rows."""
        return list(self._rows)

    @property
    def sums(self) -> np.ndarray:
        """[G, T] float64."""
        return self._sums[: len(self._rows)]

    @property
    def counts(self) -> np.ndarray:
        """[G] int64, the examples in each."""
        return self._counts[: len(self._rows)]

    @property
    def nbytes(self) -> int:
        """What the sums take."""
        return 8 * len(self._rows) * self.queries

    def of(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The sums and counts of these groups, 0 for one that there is none of: [G, T], [G]."""
        sums, counts = np.zeros((len(names), self.queries)), np.zeros(len(names), dtype=np.int64)
        rows = np.array([self._rows.get(name, -1) for name in names], dtype=np.int64)
        sums[rows >= 0], counts[rows >= 0] = self._sums[rows[rows >= 0]], self._counts[rows[rows >= 0]]
        return sums, counts

    def add(self, scores: np.ndarray, groups: np.ndarray) -> None:
        """Takes in a block of scores [T, B] of examples in `groups` (B,)."""
        names, inverse = np.unique(np.array([str(group) for group in groups], dtype=object), return_inverse=True)
        one_hot = np.zeros((scores.shape[1], len(names)))
        one_hot[np.arange(scores.shape[1]), inverse] = 1.0
        rows = self._rows_of(map(str, names))
        self._sums[rows] += (scores @ one_hot).T
        self._counts[rows] += one_hot.sum(axis=0).astype(np.int64)

    def merge(self, other: GroupSums) -> None:
        """Takes in the sums over other examples."""
        names = list(dict.fromkeys((*self._rows, *other._rows)))
        own, others = self.of(names), other.of(names)
        self._rows = {name: row for row, name in enumerate(names)}
        self._sums, self._counts = own[0] + others[0], own[1] + others[1]

    def _rows_of(self, names: Iterable[str]) -> np.ndarray:
        """The rows of groups; those that are new have rows of zeros."""
        rows = np.array([self._rows.setdefault(name, len(self._rows)) for name in names], dtype=np.int64)
        if len(self._rows) > len(self._sums):
            more = max(len(self._rows), 2 * len(self._sums)) - len(self._sums)
            self._sums = np.concatenate([self._sums, np.zeros((more, self.queries))])
            self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.int64)])
        return rows
