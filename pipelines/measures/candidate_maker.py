"""The curvatures and λ that `evaluate choose` judges, each fitted on the whole training set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from beam_influence.influence_ops.calculator.passes import DEFAULT_PASSES, DEFAULT_TOLERANCE, SolvedByPasses
from beam_influence.influence_ops.curvature import FinishOptions, Preconditioner, curvature_by_name, fit
from beam_influence.influence_ops.evaluation.candidates import Candidate
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.pipelines.scored_data import ScoredData

WHOLE = 4096
"""Weights, at most, of a matrix whose eigenvalues are found."""
_GRID = tuple(10.0 ** (step / 2) for step in range(-4, 7))  # times the λ of a curvature's own rule
_GRID_OF_PASSES = (1.0, 0.1, 10.0, 100.0)  # the same where each λ takes passes over the training set


@dataclasses.dataclass(frozen=True)
class CandidateMaker:
    """Makes the candidates.

    Attributes:
      data: the model and the training set.
      sums: Σ ∇ℓ over what each retraining kept, [S, P].
      queries: ∇ℓ of the test points, [T, P].
    """

    data: ScoredData
    sums: np.ndarray
    queries: np.ndarray

    def all(self) -> tuple[list[Candidate], dict[str, str]]:
        """Those of a cheaper curvature first; and why `exact` is not among them, where it can't be."""
        found = [one for name in ("identity", "kfac", "ekfac") for one in self._with_grid(name)]
        if self.data.model.size > WHOLE:
            return [*found, *self._solved()], {}
        found += self._with_grid("gauss_newton")
        own = next(one.damping for one in found if one.curvature == "gauss_newton" and one.is_auto)
        try:
            return [*found, *self._exact(own)], {}
        except ValueError as error:
            return found, {"exact was not judged": str(error)}

    def _with_grid(self, name: str) -> Iterator[Candidate]:
        """A curvature with its own λ and others around it."""
        operator = self._fitted(name)
        yield self._candidate(operator, True)
        for factor in () if name == "identity" else _GRID:
            yield self._candidate(operator.with_damping(factor * float(operator.meta["damping"])))

    def _exact(self, own: float) -> list[Candidate]:
        """The Hessian with the λ of the grid around `own`, from the largest down to where it is no longer positive definite.

        Raises:
          ValueError: no such λ, or the model has no second derivatives.
        """
        operator = self._fitted("exact", own * _GRID[-1])
        found = [self._candidate(operator)]
        for factor in reversed(_GRID[:-1]):
            try:
                found.append(self._candidate(operator.with_damping(own * factor)))
            except ValueError:  # an eigenvalue below −λ
                break
        return found

    def _solved(self) -> Iterator[Candidate]:
        """The Gauss–Newton matrix of more weights: solved, for each λ, in passes over the training set."""
        operator = self._fitted("gauss_newton_cg")
        for factor in _GRID_OF_PASSES:
            damped = operator if factor == 1 else operator.with_damping(factor * float(operator.meta["damping"]))
            solved = SolvedByPasses.over(damped, self.data.model, self._examples, DEFAULT_PASSES, DEFAULT_TOLERANCE)
            yield self._candidate(solved, factor == 1)

    def _examples(self) -> Iterator[ExampleBatch]:
        """The training set without what has no finite gradient."""
        return (evaluate(self.data.model, batch)[0] for batch in self.data.batches("train"))

    def _fitted(self, name: str, damping: float | str = "auto") -> Preconditioner:
        options = FinishOptions(damping, spectrum=name in ("gauss_newton", "exact"))
        return fit(self.data.model, curvature_by_name(name), self._examples, options).bind(self.data.model)

    def _candidate(self, operator: Preconditioner, is_auto: bool = False) -> Candidate:
        meta = operator.meta
        return Candidate(str(meta["curvature"]), float(meta["damping"]), is_auto, self.sums @ operator.apply(self.queries).T)
