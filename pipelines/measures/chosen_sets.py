"""The training examples that a run names for some test points, and those that baselines name."""

from __future__ import annotations

import dataclasses

import numpy as np

from beam_influence.influence_ops.evaluation.choices import are_numbers, nearest_examples, random_examples
from beam_influence.influence_ops.evaluation.features import features_of
from beam_influence.influence_ops.scoring.top_k import TopK
from beam_influence.pipelines.measures.measurement import Measurement
from beam_influence.pipelines.scored_data import ScoredData

_RANDOM_DRAWS = 3


@dataclasses.dataclass(frozen=True)
class ChosenSets:
    """Sets of training examples for some test points: (method, k) -> one set for each draw and test point."""

    test_ids: list[str]
    of: dict[tuple[str, int], list[list[list[str]]]]


def choose_sets(measurement: Measurement, data: ScoredData, train_ids: list[str]) -> ChosenSets:
    """For every k, of every chosen test point: the most helpful examples by each run, and the baselines: the nearest in the inputs and in
    what the last layer sees, those of the largest loss, and random ones."""
    config, every = measurement.config, data.ids("test")
    if not every:
        raise ValueError("the run had no test points")
    if max(config.k_list) >= len(train_ids):
        raise ValueError(f"--k {config.k!r}: there are only {len(train_ids):,} training examples")
    test_ids = [every[place] for place in np.unique(np.linspace(0, len(every) - 1, config.chosen_test_points).round().astype(int))]
    largest = max(config.k_list)
    best = {run.folder: [run.top_k(largest, test_ids)] for run in measurement.runs}
    known = set(train_ids)
    for folder, (of_points,) in best.items():
        strange = next((name for names in of_points for name in names if name not in known), None)
        if strange is not None:
            first = measurement.runs[0].folder
            why = f"top_k of {folder!r} has {strange!r}, which is no training example of {first!r}"
            raise ValueError(f"{why}; give runs over the same files")
    queries = data.examples("test", test_ids)
    if are_numbers(queries.inputs):
        best["nearest"] = [nearest_examples(data.batches("train"), queries, largest)]
    featured = features_of(data.model)
    if featured is not None:
        best["nearest in features"] = [nearest_examples(featured(data.batches("train")), next(featured([queries])), largest)]
    best["plain loss"] = [[_of_largest_loss(data, largest)] * len(test_ids)]
    best["random"] = [
        [random_examples(train_ids, largest, seed)] * len(test_ids) for seed in range(config.seed, config.seed + _RANDOM_DRAWS)
    ]
    sets = {
        (method, k): [[names[:k] for names in draw] for draw in draws]
        for k in sorted(set(config.k_list))
        for method, draws in best.items()
    }
    return ChosenSets(test_ids, sets)


def _of_largest_loss(data: ScoredData, k: int) -> list[str]:
    top = TopK(1, k)
    for batch in data.batches("train"):
        losses = data.model.losses(batch)
        kept = np.isfinite(losses)
        top.add(losses[None, kept], batch.ids[kept])
    return [str(name) for name in top.ids[0]]
