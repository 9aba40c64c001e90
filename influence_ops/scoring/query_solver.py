"""Queries solved over all training data, one pass for each step: the parts that Beam and a plain loop share.

    (H + λI) v_t = ∇ℓ(t)     for all queries t at once, H the mean over the data plus the regulariser's part

A pass multiplies every example's curvature with one vector for each query that is not solved yet; what is added up are T × P
sums. With a preconditioner (`gauss_newton_cg`: EK-FAC) steps are preconditioned conjugate gradients from zero, the first
direction being the preconditioner's own solution. Without one (`conjugate_gradient`) the solution on a sample is the first
guess, and its residual takes the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from beam_influence.influence_ops.curvature.conjugate_gradients import CgState, Products, advance, solution_errors, start
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

System = Literal["hessian", "gauss_newton"]


def begin(system: System, right: np.ndarray, solved: np.ndarray, tolerance: float) -> dict[str, np.ndarray]:
    """The state before the first pass.

    Args:
      right: ∇ℓ(t) [T, P].
      solved: the fitted operator's own solutions [T, P].
    """
    if system == "gauss_newton":
        return start(right, tolerance, precondition=lambda _: solved.copy())._asdict()
    return {"right": right, "solution": solved}


def to_multiply(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vectors that the next pass multiplies: [R, P]; none when every query is solved."""
    if "active" not in state:
        return state["solution"]
    return state["direction"][state["active"]]


def batch_products(system: System, model: ExplainedModel, batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
    """The batch's part of a pass: [R, P]."""
    return model.gauss_newton_products(batch, vectors) if system == "gauss_newton" else model.hessian_vector_products(batch, vectors)


def step(
    state: Mapping[str, np.ndarray],
    summed: np.ndarray,
    model: ExplainedModel,
    curvature: Mapping[str, Any],
    tolerance: float,
    precondition: Products | None,
) -> dict[str, np.ndarray]:
    """The state after a pass.

    Args:
      summed: the sum of `batch_products` over all examples.
      curvature: the fitted operator's `meta`, for n and λ.
      precondition: its `apply` where it is the preconditioner.
    """
    vectors = to_multiply(state)
    image = summed / curvature["examples"]
    image += model.regularizer_products(vectors) + float(curvature["damping"]) * vectors
    if "active" in state:
        return advance(_cg(state), image, tolerance, precondition)._asdict()
    return start(np.asarray(state["right"]), tolerance, np.asarray(state["solution"]), image)._asdict()


def solve(
    system: System,
    model: ExplainedModel,
    batches: Callable[[], Iterable[ExampleBatch]],
    right: np.ndarray,
    solved: np.ndarray,
    curvature: Mapping[str, Any],
    passes: int,
    tolerance: float,
    precondition: Products | None,
) -> dict[str, np.ndarray]:
    """The state after at most `passes` passes in one process.

    Args:
      batches: gives all examples whose loss is finite, from the start, at each call.
      right, solved: see `begin`.
      curvature, precondition: see `step`.
    """
    state = begin(system, right, solved, tolerance)
    for _ in range(passes):
        vectors = np.ascontiguousarray(to_multiply(state))
        if not len(vectors):
            break
        summed = np.zeros_like(vectors)
        for batch in batches():
            summed += batch_products(system, model, batch, vectors)
        state = step(state, summed, model, curvature, tolerance, precondition)
    return state


def solutions(state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """v [T, P], the relative residuals [T], and how many queries are not solved to the tolerance."""
    cg = _cg(state)
    return cg.best, cg.relative_residual, int(cg.active.sum())


def errors(
    state: Mapping[str, np.ndarray], right: np.ndarray, curvature: Mapping[str, Any], precondition: Products
) -> np.ndarray:
    """What is not known of the solutions for ∇ℓ(t), `right` [T, P]: [T, e, P]; see `solution_errors`, and `step` for the others."""
    return solution_errors(_cg(state), right, precondition, float(curvature["damping"]))


def _cg(state: Mapping[str, np.ndarray]) -> CgState:
    return CgState(*(np.array(state[name]) for name in CgState._fields))
