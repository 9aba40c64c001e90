"""Many values of λ at the price of little more than one, and the choice among them on test points that do not report.

LDS needs only Σ_{i ∈ S} I(z_i, t) = ∇ℓ(t)ᵀ (H + λI)⁻¹ Σ_{i ∈ S} ∇ℓ(z_i): one pass sums the gradients over each subset, and each λ
then costs one application of `Preconditioner.with_damping(λ)` to the queries. Leave-one-out needs the gradients of the R removed
examples alone. The even test points choose λ, the odd ones report: a λ chosen on the points that report would flatter itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from beam_influence.influence_ops.curvature import Preconditioner
from beam_influence.influence_ops.evaluation.correlation import bootstrap_error, mean_over_columns
from beam_influence.influence_ops.model.evaluate import evaluate
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.reading.example_batch import ExampleBatch

Correlation = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(predicted [S, T], actual [S, T]) -> [T], such as `spearman`."""

GRID = tuple(10.0 ** (step / 2) for step in range(-4, 5))
"""What the run's own λ is multiplied with: two decades to both sides, in half decades."""


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """One λ.

    Attributes:
      damping: λ.
      choosing: the mean correlation at the even test points.
      reporting, reporting_error: at the odd ones, and its standard error by bootstrap over the retrainings.
      chosen: whether it is the best at the even ones.
    """

    damping: float
    choosing: float
    reporting: float
    reporting_error: float
    chosen: bool


def summed_gradients(model: ExplainedModel, train: Iterable[ExampleBatch], masks: np.ndarray, positions: Mapping[str, int]) -> np.ndarray:
    """Σ ∇ℓ(z_i) over each subset, in one pass: [S, P] float64.

    Args:
      model: the model.
      train: the training set; examples without a finite gradient are left out.
      masks: [S, N] bool, the subsets.
      positions: the place of each example's id in a mask; examples without one are left out.

    Raises:
      ValueError: an example of a mask is not in `train`.
    """
    sums, seen = np.zeros((len(masks), model.size)), 0
    for batch in train:
        kept, _, gradients, _ = evaluate(model, batch)
        places = np.array([positions.get(name, -1) for name in kept.ids], dtype=np.int64)
        known = np.flatnonzero(places >= 0)
        seen += len(known)
        sums += masks[:, places[known]].astype(np.float64) @ np.asarray(gradients, dtype=np.float64)[known]
    if seen != masks.shape[1]:
        raise ValueError(f"the training files have {seen:,} of the {masks.shape[1]:,} examples that were retrained on; score them again")
    return sums


def sweep(
    preconditioner: Preconditioner,
    queries: np.ndarray,
    gradients: np.ndarray,
    actual: np.ndarray,
    correlation: Correlation,
    dampings: Sequence[float],
    seed: int = 0,
) -> list[SweepPoint]:
    """How well each λ predicts, in the order of `dampings`.

    Args:
      preconditioner: the fitted operator, bound to its model.
      queries: ∇ℓ(t) of the test points: [T, P].
      gradients: of what the retrainings kept, or removed: [S, P].
      actual: what retraining did, positive where more influence is predicted: [S, T].
      correlation: of the columns.
      dampings: each above 0.
      seed: of the bootstrap.

    Raises:
      ValueError: fewer than 2 test points, or the operator can't change its damping.
    """
    if len(queries) < 2:
        raise ValueError("a damping sweep needs at least 2 test points: some choose, the others report")
    found = []
    for damping in dampings:
        # The operator's own rule may be more than one λ, such as one for each layer: it is left as it is.
        own = damping == preconditioner.meta["damping"]
        predicted = gradients @ (preconditioner if own else preconditioner.with_damping(damping)).apply(queries).T
        found.append((predicted, mean_over_columns(correlation(predicted[:, 0::2], actual[:, 0::2]))))
    best = int(np.argmax([choosing for _, choosing in found]))
    points = []
    for number, (damping, (predicted, choosing)) in enumerate(zip(dampings, found, strict=True)):
        odd = predicted[:, 1::2], actual[:, 1::2]
        reporting = mean_over_columns(correlation(*odd))
        error = bootstrap_error(lambda rows, odd=odd: mean_over_columns(correlation(odd[0][rows], odd[1][rows])), len(actual), seed)
        points.append(SweepPoint(float(damping), choosing, reporting, error, number == best))
    return points
