"""The baselines of measures that compare scores with retraining, and of wrong labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from beam_influence.influence_ops.curvature.sample import Sample
from beam_influence.influence_ops.evaluation.baselines import MOST_BYTES, baseline_scores, neighbours_of, other_class_near
from beam_influence.influence_ops.evaluation.choices import flat_inputs
from beam_influence.pipelines.evaluation_result import Figures
from beam_influence.pipelines.measures.class_detection import classes_of
from beam_influence.pipelines.measures.measurement import Measurement
from beam_influence.pipelines.scored_data import ScoredData

_SAMPLE = 2000  # training examples among which neighbours are looked for
_BATCH = 32


def baseline_sums(
    measurement: Measurement, masks: np.ndarray, train_ids: Sequence[str], test_ids: Sequence[str]
) -> tuple[Mapping[str, np.ndarray], Figures]:
    """The scores of each baseline summed over subsets of the training examples, [S, T]; none, and a fact that says why, where the
    run's model or data can't be read.

    Args:
      masks: [S, N] bool, the subsets.
      train_ids, test_ids: what the masks and the columns are of.
    """
    places = {str(name): place for place, name in enumerate(train_ids)}
    try:
        data = measurement.data()
        columns = {name: column for column, name in enumerate(data.ids("test"))}
        missing = next((name for name in test_ids if name not in columns), None)
        if missing is not None:
            raise ValueError(f"the test files have no example {missing!r}")
        sums: dict[str, np.ndarray] = {}
        for batch, scores in baseline_scores(data.model, data.batches("train"), data.batches("test"), measurement.config.seed):
            rows = np.array([row for row, name in enumerate(batch.ids) if str(name) in places], np.int64)
            of_rows = masks[:, [places[str(name)] for name in batch.ids[rows]]].astype(np.float64)
            for name, block in scores.items():
                sums[name] = sums.get(name, 0.0) + of_rows @ block[rows]
    except ValueError as error:
        return {}, {"without baselines": str(error)}
    return {name: found[:, [columns[test] for test in test_ids]] for name, found in sums.items()}, {}


def other_classes(data: ScoredData, seed: int) -> tuple[dict[str, np.ndarray], Figures]:
    """By the baseline's name: for each training example in the order of the files, how many of the 10 nearest of up to 2,000 examples
    have another class; none, and a fact that says why, where inputs have no neighbours or labels are no classes."""
    try:
        first = next(data.batches("train"))
        near = neighbours_of(data.model, first)
        if near is None:
            raise ValueError("the inputs are no numbers")
        classes_of(first)
        (vectors,) = near.vectors([first])
        sample = Sample(max(2, min(_SAMPLE, MOST_BYTES // (8 * flat_inputs(vectors.inputs).shape[1]))), seed)
        for batch in data.batches("train"):
            sample.add(batch)
        found = other_class_near(near.vectors(data.batches("train")), near.vectors(sample.batches(_BATCH)), classes_of)
        return {near.name: np.concatenate(list(found))}, {}
    except ValueError as error:
        return {}, {"without neighbours": str(error).partition(";")[0]}  # what to write instead is of another measure
