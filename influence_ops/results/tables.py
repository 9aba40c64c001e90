"""Result rows as Arrow tables, one function for each table of `schemas`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_influence.influence_ops.reading.example_batch import Rejected
from beam_influence.influence_ops.results import schemas
from beam_influence.influence_ops.scoring.top_k import TopK

_MOST_VALUES = 2**31 - 1


def loss_change(influence: np.ndarray, n: int) -> pa.Array:
    """I / n, or nulls where n is 0 (unknown, or the scores are relative)."""
    return pa.array(influence / n) if n else pa.nulls(len(influence), pa.float64())


def top_k_table(
    test_ids: np.ndarray, top: TopK, n: int, per_token: bool = False, interval_factor: float | None = None
) -> pa.Table:
    """Rows by test point, then rank (from 1); `per_token`: with the columns `schemas.TOKENS`; an interval's half width in standard errors:
    with STANDARD_ERROR and STABLE, and without the last rank, which decides what is stable.

    Raises:
      ValueError: the scores by position of a pair are missing.
    """
    errors: list[pa.Array] = []
    if interval_factor is not None:
        top, stable = top.without_last(interval_factor) if top.errors is not None else (top, np.zeros(top.values.shape, bool))
        errors = [pa.array((top.values if top.errors is None else top.errors).ravel()), pa.array(stable.ravel())]
    queries, kept = top.values.shape
    influence = top.values.ravel()
    columns = [
        pa.array(np.repeat(test_ids.astype(object), kept), pa.string()),
        pa.array(np.tile(np.arange(1, kept + 1, dtype=np.int32), queries)),
        pa.array(top.ids.ravel(), pa.string()),
        pa.array(influence),
        loss_change(influence, n),
    ]
    if errors:
        return pa.Table.from_arrays([*columns, *errors], schema=pa.schema([*schemas.TOP_K, schemas.STANDARD_ERROR, schemas.STABLE]))
    if not per_token:
        return pa.Table.from_arrays(columns, schema=schemas.TOP_K)
    pairs = [(row, str(name)) for row, ids in enumerate(top.ids) for name in ids]
    missing = next((pair for pair in pairs if pair not in top.tokens), None)
    if missing is not None:
        raise ValueError(f"the example {missing[1]!r} was not found again when its score was split by position: its files have changed")
    found = [top.tokens[pair] for pair in pairs]
    kinds = [field.type for field in schemas.TOKENS]
    by_column = ([one.train for one in found], [one.train_unplaced for one in found], [one.test for one in found])
    columns += map(pa.array, (*by_column, [one.test_unplaced for one in found]), kinds)
    return pa.Table.from_arrays(columns, schema=pa.schema([*schemas.TOP_K, *schemas.TOKENS]))


def candidates_table(rows: pa.Table) -> pa.Table:
    """Rows about training examples as rows about candidates: named so, and in place of the change by removal that by addition, −I / n."""
    columns = [pc.call_function("negate", [rows[name]]) if name == "loss_change" else rows[name] for name in rows.schema.names]
    return pa.Table.from_arrays(columns, schema=schemas.of_candidates(rows.schema))


def scores_table(
    test_ids: np.ndarray, train_ids: np.ndarray, scores: np.ndarray, n: int, errors: np.ndarray | None = None
) -> pa.Table:
    """One row for each pair, by training example, then test point; `scores` and their standard errors, where known, are [T, B]."""
    influence = scores.T.ravel()
    columns = [
        pa.array(np.tile(test_ids.astype(object), len(train_ids)), pa.string()),
        pa.array(np.repeat(train_ids.astype(object), len(test_ids)), pa.string()),
        pa.array(influence),
        loss_change(influence, n),
    ]
    if errors is None:
        return pa.Table.from_arrays(columns, schema=schemas.SCORES)
    return pa.Table.from_arrays([*columns, pa.array(errors.T.ravel())], schema=schemas.SCORES.append(schemas.STANDARD_ERROR))


def vectors_table(ids: np.ndarray, vectors: np.ndarray) -> pa.Table:
    """Ids (B,) and vectors [B, P] as rows of `influence_vectors`."""
    return pa.Table.from_arrays([pa.array(ids, pa.string()), vector_column(vectors)], schema=schemas.INFLUENCE_VECTORS)


def vector_column(vectors: np.ndarray, most: int = _MOST_VALUES) -> pa.ChunkedArray:
    """[B, P] as a column of lists, in chunks of at most `most` numbers: a list's place is a number of 32 bits.

    Raises:
      ValueError: one vector alone is longer.
    """
    count, size = vectors.shape
    if size > most:
        raise ValueError(f"a vector of {size:,} numbers is longer than the {most:,} that a row can have; watch fewer weights (--weights)")
    rows = most // max(size, 1)
    chunks = []
    for part in (vectors[start : start + rows] for start in range(0, max(count, 1), rows)):
        places = np.arange(len(part) + 1, dtype=np.int64) * size
        chunks.append(pa.ListArray.from_arrays(pa.array(places.astype(np.int32)), pa.array(part.ravel())))
    return pa.chunked_array(chunks)


def self_influence_top_k_table(top: TopK, n: int) -> pa.Table:
    """Rows by rank (from 1); `top` has one row."""
    influence = top.values[0]
    ranks = pa.array(np.arange(1, len(influence) + 1, dtype=np.int32))
    columns = [ranks, pa.array(top.ids[0], pa.string()), pa.array(influence), loss_change(influence, n)]
    return pa.Table.from_arrays(columns, schema=schemas.SELF_INFLUENCE_TOP_K)


def rejected_table(rejected: Iterable[tuple[str, Rejected]]) -> pa.Table:
    """One row for each (split, rejected example), by split, file and index."""
    ordered = sorted(rejected, key=lambda pair: (pair[0], pair[1].file, pair[1].index))
    rows = [
        {"split": split, "file": r.file, "index": r.index, "stage": r.stage, "error": r.error, "message": r.message}
        for split, r in ordered
    ]
    return pa.Table.from_pylist(rows, schema=schemas.REJECTED)


def residuals_table(ids: np.ndarray, residuals: np.ndarray) -> pa.Table:
    """How far each query's solution is: ‖g − (H + λI) v‖ / ‖g‖."""
    return pa.table([pa.array(ids, pa.string()), pa.array(residuals, pa.float64())], schema=schemas.RESIDUALS)
