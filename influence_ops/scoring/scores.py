"""Influence of a batch of training examples on blocks of queries.

    I(z_i, t) = ∇ℓ(t)ᵀ (H + λI)⁻¹ ∇ℓ(z_i)

Positive: removing z_i would raise the loss at t (a helpful example); negative: a harmful one. I / n is the
predicted change of the loss at t (Koh & Liang 2017, equation 2, whose I_up,loss is −I).
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.curvature.kronecker import KroneckerPreconditioner
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Gradients
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.scoring.contraction import TOLERANCE, Contraction
from beam_influence.influence_ops.scoring.query_block import QUERY_ARRAYS, QueryArray, QueryBlock
from beam_influence.influence_ops.scoring.score_blocks import ScoreBlocks
from beam_influence.influence_ops.scoring.stored_form import WHOLE, StoredForm
from beam_influence.influence_ops.scoring.turned import TurnedBlocks
from beam_influence.influence_ops.scoring.ways import Cost

Normalize = Literal["none", "theta", "loss"]
Removal = Literal["first_order", "newton"]


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """Which quantities are computed.

    Attributes:
      normalize: RelatIF (Barshan, Brunet & Dziugaite 2020, 2003.11630): `theta` divides by ‖v_i‖
        (equation 9), `loss` by √I(z_i, z_i) (equation 12), v_i the influence vector. A zero gradient
        has influence 0.
      removal: `first_order`, or `newton`: the curvature without the example and the mean over n − 1.
      self_influence, vectors: whether I(z_i, z_i) and v_i are given.
      gradients: whether ∇ℓ(z_i) are given, for the sums over groups.
      tolerance: the largest relative error of a low-rank query; see `contraction`.
      errors: whether the standard error of each score is given, from what query blocks have of it.
    """

    normalize: Normalize = "none"
    removal: Removal = "first_order"
    self_influence: bool = False
    vectors: bool = False
    gradients: bool = False
    tolerance: float = TOLERANCE
    errors: bool = False

    def __post_init__(self) -> None:
        if self.normalize not in ("none", "theta", "loss"):
            raise ValueError(f"normalize={self.normalize!r} must be 'none', 'theta' or 'loss'")
        if self.removal not in ("first_order", "newton"):
            raise ValueError(f"removal={self.removal!r} must be 'first_order' or 'newton'")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"score_tolerance={self.tolerance!r} must be at least 0 and below 1")
        if self.removal == "newton" and self.normalize != "none":
            raise ValueError("removal='newton' predicts the change of the loss and can't be normalised; use normalize='none'")


@dataclasses.dataclass(frozen=True)
class BatchScores:
    """The influence of B training examples, those of a batch that could be evaluated.

    Attributes:
      ids: (B,) array of str.
      scores: one [T, B] float64 for each query block.
      plain_scores: the same, never normalised.
      groups: optional (B,) array of str.
      self_influence: [B], or None.
      vectors: influence vectors v_i [B, P] (normalised with `normalize`), or None.
      gradients: ∇ℓ(z_i) [B, P] float64, or None.
      rejected: the examples whose loss or gradient is not finite.
      errors: the standard error of each score, as `scores`, or None.
    """

    ids: np.ndarray
    scores: Sequence[np.ndarray]
    plain_scores: Sequence[np.ndarray]
    groups: np.ndarray | None = None
    self_influence: np.ndarray | None = None
    vectors: np.ndarray | None = None
    gradients: np.ndarray | None = None
    rejected: list[Rejected] = dataclasses.field(default_factory=list)
    errors: list[np.ndarray] | None = None

    @property
    def unfetched(self) -> Sequence[np.ndarray | tf.Tensor]:
        """The scores, on the device where they are there still."""
        return self.scores.on_device if isinstance(self.scores, ScoreBlocks) else self.scores


def embed_queries(
    model: ExplainedModel,
    preconditioner: Preconditioner,
    batch: ExampleBatch,
    needs: Collection[QueryArray] = QUERY_ARRAYS,
    form: StoredForm = WHOLE,
) -> tuple[QueryBlock, list[Rejected]]:
    """The batch's test examples as a query block, solved once; of its arrays, those that are needed, solutions in their form."""
    kept, _, gradients, rejected = evaluate(model, batch)
    raw = solved = nothing = np.zeros((len(kept), 0))  # no view, which would keep what it is of
    factored = form.of_gradients(gradients, preconditioner) if "solved" in needs and form.is_factored else None
    is_whole, by_block = "solved" in needs and factored is None, preconditioner.solves_blocks and gradients.offset is None
    if "gradients" in needs or (is_whole and not by_block):
        raw = np.asarray(gradients, dtype=np.float64)
    if is_whole:
        solved = form.whole_by_blocks(gradients, preconditioner) if by_block else preconditioner.apply(raw).astype(form.dtype, copy=False)
    placed = model.placed_gradients(kept) if "placed" in needs and len(kept) else None
    errors = preconditioner.error_vectors(gradients) if "errors" in needs else None
    return QueryBlock(kept.ids, raw if "gradients" in needs else nothing, solved, kept.groups, factored, placed, errors), rejected


class Scorer:
    """Scores batches of training examples against query blocks that stay on the device.

    Args:
      model, preconditioner: of the training examples.
      queries: solved; gone through when the first batch is scored, each block let go before the next is asked for.
      options: which quantities are computed.
    """

    def __init__(
        self,
        model: ExplainedModel,
        preconditioner: Preconditioner,
        queries: Iterable[QueryBlock],
        options: ScoreOptions,
    ):
        self._model = model
        self._preconditioner = preconditioner = preconditioner.bind(model)
        self._options = options
        self._needs_vectors = options.normalize == "theta" or options.vectors
        self._needs_self = options.normalize == "loss" or options.self_influence
        self._queries = queries
        self._solved: list[np.ndarray] | None = None
        self._contractions: list[Contraction] | None = None
        self._errors: list[np.ndarray] = []
        self._choosing = threading.Lock()
        if bool(preconditioner.meta.get("leave_one_out")) != (options.removal == "newton"):
            raise ValueError(
                f"removal={options.removal!r} needs a curvature that was fitted for it: exact or gauss_newton, "
                "fitted with the same --removal"
            )
        if (self._needs_vectors or options.normalize != "none") and not preconditioner.is_symmetric:
            raise ValueError(f"a {preconditioner.meta['curvature']} curvature gives no influence vectors; leave --normalize and them out")

    def score(self, batch: ExampleBatch) -> BatchScores:
        """Influence of each example of `batch` on each query."""
        options = self._options
        batch, _, gradients, rejected = evaluate(self._model, batch)
        if options.removal == "newton":
            return self._score_newton(batch, gradients, rejected)
        operator = self._preconditioner
        turned = TurnedBlocks(gradients, operator) if isinstance(operator, KroneckerPreconditioner) else None
        plain = ScoreBlocks([contraction.on_device(gradients, turned) for contraction in self.contractions(gradients)])
        raw = np.asarray(gradients, dtype=np.float64) if self._needs_vectors or options.gradients else None
        vectors = self._preconditioner.apply(raw) if self._needs_vectors and raw is not None else None
        self_influence = None
        if self._needs_self:
            products = raw * vectors if raw is not None and vectors is not None else None
            self_influence = self._preconditioner.self_influence(gradients) if products is None else products.sum(axis=1)
        factor = relative_factor(options.normalize, len(batch), vectors, self_influence)
        scores = plain if options.normalize == "none" else ScoreBlocks([block * factor for block in plain.on_device])
        return BatchScores(
            batch.ids,
            scores,
            plain,
            batch.groups,
            self_influence * factor if options.self_influence and self_influence is not None else None,
            vectors * factor[:, None] if options.vectors and vectors is not None else None,
            raw if options.gradients else None,
            rejected,
            self._standard_errors(gradients) if options.errors else None,
        )

    def _standard_errors(self, gradients: Gradients) -> list[np.ndarray]:
        """[T, B] of each query block: the length of the inner products with all that is not known of a solution."""
        features = self._preconditioner.error_features(gradients)
        found = []
        for errors in self._errors:
            squares = np.zeros((len(errors), len(features)))
            for number in range(errors.shape[1]):  # one after the other: [T, e, B] would be several times the memory
                squares += np.square(errors[:, number] @ features.T)
            found.append(np.sqrt(squares))
        return found

    @property
    def costs(self) -> list[Cost]:
        """How each block of gradients is multiplied with each block of queries; empty before the first batch."""
        return [cost for contraction in self._contractions or [] for cost in contraction.costs]

    def contractions(self, gradients: Gradients) -> list[Contraction]:
        """What multiplies gradients with each block of queries; made for a first batch."""
        with self._choosing:
            if self._contractions is None:
                self._contractions = [self._chosen(block, gradients) for block in self._queries]
            return self._contractions

    def _chosen(self, block: QueryBlock, gradients: Gradients) -> Contraction:
        options, solved = self._options, block.solved if block.factored is None else block.factored
        contraction = Contraction(gradients.layout, solved, self._model.query_dtype, self._preconditioner.examples, options.tolerance)
        contraction.choose(gradients)
        if options.errors:
            if block.errors is None:
                raise ValueError("standard errors are asked for, and the test points have none; embed them with errors")
            self._errors.append(block.errors)
        return contraction

    def _score_newton(self, batch: ExampleBatch, gradients: Gradients, rejected: list[Rejected]) -> BatchScores:
        """n × the change of the loss at each query by a Newton step of the removal itself.

        Without example i the objective is mean_{j≠i} ℓ_j + R over n − 1 examples. At a stationary point its
        gradient is −(g_i + ∇R)/(n − 1), and its Hessian B − F_iᵀF_i/(n − 1) with B = n/(n − 1)·H_data + ∇²R + λI,
        which the preconditioner holds. The Woodbury identity gives the inverse: C extra solves per example.
        """
        n = self._preconditioner.examples
        factors = np.asarray(self._model.gauss_newton_factors(batch), dtype=np.float64)
        count, outputs, size = factors.shape
        right = np.asarray(gradients, dtype=np.float64)
        if self._model.regularizer == "curvature":  # else it is in every example's gradient already
            right = right + self._model.regularizer_gradient()
        solved_factors = self._preconditioner.apply(factors.reshape(-1, size)).reshape(factors.shape)
        inner = (n - 1) * np.eye(outputs) - np.einsum("bcp,bdp->bcd", factors, solved_factors)
        leverage = np.linalg.eigvalsh(inner)[:, 0]
        fine = leverage > 1e-9 * (n - 1)
        for row in np.flatnonzero(~fine):
            message = "without it the curvature is singular; use a larger --damping"
            rejected.append(batch.reject(int(row), "leverage", message))
        keep = np.flatnonzero(fine)
        batch, right, solved_factors = batch.select(keep), right[keep], solved_factors[keep]
        correction = np.linalg.solve(inner[keep], np.einsum("bcp,bp->bc", solved_factors, right)[:, :, None])[:, :, 0]
        moved = right + np.einsum("bcp,bc->bp", factors[keep], correction)  # B × the step × (n − 1)
        if self._solved is None:
            self._solved = [block.solved for block in self._queries]
        scores = [n / (n - 1) * (solved @ moved.T) for solved in self._solved]
        vectors = n / (n - 1) * self._preconditioner.apply(moved)
        raw = np.asarray(gradients, dtype=np.float64)[keep]
        return BatchScores(
            batch.ids,
            scores,
            scores,
            batch.groups,
            np.einsum("bp,bp->b", raw, vectors) if self._options.self_influence else None,
            vectors if self._options.vectors else None,
            raw if self._options.gradients else None,
            rejected,
        )


def relative_factor(
    normalize: Normalize, count: int, vectors: np.ndarray | None = None, self_influence: np.ndarray | None = None
) -> np.ndarray:
    """What each row's influence is multiplied by: 1, 1/‖v‖ (theta) or 1/√I(z, z) (loss); 0 for a zero gradient.

    Args:
      count: B.
      vectors: v [B, P], for `theta`.
      self_influence: I(z, z) [B], for `loss`.
    """
    if normalize == "theta" and vectors is not None:
        norms = np.linalg.norm(vectors, axis=1)
    elif normalize == "loss" and self_influence is not None:
        norms = np.sqrt(np.maximum(self_influence, 0))
    else:
        return np.ones(count)
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
