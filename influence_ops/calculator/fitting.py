"""From what a calculator is given for its curvature to the operator: a name, an object, a data set, or something saved."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Callable, Iterable

import tensorflow as tf

from beam_influence.influence_ops.calculator.passes import DEFAULT_PASSES, DEFAULT_TOLERANCE, SolvedByPasses, UnrolledByPasses
from beam_influence.influence_ops.curvature import Curvature, FinishOptions, Preconditioner, curvature_by_name, fit, load_preconditioner
from beam_influence.influence_ops.curvature.arnoldi import Arnoldi, StreamedArnoldi
from beam_influence.influence_ops.curvature.conjugate_gradient import ConjugateGradient, IterativePreconditioner
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

_ARNOLDI_PASSES = 8
_BY_PASSES = "'gauss_newton_cg' and 'source_gauss_newton_cg'"


class IHVPCalculator(enum.Enum):
    """The curvatures by the reference's enumeration; a name of `CURVATURES`, or an object, does as well."""

    Exact = "exact"
    Cgd = "cgd"
    Lissa = "lissa"


CurvatureSource = tf.data.Dataset | str | os.PathLike | Preconditioner
"""The training set that the curvature is made from, the folder of a saved curvature, or a fitted one."""

IHVP = str | IHVPCalculator | Curvature | Preconditioner


@dataclasses.dataclass(frozen=True)
class CurvatureChoice:
    """What is fitted, and how.

    Attributes:
      ihvp: see `IHVP`.
      n_samples, seed: how many training examples it is made from, and which; None: all of them.
      passes: with 'cgd' or 'lissa', the most iterations, with 'gauss_newton_cg' of its conjugate gradients (5 by default), each a
        pass over the data, with 'source_gauss_newton_cg' of those of each segment; with 'arnoldi' how many (8 by default).
      tolerance: relative residual at which 'cgd', 'lissa', 'gauss_newton_cg' and 'source_gauss_newton_cg' stop; None: the curvature's own.
      finish: damping, rank and cut.
    """

    ihvp: IHVP
    n_samples: int | None
    seed: int
    passes: int | None
    tolerance: float | None
    finish: FinishOptions


def fit_operator(
    model: ExplainedModel, source: CurvatureSource, choice: CurvatureChoice, stream: Callable[[], Iterable[ExampleBatch]] | None
) -> Preconditioner:
    """(H + λI)⁻¹, bound to the model.

    Args:
      stream: gives the source's batches from the start, where it is a data set that is used.

    Raises:
      ValueError: an option does not go with the curvature, or the curvature can't be made.
    """
    ihvp = choice.ihvp.value if isinstance(choice.ihvp, IHVPCalculator) else choice.ihvp
    saved = ihvp if isinstance(ihvp, Preconditioner) else source
    if isinstance(saved, (str, os.PathLike)):
        saved = load_preconditioner(os.fspath(saved))
    if isinstance(saved, Preconditioner):
        _check_fitted(saved, choice)
        return saved.bind(model)
    assert not isinstance(ihvp, Preconditioner) and stream is not None
    curvature = curvature_by_name(ihvp, choice.n_samples, choice.seed) if isinstance(ihvp, str) else ihvp
    return _fit(model, curvature, choice, stream)


def _fit(
    model: ExplainedModel, curvature: Curvature, choice: CurvatureChoice, stream: Callable[[], Iterable[ExampleBatch]]
) -> Preconditioner:
    passes, options, tolerance = choice.passes, choice.finish, choice.tolerance
    if tolerance is not None and (not 0 < tolerance < 1 or curvature.systems is None):
        raise ValueError(f"tolerance={tolerance!r} must be above 0 and below 1, and goes with 'cgd', 'lissa', {_BY_PASSES}")
    if curvature.systems in ("gauss_newton", "segments"):
        fitted = fit(model, curvature, stream, options).bind(model)
        solved = UnrolledByPasses if curvature.systems == "segments" else SolvedByPasses
        return solved.over(fitted, model, stream, DEFAULT_PASSES if passes is None else passes, tolerance or DEFAULT_TOLERANCE)
    if isinstance(curvature, Arnoldi) and choice.n_samples is None:
        own = curvature.settings
        passes = _ARNOLDI_PASSES if passes is None else passes
        streamed = StreamedArnoldi(dataclasses.replace(own, rank=options.rank or own.rank, passes=passes))
        return fit(model, streamed, stream, options).bind(model)
    if passes is not None:
        if not isinstance(curvature, ConjugateGradient) or passes < 1:
            raise ValueError(
                f"passes={passes} must be at least 1, and goes with 'cgd', 'lissa', {_BY_PASSES}, or 'arnoldi' over all data"
            )
    if isinstance(curvature, ConjugateGradient):
        own = curvature.settings
        most, tolerance = own.max_iterations if passes is None else passes, own.tolerance if tolerance is None else tolerance
        curvature = type(curvature)(dataclasses.replace(own, max_iterations=most, tolerance=tolerance))
        if choice.n_samples is None:
            return curvature.over(model, stream, options)
    return fit(model, curvature, stream, options).bind(model)


def _check_fitted(fitted: Preconditioner, choice: CurvatureChoice) -> None:
    """Refuses options that a curvature which is fitted already can't follow. (`n_samples` is the reference's users' habit.)"""
    given = {"passes": choice.passes, "tolerance": choice.tolerance, "rank": choice.finish.rank, "rcond": choice.finish.rcond}
    damping, found = choice.finish.damping, float(fitted.meta["damping"])
    if not isinstance(damping, str) and damping and not math.isclose(damping, found, rel_tol=1e-9):
        given["damping"] = damping
    wrong = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} can't change a curvature that is fitted already, with damping {found!r}; leave it out, or fit it again"
        )


def applies_by_passes(operator: Preconditioner) -> bool:
    """Whether each `apply` is passes over data, so that the fewer vectors should be solved: the test points."""
    return isinstance(operator, (SolvedByPasses, IterativePreconditioner))
