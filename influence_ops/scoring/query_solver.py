"""Queries solved over all training data, one pass for each step: the parts that Beam and a plain loop share.

    (H + λI) v_t = ∇ℓ(t)     for all queries t at once, H the mean over the data plus the regulariser's part

A pass multiplies every example's curvature with one vector for each query that is not solved yet; what is added up are T × P
sums. With a preconditioner (`gauss_newton_cg`: EK-FAC) steps are preconditioned conjugate gradients from zero, the first
direction being the preconditioner's own solution. Without one (`conjugate_gradient`) the solution on a sample is the first
guess, and its residual takes the first pass. Of the segments of a training run each is solved in turn (`segment_solver`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.curvature.conjugate_gradients import Products, advance, solution_errors, start
from beam_influence.influence_ops.curvature.source_gauss_newton_cg import SegmentPreconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.scoring import segment_solver
from beam_influence.influence_ops.scoring.segment_solver import cg_of

System = Literal["hessian", "gauss_newton", "segments"]
Opened = Callable[[], tuple[ExplainedModel, Preconditioner]]
"""The model, and the fitted operator bound to it, where they are needed."""


def begin(system: System, right: np.ndarray, solved: np.ndarray, passes: int, tolerance: float, opened: Opened) -> dict[str, np.ndarray]:
    """The state before the first pass.

    Args:
      right: ∇ℓ(t) [T, P].
      solved: the fitted operator's own solutions [T, P].
      passes: the most of one solve.
    """
    if system == "segments":
        model, operator = opened()
        assert isinstance(operator, SegmentPreconditioner)
        return segment_solver.begin(model, operator, right, passes, tolerance)
    if system == "gauss_newton":
        return start(right, tolerance, precondition=lambda _: solved.copy())._asdict()
    return {"right": right, "solution": solved}


def to_multiply(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """The vectors that the next pass multiplies: [R, P]; none when every query is solved."""
    if "active" not in state:
        return state["solution"]
    return state["direction"][state["active"]]


def multiplied(state: Mapping[str, np.ndarray], model: ExplainedModel) -> Sequence[ExplainedModel]:
    """The models whose curvature the next pass sums: the whole one, or the checkpoints of a segment."""
    if "checkpoints" not in state:
        return (model,)
    first, last = state["checkpoints"]
    return model.parts[first:last]


def batch_products(system: System, models: Sequence[ExplainedModel], batch: ExampleBatch, vectors: np.ndarray) -> np.ndarray:
    """The batch's part of a pass: [R, P]."""
    if system == "hessian":
        return functools.reduce(np.add, (model.hessian_vector_products(batch, vectors) for model in models))
    return functools.reduce(np.add, (model.gauss_newton_products(batch, vectors) for model in models))


def step(system: System, state: Mapping[str, np.ndarray], summed: np.ndarray, tolerance: float, opened: Opened) -> dict[str, np.ndarray]:
    """The state after a pass.

    Args:
      summed: the sum of `batch_products` over all examples.
    """
    model, operator = opened()
    if system == "segments":
        assert isinstance(operator, SegmentPreconditioner)
        return segment_solver.step(state, summed, model, operator, tolerance)
    vectors = to_multiply(state)
    image = summed / operator.examples
    image += model.regularizer_products(vectors) + float(operator.meta["damping"]) * vectors
    if "active" in state:
        return advance(cg_of(state), image, tolerance, operator.apply if system == "gauss_newton" else None)._asdict()
    return start(np.asarray(state["right"]), tolerance, np.asarray(state["solution"]), image)._asdict()


def solve(
    system: System,
    model: ExplainedModel,
    operator: Preconditioner,
    batches: Callable[[], Iterable[ExampleBatch]],
    right: np.ndarray,
    solved: np.ndarray,
    passes: int,
    tolerance: float,
) -> dict[str, np.ndarray]:
    """The state after at most `passes` passes for each solve, in one process.

    Args:
      operator: the fitted one, bound to the model.
      batches: gives all examples whose loss is finite, from the start, at each call.
      right, solved: see `begin`.
    """

    def opened() -> tuple[ExplainedModel, Preconditioner]:
        return model, operator

    state = begin(system, right, solved, passes, tolerance, opened)
    for _ in range(passes * (len(operator.meta["segments"]) if system == "segments" else 1)):
        vectors = np.ascontiguousarray(to_multiply(state))
        if not len(vectors):
            break
        summed = np.zeros_like(vectors)
        for batch in batches():
            summed += batch_products(system, multiplied(state, model), batch, vectors)
        state = step(system, state, summed, tolerance, opened)
    return state


def solutions(state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """v [T, P], the relative residuals [T], and how many queries are not solved to the tolerance."""
    if "unrolled" in state:
        return segment_solver.solutions(state)
    cg = cg_of(state)
    return cg.best, cg.relative_residual, int(cg.active.sum())


def errors(
    state: Mapping[str, np.ndarray], right: np.ndarray, curvature: Mapping[str, Any], precondition: Products
) -> np.ndarray:
    """What is not known of the solutions for ∇ℓ(t), `right` [T, P]: [T, e, P]; see `solution_errors`, and `step` for the others."""
    return solution_errors(cg_of(state), right, precondition, float(curvature["damping"]))
