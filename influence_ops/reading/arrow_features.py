"""The features of Arrow columns: their kinds and shapes, fields of structs among them as `struct.field`."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from beam_influence.influence_ops.reading.features import Description, Feature, Kind, Stored, most_common


def describe_columns(table: pa.RecordBatch) -> Description:
    """The features as most rows have them."""
    columns = [_describe(name, column) for name, column in zip(table.schema.names, table.columns, strict=True)]
    return most_common(cell for column in columns for cell in column)


def has_column(schema: pa.Schema, name: str) -> bool:
    """Whether a schema has a column, or a struct with the field, of this name."""
    if schema.get_field_index(name) >= 0:
        return True
    struct, _, field = name.partition(".")
    index = schema.get_field_index(struct)
    kind = schema.field(index).type if index >= 0 else None
    return kind is not None and pa.types.is_struct(kind) and kind.get_field_index(field) >= 0


def select_columns(table: pa.RecordBatch, features: Iterable[Feature]) -> pa.RecordBatch:
    """The columns of those features that a table has; of none, its rows still."""
    columns: dict[str, pa.Array] = {}
    for feature in features:
        index = table.schema.get_field_index(feature.name)
        if index >= 0:
            columns[feature.name] = _without_views(table.column(index))
        elif has_column(table.schema, feature.name):
            struct, _, field = feature.name.partition(".")
            column = table.column(table.schema.get_field_index(struct))
            columns[feature.name] = _without_views(column.flatten()[column.type.get_field_index(field)])  # with the struct's own nulls
    return pa.RecordBatch.from_pydict(columns or {"": pa.nulls(table.num_rows)})


def _describe(name: str, column: pa.Array) -> list[dict[str, Stored]]:
    """The feature in each row that has it; of a struct, its fields."""
    if pa.types.is_struct(column.type):
        parts = [(f"{name}.{field.name}", values) for field, values in zip(column.type, column.flatten(), strict=True)]
        return [cell for part, values in parts if not pa.types.is_struct(values.type) for cell in _describe(part, values)]
    column = _without_views(column)
    depth, leaf = 0, column.type
    while pa.types.is_list(leaf) or pa.types.is_large_list(leaf) or pa.types.is_fixed_size_list(leaf):
        depth, leaf = depth + 1, leaf.value_type
    if pa.types.is_dictionary(leaf):
        leaf = leaf.value_type
    kind = _kind(leaf)
    if kind is None:
        return []
    if depth == 0:
        return [{name: Stored(kind, ())}] * (len(column) - column.null_count)
    found = []
    for value in column.to_pylist():
        shape: list[int] = []
        while isinstance(value, list) and len(shape) < depth:
            shape.append(len(value))
            value = value[0] if value else None
        if len(shape) == depth:
            found.append({name: Stored(kind, tuple(shape))})
    return found


def _without_views(column: pa.Array) -> pa.Array:
    """A column of Arrow's views of texts, as Polars writes them, as one of texts: for views many functions of Arrow's are not there."""
    return column.cast(_plain(column.type)) if "_view" in str(column.type) else column


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    return {"string_view": pa.large_string(), "binary_view": pa.large_binary()}.get(str(kind), kind)


def _kind(leaf: pa.DataType) -> Kind | None:
    if pa.types.is_floating(leaf) or pa.types.is_decimal(leaf):
        return "float"
    if pa.types.is_integer(leaf) or pa.types.is_boolean(leaf):
        return "int"
    is_text = pa.types.is_string(leaf) or pa.types.is_large_string(leaf)
    if is_text or pa.types.is_binary(leaf) or pa.types.is_large_binary(leaf) or pa.types.is_fixed_size_binary(leaf):
        return "bytes"
    return None
