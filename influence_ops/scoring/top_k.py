"""The k best training examples for each of T queries, kept in tables that merge in any order."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import numpy as np

from beam_influence.influence_ops.scoring.part import Part

LIMIT = 1 << 30
"""The most bytes that scores by position may take in a table."""

Order = Literal["descending", "ascending"]

_DROPPED_BITS = 18  # of a double's 52: what is left is exact to 6e-11 relative


def ranking_key(values: np.ndarray) -> np.ndarray:
    """Values rounded to 34 bits, which decide the ranks.

    A matrix product's last bits depend on the shape of the batch. Without rounding, equal examples in
    different batches would be ranked by that noise; rounded, they tie and their ids decide.
    """
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.int64)
    half, mask = np.int64(1 << (_DROPPED_BITS - 1)), np.int64(~((1 << _DROPPED_BITS) - 1))
    return ((bits + half) & mask).view(np.float64) + 0.0  # + 0.0 makes -0.0 a 0.0


class TokenScores(NamedTuple):
    """A pair's score position by position: of the training example's sequence and of the test point's, each with what is at none."""

    train: np.ndarray
    test: np.ndarray
    train_unplaced: float
    test_unplaced: float


class TopK(Part):
    """For each of T queries the k examples that come first by (value, id); fewer when fewer were seen.

    Attributes:
      values: [T, m] float64, m ≤ k, best first.
      ids: [T, m] array of str.
      errors: the standard error of each value [T, m]; None where they are not known.
      tokens: scores by position of pairs (row, id), of any table over the same test points; at most `LIMIT` bytes.
    """

    __slots__ = ("descending", "errors", "ids", "k", "tokens", "values")

    def __init__(self, queries: int, k: int, order: Order = "descending"):
        if k < 1:
            raise ValueError(f"top_k={k} must be at least 1")
        if order not in ("descending", "ascending"):
            raise ValueError(f"order={order!r} must be 'descending' or 'ascending'")
        self.k = k
        self.descending = order == "descending"
        self.values = np.empty((queries, 0))
        self.ids = np.empty((queries, 0), dtype=object)
        self.errors: np.ndarray | None = None
        self.tokens: dict[tuple[int, str], TokenScores] = {}

    def add(self, scores: np.ndarray, ids: np.ndarray, errors: np.ndarray | None = None) -> None:
        """Takes in a block of scores [T, B] of the examples `ids` (B,), with their standard errors [T, B] or always without.

        Raises:
          ValueError: a score is NaN, which has no rank.
        """
        if scores.size and np.isnan(scores.min()):
            example = ids[np.isnan(scores).any(axis=0)][0]
            raise ValueError(
                f"a score of the example {example} is NaN, so nothing can be ranked: numbers were too large; use --precision float64, or a "
                "larger --damping"
            )
        if self.values.shape[1] == self.k:
            # Most examples of a long stream beat no table: look for those that do before sorting.
            worst = self._key(self.values[:, -1:])
            wanted = (self._key(scores) <= worst).any(axis=0)
            if not wanted.any():
                return
            scores, ids, errors = scores[:, wanted], ids[wanted], None if errors is None else errors[:, wanted]
        self._take(scores, np.broadcast_to(ids, scores.shape), errors)

    def merge(self, other: TopK) -> None:
        """Takes in the table of other examples."""
        if other.values.shape[1]:
            self._take(other.values, other.ids, other.errors)
        if other.tokens:
            for (row, name), scores in other.tokens.items():
                self._add_once(row, name, scores)
            self._check_tokens()

    def add_tokens(self, row: int, name: str, scores: TokenScores) -> None:
        """Takes in the scores by position of one pair."""
        self._add_once(row, name, scores)
        self._check_tokens()

    def _add_once(self, row: int, name: str, scores: TokenScores) -> None:
        if (row, name) in self.tokens:
            raise ValueError(f"several training examples have the id {name!r}: scores by position need ids that are each one example's")
        self.tokens[row, name] = scores

    def _check_tokens(self) -> None:
        one = next(iter(self.tokens.values()))
        if (size := len(self.tokens) * 8 * (len(one.train) + len(one.test) + 2)) > LIMIT:
            raise ValueError(
                f"scores by position of {len(self.tokens):,} pairs take {size >> 20:,} MiB, more than {LIMIT >> 20:,}; use a smaller "
                "--query_block_size or --top_k"
            )

    def _key(self, values: np.ndarray) -> np.ndarray:
        """Smaller is better."""
        key = ranking_key(values)
        return -key if self.descending else key

    def without_last(self, factor: float) -> tuple[TopK, np.ndarray]:
        """The table of the first k − 1, and which of its rows [T, m] would stay with other draws: those whose interval, value ± factor ·
        error, ends before the value of the k-th; all where there is no k-th."""
        assert self.errors is not None
        first = copy.copy(self)
        first.k = self.k - 1
        first.values, first.ids, first.errors = (array[:, : first.k] for array in (self.values, self.ids, self.errors))
        sign = 1 if self.descending else -1
        worst_case, others = sign * first.values - factor * first.errors, sign * self.values[:, first.k :]
        return first, (worst_case > others) if others.shape[1] else np.ones(worst_case.shape, dtype=bool)

    def _take(self, values: np.ndarray, ids: np.ndarray, errors: np.ndarray | None = None) -> None:
        if errors is not None:
            errors = errors if self.errors is None else np.concatenate([self.errors, errors], axis=1)
        values = np.concatenate([self.values, values], axis=1)
        ids = np.concatenate([self.ids, ids.astype(object)], axis=1)
        kept = min(self.k, values.shape[1])
        if kept == 0:
            return
        keys = self._key(values)
        if kept < values.shape[1]:
            chosen = np.argpartition(keys, kept - 1, axis=1)[:, :kept]
        else:
            chosen = np.broadcast_to(np.arange(kept), keys.shape)
        chosen_keys = np.take_along_axis(keys, chosen, axis=1)
        order = np.argsort(chosen_keys, axis=1, kind="stable")
        chosen = np.take_along_axis(chosen, order, axis=1)
        chosen_keys = np.take_along_axis(chosen_keys, order, axis=1)
        # Where keys are equal, inside the table or across its edge, the ids decide.
        tied = (chosen_keys[:, 1:] == chosen_keys[:, :-1]).any(axis=1)
        tied |= (keys <= chosen_keys[:, -1:]).sum(axis=1) > kept
        for row in np.flatnonzero(tied):
            candidates = np.flatnonzero(keys[row] <= chosen_keys[row, -1])
            chosen[row] = sorted(candidates, key=lambda column, row=row: (keys[row, column], ids[row, column]))[:kept]
        self.values = np.take_along_axis(values, chosen, axis=1)
        self.ids = np.take_along_axis(ids, chosen, axis=1)
        self.errors = None if errors is None else np.take_along_axis(errors, chosen, axis=1)
