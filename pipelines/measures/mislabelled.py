"""Mislabelled examples among those of the largest self-influence: `mislabelled`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beam_influence.influence_ops.evaluation.mislabelled import by_chance, detection
from beam_influence.pipelines.evaluate_config import EvaluateConfig
from beam_influence.pipelines.evaluation_result import Figures, Row
from beam_influence.pipelines.id_list import read_ids
from beam_influence.pipelines.measures.baselines import other_classes
from beam_influence.pipelines.measures.measurement import Measured, Measurement, curvature_of


def mislabelled(measurement: Measurement) -> Measured:
    """How early examples with a wrong label come when all are sorted by self-influence; beside the baselines."""
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
    near, why = other_classes(data, config.seed)
    rows += [Row(name, _detected(found, np.array(list(losses), dtype=object), wrong, config)) for name, found in near.items()]
    chance = by_chance(np.isin(ids, list(wrong)), config.share_list)
    rows.append(Row("random", {"auc": chance.auc, **_found(chance.found, config)}))
    return {"training_examples": len(ids), "mislabelled": len(wrong), **why}, rows


def _detected(values: np.ndarray, ids: np.ndarray, wrong: set[str], config: EvaluateConfig) -> Figures:
    found = detection(values, np.array([name in wrong for name in ids]), config.share_list)
    return {"auc": found.auc, "auc_error": found.auc_error, **_found(found.found, config)}


def _found(found: Sequence[float], config: EvaluateConfig) -> dict[str, float]:
    return {f"found in {100 * share:g} %": value for share, value in zip(config.share_list, found, strict=True)}
