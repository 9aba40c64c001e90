"""The k best training examples for each of T queries, kept in tables that merge in any order."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from beam_influence.influence_ops.scoring.part import Part
from beam_influence.influence_ops.scoring.ranking import Order, ranking_key

if TYPE_CHECKING:
    import tensorflow as tf

LIMIT = 1 << 30
"""The most bytes that scores by position may take in a table."""

_WAITING = 1 << 19  # scores that wait on the device to be looked at: 4 MiB


class TokenScores(NamedTuple):
    """A pair's score position by position: of the training example's sequence and of the test point's, each with what is at none."""

    train: np.ndarray
    test: np.ndarray
    train_unplaced: float
    test_unplaced: float


class TopK(Part):
    """For each of T queries the k examples that come first by (value, id); fewer when fewer were seen.

    Attributes:
      errors: the standard error of each value [T, m]; None where they are not known.
      tokens: scores by position of pairs (row, id), of any table over the same test points; at most `LIMIT` bytes.
    """

    __slots__ = ("_ids", "_values", "_waiting", "descending", "errors", "k", "tokens")

    def __init__(self, queries: int, k: int, order: Order = "descending"):
        if k < 1:
            raise ValueError(f"top_k={k} must be at least 1")
        if order not in ("descending", "ascending"):
            raise ValueError(f"order={order!r} must be 'descending' or 'ascending'")
        self.k = k
        self.descending = order == "descending"
        self._values = np.empty((queries, 0))
        self._ids = np.empty((queries, 0), dtype=object)
        self._waiting: list[tuple[tf.Tensor, np.ndarray]] = []
        self.errors: np.ndarray | None = None
        self.tokens: dict[tuple[int, str], TokenScores] = {}

    @property
    def values(self) -> np.ndarray:
        """[T, m] float64, m ≤ k, best first."""
        self._look()
        return self._values

    @property
    def ids(self) -> np.ndarray:
        """[T, m] array of str."""
        self._look()
        return self._ids

    def replace(self, values: np.ndarray, ids: np.ndarray) -> None:
        """Makes this the table of the examples that come first, as another search found them."""
        self._values, self._ids, self._waiting = values, ids, []

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        self._look()  # another process reaches nothing on this one's device
        return None, {name: getattr(self, name) for name in self.__slots__}

    def add(self, scores: np.ndarray | tf.Tensor, ids: np.ndarray, errors: np.ndarray | None = None) -> None:
        """Takes in a block of scores [T, B] of the examples `ids` (B,), with their standard errors [T, B] or always without; tensors, which
        have none, wait until they are many.

        Raises:
          ValueError: a score is NaN, which has no rank; of a tensor, when it is looked at.
        """
        if not isinstance(scores, np.ndarray):
            self._waiting.append((scores, ids.copy()))  # a loader may fill its array again meanwhile
            if len(self._values) * sum(len(some) for _, some in self._waiting) >= _WAITING:
                self._look()
            return
        if scores.size and np.isnan(scores.min()):
            raise _no_rank(scores, ids)
        if self._values.shape[1] == self.k:
            # Most examples of a long stream beat no table: look for those that do before sorting.
            worst = self._key(self._values[:, -1:])
            wanted = (self._key(scores) <= worst).any(axis=0)
            if not wanted.any():
                return
            scores, ids, errors = scores[:, wanted], ids[wanted], None if errors is None else errors[:, wanted]
        self._take(scores, np.broadcast_to(ids, scores.shape), errors)

    def _look(self) -> None:
        """Takes in what waits on the device."""
        if not self._waiting:
            return
        from beam_influence.influence_ops.scoring.top_k_on_device import first_of  # a table is also read where there is no TensorFlow

        waiting, self._waiting = self._waiting, []
        ids = np.concatenate([some for _, some in waiting])
        if not len(ids) or not len(self._values):
            return
        first = first_of([scores for scores, _ in waiting], self.k, self.descending)
        if first is None:  # no room for it there
            for scores, some in waiting:
                self.add(scores.numpy(), some)
            return
        if first.has_nan:
            raise _no_rank(first.scores.numpy(), ids)
        values, names = first.values, ids.astype(object)[first.columns]
        tied = np.flatnonzero(first.is_tied)
        for row, own in zip(tied, first.rows(tied), strict=True):
            chosen = self._first_by_id(own, ids, self._key(values[row, -1:]))
            values[row], names[row] = own[chosen], ids[chosen]
        self._take(values, names)

    def _first_by_id(self, values: np.ndarray, ids: np.ndarray, last: np.ndarray) -> list[np.intp]:
        """Which of the values come first, those that are equal by id; `last`: the last one's key."""
        keys = self._key(values)
        return sorted(np.flatnonzero(keys <= last), key=lambda column: (keys[column], ids[column]))[: self.k]

    def merge(self, other: TopK) -> None:
        """Takes in the table of other examples."""
        self._look()
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
        first._values, first._ids, first.errors = (array[:, : first.k] for array in (self.values, self.ids, self.errors))
        sign = 1 if self.descending else -1
        worst_case, others = sign * first.values - factor * first.errors, sign * self.values[:, first.k :]
        return first, (worst_case > others) if others.shape[1] else np.ones(worst_case.shape, dtype=bool)

    def _take(self, values: np.ndarray, ids: np.ndarray, errors: np.ndarray | None = None) -> None:
        if errors is not None:
            errors = errors if self.errors is None else np.concatenate([self.errors, errors], axis=1)
        values = np.concatenate([self._values, values], axis=1)
        ids = np.concatenate([self._ids, ids.astype(object)], axis=1)
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
            chosen[row] = self._first_by_id(values[row], ids[row], chosen_keys[row, -1])
        self._values = np.take_along_axis(values, chosen, axis=1)
        self._ids = np.take_along_axis(ids, chosen, axis=1)
        self.errors = None if errors is None else np.take_along_axis(errors, chosen, axis=1)


def _no_rank(scores: np.ndarray, ids: np.ndarray) -> ValueError:
    example = ids[np.isnan(scores).any(axis=0)][0]
    return ValueError(
        f"a score of the example {example} is NaN, so nothing can be ranked: numbers were too large; use --precision float64, or a "
        "larger --damping"
    )
