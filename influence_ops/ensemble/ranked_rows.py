"""The first k training examples of each test point by their mean score, with its standard error; in tables that merge in any order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.results.schemas import STABLE
from beam_influence.influence_ops.scoring.part import Part
from beam_influence.influence_ops.scoring.ranking import ranking_key


class RankedRows(Part):
    """For each test point the rows of `scores` that come first, by (score, id), and the one after them.

    Attributes:
      rows: of `mean_schema(SCORES)`, by test point, best first; None: there is none yet.
    """

    __slots__ = ("_k", "_descending", "rows")

    def __init__(self, k: int, descending: bool):
        self._k = k
        self._descending = descending
        self.rows: pa.Table | None = None

    def add(self, rows: pa.Table) -> None:
        """Takes in more rows.

        Raises:
          ValueError: a score is NaN.
        """
        keys = self._keys(rows)
        if np.isnan(keys).any():
            place = int(np.flatnonzero(np.isnan(keys))[0])
            raise ValueError(f"the score of {rows.column(1)[place].as_py()!r} on {rows['test_id'][place].as_py()!r} is NaN")
        if self.rows is not None:
            rows = rows.filter(pa.array(keys <= self._worst(rows["test_id"])))
        if rows.num_rows:
            self.rows = self._best(rows if self.rows is None else pa.concat_tables([self.rows, rows]))

    def merge(self, other: RankedRows) -> None:
        if other.rows is not None:
            self.add(other.rows)

    def finish(self, factor: float) -> pa.Table:
        """The rows of `top_k`, by test_id and rank: rank and `stable` beside what `rows` has.

        Args:
          factor: half the width of an interval in standard errors.
        """
        assert self.rows is not None
        by = pa.table({"code": self.rows["test_id"], "place": np.arange(self.rows.num_rows)})
        rows = self.rows.take(pc.sort_indices(by, sort_keys=[(name, "ascending") for name in by.column_names]))
        starts, places = _runs(_codes(rows))
        influence, error = rows["influence"].to_numpy(), rows[_ERROR].to_numpy()
        sign = 1 if self._descending else -1
        worst_case = sign * influence - factor * error
        last = np.minimum(starts[places] + self._k, len(influence) - 1)
        has_next = (starts[places] + self._k < len(influence)) & (places[last] == places)
        stable = ~has_next | (worst_case > sign * influence[last])
        ranks = np.arange(len(influence)) - starts[places] + 1
        columns = {name: rows[name] for name in rows.schema.names}
        table = pa.table(
            [columns["test_id"], pa.array(ranks.astype(np.int32)), *list(columns.values())[1:], pa.array(stable)],
            schema=ranked_schema(rows.schema),
        )
        return table.filter(pa.array(ranks <= self._k))

    def _keys(self, rows: pa.Table) -> np.ndarray:
        """Smaller is better."""
        keys = ranking_key(rows["influence"].to_numpy())
        return -keys if self._descending else keys

    def _worst(self, test_ids: pa.ChunkedArray) -> np.ndarray:
        """The key that a row must reach to be among those of its test point: ∞ where these are not complete."""
        assert self.rows is not None
        starts, places = _runs(_codes(self.rows))
        ends = np.append(starts[1:], self.rows.num_rows)
        worst = np.where(ends - starts > self._k, self._keys(self.rows)[ends - 1], np.inf)
        known = self.rows["test_id"].combine_chunks().take(pa.array(starts))
        found = pc.fill_null(pc.index_in(test_ids, value_set=known), len(starts)).to_numpy()
        return np.append(worst, np.inf)[found]

    def _best(self, rows: pa.Table) -> pa.Table:
        codes, keys = _codes(rows), self._keys(rows)
        order = np.lexsort((keys, codes))
        codes, keys = codes[order], keys[order]
        starts, places = _runs(codes)
        ends = np.append(starts[1:], len(codes)) - 1
        kept = keys <= keys[np.minimum(starts + self._k, ends)][places]  # all that tie with the last one, too
        few = rows.take(pa.array(order[kept]))
        by = pa.table({"code": codes[kept], "key": keys[kept], "id": few.column(1)})
        few = few.take(pc.sort_indices(by, sort_keys=[(name, "ascending") for name in by.column_names]))
        starts, places = _runs(codes[kept])  # sorted by codes before and after
        return few.filter(pa.array(np.arange(len(places)) - starts[places] <= self._k)).combine_chunks()


_ERROR = "standard_error"


def ranked_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of an ensemble's `top_k`, from that of the mean scores."""
    fields = list(schema.remove_metadata())
    return pa.schema([fields[0], pa.field("rank", pa.int32(), nullable=False), *fields[1:], STABLE])


def _codes(rows: pa.Table) -> np.ndarray:
    """A number for each test point, in the order of first appearance."""
    return rows["test_id"].combine_chunks().dictionary_encode().indices.to_numpy()


def _runs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal codes starts, and the number of the run that each element is in."""
    begins = np.append(True, codes[1:] != codes[:-1])
    return np.flatnonzero(begins), np.cumsum(begins) - 1
