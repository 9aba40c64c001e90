"""Sums of influence over named groups of training examples, on each of T queries."""

from __future__ import annotations

import numpy as np

from beam_influence.influence_ops.scoring.part import Part

LIMIT = 1 << 30
"""The most bytes that the sums of all groups may take in one process; what leaves it is no larger."""


class GroupSums(Part):
    """Σ_{i∈G} I(z_i, t) and the size of each group G: tables that merge in any order, of at most `LIMIT` bytes.

    Attributes:
      sums: group name -> [T] float64.
      counts: group name -> number of examples.
    """

    __slots__ = ("counts", "queries", "sums")

    def __init__(self, queries: int):
        self.queries = queries
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}

    def add(self, scores: np.ndarray, groups: np.ndarray) -> None:
        """Takes in a block of scores [T, B] of examples in `groups` (B,)."""
        names, inverse = np.unique(np.array([str(group) for group in groups], dtype=object), return_inverse=True)
        one_hot = np.zeros((scores.shape[1], len(names)))
        one_hot[np.arange(scores.shape[1]), inverse] = 1.0
        for name, total, count in zip(names, (scores @ one_hot).T, one_hot.sum(axis=0), strict=True):
            self._take(str(name), total, int(count))

    def merge(self, other: GroupSums) -> None:
        """Takes in the sums over other examples."""
        self.sums, self.counts = dict(self.sums), dict(self.counts)
        for name, total in other.sums.items():
            self._take(name, total, other.counts[name])

    def _take(self, name: str, total: np.ndarray, count: int) -> None:
        if name not in self.sums and 8 * (len(self.sums) + 1) * self.queries > LIMIT:
            raise ValueError(
                f"{len(self.sums) + 1:,} groups with {self.queries:,} numbers each take more than {LIMIT >> 20:,} MiB; use fewer groups, "
                "or watch fewer weights (where these are sums of gradients) or a smaller --query_block_size (where they are influence)"
            )
        self.sums[name] = self.sums[name] + total if name in self.sums else np.array(total)
        self.counts[name] = self.counts.get(name, 0) + count
