"""Tail-patch: does one more training step on the examples that were found lower the loss at the test point? No retraining.

    θ' = θ − η · mean_{i ∈ top k} ∇ℓ(z_i),    change(t) = ℓ_θ'(t) − ℓ_θ(t)

Negative is good (Chang et al. 2024, 2410.17413, section 4.2, who report the rise of the probability).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch


def mean_gradients(model: ExplainedModel, train: Iterable[ExampleBatch], sets: Sequence[Sequence[str]]) -> np.ndarray:
    """The mean gradient of each set of training examples, in one pass: [sets, P] float64.

    Raises:
      ValueError: an example is not in `train`.
    """
    members: dict[str, list[int]] = {}
    for place, names in enumerate(sets):
        for name in names:
            members.setdefault(name, []).append(place)
    totals, seen = np.zeros((len(sets), model.size)), set()
    for batch in train:
        wanted = np.flatnonzero([name in members for name in batch.ids])
        if not len(wanted):
            continue
        chosen = batch.select(wanted)
        gradients = np.asarray(model.losses_and_gradients(chosen)[1], dtype=np.float64)
        for name, gradient in zip(chosen.ids, gradients, strict=True):
            seen.add(name)
            totals[members[name]] += gradient
    missing = set(members) - seen
    if missing:
        raise ValueError(f"the training set has no example {min(missing)!r}; it is not the one that was scored")
    return totals / np.array([[max(len(names), 1)] for names in sets])


def loss_changes(model: ExplainedModel, gradients: np.ndarray, tests: ExampleBatch, learning_rate: float) -> np.ndarray:
    """ℓ(t) after a step along row t of `gradients` minus ℓ(t) before, for each test point: [T]. The weights are put back."""
    before = model.losses(tests)
    own = [np.asarray(variable.value) for variable in model.variables]
    after = np.empty(len(tests))
    try:
        for row in range(len(tests)):
            start = 0
            for variable, value in zip(model.variables, own, strict=True):
                step = gradients[row, start : start + value.size].reshape(value.shape)
                variable.assign(tf.cast(value - learning_rate * step, variable.dtype))
                start += value.size
            after[row] = model.losses(tests.select(np.array([row])))[0]
    finally:
        for variable, value in zip(model.variables, own, strict=True):
            variable.assign(value)
    return after - before
