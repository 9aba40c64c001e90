"""Serialized tf.Examples to an `ExampleBatch`, a batch at a time through tfx-bsl and Arrow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from tfx_bsl.coders import example_coder

from influence_ops.example_batch import ExampleBatch, Rejected
from influence_ops.features import Feature, FeatureSpec


class ExampleDecoder:
    """Decodes records of one specification; what does not fit it is rejected one by one."""

    def __init__(self, spec: FeatureSpec):
        self._spec = spec
        self._decoder = example_coder.ExamplesToRecordBatchDecoder(spec.schema())

    def _table(self, records: Sequence[bytes]) -> pa.RecordBatch:
        """The records by feature. After an error tfx-bsl's decoder holds half of them: it is made anew."""
        try:
            return self._decoder.DecodeBatch(list(records))
        except Exception:
            self._decoder = example_coder.ExamplesToRecordBatchDecoder(self._spec.schema())
            raise

    def decode(
        self, records: Sequence[bytes], positions: np.ndarray, file: str, id_prefix: str
    ) -> tuple[ExampleBatch, list[Rejected]]:
        """The batch of the records that decode, and the others with their reasons.

        Args:
          records: serialized tf.Examples.
          positions: (B,) int64, the index of each in its file.
          file: the file, for the rejected.
          id_prefix: an example's id is `<id_prefix>:<position>` unless an id feature is given.
        """
        try:
            table = self._table(records)
            reasons: dict[int, tuple[str, str]] = {}
        except Exception:
            records, positions, reasons, rejected = self._without_malformed(records, positions, file)
            if not records:
                return self._batch({}, np.zeros(0, np.int64), file, id_prefix), rejected
            table = self._table(records)
        else:
            rejected = []
        columns = {}
        for feature in self._spec.features():
            columns[feature.name] = _dense(table, feature, reasons)
        if reasons:
            rejected += [
                Rejected(file, int(positions[row]), "decode", error, message) for row, (error, message) in sorted(reasons.items())
            ]
            keep = np.setdiff1d(np.arange(len(records)), np.fromiter(reasons, np.int64))
            columns = {name: column[keep] for name, column in columns.items()}
            positions = positions[keep]
        return self._batch(columns, positions, file, id_prefix), rejected

    def _without_malformed(
        self, records: Sequence[bytes], positions: np.ndarray, file: str
    ) -> tuple[list[bytes], np.ndarray, dict[int, tuple[str, str]], list[Rejected]]:
        good, rejected = [], []
        for row, record in enumerate(records):
            try:
                self._table([record])
                good.append(row)
            except Exception as error:
                # tfx-bsl raises RuntimeError or ValueError with the reason on its first line.
                message = f"not a tf.Example with the features' types: {str(error).splitlines()[0] if str(error) else error!r}"
                rejected.append(Rejected(file, int(positions[row]), "decode", "not_an_example", message))
        return [records[row] for row in good], positions[good], {}, rejected

    def _batch(self, columns: dict[str, np.ndarray], positions: np.ndarray, file: str, id_prefix: str) -> ExampleBatch:
        spec = self._spec
        count = len(positions)

        def column(feature: Feature) -> np.ndarray:
            return columns[feature.name] if columns else _empty(feature)

        inputs = {name: column(feature) for name, feature in spec.inputs}
        if spec.id is None:
            ids = np.array([f"{id_prefix}:{position}" for position in positions.tolist()], dtype=object)
        else:
            ids = _text(column(spec.id))
        return ExampleBatch(
            ids=ids.reshape(count),
            inputs=inputs if len(inputs) > 1 else next(iter(inputs.values())),
            labels=column(spec.label),
            weights=None if spec.weight is None else column(spec.weight).astype(np.float64),
            groups=None if spec.group is None else _text(column(spec.group)),
            positions=positions,
            file=file,
        )


def _text(values: np.ndarray) -> np.ndarray:
    def one(value: object) -> str:
        return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)

    return np.array([one(value) for value in values.tolist()], dtype=object)


def _empty(feature: Feature) -> np.ndarray:
    return np.zeros((0, *feature.shape), {"float": np.float32, "int": np.int64, "bytes": object}[feature.kind])


def _dense(table: pa.RecordBatch, feature: Feature, reasons: dict[int, tuple[str, str]]) -> np.ndarray:
    """A column as [B, ...]; rows that do not fill the shape are zeros, and their reasons noted."""
    count = table.num_rows
    dtype = {"float": np.float32, "int": np.int64, "bytes": object}[feature.kind]
    index = table.schema.get_field_index(feature.name)
    column = table.column(index) if index >= 0 else None
    if column is None or pa.types.is_null(column.type):
        for row in range(count):
            reasons.setdefault(row, ("missing_feature", f"feature {feature.name!r} is missing"))
        return np.zeros((count, *feature.shape), dtype)
    lengths = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
    values = column.flatten().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != feature.length)
    if len(wrong) == 0:
        return values.reshape(count, *feature.shape)
    for row in wrong:
        if lengths[row] < 0:
            reason = ("missing_feature", f"feature {feature.name!r} is missing")
        else:
            reason = ("wrong_shape", f"feature {feature.name!r} has {lengths[row]} values; {feature.length} are needed for shape {list(feature.shape)}")
        reasons.setdefault(int(row), reason)
    dense = np.zeros((count, feature.length), dtype)
    right = lengths == feature.length
    dense[right] = values[np.repeat(right, np.maximum(lengths, 0))].reshape(-1, feature.length)
    return dense.reshape(count, *feature.shape)
