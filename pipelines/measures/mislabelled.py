"""Mislabelled examples among those of the largest self-influence: `mislabelled`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow.parquet as pq

from beam_influence.influence_ops.evaluation.mislabelled import by_chance, detection
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Figures, Row
from beam_influence.pipelines.measures.measurement import Measured, Measurement, curvature_of
from beam_influence.transforms.files import BeamFiles


def mislabelled(measurement: Measurement) -> Measured:
    """How early examples with a wrong label come when all are sorted by self-influence; beside the plain loss, and chance."""
    config = measurement.config
    assert config.mislabelled is not None
    wrong = read_ids(config.mislabelled)
    data = measurement.data()
    losses = {str(name): loss for batch in data.batches("train") for name, loss in zip(batch.ids, data.model.losses(batch), strict=True)}
    rows: list[Row] = []
    for run in measurement.runs:
        ids, values = run.self_influence()
        unknown = wrong - set(ids)
        if unknown:
            raise ValueError(f"--mislabelled {config.mislabelled!r} has {min(unknown)!r}, which is no training example of {run.folder!r}")
        rows.append(Row(run.folder, {**curvature_of(run), **_detected(values, ids, wrong, config)}))
    ids = np.array([name for name in losses if np.isfinite(losses[name])], dtype=object)
    plain = np.array([losses[name] for name in ids])
    rows.append(Row("plain loss", _detected(plain, ids, wrong, config)))
    chance = by_chance(np.isin(ids, list(wrong)), config.share_list)
    rows.append(Row("random", {"auc": chance.auc, **_found(chance.found, config)}))
    return {"training_examples": len(ids), "mislabelled": len(wrong)}, rows


def _detected(values: np.ndarray, ids: np.ndarray, wrong: set[str], config: EvaluateConfig) -> Figures:
    found = detection(values, np.array([name in wrong for name in ids]), config.share_list)
    return {"auc": found.auc, "auc_error": found.auc_error, **_found(found.found, config)}


def _found(found: Sequence[float], config: EvaluateConfig) -> dict[str, float]:
    return {f"found in {100 * share:g} %": value for share, value in zip(config.share_list, found, strict=True)}


def read_ids(path: str) -> set[str]:
    """The ids in a text file (one a line), or in the column train_id of a Parquet or CSV file.

    Raises:
      ValueError: there is no such file, column or id.
    """
    if not BeamFiles().exists(path):
        raise ValueError(f"there is no file {path!r} with the ids of mislabelled examples")
    content = BeamFiles().read(path)
    ids: Iterable[str]
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        if "train_id" not in table.column_names:
            raise ValueError(f"{path!r} has no column train_id, but {', '.join(table.column_names)}")
        ids = table.column("train_id").to_pylist()
    else:
        lines = content.decode().splitlines()
        header = next(csv.reader(lines[:1]), [])
        if "train_id" in header:
            ids = [record["train_id"] for record in csv.DictReader(lines)]
        else:
            ids = [line.strip() for line in lines if line.strip()]
    found = {str(name) for name in ids}
    if not found:
        raise ValueError(f"{path!r} has no ids; give one a line")
    return found
