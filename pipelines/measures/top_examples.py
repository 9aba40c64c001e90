"""The examples that a run names as most helpful, taken out or stepped on: `brittleness` and `tail_patch`."""

from __future__ import annotations

import numpy as np

from beam_influence.influence_ops.evaluation.brittleness import effect
from beam_influence.influence_ops.evaluation.tail_patch import loss_changes, mean_gradients
from beam_influence.pipelines.evaluation_result import Row
from beam_influence.pipelines.measures.chosen_sets import choose_sets
from beam_influence.pipelines.measures.measurement import Measured, Measurement


def brittleness(measurement: Measurement) -> Measured:
    """What retraining without the most helpful examples of a test point does to it."""
    config, data = measurement.config, measurement.data()
    train_ids = data.ids("train")
    places = {name: place for place, name in enumerate(train_ids)}
    sets = choose_sets(measurement, data, train_ids)
    # A random set is the same for all test points: one retraining serves them all.
    wanted = {tuple(sorted(names)): None for draws in sets.of.values() for draw in draws for names in draw}
    masks = [np.ones(len(train_ids), dtype=bool)]
    for names in wanted:
        masks.append(np.ones(len(train_ids), dtype=bool))
        masks[-1][[places[name] for name in names]] = False
    losses, classes = measurement.retrainer(data, train_ids).outcomes(masks, sets.test_ids)
    number = {names: place for place, names in enumerate(wanted, start=1)}
    tests = np.arange(len(sets.test_ids))

    def after(draw: list[list[str]], of: np.ndarray) -> np.ndarray:  # [R, T]: each test point after its own removal
        return of[[number[tuple(sorted(names))] for names in draw], :, tests].T

    rows = []
    for (method, k), draws in sets.of.items():
        found = effect(
            np.concatenate([losses[0]] * len(draws)),
            np.concatenate([after(draw, losses) for draw in draws]),
            np.concatenate([classes[0]] * len(draws)),
            np.concatenate([after(draw, classes) for draw in draws]),
        )
        figures = {
            "k": k, "loss_rise": found.rise, "loss_rise_error": found.rise_error,
            "flipped": found.flipped, "flipped_error": found.flipped_error,
        }  # fmt: skip
        rows.append(Row(method, figures, dict(zip(sets.test_ids, found.per_test, strict=True))))
    return {"training_examples": len(train_ids), "test_points": len(sets.test_ids), "retrainings": len(masks) * config.repeats}, rows


def tail_patch(measurement: Measurement) -> Measured:
    """What one gradient step on the most helpful examples of a test point does to it."""
    config, data = measurement.config, measurement.data()
    train_ids = data.ids("train")
    sets = choose_sets(measurement, data, train_ids)
    tests = data.examples("test", sets.test_ids)
    rows = []
    for (method, k), draws in sets.of.items():
        gradients = mean_gradients(data.model, data.batches("train"), [names for draw in draws for names in draw])
        steps = gradients.reshape(len(draws), len(tests), -1)
        changes = np.stack([loss_changes(data.model, step, tests, config.learning_rate) for step in steps])
        found = effect(np.zeros_like(changes), changes)
        figures = {
            "k": k, "loss_change": found.rise, "loss_change_error": found.rise_error, "lowered": float((found.per_test < 0).mean()),
        }  # fmt: skip
        rows.append(Row(method, figures, dict(zip(sets.test_ids, found.per_test, strict=True))))
    return {"training_examples": len(train_ids), "test_points": len(tests), "learning_rate": config.learning_rate}, rows
