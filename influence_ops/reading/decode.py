"""Rows of any format to an `ExampleBatch`: shapes, the user's preprocess function, ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from beam_influence.influence_ops.reading import Rows
from beam_influence.influence_ops.reading.columns import Reasons, dense_column, dtype_of
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected, place_ids
from beam_influence.influence_ops.reading.features import Feature, FeatureSpec
from beam_influence.influence_ops.reading.preprocess import Preprocess


class RowDecoder:
    """Decodes rows of one specification; what does not fit it is rejected one by one."""

    def __init__(self, spec: FeatureSpec):
        self._spec = spec
        self._preprocess = Preprocess(spec) if spec.preprocess else None

    def raw(self, rows: Rows, reasons: Reasons) -> dict[str, np.ndarray]:
        """Every feature that is read, as [B, ...]; the rows that can't be used are noted in `reasons`."""
        return {feature.name: dense_column(rows.table, feature, self._spec.double, reasons) for feature in self._spec.features()}

    def decode(self, rows: Rows, file: str) -> tuple[ExampleBatch, list[Rejected]]:
        """The batch of the rows that decode, and the others with their reasons.

        Args:
          rows: of one file.
          file: its name; an example's id is `<file>:<position>` unless an id feature is given.
        """
        rejected = [Rejected(file, *error) for error in rows.rejected]
        reasons: Reasons = {}
        positions = rows.positions
        columns = self.raw(rows, reasons) if len(positions) else {}
        columns, positions = _drop(columns, positions, reasons, file, rejected)
        results: Mapping[str, np.ndarray] = {}
        if self._preprocess is not None and len(positions):
            reasons = {}
            results = self._preprocess.apply({feature.name: columns[feature.name] for feature in self._spec.raw}, reasons)
            columns, positions = _drop(columns, positions, reasons, file, rejected)
        return self._batch(columns, results, positions, file), rejected

    def _batch(
        self, columns: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray], positions: np.ndarray, file: str
    ) -> ExampleBatch:
        spec = self._spec
        count = len(positions)

        def column(feature: Feature) -> np.ndarray:
            if feature.name in results:
                return results[feature.name]
            if not count:
                return np.zeros((0, *feature.shape), dtype_of(feature, spec.double))
            if not feature.parts:
                return columns[feature.name]
            parts = [columns[part.name].reshape(count, -1) for part in feature.parts]
            return np.concatenate(parts, axis=1).reshape(count, *feature.shape)

        inputs = {name: column(feature) for name, feature in spec.inputs}
        labels = {name: column(feature) for name, feature in zip(spec.label_names, spec.labels, strict=True)}
        if spec.id is None:
            ids = place_ids(file, positions)
        else:
            ids = _text(column(spec.id))
        return ExampleBatch(
            ids=ids.reshape(count),
            inputs=inputs if len(inputs) > 1 else next(iter(inputs.values())),
            labels=labels if len(labels) > 1 else next(iter(labels.values())),
            weights=None if spec.weight is None else column(spec.weight).astype(np.float64),
            groups=None if spec.group is None else _text(column(spec.group)),
            positions=positions,
            file=file,
        )


def _drop(
    columns: dict[str, np.ndarray], positions: np.ndarray, reasons: Reasons, file: str, rejected: list[Rejected]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The rows without those in `reasons`, which are added to `rejected`."""
    if not reasons:
        return columns, positions
    for row, (error, message) in sorted(reasons.items()):
        rejected.append(Rejected(file, int(positions[row]), "decode", error, message))
    keep = np.setdiff1d(np.arange(len(positions)), np.fromiter(reasons, np.int64))
    return {name: column[keep] for name, column in columns.items()}, positions[keep]


def _text(values: np.ndarray) -> np.ndarray:
    def one(value: object) -> str:
        return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)

    return np.array([one(value) for value in values.tolist()], dtype=object)
