"""The examples of a finished run as tables of one schema: ids, where each is, and its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.reading import Rows
from beam_influence.influence_ops.redact import HIDDEN
from beam_influence.pipelines.prepare import patterns_of
from beam_influence.pipelines.report_sources import with_train
from beam_influence.report.examples import Source, as_text
from beam_influence.transforms.file_list import list_shards

_ROWS = 256
RESERVED = frozenset(
    ("train_id", "test_id", "file", "position", "rank", "influence", "loss_change", "group", "test_group", "count", "picture", "vector")
)
"""Names of columns that a feature of the same name gives way to: it is then `feature_NAME`."""


def open_source(manifest: Mapping[str, Any], split: str) -> Source:
    """The files of `train` or `test` of a finished run.

    Raises:
      ValueError: the run read none, or they are not there any more.
    """
    stored = with_train(manifest["config"])
    if not stored.get(split):
        raise ValueError(f"the run read no files of --{split}; give --features none")
    if HIDDEN in stored[split]:
        raise ValueError(f"the manifest has no passwords and keys, and so not where the files of --{split} are; give --features none")
    return Source(list_shards(split, patterns_of(stored[split])), stored["data_format"], stored.get("id_feature"))


class ExampleTables:
    """Examples as tables.

    A list of one value is that value; bytes that are UTF-8 are text. Both are decided by the first rows, and hold for all.

    Args:
      source: the files.
      id_name: the column with the ids, `train_id` or `test_id`.
      features: those that are wanted; None: all.
    """

    def __init__(self, source: Source, id_name: str, features: Sequence[str] | None):
        self._source = source
        self._id_name = id_name
        self._features = features
        self._schema: pa.Schema | None = None

    def batches(self) -> Iterator[tuple[pa.RecordBatch, tuple[str, Rows, list[str]]]]:
        """All examples that can be read, some at a time, and the same as the reader has them.

        Raises:
          ValueError: a feature holds several values where it held one in the first rows.
        """
        for name, rows, ids in self._source.all(self._features, _ROWS):
            yield self._batch(name, rows, ids), (name, rows, ids)

    def _batch(self, name: str, rows: Rows, ids: list[str]) -> pa.RecordBatch:
        columns: dict[str, pa.Array] = {
            self._id_name: pa.array(ids, pa.string()),
            "file": pa.array([name] * len(ids), pa.string()),
            "position": pa.array(rows.positions, pa.int64()),
        }
        for feature in self._source.description if self._features is None else self._features:
            place = rows.table.schema.get_field_index(feature)
            column = rows.table.column(place) if place >= 0 else pa.nulls(len(ids))
            name = f"feature_{feature}" if feature in RESERVED else feature
            columns[name] = self._plain(feature, column, None if self._schema is None else self._schema.field(name).type)
        if self._schema is None:
            self._schema = pa.schema([pa.field(name, column.type) for name, column in columns.items()])
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=self._schema)

    def _plain(self, feature: str, column: pa.Array, kind: pa.DataType | None) -> pa.Array:
        if _is_list(column.type) and (kind is None or not _is_list(kind)):
            lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
            if (lengths <= 1).all():
                places = np.where(lengths == 1, np.cumsum(lengths) - 1, -1)
                column = column.flatten().take(pa.array(places, mask=places < 0))
            elif kind is not None:
                found = f"holds {int(lengths.max())} values in an example, but one in the first"
                raise ValueError(f"the feature {feature!r} {found}; leave it out: --features")
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return _text(column, kind)
        return column if kind is None or column.type == kind else column.cast(kind)


def _text(column: pa.Array, kind: pa.DataType | None) -> pa.Array:
    values = column.to_pylist()
    if kind is None:
        try:
            return pa.array([None if value is None else value.decode() for value in values], pa.string())
        except UnicodeDecodeError:
            return column.cast(pa.large_binary())
    if pa.types.is_string(kind):
        return pa.array([None if value is None else as_text(value) for value in values], kind)
    return column.cast(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
