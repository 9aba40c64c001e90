"""Every way to contract a block gives the product of the whole gradients; the cost estimate chooses among them."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from beam_influence.influence_ops.curvature import FinishOptions, fit
from beam_influence.influence_ops.curvature.identity import Identity
from beam_influence.influence_ops.curvature.kfac import Kfac
from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.contraction import Contraction, low_rank
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries
from tests.influence_ops.curvature.test_kronecker import NETWORK_KINDS, batches, data, make
from tests.influence_ops.model.gradient_models import NETWORKS


@pytest.mark.parametrize("kind", [kind for kind in NETWORK_KINDS if kind != "lstm"])  # layer-norm has no factors either
def test_equals_the_whole_product(kind: str) -> None:
    model = make(kind)
    batch = data(model, kind)
    gradients = model.losses_and_gradients(batch)[1]
    of_full_rank, of_rank_one = np.random.default_rng(0).standard_normal((4, model.size)), np.asarray(gradients)[:4]
    for flat, examples in itertools.product((of_full_rank, of_rank_one), (10, 10**9)):
        contraction = Contraction(gradients.layout, flat, model.dtype, examples)
        wanted = flat @ np.asarray(gradients).T
        np.testing.assert_allclose(contraction.scores(gradients), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
        ways = [cost.way for cost in contraction.costs]
        assert len(ways) == len(gradients.layout.blocks)
        assert all(cost.flops <= cost.gemm_flops for cost in contraction.costs)
        if examples == 10:
            assert "low_rank" not in ways  # looking for one would cost more than it saves
        elif kind == "dense":
            assert ("low_rank" in ways) == (flat is of_rank_one)
        if kind == "embedding":
            assert "lookup" in ways


def test_damped_kfac_is_of_low_rank() -> None:
    """The damped inverse of a query of rank 1 on a wide layer: rank below its width, at the tolerance that was asked."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((300,)), keras.layers.Dense(200, "relu"), keras.layers.Dense(3)])
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all")
    rng = np.random.default_rng(0)
    scale = 10.0 ** -np.linspace(0, 3, 300)
    ids = np.array([str(i) for i in range(120)], dtype=object)
    batch = ExampleBatch(ids, rng.standard_normal((120, 300)) * scale, rng.integers(0, 3, 120))
    operator = fit(model, Kfac(), lambda: batches(batch, 50), FinishOptions("auto"))
    queries, _ = embed_queries(model, operator, batch.select(np.arange(5)))
    gradients = model.losses_and_gradients(batch)[1]
    wanted = queries.solved @ np.asarray(gradients).T
    ranks = []
    for tolerance in (1e-2, 1e-5, 1e-8):
        contraction = Contraction(gradients.layout, queries.solved, model.dtype, 10**9, tolerance)
        error = np.abs(contraction.scores(gradients) - wanted).max() / np.abs(wanted).max()
        assert error < 30 * tolerance  # the tolerance is of the matrices' norms, in which scores are small
        assert contraction.costs[0].way == "low_rank", str(contraction.costs[0])
        ranks.append(contraction.costs[0].rank)
    assert ranks[0] < ranks[1] < ranks[2] < 100
    exact = Contraction(gradients.layout, queries.solved, model.dtype, 10**9, 0.0)
    exact.scores(gradients)
    assert [cost.way for cost in exact.costs] == ["gemm", "gemm"]


def test_low_rank_where_the_number_of_examples_is_not_known() -> None:
    """The identity is fitted to no examples, so it knows none; a query's plain gradient is of rank 1."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((300,)), keras.layers.Dense(200, "relu"), keras.layers.Dense(3)])
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all")
    rng = np.random.default_rng(0)
    batch = ExampleBatch(np.array([str(i) for i in range(20)], dtype=object), rng.standard_normal((20, 300)), rng.integers(0, 3, 20))
    operator = fit(model, Identity(), lambda: batches(batch, 50), FinishOptions(0.0))
    assert operator.examples == 0
    queries, _ = embed_queries(model, operator, batch.select(np.arange(5)))
    scorer = Scorer(model, operator, [queries], ScoreOptions())
    gradients = model.losses_and_gradients(batch)[1]
    (contraction,) = scorer.contractions(gradients)
    wanted = queries.solved @ np.asarray(gradients).T
    np.testing.assert_allclose(contraction.scores(gradients), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    assert contraction.costs[0].way == "low_rank", str(contraction.costs[0])


def test_low_rank_keeps_its_promise() -> None:
    rng = np.random.default_rng(1)
    u, v = np.linalg.qr(rng.standard_normal((3, 40, 30)))[0], np.linalg.qr(rng.standard_normal((3, 50, 30)))[0]
    matrices = np.einsum("tir,r,tor->tio", u, 0.1 ** np.arange(30.0), v)
    for tolerance, rank in ((2e-3, 3), (5e-7, 7)):
        found = low_rank(matrices, 20, tolerance)
        assert found is not None
        left, right = found
        assert left.shape == (3, rank, 40) and right.shape == (3, rank, 50)
        error = np.linalg.norm(matrices - np.einsum("tri,tro->tio", left, right), axis=(1, 2))
        assert np.all(error <= tolerance * np.linalg.norm(matrices, axis=(1, 2)))
    assert low_rank(matrices, 3, 1e-6) is None
    assert low_rank(rng.standard_normal((2, 40, 50)), 20, 1e-3) is None


def test_scorer_uses_it_and_tells(caplog: pytest.LogCaptureFixture) -> None:
    model = make("embedding")
    train = data(model, "embedding", weighted=False)
    operator = fit(model, Kfac(), lambda: [train], FinishOptions("auto"))
    queries, _ = embed_queries(model, operator, train.select(np.arange(6)))
    with caplog.at_level("INFO", logger="beam_influence.influence_ops"):
        scored = Scorer(model, operator, [queries], ScoreOptions(self_influence=True)).score(train)
    assert "lookup" in caplog.text and "flops an example" in caplog.text
    gradients = np.asarray(model.losses_and_gradients(train)[1])
    np.testing.assert_allclose(scored.scores[0], queries.solved @ gradients.T, rtol=1e-9, atol=1e-12)
    assert scored.self_influence is not None
    np.testing.assert_allclose(scored.self_influence, np.einsum("bp,bp->b", gradients, operator.apply(gradients)), rtol=1e-9)


def test_a_regulariser_in_the_loss_is_part_of_the_scores() -> None:
    network = NETWORKS["dense"]()
    model = InfluenceModel(network, loss_function="softmax_cross_entropy", weights="all", weight_decay=0.1, regularizer="loss")
    batch = data(model, "dense", weighted=False)
    gradients = model.losses_and_gradients(batch)[1]
    flat = np.random.default_rng(0).standard_normal((3, model.size))
    scores = Contraction(gradients.layout, flat, model.dtype, 10).scores(gradients)
    np.testing.assert_allclose(scores, flat @ np.asarray(gradients).T, rtol=1e-9, atol=1e-12)
