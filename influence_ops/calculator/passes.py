"""`gauss_newton_cg` and `source_gauss_newton_cg` over a data set at hand: conjugate gradients, each step a pass over the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.array_folder import FileStore
from beam_influence.influence_ops.scoring.query_solver import System, solutions, solve

DEFAULT_PASSES = 5  # as the Beam job; see benchmarks/README.md
DEFAULT_TOLERANCE = 1e-6  # the job's
_ROWS_AT_ONCE = 256  # right-hand sides solved together: bounds memory to a few [256, P] arrays


@dataclasses.dataclass(frozen=True)
class SolvedByPasses(Preconditioner):
    """(H + λI)⁻¹ with H the Gauss–Newton matrix over a whole data set, to at most `passes` steps.

    Attributes:
      fitted: EK-FAC, the preconditioner of the steps; with no pass, its answer.
      model, stream: the data: `stream` gives its batches from the start at each call.
      passes: the most steps.
      residuals: the relative residual of each vector that was solved last.
    """

    fitted: Preconditioner
    model: ExplainedModel
    stream: Callable[[], Iterable[ExampleBatch]]
    passes: int
    residuals: list[float] = dataclasses.field(default_factory=list)
    kind: ClassVar[str] = "solved_by_passes"
    system: ClassVar[System] = "gauss_newton"
    preconditioned_by: ClassVar[str] = "an 'ekfac'"

    @classmethod
    def over(
        cls, fitted: Preconditioner, model: ExplainedModel, stream: Callable[[], Iterable[ExampleBatch]], passes: int, tolerance: float
    ) -> SolvedByPasses:
        """The operator that `fitted` preconditions.

        Raises:
          ValueError: fewer than 0 passes.
        """
        if passes < 0:
            raise ValueError(f"passes={passes} must be at least 0")
        return cls({}, {**fitted.meta, "passes": passes, "tolerance": tolerance}, fitted, model, stream, passes)

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        gradients = np.asarray(gradients, dtype=np.float64)
        first = self.fitted.apply(gradients)
        if not self.passes:
            return first
        found = np.empty_like(gradients)
        self.residuals.clear()
        for start in range(0, len(gradients), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            right, tolerance = gradients[rows], float(self.meta["tolerance"])
            state = solve(self.system, self.model, self.fitted, self.stream, right, first[rows], self.passes, tolerance)
            found[rows], residuals, _ = solutions(state)
            self.residuals.extend(residuals.tolist())
        return found

    def save(self, folder: str, files: FileStore | None = None) -> None:
        raise ValueError(
            f"{self.meta['curvature']} solves over a data set, which can not be saved; save {self.preconditioned_by} curvature, its "
            "preconditioner"
        )


class UnrolledByPasses(SolvedByPasses):
    """The gradients of test points through the segments of a training run, each solved in at most `passes` steps; see `segment_solver`.

    Attributes:
      fitted: `source`'s operator, the preconditioner; with no pass, its answer.
      residuals: the largest of each vector's solves.
    """

    kind: ClassVar[str] = "unrolled_by_passes"
    is_symmetric: ClassVar[bool] = False
    system: ClassVar[System] = "segments"
    preconditioned_by: ClassVar[str] = "a 'source'"
