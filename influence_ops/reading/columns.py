"""Arrow columns of any nesting to arrays [B, ...]; rows that do not fill the shape are noted with their reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as _compute

from beam_influence.influence_ops.reading.features import Feature

pc: Any = _compute  # its functions are made at run time

Reasons = dict[int, tuple[str, str]]
"""Row -> (error, message) of rows that can't be used."""


def dense_column(table: pa.RecordBatch, feature: Feature, double: bool, reasons: Reasons) -> np.ndarray:
    """A feature's column as [B, *shape]: float32 (or float64), int64 or bytes objects.

    Args:
      table: B rows; a column holds scalars, lists, fixed-size lists, or lists of lists.
      feature: what is wanted.
      double: read floats as float64.
      reasons: gets the rows that are missing, null or of another length or type; their values are zeros.
    """
    count = table.num_rows
    dtype = dtype_of(feature, double)
    index = table.schema.get_field_index(feature.name)
    column = table.column(index) if index >= 0 else None
    if column is None or pa.types.is_null(column.type):
        _note(reasons, range(count), "missing_feature", f"feature {feature.name!r} is missing")
        return np.zeros((count, *feature.shape), dtype)
    missing = np.asarray(column.is_null())
    _note(reasons, np.flatnonzero(missing), "missing_feature", f"feature {feature.name!r} is missing")
    values, row_of_value, wrong = _flatten(column, feature)
    totals = np.bincount(row_of_value, minlength=count)
    for row in np.flatnonzero((wrong | (totals != feature.length)) & ~missing):
        reasons.setdefault(int(row), ("wrong_shape", _shape_message(feature, int(totals[row]))))
    if values.null_count:
        nulls = np.unique(row_of_value[np.asarray(values.is_null())])
        _note(reasons, nulls, "null_value", f"feature {feature.name!r} holds a null")
    array, unfit = _convert(values, feature, dtype)
    if unfit is not None:
        rows = range(count) if unfit is True else np.unique(row_of_value[unfit])
        _note(reasons, rows, "wrong_type", f"feature {feature.name!r} holds {values.type} values that are no {feature.kind}")
    full = ~wrong & ~missing & (totals == feature.length)
    if full.all():
        return array.reshape(count, *feature.shape)
    dense = np.zeros((count, feature.length), dtype)
    dense[full] = array[full[row_of_value]].reshape(-1, feature.length)
    return dense.reshape(count, *feature.shape)


def dtype_of(feature: Feature, double: bool) -> npt.DTypeLike:
    """The dtype that a feature is read as."""
    return {"float": np.float64 if double else np.float32, "int": np.int64, "bytes": object}[feature.kind]


def _note(reasons: Reasons, rows: Iterable[int], error: str, message: str) -> None:
    for row in rows:
        reasons.setdefault(int(row), (error, message))


def _shape_message(feature: Feature, found: int) -> str:
    if found == feature.length:
        return f"feature {feature.name!r} has lists of other lengths than {list(feature.stored or feature.shape)}"
    return f"feature {feature.name!r} has {found} values; {feature.length} are needed for shape {list(feature.shape)}"


def _flatten(column: pa.Array, feature: Feature) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """All values, the row of each, and the rows [B] whose lists of lists have other lengths than they should."""
    rows = np.arange(len(column))
    wrong = np.zeros(len(column), dtype=bool)
    depth, nested = 0, column.type
    while _is_list(nested):
        depth, nested = depth + 1, nested.value_type
    if depth <= 1:
        expected: tuple[int, ...] = (feature.length,)
    elif feature.stored is not None and depth == len(feature.stored):
        expected = feature.stored
    elif depth == len(feature.shape):
        expected = feature.shape
    else:
        expected = (-1,) * depth
    for level in range(depth):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
        if depth > 1:
            wrong[rows[lengths != expected[level]]] = True
        rows = np.repeat(rows, lengths)
        column = pc.list_flatten(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not depth and column.null_count:  # a missing scalar has no value
        rows = rows[np.asarray(column.is_valid())]
        column = column.drop_null()
    return column, rows, wrong


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _convert(values: pa.Array, feature: Feature, dtype: npt.DTypeLike) -> tuple[np.ndarray, np.ndarray | Literal[True] | None]:
    """The values in `dtype`, and a mask of those that are not of the feature's kind (True: none is; None: all are)."""
    kind = values.type
    if feature.kind == "bytes":
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            values = values.cast(pa.large_binary())
        elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
            return np.zeros(len(values), object), True
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=object), None
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_decimal(kind):
        values = values.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return np.zeros(len(values), dtype), True
    if values.null_count:
        values = pc.fill_null(values, 0)
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype == dtype:
        return array, None
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if feature.kind == "int" and np.issubdtype(array.dtype, np.floating):
        unfit = converted != array
        return converted, unfit if unfit.any() else None
    return converted, None
