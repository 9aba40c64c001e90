"""Losses and gradients of a batch's examples, those that are not finite left out, with their reasons."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from beam_influence.influence_ops.model.curvature_terms import CurvatureTerms
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.fisher import blocks_with_losses, fisher_blocks
from beam_influence.influence_ops.model.gradients import Block, Gradients
from beam_influence.influence_ops.model.guard import check_later_batch
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.settings import Fisher, Matrix

_LOG = logging.getLogger(__name__)


def evaluate(model: ExplainedModel, batch: ExampleBatch) -> tuple[ExampleBatch, np.ndarray, Gradients, list[Rejected]]:
    """Losses [B] and gradients of the examples for which both are finite; the others as rejected.

    Raises:
      ValueError: this is the first batch that the model sees, and it disagrees with the user's own, or a later one in which examples are
        mixed; see `guard`.
    """
    _check_first(model, batch)
    return _keep_finite(model, batch, *model.losses_and_gradients(batch))


def evaluate_with_fisher(
    model: ExplainedModel, batch: ExampleBatch, fisher: Fisher, seed: int
) -> tuple[ExampleBatch, Iterable[tuple[Block, ...]], list[Rejected]]:
    """The examples that `evaluate` keeps, their `fisher_blocks`, and the others; by one pass forward where there is one draw.

    Raises:
      ValueError: as `evaluate` and `fisher_blocks`.
    """
    _check_first(model, batch)
    at_once = blocks_with_losses(model, batch, fisher, seed) if len(batch) else None
    if at_once is not None:
        losses, gradients, draw = at_once
        kept, _, _, rejected = _keep_finite(model, batch, losses, gradients)
        if not rejected:
            return kept, [draw], rejected
    else:
        kept, _, _, rejected = evaluate(model, batch)
    return kept, fisher_blocks(model, kept, fisher, seed), rejected


def evaluate_with_terms(
    model: ExplainedModel, batch: ExampleBatch, matrix: Matrix
) -> tuple[ExampleBatch, CurvatureTerms, list[Rejected]] | None:
    """The examples that `evaluate` keeps, their `curvature_terms`, and the others; None where there are no terms by one pass forward.

    Raises:
      ValueError: as `evaluate`.
    """
    _check_first(model, batch)
    at_once = model.losses_gradients_and_terms(batch, matrix)
    if at_once is None:
        return None
    losses, gradients, terms = at_once
    kept, _, _, rejected = _keep_finite(model, batch, losses, gradients)
    if rejected:
        terms = terms.select(np.flatnonzero(np.isfinite(losses) & gradients.finite()))
    return kept, terms, rejected


def _check_first(model: ExplainedModel, batch: ExampleBatch) -> None:
    if model.agreement is None and len(batch):
        copied = model.network.is_copy
        model.check(batch)
        if copied and not model.network.is_copy:
            _LOG.warning("computed in %s, the model's own precision: %s", model.dtype, model.network.why_native)


def _keep_finite(
    model: ExplainedModel, batch: ExampleBatch, losses: np.ndarray, gradients: Gradients
) -> tuple[ExampleBatch, np.ndarray, Gradients, list[Rejected]]:
    finite_loss = np.isfinite(losses)
    finite = finite_loss & gradients.finite()
    rejected = []
    for row in np.flatnonzero(~finite):
        what = f"its loss is {losses[row]}" if not finite_loss[row] else "its gradient is not finite"
        rejected.append(batch.reject(int(row), "not_finite", what))
    if rejected:
        keep = np.flatnonzero(finite)
        batch, losses, gradients = batch.select(keep), losses[keep], gradients.select(keep)
    check_later_batch(model, batch, losses, gradients)
    return batch, losses, gradients, rejected
