"""Whether tables are about their test points and the model: `cardinality` and `randomised`."""

from __future__ import annotations

import numpy as np

from beam_influence.influence_ops.evaluation.found_examples import cardinality, mean_and_error, overlaps
from beam_influence.pipelines.evaluation_result import Row
from beam_influence.pipelines.measures.chosen_sets import choose_sets
from beam_influence.pipelines.measures.measurement import Measured, Measurement, curvature_of


def different_examples(measurement: Measurement) -> Measured:
    """How many different training examples all test points' first k are: few where the same ones come up for everything."""
    data = measurement.data()
    train_ids = data.ids("train")
    sets = choose_sets(measurement, data, train_ids)
    tests, rows = len(sets.test_ids), []
    for (method, k), draws in sets.of.items():
        if method == "random":  # a set for each test point of its own, not one for all: what is expected
            expected = len(train_ids) * (1 - (1 - k / len(train_ids)) ** tests)
            rows.append(Row(method, {"k": k, "different": round(expected), "share": expected / (k * tests)}))
            continue
        different, share = cardinality(draws[0])
        rows.append(Row(method, {"k": k, "different": different, "share": share}))
    return {"training_examples": len(train_ids), "test_points": tests}, rows


def randomised(measurement: Measurement) -> Measured:
    """How much of the first run's first k the others name, too, which are of a model with random weights; beside chance."""
    data = measurement.data()
    train_ids = data.ids("train")
    sets = choose_sets(measurement, data, train_ids)
    first, *others = measurement.runs
    rows: list[Row] = []
    for k in sorted(set(measurement.config.k_list)):
        for run in others:
            if run.manifest["curvature"]["fingerprint"] == first.manifest["curvature"]["fingerprint"]:
                raise ValueError(f"the run in {run.folder!r} is of the same model as {first.folder!r}; give one of random weights")
            values = overlaps(sets.of[first.folder, k][0], sets.of[run.folder, k][0])
            mean, error = mean_and_error(values)
            figures = {"k": k, "overlap": mean, "overlap_error": error, **curvature_of(run)}
            rows.append(Row(run.folder, figures, dict(zip(sets.test_ids, values.tolist(), strict=True))))
        for method in ("nearest", "nearest in features", "plain loss"):
            if (method, k) in sets.of:
                mean, error = mean_and_error(overlaps(sets.of[first.folder, k][0], sets.of[method, k][0]))
                rows.append(Row(method, {"k": k, "overlap": mean, "overlap_error": error}))
        rows.append(Row("random", {"k": k, "overlap": float(np.float64(k) / len(train_ids))}))
    return {"training_examples": len(train_ids), "test_points": len(sets.test_ids)}, rows
