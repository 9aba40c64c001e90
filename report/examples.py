"""The examples that a page shows, taken from the sources by their ids: one look at each file that has one of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from beam_influence.influence_ops.arrow_compute import pc
from beam_influence.influence_ops.reading import READERS, Rows, detect_format
from beam_influence.influence_ops.reading.features import Description, Feature, FeatureSpec, Kind
from beam_influence.transforms.elements import Shard
from beam_influence.transforms.read_shards import open_shard

Value: TypeAlias = np.ndarray | bytes | str | int | float | None
"""What a feature of one example holds: an array, or a single value."""

_DESCRIBED_FROM = 100
_SCANNED = 1 << 12


@dataclasses.dataclass(frozen=True)
class StoredExample:
    """An example as its file has it: where it is, and its features."""

    id: str
    file: str
    index: int
    values: Mapping[str, Value]


class Source:
    """The files of one split, in which examples are looked up.

    Args:
      shards: the files, as the run had them.
      data_format: `auto`, or a reader's name.
      id_feature: the feature with the ids; None: an id is `<file>:<index>`.
      spec: how the model's examples are decoded, where that is known: its features' kinds are then followed.

    Raises:
      ValueError: no file has a readable example.
    """

    def __init__(self, shards: Sequence[Shard], data_format: str, id_feature: str | None, spec: FeatureSpec | None = None):
        self._shards = {shard.name: shard for shard in shards}
        self._id_feature = id_feature
        if data_format == "auto":
            with open_shard(shards[0]) as file:
                data_format = detect_format(shards[0].path, file)
        self._reader = READERS[data_format]
        known = {} if spec is None else {feature.name: feature for feature in spec.features()}
        self.description: Description = self._describe(shards)
        self._features = [known.get(name, _as_stored(name, stored.kind, stored.shape)) for name, stored in self.description.items()]

    def find(self, ids: Iterable[str]) -> Iterator[tuple[str, Rows, list[str]]]:
        """The rows of the examples that there are, file by file: the file's name, the rows with all their features, and their ids.

        Raises:
          OSError: a file can't be read.
        """
        for name, by_position in self._places(ids).items():
            with open_shard(self._shards[name]) as file:
                parts = list(self._reader(self._features).pick(file, sorted(by_position)))
            if parts:
                rows = _together(parts)
                yield name, rows, [by_position[position] for position in rows.positions.tolist()]

    def all(self, names: Sequence[str] | None, size: int) -> Iterator[tuple[str, Rows, list[str]]]:
        """All rows that can be read, file by file, at most `size` at once: the file's name, the rows, and their ids.

        Args:
          names: the features that are wanted; None: all.

        Raises:
          ValueError: the files have no such feature.
          OSError: a file can't be read.
        """
        unknown = [name for name in names or () if name not in self.description]
        if unknown:
            raise ValueError(f"the files have no feature {unknown[0]!r}, but {', '.join(self.description)}")
        wanted = set(self.description if names is None else names)
        if self._id_feature is not None:
            wanted.add(self._id_feature)
        features = [one for one in self._features if one.name in wanted] or self._features[:1]
        for name, shard in self._shards.items():
            with open_shard(shard) as file:
                for rows in self._reader(features).read(file, size):
                    if rows.table.num_rows:
                        ids = _texts(rows, self._id_feature) if self._id_feature else [f"{name}:{at}" for at in rows.positions.tolist()]
                        yield name, rows, ids

    def _places(self, ids: Iterable[str]) -> dict[str, dict[int, str]]:
        """Of each file that has some of them: position → id."""
        found: dict[str, dict[int, str]] = {}
        if self._id_feature is not None:
            return self._scan(set(ids), self._id_feature)
        for name in ids:
            file, _, index = name.rpartition(":")
            if file in self._shards and index.isdecimal():
                found.setdefault(file, {})[int(index)] = name
        return found

    def _scan(self, wanted: set[str], id_feature: str) -> dict[str, dict[int, str]]:
        """Looks for ids that a feature has: reads that feature alone, of all files, since none may be of two examples."""
        found: dict[str, dict[int, str]] = {}
        seen: dict[str, str] = {}
        feature = next((one for one in self._features if one.name == id_feature), None)
        for name, shard in self._shards.items() if feature is not None else ():
            with open_shard(shard) as file:
                for rows in self._reader([feature] if feature else []).read(file, _SCANNED):
                    for position, text in zip(rows.positions.tolist(), _texts(rows, id_feature), strict=False):
                        if text not in wanted:
                            continue
                        place = f"{name}:{position}"
                        if text in seen:
                            raise ValueError(
                                f"the id {text!r} is of two examples, {seen[text]} and {place}: which of them is meant is not known; name "
                                "each example (--id_feature) by a feature that no other has the same value of, and run it again"
                            )
                        seen[text] = place
                        found.setdefault(name, {})[position] = text
        return found

    def _describe(self, shards: Sequence[Shard]) -> Description:
        for shard in shards:
            with open_shard(shard) as file:
                description = self._reader.describe(file, _DESCRIBED_FROM)
            if description:
                return description
        raise ValueError(f"no readable example in {shards[0].split} files such as {shards[0].path!r}")


def _texts(rows: Rows, name: str) -> list[str]:
    """A feature of one value in each row, as texts; none where the file lacks it."""
    place = rows.table.schema.get_field_index(name)
    if place < 0:
        return []
    column = rows.table.column(place)
    if not _is_list(column.type):
        return [as_text(value) for value in column.to_pylist()]
    if column.null_count or not pc.all(pc.equal(pc.list_value_length(column), 1)).as_py():
        return [as_text(_value(scalar)) for scalar in column]
    return [as_text(value) for value in column.flatten().to_pylist()]


def _together(parts: Sequence[Rows]) -> Rows:
    tables = [pa.Table.from_batches([part.table]) for part in parts]
    table = pa.concat_tables(tables, promote_options="permissive").combine_chunks().to_batches()[0]
    return Rows(table, np.concatenate([part.positions for part in parts]), [])


def _as_stored(name: str, kind: Kind, shape: tuple[int, ...]) -> Feature:
    return Feature(name, kind, shape if len(shape) != 1 else (math.prod(shape),), shape if len(shape) > 1 else None)


def stored_examples(name: str, rows: Rows, ids: Sequence[str]) -> list[StoredExample]:
    """The rows of `Source.find` as examples with their values."""
    columns = rows_values(rows)
    return [
        StoredExample(example_id, name, int(position), {feature: values[row] for feature, values in columns.items()})
        for row, (example_id, position) in enumerate(zip(ids, rows.positions, strict=True))
    ]


def rows_values(rows: Rows) -> dict[str, list[Value]]:
    """The values of each feature, a value for each row."""
    return {
        name: [_value(scalar) for scalar in column]
        for name, column in zip(rows.table.schema.names, rows.table.columns, strict=True)
    }


def _value(scalar: pa.Scalar) -> Value:
    """A scalar, or nested lists as an array; a list of one value is that value."""
    lengths: list[int] = []
    values = scalar.values if isinstance(scalar, _LISTS) else None
    if values is None:
        found = scalar.as_py()
        return found if found is None or isinstance(found, (bytes, str, int, float)) else str(found)
    lengths.append(len(values))
    while _is_list(values.type):
        of_each = np.unique(np.asarray(values.value_lengths().fill_null(0)))
        values = values.flatten()
        lengths.append(int(of_each[0]) if len(of_each) == 1 else -1)
    array = np.asarray(values.to_numpy(zero_copy_only=False))
    if array.size == 1:
        return array.reshape(-1)[0].item() if hasattr(array.reshape(-1)[0], "item") else array.reshape(-1)[0]
    return array if -1 in lengths or math.prod(lengths) != array.size else array.reshape(lengths)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


_LISTS = (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)


def as_text(value: Value) -> str:
    """A value as an id or a label is written: bytes as UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
