"""`random_projection`: the curvature of gradients projected to k numbers; for the index of a huge training set."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from beam_influence.influence_ops.blas_threads import eigh
from beam_influence.influence_ops.curvature.base import COUNT, Curvature, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.deleted_rows import BLOCKS, DeletedRows
from beam_influence.influence_ops.curvature.dense import upper_blocks
from beam_influence.influence_ops.curvature.kfac import add_to
from beam_influence.influence_ops.curvature.projections import Projection, make_projection
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.fisher import fisher_blocks
from beam_influence.influence_ops.model.gradients import Block, Gradients, Layout
from beam_influence.influence_ops.model.gradients.blocks import scaled
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.settings import ProjectionSettings

_AUTO_FRACTION = 0.1
_EXACT = "a projection to as many numbers as there are weights, or more, is none and has no error"
_MEND = "leave uncertainty out, or use a smaller --projection_dim"


@dataclasses.dataclass(frozen=True)
class ProjectedPreconditioner(Preconditioner):
    """Sᵀ (K + λI)⁻¹ S, K = V diag(s) Vᵀ; with λ = 0 a pseudo-inverse.

    Attributes:
      arrays: `eigenvectors` V [k, k], `eigenvalues` s [k].
      meta: S follows from its `projection`.
      layout: of the bound model.
    """

    layout: Layout | None = None
    kind: ClassVar[str] = "projected"

    def bind(self, model: ExplainedModel) -> Preconditioner:
        self.check(model)
        return dataclasses.replace(self, layout=model.layout())

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        vectors = self.arrays["eigenvectors"]
        along = self._projection.apply(np.asarray(gradients, dtype=np.float64)) @ vectors
        return self._projection.transpose((along * self._inverses()) @ vectors.T)

    def embed(self, gradients: np.ndarray | Gradients) -> np.ndarray:
        """(s + λ)^-½ Vᵀ S g: inner products are exactly the influence that `apply` gives."""
        if isinstance(gradients, Gradients):
            projected = self._projection.of_gradients(gradients)
        else:
            projected = self._projection.apply(np.asarray(gradients, dtype=np.float64))
        return projected @ self.arrays["eigenvectors"] * np.sqrt(self._inverses())

    def with_damping(self, damping: float) -> Preconditioner:
        return self._redamped(damping)

    def error_vectors(self, gradients: Gradients) -> np.ndarray:
        return self._deleted_rows.error_vectors(self._projection.of_gradients(gradients))

    def error_features(self, gradients: Gradients) -> np.ndarray:
        return self._projection.of_gradients(gradients)

    @functools.cached_property
    def _deleted_rows(self) -> DeletedRows:
        if self._projection.exact:
            raise ValueError(f"{_EXACT}, and {self._projection.size} weights are watched: {_MEND}")
        meta = self.meta
        if not meta.get("even_penalty", False):
            raise ValueError(
                "the weights have different regularisers, which a projection takes as one: how far that is off is not known from one run; "
                "leave --uncertainty out"
            )
        penalty, damping, seed = float(meta["penalty"]), float(meta["damping"]), int(meta["projection"]["seed"])
        return DeletedRows(self.arrays["eigenvectors"], self.arrays["eigenvalues"], penalty, damping, seed)

    def _inverses(self) -> np.ndarray:
        damped = np.maximum(self.arrays["eigenvalues"], 0) + float(self.meta["damping"])
        kept = damped > float(self.meta["rcond"]) * damped[-1]
        return np.where(kept, 1 / np.where(kept, damped, 1.0), 0.0)

    @functools.cached_property
    def _projection(self) -> Projection:
        if self.layout is None:
            raise ValueError("a projected curvature needs the model's layout; call bind(model) first")
        described = self.meta["projection"]
        return make_projection(described["kind"], self.layout, described["dim"], described["seed"])


class RandomProjection(Curvature):
    """K = 1/n Σ S G_i Sᵀ + r I, in k dimensions (Park et al. 2023, 2303.14186, section 3; Choe et al. 2024, 2405.13954).

    G_i is the example's Gauss–Newton matrix or the outer product of its gradient, r the mean second derivative of the
    regulariser. Where nothing is projected, K is the P × P matrix itself, with the regulariser's Hessian as it is.
    """

    name: ClassVar[str] = "random_projection"
    passes = 1
    Settings = ProjectionSettings
    operators = (ProjectedPreconditioner,)
    has_embedding = True
    error_draws = BLOCKS
    settings: ProjectionSettings

    def __init__(self, settings: ProjectionSettings | None = None):
        super().__init__(settings)
        self._made: tuple[Layout, Projection] | None = None

    def projection(self, model: ExplainedModel, batch: ExampleBatch | None = None) -> Projection:
        """S; a model without declared inputs needs a batch for it, the first time."""
        layout = model.layout(None if batch is None else batch.inputs)
        if self._made is None or self._made[0] != layout:
            self._made = layout, make_projection(self.settings.projection, layout, self.settings.projection_dim, self.settings.seed)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def refuse_errors(self, passes: int) -> None:
        settings = self.settings
        if settings.projection != "hadamard":
            raise ValueError(
                f"the rows of --projection {settings.projection} are not independent, so that its error is not known; use hadamard"
            )
        if settings.fisher in ("true", "signed"):
            raise ValueError(
                f"--fisher {settings.fisher} draws labels, which changes scores too; the projection's error alone is known: use expected "
                "or empirical"
            )
        if settings.projection_dim < BLOCKS:
            raise ValueError(f"the error of --projection_dim {settings.projection_dim} can't be told; use {BLOCKS} or more")

    def error_numbers(self, size: int) -> int:
        if self.settings.projection_dim >= size:
            raise ValueError(f"--projection_dim {self.settings.projection_dim}: {_EXACT}, and {size} are watched; {_MEND}")
        return (BLOCKS + 1) * self.settings.projection_dim

    def create(self, model: ExplainedModel) -> Statistic:
        return {COUNT: np.zeros(1, dtype=np.int64)}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        projection, layout = self.projection(model, batch), model.layout()
        roots = None if batch.weights is None else tf.sqrt(model.curvature_weights(batch))
        of_batch: Statistic = {}
        for blocks in _by_part(model, fisher_blocks(model, batch, self.settings.fisher, self.settings.seed)):
            projected = projection.of_gradients(Gradients(layout, blocks if roots is None else scaled(blocks, roots)))
            for name, rows, columns in upper_blocks(projection.dim):
                add_to(of_batch, name, projected[:, rows].T @ projected[:, columns])
        for name, total in of_batch.items():
            add_to(statistic, name, total)
        statistic[COUNT] += len(batch)
        return statistic

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        if options.leave_one_out:
            raise ValueError(f"removal='newton' needs the whole matrix; use curvature gauss_newton or exact, not {self.name}")
        examples = int(statistic[COUNT][0])
        if examples == 0:
            raise ValueError("no training example is left to make a curvature from")
        projection = self.projection(model)
        matrix = np.empty((projection.dim, projection.dim))
        for name, rows, columns in upper_blocks(projection.dim):
            matrix[rows, columns] = statistic[name]
            matrix[columns, rows] = statistic[name].T
        matrix = (matrix + matrix.T) * (0.5 / examples)
        signs = np.random.default_rng(self.settings.seed).choice([-1.0, 1.0], size=(1, model.size))
        products = model.regularizer_products(signs)
        penalty = float(np.sum(signs * products)) / model.size  # exact where its Hessian is diagonal
        mean = float(np.trace(matrix)) / model.size + penalty
        if projection.exact:
            model.add_regularizer_hessian(matrix)
        else:
            matrix[np.diag_indices_from(matrix)] += penalty
        damping = _AUTO_FRACTION * max(mean, 0.0) if isinstance(options.damping, str) else float(options.damping)
        eigenvalues, eigenvectors = eigh(matrix)
        if eigenvalues[-1] + damping <= 0:
            raise ValueError(f"the {self.name} curvature has no positive eigenvalue; use a --damping above 0")
        return ProjectedPreconditioner(
            {"eigenvectors": eigenvectors, "eigenvalues": eigenvalues},
            {
                "curvature": self.name,
                "fisher": self.settings.fisher,
                "damping": damping,
                "damping_rule": options.damping if isinstance(options.damping, str) else "fixed",
                "leave_one_out": False,
                "examples": examples,
                "size": model.size,
                "fingerprint": model.fingerprint(),
                "rcond": options.rcond if options.rcond is not None else model.size * float(np.finfo(model.dtype).eps),
                "projection": {"kind": self.settings.projection, "dim": self.settings.projection_dim, "seed": self.settings.seed},
                "penalty": 0.0 if projection.exact else penalty,
                "even_penalty": bool(np.allclose(products, penalty * signs, rtol=1e-6, atol=0)),
                "rank": projection.dim,
                "smallest_eigenvalue": float(eigenvalues[0]),
                "largest_eigenvalue": float(eigenvalues[-1]),
            },
        )


def _by_part(model: ExplainedModel, draws: Iterator[tuple[Block, ...]]) -> Iterator[tuple[Block, ...]]:
    """The draws of each part of the model by itself, with zeros in place of the others': H is block diagonal."""
    ends = np.cumsum([len(part.layout().blocks) for part in model.parts])
    for blocks in draws:
        for end, part in zip(ends, model.parts, strict=True):
            own = range(end - len(part.layout().blocks), end)
            yield tuple(
                block if number in own else block._make((*block[:-1], tf.zeros_like(block[-1]))) for number, block in enumerate(blocks)
            )
