"""Queries unrolled through the segments of a training run, the last first: a solve over the data for each, as of `query_solver`.

    A x = g,    A = H + (κ + 1/(η K)) / P    of a segment; x / (η K P) is g of the segment before (`curvature/source_gauss_newton_cg.py`)

The state is that of conjugate gradients of the segment that is being solved, and

    segment     [1]     which one; −1: all are solved
    checkpoints [2]     the first of its checkpoints, and the first that is not one
    made        [1]     its passes so far
    passes      [1]     the most that it has
    unrolled    [T, CP] what the checkpoints' gradients are multiplied by, as far as it is known
    residuals   [T]     the largest relative residual of a query's solves
    unsolved    [T]     whether one was not solved to the tolerance
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from beam_influence.influence_ops.curvature.conjugate_gradients import CgState, advance, start
from beam_influence.influence_ops.curvature.segments import from_facts, scales_of, shift_of
from beam_influence.influence_ops.curvature.source_gauss_newton_cg import SegmentPreconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel

State = dict[str, np.ndarray]


def begin(model: ExplainedModel, operator: SegmentPreconditioner, right: np.ndarray, passes: int, tolerance: float) -> State:
    """The state before the first pass.

    Args:
      operator: the preconditioner, bound to the model.
      right: ∇ℓ(t) [T, C·P].
      passes: the most of a segment.
    """
    segments, roots = from_facts(operator.meta)
    if not len(right):  # every query was rejected
        right = np.zeros((0, model.size))
    state = {
        "passes": np.array([passes]),
        "unrolled": np.zeros(right.shape),
        "residuals": np.zeros(len(right)),
        "unsolved": np.zeros(len(right), dtype=bool),
    }
    left = right[:, -model.parts[0].size :] / roots[-1]
    return _from_segment(len(segments.counts) - 1, left, state, model, operator, tolerance)


def step(
    state: Mapping[str, np.ndarray], summed: np.ndarray, model: ExplainedModel, operator: SegmentPreconditioner, tolerance: float
) -> State:
    """The state after a pass.

    Args:
      summed: Σ over all examples and the segment's checkpoints of what their Gauss–Newton matrices make of the vectors.
    """
    segment, cg, segments = int(state["segment"][0]), cg_of(state), from_facts(operator.meta)[0]
    vectors = cg.direction[cg.active]
    beside = float(operator.meta["damping"]) + shift_of(scales_of(model, segments)[segment], segments.horizons[segment])
    image = summed / (operator.examples * segments.counts[segment])
    image += model.parts[0].regularizer_products(vectors) + beside * vectors
    cg = advance(cg, image, tolerance, lambda residuals: operator.precondition(residuals, segment))
    state = {**state, **cg._asdict(), "made": state["made"] + 1}
    if cg.active.any() and state["made"][0] < state["passes"][0]:
        return state
    return _from_segment(segment - 1, _finish(state, model, operator), state, model, operator, tolerance)


def solutions(state: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """[T, C·P], the largest relative residuals [T], and how many queries are not solved to the tolerance with every segment."""
    return state["unrolled"], state["residuals"], int(state["unsolved"].sum())


def cg_of(state: Mapping[str, np.ndarray]) -> CgState:
    """The state of conjugate gradients, its arrays the caller's own."""
    return CgState(*(np.array(state[name]) for name in CgState._fields))


def _from_segment(
    segment: int, left: np.ndarray, state: State, model: ExplainedModel, operator: SegmentPreconditioner, tolerance: float
) -> State:
    """The state before the first pass of a segment, or of one before it where there is nothing to solve; or that after all of them.

    Args:
      left: what reaches it of the queries' gradients: [T, P].
    """
    segments = from_facts(operator.meta)[0]
    while segment >= 0:
        members = segments.checkpoints(segment)
        now = {"segment": np.array([segment]), "checkpoints": np.array([members.start, members.stop]), "made": np.zeros(1, dtype=int)}
        cg = start(left, tolerance, precondition=lambda residuals, own=segment: operator.precondition(residuals, own))
        state = {**state, **now, **cg._asdict()}
        if cg.active.any():
            return state
        left, segment = _finish(state, model, operator), segment - 1
    return {**state, "segment": np.array([-1]), "active": np.zeros(len(left), dtype=bool)}


def _finish(state: State, model: ExplainedModel, operator: SegmentPreconditioner) -> np.ndarray:
    """Keeps a segment's solutions, and gives what reaches the one before it: [T, P]."""
    segment, cg = int(state["segment"][0]), CgState(*(state[name] for name in CgState._fields))
    segments, roots = from_facts(operator.meta)
    size, unrolled = cg.best.shape[1], np.array(state["unrolled"])
    for checkpoint in segments.checkpoints(segment):
        unrolled[:, checkpoint * size : (checkpoint + 1) * size] = cg.best / (segments.counts[segment] * roots[checkpoint])
    state["unrolled"] = unrolled
    state["residuals"] = np.maximum(state["residuals"], cg.relative_residual)
    state["unsolved"] = state["unsolved"] | cg.active
    return cg.best / (segments.horizons[segment] * scales_of(model, segments)[segment].scales)
