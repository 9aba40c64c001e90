"""Whether the most helpful examples are of the test point's own class, or subclass: `class_detection`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from beam_influence.influence_ops.evaluation.found_examples import found_relevant, mean_and_error
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines.evaluation_result import Row
from beam_influence.pipelines.measures.chosen_sets import choose_sets
from beam_influence.pipelines.measures.measurement import Measured, Measurement


def class_detection(measurement: Measurement) -> Measured:
    """The share of the first k that have the test point's class, and the reciprocal rank of the first that has it."""
    data = measurement.data()
    train_ids = data.ids("train")
    sets = choose_sets(measurement, data, train_ids)
    named = {name for draws in sets.of.values() for draw in draws for names in draw for name in names}
    of_train, counts = _classes(data.batches("train"), named)
    of_test, _ = _classes(data.batches("test"), set(sets.test_ids))
    wanted = [of_test[name] for name in sets.test_ids]
    unseen = sorted({name for name in wanted if not counts[name]})
    rows: list[Row] = []
    for (method, k), draws in sets.of.items():
        found = []
        for draw in draws:
            same = [[name for name in names if of_train[name] == own] for names, own in zip(draw, wanted, strict=True)]
            found.append(found_relevant(draw, same, [counts[own] for own in wanted]))
        precision = np.mean([one.precision for one in found], axis=0)
        share, share_error = mean_and_error(precision)
        first, first_error = mean_and_error(np.mean([one.reciprocal_rank for one in found], axis=0))
        figures = {
            "k": k, "same_class": share, "same_class_error": share_error, "reciprocal_rank": first, "reciprocal_rank_error": first_error,
        }  # fmt: skip
        rows.append(Row(method, figures, dict(zip(sets.test_ids, precision.tolist(), strict=True))))
    facts = {"training_examples": len(train_ids), "test_points": len(wanted), "classes": len(counts)}
    return {**facts, **({"test_classes_without_training_examples": len(unseen)} if unseen else {})}, rows


def _classes(batches: Iterable[ExampleBatch], named: set[str]) -> tuple[dict[str, str], Counter[str]]:
    """The class of each example that is named, and how many examples each class has."""
    found: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for batch in batches:
        classes = classes_of(batch)
        counts.update(classes)
        found.update({str(name): own for name, own in zip(batch.ids, classes, strict=True) if name in named})
    return found, counts


def classes_of(batch: ExampleBatch) -> list[str]:
    """The class of each example: its group where it has one, else its label.

    Raises:
      ValueError: the labels are no classes.
    """
    if batch.groups is not None:
        return [str(name) for name in batch.groups]
    labels = np.asarray(batch.labels)
    if labels.ndim == 2 and labels.shape[1] > 1 and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        labels = labels.argmax(axis=1)
    flat = labels.reshape(len(batch), -1) if labels.dtype != object else labels
    if flat.dtype == object or flat.shape[1] != 1 or not np.array_equal(flat, np.round(flat)):
        raise ValueError("the labels are no classes, one for each example; name a feature that has them: --class_feature FEATURE")
    return [str(int(value)) for value in flat[:, 0]]
