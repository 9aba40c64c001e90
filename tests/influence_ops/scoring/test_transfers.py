"""Scoring on the device: what leaves it, and that XLA compiles the whole of it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.curvature import FinishOptions
from beam_influence.influence_ops.curvature.ekfac import Ekfac
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import fit_curvature
from beam_influence.influence_ops.scoring.query_block import QueryBlock
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries
from beam_influence.influence_ops.scoring.top_k import TopK
from benchmarks.gpu import TOP_K, kernel, transfers

BATCH, TEST = 32, 50


@pytest.fixture(scope="module")
def scoring() -> tuple[InfluenceModel, list[ExampleBatch], QueryBlock, Scorer]:
    """A network, its training examples, test points and what scores them by EK-FAC."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3)])
    model = InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy", precision="native")
    rng = np.random.default_rng(0)

    def batch(count: int, name: str) -> ExampleBatch:
        ids = np.array([f"{name}:{row}" for row in range(count)], object)
        return ExampleBatch(ids, rng.standard_normal((count, 6)).astype(np.float32), rng.integers(0, 3, count))

    train = [batch(BATCH, f"f{number}") for number in range(16)]
    operator = fit_curvature(model, Ekfac(), train, FinishOptions())
    queries, _ = embed_queries(model, operator, batch(TEST, "t"), ("solved",))
    scorer = Scorer(model, operator, [queries], ScoreOptions())
    scorer.score(train[15])  # traced
    return model, train[:15], queries, scorer


def expected(model: InfluenceModel, train: list[ExampleBatch], queries: QueryBlock, k: int) -> TopK:
    """The first k, by NumPy from gradients and solutions."""
    wanted = TopK(TEST, k)
    for one in train:
        wanted.add(np.asarray(queries.solved @ np.asarray(model.losses_and_gradients(one)[1], np.float64).T), one.ids)
    return wanted


def test_a_batch_is_one_small_transfer(scoring):
    """Each example's loss, and whether its gradient is finite; the first k every so many batches."""
    model, train, queries, scorer = scoring
    model.batches_evaluated = 1000  # batches number 1, 2, 4, … are also checked as batches of one
    top = TopK(TEST, 3)
    with transfers() as counted:
        for one in train:
            scored = scorer.score(one)
            top.add(scored.unfetched[0], scored.ids)
        assert counted == [15, 15 * 2 * BATCH * 8]
        assert top.values.shape == (TEST, 3)
    assert counted[0] <= 15 + 5 and counted[1] < 15 * 2 * BATCH * 8 + 2 * TEST * 3 * 16
    wanted = expected(model, train, queries, 3)
    assert np.mean(top.ids == wanted.ids) > 0.95
    np.testing.assert_allclose(top.values, wanted.values, rtol=1e-4, atol=1e-5 * np.abs(wanted.values).max())


def test_the_kernel_compiles_whole_under_xla(scoring):
    """From examples to the first k of each test point, by one function."""
    model, train, queries, scorer = scoring
    function, inputs = kernel(model, scorer, train[0])
    told, values, columns, is_tied, has_nan = (each.numpy() for each in function(*inputs))
    np.testing.assert_allclose(told[0], model.losses(train[0]), rtol=1e-5)
    assert np.isfinite(told).all() and not is_tied.any() and not has_nan
    wanted = expected(model, train[:1], queries, TOP_K)
    np.testing.assert_allclose(values, wanted.values, rtol=1e-4, atol=1e-5 * np.abs(wanted.values).max())
    assert np.mean(train[0].ids[columns] == wanted.ids) > 0.95
