"""Arnoldi: its eigenpairs against `numpy.linalg.eigh`, over a sample and over all data, and what it predicts of retraining."""

from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np
import pytest

from beam_influence import FinishOptions, InfluenceModel, Preconditioner
from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.curvature.arnoldi import Arnoldi, StreamedArnoldi
from beam_influence.influence_ops.curvature.base import fit
from beam_influence.influence_ops.curvature.block_krylov import advance, eigenpairs, start
from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import ArnoldiSettings
from benchmarks.lds import configuration, load, make_model, scores_of

SIZE = 60
CONVERGED = 1e-10  # a Krylov space of twice the rank over a spectrum that falls: rounding is what is left
SAME = 1e-9  # float64 sums in another order, through the iteration


def matrix(eigenvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors as columns in their order."""
    vectors, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((len(eigenvalues), len(eigenvalues))))
    return (vectors * eigenvalues) @ vectors.T, vectors


def ritz(a: np.ndarray, block_size: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    state = start(len(a), block_size, 0)
    for _ in range(steps):
        state = advance(state, state.block @ a)
    assert np.abs(state.basis @ state.basis.T - np.eye(len(state.basis))).max(initial=0) < 1e-12  # P roundings
    assert np.abs(state.basis @ a @ state.basis.T - state.projected).max(initial=0) < 1e-12 * np.abs(a).max() * len(a)
    return eigenpairs(state)


@pytest.mark.parametrize(("block_size", "steps"), [(1, 40), (4, 10), (13, 3)])
def test_the_largest_eigenpairs_are_eighs(block_size: int, steps: int) -> None:
    a, wanted_vectors = matrix(np.geomspace(1, 1e-12, SIZE))
    values, vectors = ritz(a, block_size, steps)
    assert len(values) == block_size * steps
    wanted = np.linalg.eigvalsh(a)[::-1]
    assert np.abs(values[:8] - wanted[:8]).max() < CONVERGED
    # The sign of an eigenvector is free; its error is the root of the value's.
    assert np.abs(np.abs(np.einsum("rp,pr->r", vectors[:8], wanted_vectors[:, :8])) - 1).max() < CONVERGED


def test_eigenvalues_of_many_directions_need_a_block() -> None:
    """One vector finds one direction of each eigenspace, whatever the number of steps; a block finds as many as it is wide."""
    a, _ = matrix(np.repeat([3.0, 2.0, 1.0], SIZE // 3))
    for block_size in (1, 5):
        values, _ = ritz(a, block_size, 12)
        assert len(values) == 3 * block_size  # then the space is invariant, and nothing more is multiplied
        assert np.allclose(values, np.repeat([3, 2, 1], block_size))


def test_a_matrix_of_low_rank_ends_the_iteration() -> None:
    a, _ = matrix(np.concatenate([[5.0, 4.0, 3.0], np.zeros(SIZE - 3)]))
    values, _ = ritz(a, 2, 20)
    assert len(values) < 10 and np.allclose(values[:3], [5, 4, 3]) and np.abs(values[3:]).max() < 1e-12
    assert not len(start(0, 4, 0).block)


def test_the_first_block_is_no_random_one_where_it_would_be_nearly_the_whole_space() -> None:
    a, _ = matrix(np.geomspace(1, 1e-3, 5))
    values, _ = ritz(a, 3, 2)
    assert np.allclose(values, np.linalg.eigvalsh(a)[::-1], rtol=1e-12)


@functools.cache
def model(weight_decay: float = 1e-3) -> InfluenceModel:
    """All weights of a small network, P = 83; its kernels carry a penalty of their own."""
    keras.utils.set_random_seed(2)
    penalty = keras.regularizers.L2(2e-3)
    layers = [
        keras.layers.Dense(6, "tanh", kernel_regularizer=penalty, name="hidden"),
        keras.layers.Dense(5, kernel_regularizer=penalty, name="logits"),
    ]
    network = keras.Sequential([keras.Input((7,)), *layers])
    return InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy", weight_decay=weight_decay)


@functools.cache
def batches() -> tuple[ExampleBatch, ...]:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((120, 7)), rng.integers(0, 5, 120)
    ids = np.array([f"f:{row}" for row in range(120)], dtype=object)
    return tuple(ExampleBatch(ids[s], x[s], y[s]) for s in (slice(0, 31), slice(31, 90), slice(90, 120)))


@functools.cache
def dense(matrix: str) -> np.ndarray:
    """H itself."""
    one = model().gauss_newton_sum if matrix == "gauss_newton" else model().hessian_sum
    whole = np.sum([one(batch) for batch in batches()], axis=0) / 120
    model().add_regularizer_hessian(whole)
    return 0.5 * (whole + whole.T)


def rows() -> np.ndarray:
    return np.random.default_rng(9).standard_normal((4, model().size))


def fitted(curvature: Arnoldi | StreamedArnoldi, **options) -> Preconditioner:
    return fit(model(), curvature, lambda: list(batches()), FinishOptions(**options)).bind(model())


@pytest.mark.parametrize("matrix", ["gauss_newton", "hessian"])
def test_the_inverse_is_eighs_with_the_residual_term(matrix: str) -> None:
    rank, damping = 10, 0.05
    found = fitted(StreamedArnoldi(ArnoldiSettings(rank=rank, matrix=matrix, block_size=10, passes=8)), damping=damping)  # type: ignore[arg-type]
    values, vectors = np.linalg.eigh(dense(matrix))
    kept = np.maximum(values, values[-rank])
    assert found.meta["rank"] == rank and found.meta["rest"] == pytest.approx(values[-rank], rel=1e-6)
    wanted = rows() @ (vectors / (kept + damping)) @ vectors.T
    # 80 of 83 dimensions: the tenth value has converged to 1e-6, its vector to the root of that.
    np.testing.assert_allclose(found.apply(rows()), wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_with_every_eigenpair_it_is_the_inverse() -> None:
    found = fitted(StreamedArnoldi(ArnoldiSettings(rank=200, passes=2)), damping=0.05)
    wanted = np.linalg.solve(dense("gauss_newton") + 0.05 * np.eye(model().size), rows().T).T
    np.testing.assert_allclose(found.apply(rows()), wanted, rtol=0, atol=SAME * np.abs(wanted).max())


def test_a_sample_of_everything_is_everything() -> None:
    settings = ArnoldiSettings(rank=10, block_size=5)
    sampled = fitted(Arnoldi(dataclasses.replace(settings, n_samples=1000)))
    streamed = fitted(StreamedArnoldi(dataclasses.replace(settings, passes=sampled.meta["dimensions"] // 5)))
    assert sampled.meta["damping"] == pytest.approx(streamed.meta["damping"], rel=SAME)
    np.testing.assert_allclose(sampled.apply(rows()), streamed.apply(rows()), rtol=0, atol=SAME * np.abs(streamed.apply(rows())).max())
    few = fitted(Arnoldi(dataclasses.replace(settings, n_samples=40)))
    assert few.meta["examples"] == 120 and few.meta["examples_used"] == 40  # n stays that of the whole set
    assert few.meta["damping"] != sampled.meta["damping"]


def test_auto_damping_is_that_of_the_whole_matrix() -> None:
    """0.1 × the mean eigenvalue, as of the dense curvatures; its trace is nearly exact, since what the basis holds is."""
    found = fitted(StreamedArnoldi(ArnoldiSettings(rank=20, passes=4))).meta
    assert found["damping"] == pytest.approx(0.1 * np.trace(dense("gauss_newton")) / model().size, rel=0.01)


def test_another_damping_needs_no_other_fit_and_saving_keeps_it(tmp_path) -> None:
    curvature = StreamedArnoldi(ArnoldiSettings(rank=10, passes=4))
    moved = fitted(curvature, damping=0.5).with_damping(0.02)
    assert np.array_equal(moved.apply(rows()), fitted(curvature, damping=0.02).apply(rows()))
    moved.save(str(tmp_path / "saved"))
    loaded = load_preconditioner(str(tmp_path / "saved"))
    assert np.array_equal(loaded.bind(model()).apply(rows()), moved.apply(rows())) and loaded.meta == moved.meta
    with pytest.raises(ValueError, match=r"damping=0.0 must be a number above 0"):
        moved.with_damping(0.0)


def test_embeddings_have_the_influence_of_the_low_rank_part() -> None:
    found = fitted(StreamedArnoldi(ArnoldiSettings(rank=10, passes=4)), damping=0.05)
    embedded = found.embed(rows())
    assert embedded.shape == (4, 10)
    vectors = found.arrays["vectors"]
    outside = rows() - rows() @ vectors.T @ vectors
    wanted = rows() @ found.apply(rows()).T - outside @ outside.T / (found.meta["rest"] + 0.05)
    np.testing.assert_allclose(embedded @ embedded.T, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_without_damping_a_null_space_is_left_out() -> None:
    """Three examples span at most 15 of 83 directions; with no penalty the rest of H is 0."""
    bare = keras.Sequential([keras.Input((7,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(5)])
    network = InfluenceModel(bare, weights="all", loss_function="softmax_cross_entropy")
    few = batches()[0].select(np.arange(3))
    for rank in (5, 40):
        found = fit(network, StreamedArnoldi(ArnoldiSettings(rank=rank, passes=4)), lambda: [few], FinishOptions(0.0))
        values, vectors = np.linalg.eigh(network.gauss_newton_sum(few) / 3)
        values, vectors = values[::-1], vectors[:, ::-1]
        used = min(rank, int((values > 1e-12).sum()))
        assert found.meta["rank"] == used
        inverse = (vectors[:, :used] / values[:used]) @ vectors[:, :used].T
        if rank == 5:  # the rest is there, and taken as equal to the fifth
            inverse += (np.eye(len(values)) - vectors[:, :5] @ vectors[:, :5].T) / values[4]
        wanted = rows() @ inverse
        np.testing.assert_allclose(found.apply(rows()), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamedArnoldi(ArnoldiSettings(passes=1)), "passes=1 must be at least 2"),
        (lambda: ArnoldiSettings(rank=0), "rank=0 must be at least 1"),
        (lambda: ArnoldiSettings(block_size=0), "block_size=0 must be at least 1"),
        (lambda: ArnoldiSettings(matrix="fisher"), "matrix='fisher' must be"),  # type: ignore[arg-type]
        (lambda: fitted(StreamedArnoldi(ArnoldiSettings(passes=2)), leave_one_out=True), "removal='newton' needs the whole matrix"),
        (lambda: fit(model(), StreamedArnoldi(ArnoldiSettings(passes=2)), lambda: [], FinishOptions()), "no training example is left"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_files_that_change_between_passes_are_noticed() -> None:
    given = iter([list(batches()), list(batches())[:2]])
    with pytest.raises(ValueError, match="one pass read 120 training examples, another 90"):
        fit(model(), StreamedArnoldi(ArnoldiSettings(rank=5, passes=2)), lambda: next(given), FinishOptions())


def test_it_predicts_retraining() -> None:
    """Rank 100 of 2,410 with its residual term on real retrainings: LDS at least 0.68 (seen: 0.715; the whole matrix: 0.731)."""
    data = load()
    scores, _ = scores_of(make_model(data), data, configuration("arnoldi", "auto"))
    assert linear_datamodelling_score(data["subset_masks"] @ scores.T, data["subset_test_loss"]).mean >= 0.68
