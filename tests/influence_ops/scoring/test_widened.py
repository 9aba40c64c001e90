"""Solved test points that are held in bfloat16 are multiplied in sums of float32; all else is as it is without that."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence.influence_ops.calculator.base import DatasetCalculator
from beam_influence.influence_ops.curvature import FinishOptions, fit
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.scoring import widened
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries
from tests.influence_ops.curvature.test_kronecker import data
from tests.influence_ops.model.gradient_models import NETWORKS


def test_sums_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,050 positive terms, 100 rows and then the 50 that are left; sums of bfloat16 would stop growing at 256 of them."""
    monkeypatch.setattr(widened, "AT_ONCE", 700)
    rng = np.random.default_rng(0)
    left, right = rng.random((5, 20050)).astype(np.float32), tf.cast(rng.random((20050, 7)), tf.bfloat16)
    wanted = left.astype(np.float64) @ np.asarray(right).astype(np.float64)
    for function in (widened.widened_product, tf.function(widened.widened_product, jit_compile=True)):
        found = function(tf.constant(left), right)
        assert found.dtype == tf.float32
        # 201 sums, each with float32's rounding of 6e-8 of it; the product of bfloat16 itself is off by 2^-9 = 2e-3.
        np.testing.assert_allclose(found, wanted, rtol=5e-6)
    rounded = tf.matmul(tf.cast(left, tf.bfloat16), right)
    assert np.abs(tf.cast(rounded, tf.float64) / wanted - 1).max() > 1e-4
    narrow = tf.cast(left, tf.bfloat16)  # a model whose own weights are in 16 bits
    both = np.asarray(narrow).astype(np.float64) @ np.asarray(right).astype(np.float64)
    np.testing.assert_allclose(widened.widened_product(narrow, right), both, rtol=5e-6)


def test_scores_are_those_of_rounded_solutions() -> None:
    """By NumPy from the solutions, rounded; self-influence and the solutions themselves are not."""
    keras.utils.set_random_seed(3)
    network = NETWORKS["dense"]()
    native = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", precision="native")
    held = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", precision="bfloat16")
    assert (held.dtype, held.query_dtype, native.query_dtype) == ("float32", "bfloat16", "float32")
    assert CheckpointSum([held, held]).query_dtype == "bfloat16"
    with pytest.raises(ValueError, match="'bfloat16' is of compute_in_memory and the job; make the model with precision='native'"):
        DatasetCalculator(held)
    with pytest.raises(ValueError, match="checkpoint 1 has query_dtype 'float32', the first has 'bfloat16'"):
        CheckpointSum([held, native])
    batch = data(native, "dense", weighted=False)
    operator = fit(native, Identity(), lambda: [batch], FinishOptions("auto"))
    queries, _ = embed_queries(held, operator, batch.select(np.arange(6)))
    np.testing.assert_array_equal(queries.solved, embed_queries(native, operator, batch.select(np.arange(6)))[0].solved)
    options = ScoreOptions(self_influence=True, tolerance=0.0)
    scored, plain = (Scorer(model, operator, [queries], options).score(batch) for model in (held, native))
    gradients = np.asarray(native.losses_and_gradients(batch)[1], np.float64)
    wanted = queries.solved.astype(tf.bfloat16.as_numpy_dtype).astype(np.float64) @ gradients.T
    np.testing.assert_allclose(scored.scores[0], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert np.abs(plain.scores[0] - wanted).max() > 1e-4 * np.abs(wanted).max()
    np.testing.assert_array_equal(scored.self_influence, plain.self_influence)
