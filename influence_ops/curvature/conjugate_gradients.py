"""Conjugate gradients for many right-hand sides at once, as a loop and as a state that can wait for its products.

Solves A x = b for each row b of `right` [R, P] (Hestenes & Stiefel 1952). Where a product with A is a pass over a
data set, the state travels to the workers and their sum comes back: `start`, then `advance` for each pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Products = Callable[[np.ndarray], np.ndarray]
"""[R, P] -> [R, P], a symmetric operator applied to each row."""


SOLVER_ERRORS = 3
"""How many vectors the error of a solution is told by; see `solution_errors`."""


class CgState(NamedTuple):
    """All arrays have R rows.

    Attributes:
      scale: ‖b‖ [R].
      solution, residual, direction: [R, P].
      squared: residual · M residual [R], M the preconditioner (‖residual‖² without one).
      best, best_norm: the iterate with the smallest residual so far [R, P], and that residual's norm [R].
      active: bool [R]; `advance` wants A times the directions of these rows.
    """

    scale: np.ndarray
    solution: np.ndarray
    residual: np.ndarray
    direction: np.ndarray
    squared: np.ndarray
    best: np.ndarray
    best_norm: np.ndarray
    active: np.ndarray

    @property
    def relative_residual(self) -> np.ndarray:
        """‖b − A x‖ / ‖b‖ of the best iterates: [R]."""
        return np.divide(self.best_norm, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)


def start(
    right: np.ndarray,
    tolerance: float,
    solution: np.ndarray | None = None,
    image: np.ndarray | None = None,
    precondition: Products | None = None,
) -> CgState:
    """The state before the first step, from zero or from a first guess `solution` with `image` = A · solution."""
    if solution is None or image is None:
        solution, residual = np.zeros_like(right), right.copy()
    else:
        solution, residual = solution.copy(), right - image
    scale = np.linalg.norm(right, axis=1)
    direction = residual.copy() if precondition is None else precondition(residual)
    norm = np.linalg.norm(residual, axis=1)
    squared = np.einsum("rp,rp->r", residual, direction)
    return CgState(scale, solution, residual, direction, squared, solution.copy(), norm, norm > tolerance * scale)


def advance(state: CgState, image: np.ndarray, tolerance: float, precondition: Products | None = None) -> CgState:
    """One step; the state's arrays are changed in place.

    A row ends at ‖b − A x‖ ≤ tolerance · ‖b‖, or where A is found not to be positive along its direction (an
    indefinite matrix). Without a preconditioner it keeps the iterate with the smallest residual; with one, the last: each
    step brings it nearer in A's norm, though the residual may rise on the way.

    Args:
      image: A times the direction of each active row.
      precondition: M ≈ A⁻¹, symmetric and positive (Saad 2003, algorithm 9.1).
    """
    rows = np.flatnonzero(state.active)
    along = np.einsum("rp,rp->r", state.direction[rows], image)
    positive = along > 0
    state.active[rows[~positive]] = False
    rows, image, along = rows[positive], image[positive], along[positive]
    step = state.squared[rows] / along
    state.solution[rows] += step[:, None] * state.direction[rows]
    state.residual[rows] -= step[:, None] * image
    residual = state.residual[rows]
    ahead = residual if precondition is None else precondition(residual)
    updated = np.einsum("rp,rp->r", residual, ahead)
    state.direction[rows] = ahead + (updated / state.squared[rows])[:, None] * state.direction[rows]
    state.squared[rows] = updated
    norms = np.linalg.norm(residual, axis=1)
    improved = norms < state.best_norm[rows] if precondition is None else np.ones(len(rows), dtype=bool)
    state.best[rows[improved]], state.best_norm[rows[improved]] = state.solution[rows[improved]], norms[improved]
    state.active[rows] = norms > tolerance * state.scale[rows]
    return state


def solution_errors(state: CgState, right: np.ndarray, precondition: Products, least: float) -> np.ndarray:
    """What is not known of each solution x of b, A⁻¹ r with r the residual: [R, 3, P]. Inner products of a gradient with them have the
    standard error of its score as their length. Of a solution that began at zero.

    - The preconditioner's M r.
    - What the next step goes besides: β times the last direction. The two make up the next direction.
    - b has no part in M r, which is orthogonal to it, but its score b·x is short of b·A⁻¹b by e = ‖A⁻¹b − x‖²_A (Hestenes & Stiefel 1952,
      theorem 6:1): of what scores as b does, x times e / b·x is missing. rᵀM r falls short of e after some steps, since what is left to
      solve is where M is wrong, and ‖r‖²/`least` is more than it always: their geometric mean is taken.

    That three draws know little of a spread is for Student's t to say.

    Args:
      right: b [R, P].
      least: no eigenvalue of A is smaller; above 0.
    """
    if least <= 0:
        raise ValueError("how far a solution is can be told with a --damping above 0 alone")
    ahead = precondition(state.residual)
    own = np.einsum("rp,rp->r", right, state.best)
    guess, bound = np.einsum("rp,rp->r", state.residual, ahead), np.einsum("rp,rp->r", state.residual, state.residual) / least
    missing = np.sqrt(np.maximum(guess, 0) * bound)
    share = np.divide(missing, own, out=np.zeros_like(own), where=own > 0)
    return np.stack([ahead, state.direction - ahead, share[:, None] * state.best], axis=1)


def conjugate_gradients(
    products: Products, right: np.ndarray, tolerance: float, max_iterations: int, precondition: Products | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Solves A x = b for each row b of `right` [R, P]: x [R, P] and the relative residuals [R]."""
    state = start(right, tolerance, precondition=precondition)
    for _ in range(max_iterations):
        if not state.active.any():
            break
        state = advance(state, products(state.direction[state.active]), tolerance, precondition)
    return state.best, state.relative_residual
