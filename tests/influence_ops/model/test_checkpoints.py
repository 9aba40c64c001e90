"""Several checkpoints as one model: influence is the sum over them, whatever the curvature."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest

from beam_influence import CURVATURES, FinishOptions, InfluenceModel
from beam_influence.influence_ops.curvature import Curvature
from beam_influence.influence_ops.curvature.arnoldi import Arnoldi
from beam_influence.influence_ops.curvature.random_projection import RandomProjection
from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring.in_memory import fit_curvature
from beam_influence.influence_ops.scoring.scores import ScoreOptions, Scorer, embed_queries
from beam_influence.influence_ops.settings import ArnoldiSettings, ProjectionSettings

RATES = (0.3, 1.7)
DAMPING = 2.0  # above the most negative eigenvalue of the exact Hessians
SUMS = 1e-9  # float64 in another order
ITERATED = {"conjugate_gradient": 1e-6, "lissa": 2e-2}  # their tolerances: 1e-8 and 1e-3


@functools.cache
def part(seed: int, **options: Any) -> InfluenceModel:
    keras.utils.set_random_seed(seed)
    penalty = keras.regularizers.L2(5e-3)
    layers = [keras.layers.Dense(4, "tanh", name="a"), keras.layers.Dense(3, kernel_regularizer=penalty, name="b")]
    network = keras.Sequential([keras.Input((5,)), *layers])
    return InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy", **options)


@functools.cache
def batches() -> tuple[ExampleBatch, ...]:
    rng = np.random.default_rng(5)
    x, y, weights = rng.standard_normal((40, 5)), rng.integers(0, 3, 40), rng.uniform(0.5, 2, 40)
    ids = np.array([f"f:{row}" for row in range(40)], dtype=object)
    return tuple(ExampleBatch(ids[s], x[s], y[s], weights[s]) for s in (slice(0, 11), slice(11, 40)))


def make(name: str) -> Curvature:
    """Each curvature so that its answer is that of the parts: with all eigenpairs, and nothing projected."""
    if name == "arnoldi":
        return Arnoldi(ArnoldiSettings(rank=200))
    if name == "random_projection":
        return RandomProjection(ProjectionSettings(projection_dim=1000))
    return CURVATURES[name]()


def scores(model: ExplainedModel, name: str, options: ScoreOptions) -> tuple[np.ndarray, np.ndarray]:
    """Influence [T, N] of the batches on the first of them, and self-influence [N]."""
    operator = fit_curvature(model, make(name), batches(), FinishOptions(DAMPING)).bind(model)
    scorer = Scorer(model, operator, [embed_queries(model, operator, batches()[0])[0]], options)
    found = [scorer.score(batch) for batch in batches()]
    assert all(one.self_influence is not None for one in found)
    return np.concatenate([one.scores[0] for one in found], axis=1), np.concatenate([one.self_influence for one in found])  # type: ignore[arg-type]


# With the regulariser in the loss, gradients differ by a constant, whatever the curvature: two of them show it.
SUMMED = [name for name, kind in CURVATURES.items() if not kind.weighs_checkpoints]
CASES = [*((name, "curvature") for name in SUMMED), ("identity", "loss"), ("gauss_newton", "loss")]


@pytest.mark.parametrize(("name", "regularizer"), CASES)
def test_influence_is_the_sum_over_checkpoints(name: str, regularizer: str) -> None:
    parts = [part(seed, weight_decay=1e-2, regularizer=regularizer) for seed in (1, 2)]
    options = ScoreOptions(self_influence=True)
    found = scores(CheckpointSum(parts, RATES), name, options)
    each = [scores(one, name, options) for one in parts]
    for number, what in enumerate(found):
        wanted = np.sum([rate * one[number] for rate, one in zip(RATES, each, strict=True)], axis=0)
        assert np.abs(what - wanted).max() <= ITERATED.get(name, SUMS) * np.abs(wanted).max()


def test_without_weights_it_is_the_mean() -> None:
    parts = [part(seed) for seed in (1, 2, 3)]
    found = scores(CheckpointSum(parts), "gauss_newton", ScoreOptions(self_influence=True))[0]
    wanted = np.mean([scores(one, "gauss_newton", ScoreOptions(self_influence=True))[0] for one in parts], axis=0)
    assert np.abs(found - wanted).max() <= SUMS * np.abs(wanted).max()


def test_one_checkpoint_is_the_model() -> None:
    whole, alone = CheckpointSum([part(1)]), part(1)
    vectors = np.random.default_rng(0).standard_normal((3, alone.size))
    batch = batches()[0]
    for name in ("hessian_sum", "gauss_newton_sum", "gauss_newton_factors", "losses"):
        assert np.array_equal(np.asarray(getattr(whole, name)(batch)), np.asarray(getattr(alone, name)(batch))), name
    for name in ("hessian_vector_products", "gauss_newton_products"):
        assert np.array_equal(getattr(whole, name)(batch, vectors), getattr(alone, name)(batch, vectors)), name
    assert np.array_equal(whole.regularizer_products(vectors), alone.regularizer_products(vectors))
    assert np.array_equal(whole.regularizer_gradient(), alone.regularizer_gradient())
    assert whole.regularizer_value() == alone.regularizer_value() and np.array_equal(whole.parameters(), alone.parameters())
    assert whole.block_penalties() == alone.block_penalties()


def test_products_and_matrices_agree() -> None:
    whole = CheckpointSum([part(1), part(2)], RATES)
    vectors = np.random.default_rng(0).standard_normal((3, whole.size))
    batch = batches()[0]
    gauss_newton = whole.gauss_newton_sum(batch)
    middle = slice(whole.size // 2 - 3, whole.size // 2 + 2)  # of both
    for matrix in (whole.gauss_newton_sum, whole.hessian_sum):
        wanted = matrix(batch)[middle, middle.start :]
        np.testing.assert_allclose(matrix(batch, middle), wanted, rtol=0, atol=SUMS * np.abs(gauss_newton).max())
    factors = np.asarray(whole.gauss_newton_factors(batch)).reshape(-1, whole.size)
    np.testing.assert_allclose(factors.T @ factors, gauss_newton, rtol=0, atol=SUMS * np.abs(gauss_newton).max())
    np.testing.assert_allclose(vectors @ gauss_newton, whole.gauss_newton_products(batch, vectors), rtol=0, atol=1e-8)
    np.testing.assert_allclose(vectors @ whole.hessian_sum(batch), whole.hessian_vector_products(batch, vectors), rtol=0, atol=1e-8)
    matrix = np.zeros((whole.size, whole.size))
    whole.add_regularizer_hessian(matrix)
    np.testing.assert_allclose(vectors @ matrix, whole.regularizer_products(vectors), rtol=0, atol=1e-12)


def test_fingerprints_tell_checkpoints_and_weights_apart() -> None:
    kinds = [CheckpointSum([part(1), part(2)], RATES), CheckpointSum([part(2), part(1)], RATES), CheckpointSum([part(1), part(2)]), part(1)]
    assert len({kind.fingerprint() for kind in kinds}) == len(kinds)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CheckpointSum([]), "at least one checkpoint"),
        (lambda: CheckpointSum([part(1)], [1.0, 2.0]), "must be 1 numbers above 0, one for each checkpoint"),
        (lambda: CheckpointSum([part(1)], [-1.0]), "must be 1 numbers above 0"),
        (lambda: CheckpointSum([part(1), part(1, weight_decay=0.1)]), "checkpoint 1 has weight_decay 0.1, the first has 0.0"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
