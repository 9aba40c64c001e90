"""What a page says that the model says."""

from __future__ import annotations

import keras
import numpy as np
import pyarrow as pa
import pytest

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading import Rows
from beam_influence.influence_ops.reading.features import Feature, FeatureSpec
from beam_influence.report.predictions import Predictor


@pytest.mark.parametrize(("activation", "text"), [("sigmoid", "1 (55 %)"), (None, "0.2")])
def test_a_number_is_a_probability_only_behind_a_sigmoid(activation: str | None, text: str) -> None:
    """A logit of 0.2 is class 1; taken for a probability it would be class 0."""
    model = keras.Sequential([keras.Input((1,), name="x"), keras.layers.Dense(1, activation, kernel_initializer="zeros")])
    model.layers[-1].bias.assign([0.2])
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=activation is None))
    spec = FeatureSpec((("x", Feature("x", "float", (1,))),), (Feature("label", "float", (1,)),))
    rows = Rows(pa.record_batch({"x": [[3.0]], "label": [[1.0]]}), np.array([7]), [])
    (named,) = Predictor(InfluenceModel(model), spec, ("bad", "good")).predict("file", rows, ["file:7"]).values()
    assert (named.text, named.label) == (("good (55 %)", "good") if activation else ("0.2", None))
    (found,) = Predictor(InfluenceModel(model), spec).predict("file", rows, ["file:7"]).values()
    assert found.text == text and found.loss == pytest.approx(np.log1p(np.exp(-0.2)), rel=1e-6)
