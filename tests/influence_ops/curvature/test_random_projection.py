"""Projections keep inner products and are the same everywhere; the curvature in them is what its definition says."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_influence import FinishOptions, InfluenceModel, Preconditioner
from beam_influence.influence_ops.curvature import load_preconditioner
from beam_influence.influence_ops.curvature.base import fit
from beam_influence.influence_ops.curvature.projections import HadamardProjection, hadamard_transform, make_projection
from beam_influence.influence_ops.curvature.random_projection import RandomProjection
from beam_influence.influence_ops.curvature.sparse_projection import SparseProjection
from beam_influence.influence_ops.evaluation.lds import linear_datamodelling_score
from beam_influence.influence_ops.model.gradients import Block, BlockLayout, Factored, Gradients, Layout, Materialised, OneHot, Piece
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import ProjectionSettings
from benchmarks.lds import configuration, load, make_model, scores_of

SIZE = 144 + 8 + 300 + 6
ROUNDING = 1e-12  # sums of a few hundred products in float64
KINDS = ("hadamard", "two_sided", "sjlt")


def layout(convolution: str = "factored") -> Layout:
    """A convolution's kernel [3, 3, 2, 8] with its bias as the last row, and a matrix of 51 × 6 with its own."""
    one = (Piece(0, (3, 3, 2, 8), (0, 1, 2, 3), 0, 18), Piece(144, (8,), (0,), 18, 1))
    two = (Piece(152, (50, 6), (0, 1), 0, 50), Piece(452, (6,), (0,), 50, 1))
    return Layout((BlockLayout("conv", convolution, 19, 8, one), BlockLayout("dense", "factored", 51, 6, two)), SIZE)


@pytest.mark.parametrize("bits", [0, 1, 5, 6, 7, 12, 13])
def test_the_transform_is_sylvesters_matrix(bits: int) -> None:
    matrix = np.ones((1, 1))
    for _ in range(bits):
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    rows = np.random.default_rng(0).standard_normal((3, 1 << bits))
    np.testing.assert_allclose(hadamard_transform(rows), rows @ matrix, rtol=0, atol=ROUNDING * (1 << bits))


def test_a_transform_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a power of two, not 12"):
        hadamard_transform(np.zeros((1, 12)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 20, 200])
def test_transpose_is_the_transpose(kind, dim: int) -> None:
    projection = make_projection(kind, layout(), dim, 7)
    forward, back = projection.apply(np.eye(SIZE)), projection.transpose(np.eye(projection.dim))
    assert forward.shape == (SIZE, projection.dim) and not projection.exact
    np.testing.assert_allclose(back, forward.T, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("kind", "dim", "spread"), [("hadamard", 64, 1.2), ("two_sided", 64, 2.5), ("sjlt", 64, 1.4)])
def test_inner_products_are_kept_within_the_bound(kind, dim: int, spread: float) -> None:
    """Over 400 seeds: no bias beyond 4 standard errors, and a spread near the bound's √((‖x‖²‖y‖² + ⟨x, y⟩²)/k).

    From two sides the spread is larger: both sides have fewer numbers.
    """
    x, y = np.random.default_rng(1).standard_normal((2, SIZE))
    y += 0.5 * x
    found = []
    for seed in range(400):
        px, py = make_projection(kind, layout(), dim, seed).apply(np.stack([x, y]))
        found.append(px @ py)
    bound = np.sqrt((x @ x * (y @ y) + (x @ y) ** 2) / dim)
    assert abs(np.mean(found) - x @ y) < 4 * np.std(found) / np.sqrt(len(found))
    assert 0.3 * bound < np.std(found) < spread * bound


def test_all_sampled_rows_are_an_isometry() -> None:
    """Of 458 numbers 512 rows of the 512 × 512 matrix would be an orthogonal map; 457 of them nearly are."""
    projection = HadamardProjection(SIZE, SIZE - 1, 0)
    singular = np.linalg.svd(projection.apply(np.eye(SIZE)), compute_uv=False)
    assert np.allclose(singular.max() ** 2, 512 / (SIZE - 1), rtol=1e-9)  # the rows are orthogonal: what is lost is the rest


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_full_size_on_nothing_is_projected(kind) -> None:
    projection = make_projection(kind, layout(), 2 * SIZE, 0)
    rows = np.random.default_rng(0).standard_normal((2, SIZE))
    assert projection.exact and projection.dim == SIZE
    # From two sides the numbers of a matrix are in another order.
    assert np.array_equal(np.sort(projection.apply(rows)), np.sort(rows))
    assert np.array_equal(projection.transpose(projection.apply(rows)), rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [False, True])
def test_factored_gradients_are_projected_as_they_are(kind, offset: bool) -> None:
    """S_inᵀ (Σ a gᵀ) S_out = Σ (S_in a)(S_out g)ᵀ, over several positions, for tokens, and for what is materialised."""
    rng = np.random.default_rng(0)
    blocks: dict[str, Block] = {
        "factored": Factored(tf.constant(rng.standard_normal((4, 5, 19))), tf.constant(rng.standard_normal((4, 5, 8)))),
        "one_hot": OneHot(tf.constant(rng.integers(0, 19, (4, 5)), tf.int32), tf.constant(rng.standard_normal((4, 5, 8)))),
    }
    dense = Factored(tf.constant(rng.standard_normal((4, 1, 51))), tf.constant(rng.standard_normal((4, 1, 6))))
    for name, block in blocks.items():
        constant = tf.constant(rng.standard_normal(SIZE)) if offset else None
        gradients = Gradients(layout(name), (block, dense), constant)
        projection = make_projection(kind, layout(name), 30, 0)
        assert not projection.exact
        wanted = projection.apply(np.asarray(gradients))
        np.testing.assert_allclose(projection.of_gradients(gradients), wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max())
    bare = Layout((BlockLayout("scale", "materialised", 1, 40, (Piece(0, (40,), (0,), 0, 1),)),), 40)
    gradients = Gradients(bare, (Materialised(tf.constant(rng.standard_normal((4, 1, 40)))),), None)
    projection = make_projection(kind, bare, 10, 0)
    np.testing.assert_allclose(projection.of_gradients(gradients), projection.apply(np.asarray(gradients)), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("dim", "entries"), [(64, 1), (66, 4)])
def test_sparse_signs_keep_inner_products_of_products_with_the_variance_they_should(dim: int, entries: int) -> None:
    """Of a ⊗ g and b ⊗ e: (1 + cos²(a, b))(1 + cos²(g, e))‖·‖²‖·‖²/k, less what a weight's product with itself can't add."""
    whole = Layout((layout().blocks[0],), 152)
    rng = np.random.default_rng(2)
    (a, b), (g, e) = rng.standard_normal((2, 19)) + 1, rng.standard_normal((2, 8)) + 1
    x, y = np.outer(a, g).ravel(), np.outer(b, e).ravel()
    found = np.array([np.prod(SparseProjection(whole, dim, seed, entries).apply(np.stack([x, y])), axis=0).sum() for seed in range(1500)])
    cosines = [(u @ v) ** 2 / (u @ u * (v @ v)) for u, v in ((a, b), (g, e))]
    variance = (1 + cosines[0]) * (1 + cosines[1]) * (x @ x) * (y @ y) / dim
    assert abs(found.mean() - x @ y) < 4 * found.std() / np.sqrt(len(found))
    assert 0.7 * variance < found.var() < 1.2 * variance  # 1500 seeds: 4 % of noise; 152 weights: up to a quarter of the pairs


def test_sparse_signs_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each weight has s entries of ±s^-½; and whatever is done at once, the same numbers come out."""
    rng = np.random.default_rng(0)
    drawn = [[tf.constant(rng.standard_normal((4, positions, n))) for n in sides] for positions, sides in ((5, (19, 8)), (70, (51, 6)))]
    gradients = Gradients(layout(), tuple(Factored(*factors) for factors in drawn))
    projection = SparseProjection(layout(), 31, 3, entries=3)
    matrix = projection.apply(np.eye(SIZE))
    assert np.array_equal(np.count_nonzero(matrix, axis=1), np.full(SIZE, 3)) and np.allclose(np.abs(matrix[matrix != 0]), 3**-0.5)
    wanted = np.asarray(gradients) @ matrix
    module = "beam_influence.influence_ops.curvature.sparse_projection"
    for changed in ({}, {"_BYTES_AT_ONCE": 1000, "_WEIGHTS_AT_ONCE": 20}, {"_LONG": 1}, {"_TRANSFORMING": 0.0}, {"_TRANSFORMING": 1e9}):
        for name, value in changed.items():
            monkeypatch.setattr(f"{module}.{name}", value)
        np.testing.assert_allclose(projection.of_gradients(gradients), wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max())
        np.testing.assert_allclose(projection.apply(np.asarray(gradients)), wanted, rtol=0, atol=ROUNDING * np.abs(wanted).max())
        monkeypatch.undo()


@pytest.mark.parametrize("dim", [1, 7, 100])
def test_unit_vectors_need_no_transform(dim: int) -> None:
    projection = HadamardProjection(20, dim, 3)
    np.testing.assert_allclose(projection.of_units(np.arange(20)), projection.apply(np.eye(20)), rtol=0, atol=ROUNDING)


def test_every_process_and_batch_has_the_same() -> None:
    rows = np.arange(2.0 * SIZE).reshape(2, SIZE)
    here = [make_projection(kind, layout(), 20, 3).apply(rows) for kind in KINDS]  # type: ignore[arg-type]
    program = (
        "import numpy as np, pickle, sys; from beam_influence.influence_ops.curvature.projections import make_projection; "
        "from tests.influence_ops.curvature.test_random_projection import KINDS, SIZE, layout; "
        "rows = np.arange(2.0 * SIZE).reshape(2, SIZE); "
        "sys.stdout.buffer.write(pickle.dumps([make_projection(kind, layout(), 20, 3).apply(rows) for kind in KINDS]))"
    )
    there = pickle.loads(subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=120).stdout)
    for kind, mine, other in zip(KINDS, here, there, strict=True):
        assert np.array_equal(mine, other)
        assert not np.allclose(mine, make_projection(kind, layout(), 20, 4).apply(rows))  # type: ignore[arg-type]
        alone = np.concatenate([make_projection(kind, layout(), 20, 3).apply(row[None]) for row in rows])  # type: ignore[arg-type]
        np.testing.assert_allclose(alone, mine, rtol=0, atol=ROUNDING * np.abs(mine).max())


@functools.cache
def model(weight_decay: float = 1e-2) -> InfluenceModel:
    keras.utils.set_random_seed(2)
    network = keras.Sequential([keras.Input((7,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(5)])
    return InfluenceModel(network, weights="all", loss_function="softmax_cross_entropy", weight_decay=weight_decay)


@functools.cache
def batches() -> tuple[ExampleBatch, ...]:
    rng = np.random.default_rng(5)
    x, y, weights = rng.standard_normal((60, 7)), rng.integers(0, 5, 60), rng.uniform(0.5, 2, 60)
    ids = np.array([f"f:{row}" for row in range(60)], dtype=object)
    return tuple(ExampleBatch(ids[s], x[s], y[s], weights[s]) for s in (slice(0, 11), slice(11, 60)))


def gradients() -> np.ndarray:
    return np.concatenate([np.asarray(model().losses_and_gradients(batch)[1]) for batch in batches()])


def of_labels(g: np.ndarray) -> np.ndarray:
    """Gradients whose outer products the empirical Fisher sums: an example's weight is in it once, not squared."""
    return g / np.sqrt(np.concatenate([np.asarray(batch.weights) for batch in batches()]))[:, None]


def fitted(settings: ProjectionSettings, **finish) -> Preconditioner:
    return fit(model(), RandomProjection(settings), lambda: list(batches()), FinishOptions(**finish)).bind(model())


def test_the_full_size_gives_the_empirical_fisher_exactly() -> None:
    g = gradients()
    found = fitted(ProjectionSettings(projection_dim=1000, fisher="empirical"), damping=0.03)
    matrix = of_labels(g).T @ of_labels(g) / 60 + (1e-2 + 0.03) * np.eye(model().size)
    wanted = g @ np.linalg.solve(matrix, g.T)
    np.testing.assert_allclose(g @ found.apply(g).T, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())  # condition 1e3


def test_the_full_size_gives_the_gauss_newton_matrix_exactly() -> None:
    g = gradients()
    matrix = np.sum([model().gauss_newton_sum(batch) for batch in batches()], axis=0) / 60 + (1e-2 + 0.03) * np.eye(model().size)
    wanted = g @ np.linalg.solve(matrix, g.T)
    for kind in KINDS:
        found = fitted(ProjectionSettings(projection_dim=1000, projection=kind), damping=0.03)  # type: ignore[arg-type]
        np.testing.assert_allclose(g @ found.apply(g).T, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fisher", ["expected", "empirical"])
def test_influence_is_that_of_the_projected_gradients(kind, fisher) -> None:
    options = ProjectionSettings(projection_dim=24, projection=kind, fisher=fisher, seed=4)
    found = fitted(options)
    projection = make_projection(kind, model().layout(), 24, 4)
    g = gradients()
    factors = of_labels(g)
    if fisher == "expected":
        factors = np.concatenate([np.asarray(model().gauss_newton_factors(batch)).reshape(-1, model().size) for batch in batches()])
    phi, of_factors = projection.apply(g), projection.apply(factors)
    gram = of_factors.T @ of_factors / 60 + 1e-2 * np.eye(projection.dim)
    damping = 0.1 * (np.trace(of_factors.T @ of_factors) / 60 / model().size + 1e-2)
    assert found.meta["damping"] == pytest.approx(damping, rel=1e-9)
    wanted = phi @ np.linalg.solve(gram + damping * np.eye(projection.dim), phi.T)
    np.testing.assert_allclose(g @ found.apply(g).T, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
    embedded = found.embed(g)
    assert embedded.shape == (60, projection.dim)
    np.testing.assert_allclose(embedded @ embedded.T, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def test_another_damping_needs_no_other_fit_and_saving_keeps_it(tmp_path) -> None:
    g = gradients()
    moved = fitted(ProjectionSettings(projection_dim=24), damping=0.5).with_damping(0.02)
    assert np.array_equal(moved.apply(g), fitted(ProjectionSettings(projection_dim=24), damping=0.02).apply(g))
    moved.save(str(tmp_path / "saved"))
    loaded = load_preconditioner(str(tmp_path / "saved"))
    assert np.array_equal(loaded.bind(model()).apply(g), moved.apply(g)) and loaded.meta == moved.meta


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProjectionSettings(projection_dim=0), "projection_dim=0 must be at least 1"),
        (lambda: ProjectionSettings(projection_dim=20_000), "projection_dim=20000 must be at least 1 and at most 16,384"),
        (lambda: ProjectionSettings(projection="gaussian"), "projection='gaussian' must be"),  # type: ignore[arg-type]
        (lambda: ProjectionSettings(fisher="none"), "fisher='none' must be"),  # type: ignore[arg-type]
        (lambda: fitted(ProjectionSettings(projection_dim=4), leave_one_out=True), "removal='newton' needs the whole matrix"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_it_predicts_retraining() -> None:
    """512 numbers of 2,410 on real retrainings: LDS at least 0.62 (seen with three seeds: 0.659 to 0.669; TRAK's one model: 0.115)."""
    data = load()
    scores, _ = scores_of(make_model(data), data, configuration("random_projection", "auto"))
    assert linear_datamodelling_score(data["subset_masks"] @ scores.T, data["subset_test_loss"]).mean >= 0.62
