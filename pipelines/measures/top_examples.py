"""The examples that a run names as most helpful, taken out or stepped on: `brittleness` and `tail_patch`."""

from __future__ import annotations

import dataclasses

import numpy as np

from beam_influence.influence_ops.evaluation.brittleness import effect
from beam_influence.influence_ops.evaluation.choices import are_numbers, nearest_examples, random_examples
from beam_influence.influence_ops.evaluation.tail_patch import loss_changes, mean_gradients
from beam_influence.pipelines.evaluation_result import Row
from beam_influence.pipelines.measures.measurement import Measured, Measurement
from beam_influence.pipelines.scored_data import ScoredData

_RANDOM_DRAWS = 3


@dataclasses.dataclass(frozen=True)
class _Sets:
    """Sets of training examples for some test points: (method, k) -> one set for each draw and test point."""

    test_ids: list[str]
    of: dict[tuple[str, int], list[list[list[str]]]]


def _choose(measurement: Measurement, data: ScoredData, train_ids: list[str]) -> _Sets:
    """The most helpful examples by each run, the nearest, and random ones: for every k, of every chosen test point."""
    config, every = measurement.config, data.ids("test")
    if not every:
        raise ValueError("the run had no test points")
    if max(config.k_list) >= len(train_ids):
        raise ValueError(f"--k {config.k!r}: there are only {len(train_ids):,} training examples")
    test_ids = [every[place] for place in np.unique(np.linspace(0, len(every) - 1, config.test_points).round().astype(int))]
    largest = max(config.k_list)
    best = {run.folder: [run.top_k(largest, test_ids)] for run in measurement.runs}
    queries = data.examples("test", test_ids)
    if are_numbers(queries.inputs):
        best["nearest"] = [nearest_examples(data.batches("train"), queries, largest)]
    best["random"] = [
        [random_examples(train_ids, largest, seed)] * len(test_ids) for seed in range(config.seed, config.seed + _RANDOM_DRAWS)
    ]
    sets = {
        (method, k): [[names[:k] for names in draw] for draw in draws]
        for k in sorted(set(config.k_list))
        for method, draws in best.items()
    }
    return _Sets(test_ids, sets)


def brittleness(measurement: Measurement) -> Measured:
    """What retraining without the most helpful examples of a test point does to it."""
    config, data = measurement.config, measurement.data()
    train_ids = data.ids("train")
    places = {name: place for place, name in enumerate(train_ids)}
    sets = _choose(measurement, data, train_ids)
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
    sets = _choose(measurement, data, train_ids)
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
