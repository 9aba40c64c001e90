"""The Cholesky factor in place of the eigendecomposition: the same numbers, and left alone where only eigenvalues can tell."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from beam_influence.influence_ops.curvature import cholesky
from beam_influence.influence_ops.curvature.cholesky import CholeskyPreconditioner, factorise_damped
from beam_influence.influence_ops.curvature.dense import DensePreconditioner
from tests.arrays import relative
from tests.influence_ops.curvature.test_curvature import data, fitted, head, hessian, rows, whole

RCOND = 1e-13
BACKWARD = 1e-13  # some machine epsilons of float64, times the condition below


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is large enough for a factor, and has several panels, the last one short."""
    monkeypatch.setattr("beam_influence.influence_ops.curvature.dense.SPECTRUM_SIZE", 0)
    monkeypatch.setattr(cholesky, "_PANEL", 5)


def matrix(eigenvalues: np.ndarray) -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((len(eigenvalues), len(eigenvalues))))
    made = (rotation * eigenvalues) @ rotation.T
    return (made + made.T) / 2


def operator(factor: np.ndarray) -> CholeskyPreconditioner:
    return CholeskyPreconditioner({"factor": factor}, {})


@pytest.mark.parametrize("damping", [0.05, "auto"])
@pytest.mark.parametrize("kind", ["exact", "gauss_newton"])
def test_the_same_operator_as_by_the_eigenvalues(kind: str, damping: float | str) -> None:
    model = head()
    factored, spectral = fitted(kind, model, damping=damping), fitted(kind, model, damping=damping, spectrum=True)
    assert (type(factored), type(spectral)) == (CholeskyPreconditioner, DensePreconditioner)
    assert factored.meta["damping"] == pytest.approx(spectral.meta["damping"], rel=1e-12)
    assert factored.meta["mean_eigenvalue"] == pytest.approx(np.trace(hessian(model)) / model.size, rel=1e-12)
    assert relative(factored.apply(rows(model)), spectral.apply(rows(model))) < 1e-12  # condition below 100
    gradients = model.losses_and_gradients(data())[1]
    assert relative(factored.self_influence(gradients), spectral.self_influence(gradients)) < 1e-12
    wanted = np.linalg.solve(hessian(model) + factored.meta["damping"] * np.eye(model.size), rows(model).T).T
    assert relative(factored.apply(rows(model)), wanted) < 1e-12


@pytest.mark.parametrize("options", [{"damping": 0.0}, {"damping": 0.05, "rank": 5}, {"damping": 0.05, "spectrum": True}])
def test_what_needs_the_eigenvalues_gets_them(options: dict) -> None:
    assert "smallest_eigenvalue" in fitted("gauss_newton", head(), **options).meta


def test_leaving_one_out_needs_no_eigenvalues() -> None:
    model, n = head(), len(data())
    found = fitted("gauss_newton", model, damping=0.05, leave_one_out=True)
    assert isinstance(found, CholeskyPreconditioner)
    wanted = model.hessian_sum(data()) / (n - 1) + (model.weight_decay + 0.05) * np.eye(model.size)
    assert relative(found.apply(rows(model)), np.linalg.solve(wanted, rows(model).T).T) < 1e-12


def test_another_damping_is_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match=r"of 12 weights keeps its spectrum only when asked to; fit it again with --spectrum"):
        fitted("gauss_newton", head(), damping=0.05).with_damping(0.1)


def test_automatic_damping_of_an_indefinite_hessian_is_of_its_eigenvalues() -> None:
    """Their mean, clipped at 0, is no trace: here the trace is 3 % smaller, and H + λI is refused or solved as by the eigenvalues."""
    eigenvalues = np.linspace(0.1, 1, 17)
    eigenvalues[0] = -0.01  # above −λ: H + λI has a factor
    h = matrix(eigenvalues)
    before = h.copy()
    assert factorise_damped(h, "auto", RCOND) is None
    assert h.tolist() == before.tolist()  # what the eigenvalues are then found of
    assert factorise_damped(h, 0.05, RCOND) == 0.05
    assert relative(operator(h).apply(before[:3]), np.linalg.solve(before + 0.05 * np.eye(17), before[:3].T).T) < 1e-12


def test_an_indefinite_hessian_is_refused_with_its_smallest_eigenvalue() -> None:
    model = whole()
    smallest = float(np.linalg.eigvalsh(hessian(model))[0])
    message = rf"eigenvalues down to {smallest:.3g}.*not positive definite; use --damping {-1.001 * smallest:.4g} or more"
    with pytest.raises(ValueError, match=message):
        fitted("exact", model, damping=-0.99 * smallest)
    assert isinstance(fitted("exact", model, damping=-1.01 * smallest), CholeskyPreconditioner)


def solved_exactly(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """By elimination in fractions."""
    table = [[Fraction(value) for value in (*row, last)] for row, last in zip(matrix.tolist(), right.tolist(), strict=True)]
    for place, pivot in enumerate(table):
        for other, row in enumerate(table):
            if other != place:
                factor = row[place] / pivot[place]
                table[other] = [value - factor * of_pivot for value, of_pivot in zip(row, pivot, strict=True)]
    return np.array([float(row[-1] / row[place]) for place, row in enumerate(table)])


def test_an_ill_conditioned_matrix_against_fractions() -> None:
    """λ = 1e-8 beside eigenvalues of 1 and of 0: the condition is 1e8, and what is lost is that much of float64's sixteen digits."""
    eigenvalues = np.concatenate([np.zeros(9), np.geomspace(1e-6, 1, 8)])
    h, right = matrix(eigenvalues), np.random.default_rng(4).standard_normal(17)
    wanted = solved_exactly(h + 1e-8 * np.eye(17), right)
    spectrum, vectors = np.linalg.eigh(h)
    by_eigenvalues = vectors @ ((vectors.T @ right) / (spectrum + 1e-8))
    assert factorise_damped(h, 1e-8, RCOND) == 1e-8
    error = relative(operator(h).apply(right[None])[0], wanted)
    assert error < BACKWARD * 1e8
    assert error < 10 * relative(by_eigenvalues, wanted)


def test_where_a_pseudo_inverse_would_drop_directions_the_eigenvalues_do_it() -> None:
    """λ = 1e-16 is lost in the rounding of eigenvalues of 1."""
    eigenvalues = np.concatenate([np.zeros(9), np.geomspace(1e-3, 1, 8)])
    h = matrix(eigenvalues)
    assert factorise_damped(h, 1e-16, RCOND) is None
    assert factorise_damped(h, 1e-12, RCOND) == 1e-12
    flat = fitted("gauss_newton", head().with_weight_decay(0), damping=1e-16)
    assert flat.meta["rank"] == head().size - 4  # as with damping 0; see `test_rank_and_eigenvalues_are_reported`


@pytest.mark.parametrize("broken", [np.zeros((7, 7)), np.full((7, 7), np.nan)])
def test_a_matrix_without_anything_has_no_factor(broken: np.ndarray) -> None:
    assert factorise_damped(broken, "auto", RCOND) is None


def test_a_small_matrix_has_its_eigenvalues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert isinstance(fitted("gauss_newton", head(), damping=0.05), DensePreconditioner)
