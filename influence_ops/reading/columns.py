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

_NAMES = {"float": "float", "int": "int of 64 bits", "bytes": "bytes"}
Reasons = dict[int, tuple[str, str]]
"""Row -> (error, message) of rows that can't be used."""


def dense_column(table: pa.RecordBatch, feature: Feature, double: bool, reasons: Reasons) -> np.ndarray:
    """A feature's column as [B, *shape]: float32 (or float64), int64 or bytes objects.

    Args:
      table: B rows; a column holds scalars, lists, fixed-size lists, or lists of lists.
      feature: what is wanted. Its default stands for it in rows that lack it or have an empty list, for nulls, and, where it
        `completes`, at the end of a list that is too short.
      double: read floats as float64.
      reasons: gets the rows that are missing, null or of another length or type; their values are zeros.
    """
    if feature.sparse:
        return sparse_column(table, feature, double, reasons)
    count, dtype = table.num_rows, dtype_of(feature, double)
    has_default = feature.default is not None
    column = _column(table, feature.name)
    if column is None:
        if not has_default:
            _note(reasons, range(count), "missing_feature", _missing(feature))
        return np.full((count, *feature.shape), 0 if feature.default is None else feature.default, dtype)
    whole = _whole(column, feature, dtype)
    if whole is not None:
        return whole.reshape(count, *feature.shape)
    missing = np.asarray(column.is_null())
    values, row_of_value, wrong = _flatten(column, feature)
    totals = np.bincount(row_of_value, minlength=count)
    if has_default:
        missing = missing | (totals == 0)
    else:
        _note(reasons, np.flatnonzero(missing), "missing_feature", _missing(feature))
    short = (totals < feature.length) if feature.completes else np.zeros(count, bool)
    full = ~wrong & ~missing & ((totals == feature.length) | short)
    for row in np.flatnonzero(~full & ~missing):
        reasons.setdefault(int(row), ("wrong_shape", _shape_message(feature, int(totals[row]))))
    array = _checked(values, row_of_value, feature, dtype, reasons, count)
    if full.all() and not short.any():
        return array.reshape(count, *feature.shape)
    dense = np.full((count, feature.length), 0 if feature.default is None else feature.default, dtype)
    place = np.arange(len(row_of_value)) - (np.cumsum(totals) - totals)[row_of_value]
    keep = full[row_of_value]
    dense[row_of_value[keep], place[keep]] = array[keep]
    return dense.reshape(count, *feature.shape)


def sparse_column(table: pa.RecordBatch, feature: Feature, double: bool, reasons: Reasons) -> np.ndarray:
    """A sparse feature's columns, of places and values, as [B, *shape]; what has no value is its default, or zero (no text).

    Args: as of `dense_column`.
    """
    count, dtype = table.num_rows, dtype_of(feature, double)
    dense = np.full((count, *feature.shape), (b"" if feature.kind == "bytes" else 0) if feature.default is None else feature.default, dtype)
    rows_of, arrays = [], []
    for part in feature.sparse:
        column = _column(table, part.name)
        if column is None:
            column = pa.array([[]] * count, pa.list_(pa.int64()))
        values, row_of_value, _ = _flatten(column, part)
        rows_of.append(row_of_value)
        arrays.append(_checked(values, row_of_value, part, dtype_of(part, double), reasons, count))
    lengths = np.stack([np.bincount(rows, minlength=count) for rows in rows_of])
    unequal = (lengths != lengths[0]).any(axis=0)
    what, parts = f"the sparse feature {feature.name!r}", " and ".join(repr(part.name) for part in feature.sparse)
    _note(reasons, np.flatnonzero(unequal), "wrong_shape", f"{what}: {parts} have lists of different lengths")
    places, rows = [], rows_of[0][~unequal[rows_of[0]]]
    for row_of_value, indices in zip(rows_of, arrays[:-1], strict=False):
        places.append(indices[~unequal[row_of_value]])
    outside = np.zeros(len(rows), bool)
    for place, size in zip(places, feature.shape, strict=True):
        outside |= (place < 0) | (place >= size)
    _note(reasons, np.unique(rows[outside]), "wrong_shape", f"{what} has a place outside of {list(feature.shape)}")
    inside = (rows[~outside], *(place[~outside] for place in places))
    flat = np.ravel_multi_index(inside, dense.shape)
    _, first, times = np.unique(flat, return_index=True, return_counts=True)
    _note(reasons, np.unique(inside[0][first[times > 1]]), "wrong_shape", f"{what} has a place twice")
    dense[inside] = arrays[-1][~unequal[rows_of[-1]]][~outside]
    return dense


def _column(table: pa.RecordBatch, name: str) -> pa.Array | None:
    """A column with values; None where the file has none."""
    index = table.schema.get_field_index(name)
    column = table.column(index) if index >= 0 else None
    return None if column is None or pa.types.is_null(column.type) else column


def _missing(feature: Feature) -> str:
    return f"feature {feature.name!r} is missing; where the model takes a value for that, write --default {feature.name}=VALUE"


def _checked(
    values: pa.Array, row_of_value: np.ndarray, feature: Feature, dtype: npt.DTypeLike, reasons: Reasons, count: int
) -> np.ndarray:
    """The values in `dtype`; rows with a null, or with one of another kind, are noted."""
    nulls = np.asarray(values.is_null()) if values.null_count else None
    if nulls is not None and feature.default is None:
        _note(reasons, np.unique(row_of_value[nulls]), "null_value", f"feature {feature.name!r} holds a null")
    array, unfit = _convert(values, feature, dtype)
    if unfit is not None:
        rows = range(count) if unfit is True else np.unique(row_of_value[unfit])
        _note(reasons, rows, "wrong_type", f"feature {feature.name!r} holds {values.type} values that are no {_NAMES[feature.kind]}")
    if nulls is not None and feature.default is not None:
        array = np.where(nulls, np.array(feature.default, dtype), array)
    return array


def dtype_of(feature: Feature, double: bool) -> npt.DTypeLike:
    """The dtype that a feature is read as."""
    return {"float": np.float64 if double else np.float32, "int": np.int64, "bytes": object}[feature.kind]


def _note(reasons: Reasons, rows: Iterable[int], error: str, message: str) -> None:
    for row in rows:
        reasons.setdefault(int(row), (error, message))


def _shape_message(feature: Feature, found: int) -> str:
    if found == feature.length:
        return f"feature {feature.name!r} has lists of other lengths than {list(feature.stored or feature.shape)}"
    mend = f"; --default {feature.name}=VALUE completes shorter lists" if found < feature.length and feature.default is None else ""
    return f"feature {feature.name!r} has {found} values; {feature.length} are needed for shape {list(feature.shape)}{mend}"


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


def _whole(column: pa.Array, feature: Feature, dtype: npt.DTypeLike) -> np.ndarray | None:
    """The values of a column whose rows are all as they should be, where they lie; None: some are not, or are lists of lists."""
    nested = column.type.value_type if _is_list(column.type) else None
    if column.null_count or nested is not None and _is_list(nested):
        return None
    lengths = np.ones(1) if nested is None else np.asarray(pc.list_value_length(column))
    values = column if nested is None else pc.list_flatten(column)
    if (lengths != feature.length).any() or values.null_count or pa.types.is_dictionary(values.type):
        return None
    array, unfit = _convert(values, feature, dtype)
    return array if unfit is None else None


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
    if feature.kind == "int" and array.dtype == np.uint64:
        unfit = array > np.iinfo(np.int64).max
        return np.where(unfit, 0, array).astype(dtype), unfit if unfit.any() else None
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
    if feature.kind == "int" and np.issubdtype(array.dtype, np.floating):
        unfit = converted != array
        return converted, unfit if unfit.any() else None
    return converted, None
