"""A P × P matrix summed in blocks over the data, and its inverse in float64: by its eigenvalues, or where these are not needed by a
Cholesky factor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np

from beam_influence.influence_ops.blas_threads import eigh
from beam_influence.influence_ops.curvature.base import COUNT, PENDING, Curvature, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.cholesky import AUTO_FRACTION, CholeskyPreconditioner, factorise_damped
from beam_influence.influence_ops.model.curvature_terms import CurvatureTerms
from beam_influence.influence_ops.model.evaluate import evaluate_with_terms
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.gradients import Gradients
from beam_influence.influence_ops.model.halving import Halving
from beam_influence.influence_ops.reading.example_batch import ExampleBatch, Rejected
from beam_influence.influence_ops.settings import Matrix

BLOCK = 2048  # 32 MB of float64: far below Beam's limit of 2 GB for one element
MAX_SIZE = 16_384  # 2 GB for the matrix or its factor; the eigendecomposition takes five times as much
SPECTRUM_SIZE = 1024  # up to here the eigenvalues, a second's work, are always found
_WORTH_A_SUM = 4096  # examples whose products take several times as long as the writing of P × P sums
_MOST_PENDING = 1 << 23  # numbers: 64 MB
_Examples = TypeVar("_Examples", ExampleBatch, CurvatureTerms)


class DensePreconditioner(Preconditioner):
    """V diag(1/(s + λ)) Vᵀ; with λ = 0 a pseudo-inverse.

    Arrays: `vectors` V [P, P], `eigenvalues` s [P] (clipped to the rank), and `kept` [P], 0 where a direction is dropped.
    """

    kind: ClassVar[str] = "dense"

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        vectors = self.arrays["vectors"]
        return ((np.asarray(gradients, dtype=np.float64) @ vectors) * self._inverses()) @ vectors.T

    def self_influence(self, gradients: Gradients) -> np.ndarray:
        return np.square(np.asarray(gradients, dtype=np.float64) @ self.arrays["vectors"]) @ self._inverses()

    def with_damping(self, damping: float) -> Preconditioner:
        redamped = self._redamped(damping)
        smallest = float(self.arrays["eigenvalues"].min())
        if damping + smallest <= 0:
            least = -1.001 * smallest
            raise ValueError(f"damping={damping!r} must be {least:.4g} or more: the curvature has an eigenvalue of {smallest:.3g}")
        return dataclasses.replace(redamped, arrays={**self.arrays, "kept": np.ones_like(self.arrays["kept"])})

    def _inverses(self) -> np.ndarray:
        kept = self.arrays["kept"] > 0
        return np.divide(1.0, self.arrays["eigenvalues"] + float(self.meta["damping"]), out=np.zeros(len(kept)), where=kept)


class DenseCurvature(Curvature):
    """The shared part of `exact` and `gauss_newton`: only the batch's matrix differs.

    Of a final Dense layer's weights the terms of a batch are kept until there are enough to be worth a sum of matrices: in a part
    `pending` of the statistic, until `complete`.
    """

    matrix: ClassVar[Matrix]
    passes = 1
    operators = (DensePreconditioner, CholeskyPreconditioner)
    allows_newton = True
    takes_rank = "always"

    def create(self, model: ExplainedModel) -> Statistic:
        if model.size > MAX_SIZE:
            raise ValueError(
                f"curvature {self.name!r} builds a {model.size:,} × {model.size:,} matrix, more than the "
                f"{MAX_SIZE:,} weights it can hold; watch fewer weights (--weights last) or use another curvature"
            )
        statistic = {
            name: np.zeros((rows.stop - rows.start, columns.stop - columns.start)) for name, rows, columns in upper_blocks(model.size)
        }
        return {COUNT: np.zeros(1, dtype=np.int64), **statistic}

    def add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> Statistic:
        terms = model.curvature_terms(batch, self.matrix)
        if terms is None:
            # One that is too large for the device is so before the first change.
            _add_sums(statistic, model.size, batch, lambda some, rows: self.batch_rows(model, some, rows), whole_first=True)
        else:
            self._add_terms(statistic, terms)
        statistic[COUNT] += len(batch)
        return statistic

    def evaluate_and_add(self, model: ExplainedModel, statistic: Statistic, batch: ExampleBatch) -> tuple[Statistic, list[Rejected]]:
        found = evaluate_with_terms(model, batch, self.matrix)
        if found is None:
            return super().evaluate_and_add(model, statistic, batch)
        kept, terms, rejected = found
        if len(kept):
            self._add_terms(statistic, terms)
        statistic[COUNT] += len(kept)
        return statistic, rejected

    def _add_terms(self, statistic: Statistic, terms: CurvatureTerms) -> None:
        pending = statistic.setdefault(PENDING, [])
        pending.append(terms)
        if sum(map(len, pending)) >= _WORTH_A_SUM or sum(each.numbers for each in pending) >= _MOST_PENDING:
            self.complete(statistic)

    def batch_rows(self, model: ExplainedModel, batch: ExampleBatch, rows: slice) -> np.ndarray:
        """Rows of the sum of the batch's curvatures, from the diagonal on: [R, P − rows.start] float64."""
        return model.hessian_sum(batch, rows) if self.matrix == "hessian" else model.gauss_newton_sum(batch, rows)

    def complete(self, statistic: Statistic) -> Statistic:
        if pending := statistic.pop(PENDING, []):
            terms = CurvatureTerms.joined(pending)
            _add_sums(statistic, terms.size, terms, CurvatureTerms.sum_rows, whole_first=False)
        return statistic

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        examples = int(statistic[COUNT][0])
        if examples == 0:
            raise ValueError("no training example is left to make a curvature from")
        if options.leave_one_out and examples < 2:
            raise ValueError("removal='newton' needs at least 2 training examples")
        matrix = self.assemble(model, self.complete(statistic), examples - 1 if options.leave_one_out else examples)
        rcond = options.rcond if options.rcond is not None else model.size * float(np.finfo(model.dtype).eps)
        facts = {
            "curvature": self.name,
            "damping_rule": options.damping if isinstance(options.damping, str) else "fixed",
            "leave_one_out": options.leave_one_out,
            "examples": examples,
            "size": model.size,
            "fingerprint": model.fingerprint(),
        }
        if not finds_spectrum(options, model.size):
            mean = float(matrix.trace()) / model.size
            damping = factorise_damped(matrix, options.damping, rcond)
            if damping is not None:
                known = {"damping": damping, "rank": model.size, "mean_eigenvalue": mean}
                return CholeskyPreconditioner({"factor": matrix}, {**facts, **known})
        eigenvalues, eigenvectors = eigh(matrix)
        del matrix
        return self._invert(eigenvalues, eigenvectors, options, rcond, facts)

    def assemble(self, model: ExplainedModel, statistic: Statistic, examples: int) -> np.ndarray:
        """H [P, P]: the blocks' mean over so many examples, and the regulariser's Hessian."""
        matrix = np.empty((model.size, model.size))
        for name, rows, columns in upper_blocks(model.size):
            matrix[rows, columns] = statistic[name]
            if rows == columns:
                matrix[rows, columns] += statistic[name].T  # rounding leaves a batch's sum not quite symmetric
            else:
                matrix[rows, columns] *= 2
                matrix[columns, rows] = matrix[rows, columns].T
        matrix *= 0.5 / examples
        model.add_regularizer_hessian(matrix)
        return matrix

    def _invert(
        self, eigenvalues: np.ndarray, eigenvectors: np.ndarray, options: FinishOptions, rcond: float, facts: dict[str, Any]
    ) -> Preconditioner:
        smallest, largest = float(eigenvalues[0]), float(np.abs(eigenvalues).max())
        if isinstance(options.damping, str):
            damping = AUTO_FRACTION * float(np.maximum(eigenvalues, 0).mean())
        else:
            damping = float(options.damping)
        if options.rank is not None and options.rank < len(eigenvalues):
            eigenvalues = np.maximum(eigenvalues, eigenvalues[-options.rank])
        kept = np.abs(eigenvalues + damping) > rcond * (largest + damping)
        damped = np.where(kept, eigenvalues + damping, 1.0)
        if damping > 0 and damped.min() <= 0:
            raise ValueError(
                f"the {self.name} curvature has eigenvalues down to {eigenvalues[0]:.3g}, below −damping = "
                f"{-damping:.3g}, so H + λI is not positive definite; use --damping {-1.001 * eigenvalues[0]:.4g} or more, "
                "or --curvature gauss_newton"
            )
        return DensePreconditioner(
            {"vectors": eigenvectors, "eigenvalues": eigenvalues, "kept": kept.astype(np.float64)},
            {
                **facts,
                "damping": damping,
                "rank": min(int(kept.sum()), options.rank or len(eigenvalues)),
                "smallest_eigenvalue": smallest,
                "largest_eigenvalue": float(eigenvalues[-1]),
            },
        )


def _add_sums(
    statistic: Statistic, size: int, examples: _Examples, sum_rows: Callable[[_Examples, slice], np.ndarray], whole_first: bool
) -> None:
    """Adds some examples to the blocks, in halves where a device can't hold all; `whole_first`: the first rows' not, which may fail."""
    halving = Halving()
    for start in range(0, size, BLOCK):
        rows = slice(start, min(start + BLOCK, size))

        def add_rows(some: _Examples, rows: slice = rows) -> list[Rejected]:
            total = sum_rows(some, rows)
            for name, _, columns in filter(lambda block: block[1] == rows, upper_blocks(size)):
                statistic[name] += total[:, columns.start - rows.start : columns.stop - rows.start]
            return []

        if whole_first and start == 0:
            add_rows(examples)
        else:
            halving.use(examples, add_rows)


def finds_spectrum(options: FinishOptions, size: int) -> bool:
    """Whether the operator is made of eigenvalues, rather than of a Cholesky factor where that can be had."""
    return options.spectrum or options.damping == 0 or options.rank is not None or size <= SPECTRUM_SIZE


def upper_blocks(size: int) -> Iterator[tuple[str, slice, slice]]:
    """The blocks on and above the diagonal, at most BLOCK × BLOCK each."""
    starts = range(0, size, BLOCK)
    for row in starts:
        for column in starts:
            if column >= row:
                yield (
                    f"block-{row}-{column}",
                    slice(row, min(row + BLOCK, size)),
                    slice(column, min(column + BLOCK, size)),
                )
