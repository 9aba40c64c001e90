"""`random_projection`: the curvature of gradients projected to k numbers; for the index of a huge training set."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import numpy as np

from influence_ops.curvature.base import COUNT, Curvature, FinishOptions, Preconditioner, Statistic, register_preconditioner
from influence_ops.curvature.dense import upper_blocks
from influence_ops.example_batch import ExampleBatch
from influence_ops.model import InfluenceModel
from influence_ops.projections import Projection, ProjectionKind, make_projection

Fisher = Literal["expected", "empirical"]

DEFAULT_DIM = 512
MAX_DIM = 16_384  # 2 GB for the matrix, as much again for its eigenvectors
_AUTO_FRACTION = 0.1
_FACTOR_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class ProjectionOptions:
    """How gradients are projected, and what is summed.

    Attributes:
      dim: k, the numbers that are left of each gradient; from P on, nothing is projected.
      kind: see `make_projection`.
      fisher: `expected`: the Gauss–Newton matrix, which for a softmax is the Fisher matrix over all labels by the model's own
        prediction, at the cost of one projected gradient for each output; `empirical`: Σ g gᵀ of the examples' own gradients, as TRAK.
      seed: of the projection.
    """

    dim: int = DEFAULT_DIM
    kind: ProjectionKind = "hadamard"
    fisher: Fisher = "expected"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= MAX_DIM:
            raise ValueError(f"projection_dim={self.dim} must be at least 1 and at most {MAX_DIM:,}")
        if self.kind not in ("hadamard", "two_sided"):
            raise ValueError(f"projection={self.kind!r} must be 'hadamard' or 'two_sided'")
        if self.fisher not in ("expected", "empirical"):
            raise ValueError(f"fisher={self.fisher!r} must be 'expected' or 'empirical'")


@register_preconditioner
class ProjectedPreconditioner(Preconditioner):
    """Sᵀ (K + λI)⁻¹ S, K = V diag(s) Vᵀ; with λ = 0 a pseudo-inverse.

    Arrays: `eigenvectors` V [k, k], `eigenvalues` s [k]. S follows from `meta["projection"]`.
    """

    kind: ClassVar[str] = "projected"

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        vectors = self.arrays["eigenvectors"]
        along = self._projection.apply(np.asarray(gradients, dtype=np.float64)) @ vectors
        return self._projection.transpose((along * self._inverses()) @ vectors.T)

    def embed(self, gradients: np.ndarray) -> np.ndarray:
        """(s + λ)^-½ Vᵀ S g: inner products are exactly the influence that `apply` gives."""
        along = self._projection.apply(np.asarray(gradients, dtype=np.float64)) @ self.arrays["eigenvectors"]
        return along * np.sqrt(self._inverses())

    def with_damping(self, damping: float) -> Preconditioner:
        if not np.isfinite(damping) or damping <= 0:
            raise ValueError(f"damping={damping!r} must be a number above 0")
        return dataclasses.replace(self, meta={**self.meta, "damping": float(damping), "damping_rule": "fixed"})

    def _inverses(self) -> np.ndarray:
        damped = np.maximum(self.arrays["eigenvalues"], 0) + float(self.meta["damping"])
        kept = damped > float(self.meta["rcond"]) * damped[-1]
        return np.where(kept, 1 / np.where(kept, damped, 1.0), 0.0)

    @functools.cached_property
    def _projection(self) -> Projection:
        described = self.meta["projection"]
        return make_projection(described["kind"], described["shapes"], described["dim"], described["seed"])


class RandomProjection(Curvature):
    """K = 1/n Σ S G_i Sᵀ + r I, in k dimensions (Park et al. 2023, 2303.14186, section 3; Choe et al. 2024, 2405.13954).

    G_i is the example's Gauss–Newton matrix or the outer product of its gradient, r the mean second derivative of the
    regulariser. Where nothing is projected, K is the P × P matrix itself, with the regulariser's Hessian as it is.
    """

    name: ClassVar[str] = "random_projection"
    passes = 1

    def __init__(self, options: ProjectionOptions | None = None):
        self.options = options or ProjectionOptions()
        self._made: tuple[tuple[tuple[int, ...], ...], Projection] | None = None

    def projection(self, model: InfluenceModel) -> Projection:
        """S."""
        shapes = _shapes(model)
        if self._made is None or self._made[0] != shapes:
            self._made = shapes, make_projection(self.options.kind, shapes, self.options.dim, self.options.seed)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def create(self, model: InfluenceModel) -> Statistic:
        parts = {
            name: np.zeros((rows.stop - rows.start, columns.stop - columns.start))
            for name, rows, columns in upper_blocks(self.projection(model).dim)
        }
        return {COUNT: np.zeros(1, dtype=np.int64), **parts}

    def add(self, model: InfluenceModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        projection = self.projection(model)
        start, step = 0, len(batch) if self.options.fisher == "empirical" else 1
        while start < len(batch):
            part = batch.select(np.arange(start, min(start + step, len(batch))))
            start += step
            if self.options.fisher == "empirical":
                factors = np.asarray(model.losses_and_gradients(part)[1], dtype=np.float64)
            else:
                factors = np.asarray(model.gauss_newton_factors(part), dtype=np.float64)
                step = max(1, _FACTOR_BYTES // factors[0].nbytes)  # the first call has told how many outputs there are
                factors = factors.reshape(-1, model.size)
            projected = projection.apply(factors)
            for name, rows, columns in upper_blocks(projection.dim):
                statistic[name] += projected[:, rows].T @ projected[:, columns]
        statistic[COUNT] += len(batch)
        return statistic

    def finish(self, model: InfluenceModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
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
        signs = np.random.default_rng(self.options.seed).choice([-1.0, 1.0], size=(1, model.size))
        penalty = float(np.sum(signs * model.regularizer_products(signs))) / model.size  # exact where its Hessian is diagonal
        mean = float(np.trace(matrix)) / model.size + penalty
        if projection.exact:
            model.add_regularizer_hessian(matrix)
        else:
            matrix[np.diag_indices_from(matrix)] += penalty
        damping = _AUTO_FRACTION * max(mean, 0.0) if isinstance(options.damping, str) else float(options.damping)
        eigenvalues, eigenvectors = np.linalg.eigh(matrix)
        if eigenvalues[-1] + damping <= 0:
            raise ValueError(f"the {self.name} curvature has no positive eigenvalue; use a --damping above 0")
        return ProjectedPreconditioner(
            {"eigenvectors": eigenvectors, "eigenvalues": eigenvalues},
            {
                "curvature": self.name,
                "fisher": self.options.fisher,
                "damping": damping,
                "damping_rule": options.damping if isinstance(options.damping, str) else "fixed",
                "leave_one_out": False,
                "examples": examples,
                "size": model.size,
                "fingerprint": model.fingerprint(),
                "rcond": options.rcond if options.rcond is not None else model.size * float(np.finfo(np.float64).eps),
                "projection": {
                    "kind": self.options.kind,
                    "shapes": [list(shape) for shape in _shapes(model)],
                    "dim": self.options.dim,
                    "seed": self.options.seed,
                },
                "rank": projection.dim,
                "smallest_eigenvalue": float(eigenvalues[0]),
                "largest_eigenvalue": float(eigenvalues[-1]),
            },
        )


def _shapes(model: InfluenceModel) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(side) for side in variable.shape) for variable in model.variables)
