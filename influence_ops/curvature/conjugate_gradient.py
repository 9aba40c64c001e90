"""`conjugate_gradient` (the reference's 'cgd'): H⁻¹g by Hessian-vector products, with no P × P matrix."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

from beam_influence.influence_ops.curvature.base import FinishOptions, Preconditioner, Statistic
from beam_influence.influence_ops.curvature.conjugate_gradients import Products, conjugate_gradients
from beam_influence.influence_ops.curvature.sample import Sample, from_arrays, to_arrays
from beam_influence.influence_ops.curvature.sampled import SAMPLE, SampleCurvature, mean_hessian_products, with_examples
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch
from beam_influence.influence_ops.results.array_folder import FileStore
from beam_influence.influence_ops.settings import ConjugateGradientSettings, IterativeSettings

_BATCH = 256
_AUTO_FRACTION = 0.1
_PROBES = 32
_POWER_ITERATIONS = 30
_ROWS_AT_ONCE = 256  # right-hand sides solved together: bounds memory to a few [256, P] arrays

class NotConvergedWarning(UserWarning):
    """An iterative solver stopped at its cap; the message carries the residual."""


@dataclasses.dataclass(frozen=True)
class IterativePreconditioner(Preconditioner):
    """(H + λI)⁻¹ by an iterative solver, H the mean over a sample that it carries along, or over a stream.

    Attributes:
      arrays: the sample's; none with a stream.
      model: what multiplies with H; `bind` sets it.
      stream: gives the batches that H is the mean over, from the start, at each call; None: the sample.
    """

    model: ExplainedModel | None = None
    stream: Callable[[], Iterable[ExampleBatch]] | None = None
    kind: ClassVar[str] = "iterative"

    def bind(self, model: ExplainedModel) -> Preconditioner:
        self.check(model)
        return dataclasses.replace(self, model=model)

    def save(self, folder: str, files: FileStore | None = None) -> None:
        if self.stream is not None:
            raise ValueError("a curvature over a whole data set holds no sample that could be saved; use n_samples_for_hessian")
        super().save(folder, files)

    def apply(self, gradients: np.ndarray) -> np.ndarray:
        model = self.model
        if model is None:
            raise ValueError("an iterative curvature multiplies with the model's Hessian; call bind(model) first")
        gradients = np.asarray(gradients, dtype=np.float64)
        damping = float(self.meta["damping"])

        def products(vectors: np.ndarray) -> np.ndarray:
            return mean_hessian_products(model, self._batches(), vectors) + damping * vectors

        solved = np.empty_like(gradients)
        worst = 0.0
        for start in range(0, len(gradients), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            solved[rows], residuals = self._solve(products, gradients[rows])
            worst = max(worst, float(residuals.max(initial=0.0)))
        if worst > self.meta["tolerance"]:
            message = (
                f"{self.meta['curvature']} stopped after at most {self.meta['max_iterations']} iterations at a relative "
                f"residual of {worst:.3g}, above its tolerance {self.meta['tolerance']:.3g}; raise max_iterations or the damping"
            )
            warnings.warn(message, NotConvergedWarning, stacklevel=2)
            logging.getLogger(__name__).warning(message)
        return solved

    def _solve(self, products: Products, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x [R, P] of A x = b for each row b of `right`, A being what `products` multiplies with, and the relative residuals [R]."""
        return conjugate_gradients(products, right, float(self.meta["tolerance"]), int(self.meta["max_iterations"]))

    def _batches(self) -> Iterable[ExampleBatch]:
        if self.stream is not None:
            return self.stream()
        whole = from_arrays(self.arrays)
        rows = np.arange(len(whole))
        return [whole.select(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH)]


class ConjugateGradient(SampleCurvature):
    """(H + λI)⁻¹ g by conjugate gradients (Martens 2010; Koh & Liang 2017, section 3), H the mean over a sample."""

    name: ClassVar[str] = "conjugate_gradient"
    Settings = ConjugateGradientSettings
    operator: ClassVar[type[IterativePreconditioner]] = IterativePreconditioner
    operators = (IterativePreconditioner,)
    systems = "hessian"
    needs_hessian = True
    settings: IterativeSettings

    def finish(self, model: ExplainedModel, statistic: Statistic, options: FinishOptions) -> Preconditioner:
        sample: Sample = statistic[SAMPLE]
        if sample.batch is None or not len(sample.batch):
            raise ValueError("no training example is left to make a curvature from")
        meta = self._meta(model, lambda: sample.batches(_BATCH), options)
        return with_examples(self.operator(to_arrays(sample.batch), meta), sample).bind(model)

    def over(self, model: ExplainedModel, stream: Callable[[], Iterable[ExampleBatch]], options: FinishOptions) -> Preconditioner:
        """The operator with H the mean over all batches of `stream`, which is read once for each iteration."""
        count = sum(len(batch) for batch in stream())
        if not count:
            raise ValueError("no training example is left to make a curvature from")
        meta = {**self._meta(model, stream, options), "examples": count}
        return self.operator({}, meta, model, stream)

    def _meta(self, model: ExplainedModel, stream: Callable[[], Iterable[ExampleBatch]], options: FinishOptions) -> dict[str, Any]:
        if options.leave_one_out:
            raise ValueError(f"removal='newton' needs the whole matrix; use curvature gauss_newton or exact, not {self.name}")

        def products(vectors: np.ndarray) -> np.ndarray:
            return mean_hessian_products(model, stream(), vectors)

        damping = options.damping
        if isinstance(damping, str):
            damping = _AUTO_FRACTION * mean_eigenvalue(products, model.size, self.settings.seed)
        return {
            "curvature": self.name,
            "damping": float(damping),
            "damping_rule": options.damping if isinstance(options.damping, str) else "fixed",
            "leave_one_out": False,
            "size": model.size,
            "examples": 0,
            "fingerprint": model.fingerprint(),
            "largest_eigenvalue": largest_eigenvalue(products, model.size, self.settings.seed),
            "tolerance": self.settings.tolerance,
            "max_iterations": self.settings.max_iterations,
        }


def largest_eigenvalue(products: Products, size: int, seed: int) -> float:
    """The eigenvalue of largest magnitude, by power iteration."""
    vector = np.random.default_rng(seed).standard_normal((1, size))
    value = 0.0
    for _ in range(_POWER_ITERATIONS):
        vector /= np.linalg.norm(vector)
        image = products(vector)
        value = float(np.einsum("rp,rp->", vector, image))
        if not np.linalg.norm(image):
            return 0.0
        vector = image
    return value


def mean_eigenvalue(products: Products, size: int, seed: int) -> float:
    """trace(H)/P, by Hutchinson's estimator (1989) with ±1 probes; at least 0."""
    probes = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_PROBES, size))
    return max(float(np.einsum("rp,rp->", probes, products(probes))) / probes.size, 0.0)
