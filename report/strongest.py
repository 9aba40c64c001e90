"""The rows with the largest and the smallest scores of tables of any size, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.scoring.ranking import Order, ranking_key

_RANKED = "ranked"


class Score(NamedTuple):
    """A row of a table of scores: an example's id, its influence, and the predicted change of the loss where there is one."""

    id: str
    influence: float
    loss_change: float | None


class Strongest:
    """Of each key's scores the first `count` by (score, id), from batches in any order; scores are compared as those of a run are (`TopK`).

    What is kept is `count` rows for each key, and what came since they were last chosen: at most `waiting` rows.

    Args:
      count: how many for each key.
      end: which come first.
      key: the column with the keys; None: all rows have one.
      name: the column with the ids.
      waiting: rows.
    """

    def __init__(self, count: int, end: Order, key: str | None = None, name: str = "train_id", waiting: int = 1 << 16):
        self._count = count
        self._end: Order = end
        self._key = key
        self._columns = [*([] if key is None else [key]), name, "influence", "loss_change"]
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self._limit = waiting
        self._worst: dict[str | None, float] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Takes the rows that may be among the first."""
        batch = batch.select(self._columns)
        ranked = ranking_key(batch.column("influence").to_numpy(zero_copy_only=False))
        kept = pa.array(self._sign * ranked <= self._bounds(batch))
        batch = batch.append_column(_RANKED, pa.array(ranked)).filter(kept)
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows > self._limit:
            self._choose()

    def rows(self) -> dict[str | None, list[Score]]:
        """The scores of each key, first ones first."""
        table = self._choose()
        found: dict[str | None, list[Score]] = {}
        keys: Sequence[str | None] = [None] * table.num_rows if self._key is None else table.column(self._key).to_pylist()
        columns = [table.column(name).to_pylist() for name in self._columns[-3:]]
        for key, *score in zip(keys, *columns, strict=True):
            found.setdefault(key, []).append(Score(*score))
        return found

    @property
    def _sign(self) -> int:
        return -1 if self._end == "descending" else 1

    def _bounds(self, batch: pa.RecordBatch) -> np.ndarray | float:
        """What a row must not exceed, in the order's direction, to be among those that are kept."""
        if self._key is None:
            return self._worst.get(None, np.inf)
        codes = batch.column(self._key).dictionary_encode()
        worst = np.array([self._worst.get(key, np.inf) for key in codes.dictionary.to_pylist()])
        return worst[codes.indices.to_numpy()] if len(worst) else np.zeros(0)

    def _choose(self) -> pa.Table:
        """Leaves the first rows of each key, in order."""
        if not self._waiting:
            return pa.table({name: [] for name in (*self._columns, _RANKED)})
        table = pa.Table.from_batches(self._waiting)
        order: list[tuple[str, str]] = [] if self._key is None else [(self._key, "ascending")]
        table = table.take(pc.sort_indices(table, sort_keys=[*order, (_RANKED, self._end), (self._columns[-3], "ascending")]))
        keys = np.zeros(table.num_rows) if self._key is None else _codes(table.column(self._key))
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        ranks = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
        table = table.filter(pa.array(ranks < self._count)).combine_chunks()
        last = ranks[ranks < self._count] == self._count - 1
        names: Iterable[str | None] = [None] * table.num_rows if self._key is None else table.column(self._key).to_pylist()
        values = table.column(_RANKED).to_numpy()
        self._worst = {name: self._sign * value for name, value, full in zip(names, values, last, strict=True) if full}
        self._waiting, self._rows = table.to_batches(), 0
        return table


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each of the texts of a sorted column."""
    codes = column.combine_chunks().dictionary_encode()
    return codes.indices.to_numpy().astype(np.float64)
