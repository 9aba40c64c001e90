"""The tables of finished runs, read as streams: T × N scores never stand in memory together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.results.array_folder import FileStore
from beam_influence.influence_ops.results.result_files import iterate_table, read_facts, read_manifest, table_files

_ROWS = 1 << 17  # a batch of rows: some 4 MB of ids and scores
_SPARSE = 8  # a block with more cells than this for each row is not laid out


class ScoreTable:
    """A finished run's `scores`, or other tables, in one stream of row batches after another.

    Args:
      folder: the run's output.
      files: where it is kept.
      rows: how many rows are read at once.

    Raises:
      ValueError: no run has finished there.
    """

    def __init__(self, folder: str, files: FileStore | None = None, rows: int = _ROWS):
        self.folder = folder
        self.manifest = read_manifest(folder, files)
        if self.manifest.get("config", {}).get("candidates"):
            raise ValueError(f"the run in {folder!r} scored --candidates, which were not trained on; give one that scored the training set")
        self._files = files
        self._rows = rows

    def facts(self) -> dict[str, Any]:
        """What the score files say about themselves; see `schemas.facts`."""
        return read_facts(next(table_files(self.folder, "scores", self._files)), self._files)

    def ids(self) -> tuple[list[str], list[str]]:
        """(training ids, test ids) of `scores`, each in the order of first appearance: that of the files read by the run."""
        train: dict[str, None] = {}
        test: dict[str, None] = {}
        for batch in self._batches("scores"):
            for seen, column in ((train, "train_id"), (test, "test_id")):
                seen.update(dict.fromkeys(_encoded(batch.column(column))[1]))
        return list(train), list(test)

    def subset_sums(self, masks: np.ndarray, train_ids: Sequence[str], test_ids: Sequence[str]) -> np.ndarray:
        """Σ of the scores over subsets of the training examples: [S, T].

        Args:
          masks: [S, N] bool, the subsets.
          train_ids: N ids; scores of other examples are left out.
          test_ids: T ids; scores of other test points are left out.

        Raises:
          ValueError: the run has no score for one of these pairs, or two.
        """
        sums = np.zeros((len(masks), len(test_ids)))
        seen = np.zeros(len(test_ids), dtype=np.int64)
        for rows, columns, values in self._pairs(train_ids, test_ids):
            seen += np.bincount(columns, minlength=len(test_ids))
            train, row_codes = np.unique(rows, return_inverse=True)
            test, column_codes = np.unique(columns, return_inverse=True)
            if len(train) * len(test) <= _SPARSE * len(values):
                block = np.zeros((len(train), len(test)))
                np.add.at(block, (row_codes, column_codes), values)
                sums[:, test] += masks[:, train].astype(np.float64) @ block
            else:  # rows in no order: their block would be mostly empty
                for total, mask in zip(sums, masks, strict=True):
                    kept = mask[rows]
                    total += np.bincount(columns[kept], values[kept], minlength=len(test_ids))
        self._check_complete(seen, len(train_ids), test_ids)
        return sums

    def columns(self, train_ids: Sequence[str], test_ids: Sequence[str]) -> np.ndarray:
        """The scores of some training examples (R ids): [R, T].

        Raises:
          ValueError: the run has no score for one of these pairs, or two.
        """
        found = np.full((len(train_ids), len(test_ids)), np.nan)
        seen = np.zeros(len(test_ids), dtype=np.int64)
        for rows, columns, values in self._pairs(train_ids, test_ids):
            found[rows, columns] = values
            seen += np.bincount(columns, minlength=len(test_ids))
        self._check_complete(seen, len(train_ids), test_ids)
        return found

    def self_influence(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids (N,), self-influence [N]) of every training example."""
        ids, values = [], []
        for batch in self._batches("self_influence"):
            ids.append(np.asarray(batch.column("train_id").to_pylist(), dtype=object))
            values.append(batch.column("influence").to_numpy())
        return np.concatenate(ids), np.concatenate(values)

    def top_k(self, k: int, test_ids: Sequence[str]) -> list[list[str]]:
        """The k most helpful training examples of each test point, best first.

        Raises:
          ValueError: the run kept the harmful ones, or fewer than k, or not those of a test point.
        """
        config = self.manifest["config"]
        if config["order"] != "descending" or config["top_k"] < k:
            raise ValueError(
                f"the run in {self.folder!r} kept {config['top_k']} examples in {config['order']} order; the {k} most helpful are "
                f"needed: run it with --outputs top_k --top_k {k} --order descending"
            )
        wanted: dict[str, list[tuple[int, str]]] = {test_id: [] for test_id in test_ids}
        for batch in self._batches("top_k"):
            for test_id, rank, train_id in zip(*(batch.column(name).to_pylist() for name in ("test_id", "rank", "train_id")), strict=True):
                if rank <= k and test_id in wanted:
                    wanted[test_id].append((rank, train_id))
        for test_id, found in wanted.items():
            if not found:
                raise ValueError(f"the run in {self.folder!r} has no top_k of the test point {test_id!r}")
        return [[train_id for _, train_id in sorted(wanted[test_id])] for test_id in test_ids]

    def _batches(self, table: str) -> Iterator[pa.RecordBatch]:
        for path in table_files(self.folder, table, self._files):
            yield from iterate_table(path, self._files, self._rows)

    def _pairs(self, train_ids: Sequence[str], test_ids: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(positions in train_ids, positions in test_ids, scores), of the rows that have both."""
        train, test = _places("training example", train_ids), _places("test point", test_ids)
        for batch in self._batches("scores"):
            rows = _positions(batch.column("train_id"), train)
            columns = _positions(batch.column("test_id"), test)
            kept = (rows >= 0) & (columns >= 0)
            if kept.any():
                yield rows[kept], columns[kept], batch.column("influence").to_numpy()[kept]

    def _check_complete(self, seen: np.ndarray, count: int, test_ids: Sequence[str]) -> None:
        wrong = np.flatnonzero(seen != count)
        if len(wrong):
            raise ValueError(
                f"the run in {self.folder!r} has {seen[wrong[0]]:,} scores of the test point {str(test_ids[wrong[0]])!r} on the {count:,} "
                "training examples that were retrained on; score the same training set and the same test points, with the same ids"
            )


def _places(kind: str, ids: Sequence[str]) -> dict[str, int]:
    """Where each id is.

    Raises:
      ValueError: one is there twice.
    """
    places = {str(name): place for place, name in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(str(name) for place, name in enumerate(ids) if places[str(name)] != place)
        raise ValueError(f"the ground truth names the {kind} {twice!r} twice; name each once")
    return places


def _encoded(column: pa.Array) -> tuple[np.ndarray, list[str]]:
    encoded = column.dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _positions(column: pa.Array, positions: dict[str, int]) -> np.ndarray:
    """The position of each id; -1 for one that has none."""
    codes, names = _encoded(column)
    return np.array([positions.get(name, -1) for name in names], dtype=np.int64)[codes]
