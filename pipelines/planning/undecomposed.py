"""Curvatures with a P × P matrix of which a sample makes everything but the decomposition, whose time is known from P alone.

The operator has the arrays that the real one has, so that it takes as long to save, to open and to multiply with; its numbers mean nothing.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from beam_influence.influence_ops.curvature.base import COUNT, FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.cholesky import CholeskyPreconditioner
from beam_influence.influence_ops.curvature.dense import DenseCurvature, DensePreconditioner, finds_spectrum
from beam_influence.influence_ops.curvature.exact import Exact
from beam_influence.influence_ops.curvature.gauss_newton import GaussNewton
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.pipelines.config import InfluenceConfig
from beam_influence.pipelines.planning.stage_costs import Seconds

_DEAR_CHOLESKY, _DEAR_SPECTRUM = 4096, 2048  # weights from which the decomposition takes seconds
# Products P³ of n × n matrices, each 2 n³ operations, that take as long: two factors of P³/3, and LAPACK's syevd, about 10 P³, part of it
# slower than a product.
_CHOLESKY, _SPECTRUM = 0.45, 2.5
_TIMED = 1536


class _Undecomposed(DenseCurvature):
    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        examples = max(int(statistic[COUNT][0]), 1)
        matrix = self.assemble(model, statistic, examples)
        matrix[np.diag_indices(model.size)] += np.abs(matrix).sum(1) + 1.0  # so that triangles of it can be solved with
        meta = {
            "curvature": self.name,
            "damping": 1.0 if isinstance(options.damping, str) else float(options.damping),
            "examples": examples,
            "size": model.size,
            "fingerprint": model.fingerprint(),
            "rank": model.size,
        }
        if finds_spectrum(options, model.size):
            ones = np.ones(model.size)
            return DensePreconditioner({"vectors": matrix, "eigenvalues": ones, "kept": ones}, meta)
        return CholeskyPreconditioner({"factor": matrix}, meta)


class UndecomposedGaussNewton(_Undecomposed, GaussNewton):
    """`gauss_newton` without its decomposition."""


class UndecomposedExact(_Undecomposed, Exact):
    """`exact` without its decomposition: of a sample, it may be indefinite where that of all data is not."""


def without_decomposition(config: InfluenceConfig, size: int) -> InfluenceConfig:
    """The options, with a curvature that is not decomposed where that would take long, or may fail on a sample alone."""
    options, kind = config.finish_options(), config.curvature_kind
    stand_in = {GaussNewton: UndecomposedGaussNewton, Exact: UndecomposedExact}.get(kind)
    dear = _DEAR_SPECTRUM if finds_spectrum(options, size) else _DEAR_CHOLESKY
    can_fail = kind is Exact and options.damping != 0
    if stand_in is None or config.removal == "newton" or config.n_samples is not None or not (can_fail or size >= dear):
        return config
    return dataclasses.replace(config, curvature=f"{stand_in.__module__}:{stand_in.__name__}")


def decomposition_seconds(options: FinishOptions, size: int) -> Seconds:
    """How long the decomposition takes this machine, by the time of one product of matrices."""
    matrix = np.random.default_rng(0).standard_normal((_TIMED, _TIMED))
    np.dot(matrix, matrix)  # starts the library's threads
    began = Seconds(time.monotonic(), time.process_time())
    np.dot(matrix, matrix)
    spent = Seconds(time.monotonic(), time.process_time()) - began
    return spent * ((_SPECTRUM if finds_spectrum(options, size) else _CHOLESKY) * (size / _TIMED) ** 3)
