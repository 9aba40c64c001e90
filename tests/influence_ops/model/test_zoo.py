"""Models that people have: the guard agrees, and gradients and influence are those of the same model built in float64."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from benchmarks.model_zoo import CASES
from benchmarks.models import TEST, TRAIN, batches, differences, jittered


@pytest.mark.parametrize("name", ["wide-and-deep", "unet", "decoder-llama"])
def test_equal_the_same_model_in_float64(name: str) -> None:
    case = CASES[name]
    keras.utils.set_random_seed(1)
    model, rng = case.build(), np.random.default_rng(2)
    model.set_weights([jittered(rng, weight) for weight in model.get_weights()])
    inputs, labels = case.draw(rng, TRAIN + TEST)
    explained = InfluenceModel(model, weights="all")
    assert explained.check(batches(inputs, labels, 6, 0, 6)[0]).examples == 6
    assert explained.weights_without_factors == []
    found = differences(case, model, model.get_weights(), inputs, labels)
    assert found["gradients"] < 1e-10 and found.get("influence", 0.0) < 1e-10  # rounding of float64
