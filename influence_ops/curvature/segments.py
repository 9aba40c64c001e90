"""SOURCE: influence by approximately unrolling the training run, segment by segment (Bae et al. 2024, 2405.12186, equation 12).

In a segment l of K_l steps with learning rate η_l, gradients and curvature are taken as those of its checkpoints' mean, ḡ_l and H_l:

    I(z, t) = g(t)ᵀ Σ_l [Π_{m > l} exp(−η_m K_m H_m)] F_l ḡ_l(z),     F_l = (1 − exp(−η_l K_l H_l)) H_l⁻¹,

later segments to the left, g(t) at the last checkpoint. F is H⁻¹ in directions that the segment has learned, and η K, as if H were not
there, in those that it has not: the inverse needs no damping.

So it is of SGD. Where a step is θ ← θ − η (P ∇L + κ θ), P and κ diagonal and constant in a segment (`optimizer_steps`), a change δ of θ
and an example's weight move it by −η (P H + κ) δ and −η P g. With M = √P H √P + κ, which is symmetric,

    exp(−η K (P H + κ)) = √P exp(−η K M) √P⁻¹,     F = √P (1 − exp(−η K M)) M⁻¹ √P,

and g(t) is multiplied by these matrices' transposes: first √P, last √P⁻¹ on the way to the segment before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_influence.influence_ops.curvature.base import FinishOptions
from beam_influence.influence_ops.curvature.optimizer_steps import (
    StepScales,
    check_optimizer,
    momentum_of,
    optimizer_name,
    optimizer_of,
    step_scales,
)
from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.model.optimizer_state import WEIGHTS_ALONE
from beam_influence.influence_ops.settings import SegmentSettings


@dataclasses.dataclass(frozen=True)
class Segments:
    """The segments, in their order; each is a row.

    Attributes:
      counts: of their checkpoints.
      horizons: η K.
    """

    counts: tuple[int, ...]
    horizons: tuple[float, ...]

    def of_checkpoint(self, number: int) -> int:
        """The segment that a checkpoint is in."""
        return int(np.searchsorted(np.cumsum(self.counts), number, side="right"))

    def checkpoints(self, segment: int) -> range:
        """Those that are in a segment."""
        first = sum(self.counts[:segment])
        return range(first, first + self.counts[segment])


def segments_of(settings: SegmentSettings) -> Segments:
    """The segments of a curvature's settings."""
    return Segments(settings.counts, tuple(rate * steps for rate, steps in zip(settings.rates, settings.steps, strict=True)))


def check_segments(model: ExplainedModel, settings: SegmentSettings) -> None:
    """Refuses a model that the segments are not of.

    Raises:
      ValueError: it has another number of checkpoints, or of an optimizer that is not known, or a checkpoint was saved after fewer steps
        than the one before it, or a learning rate is one that the checkpoint's momentum has been taken into already.
    """
    segments = segments_of(settings)
    checkpoints = len(model.parts)
    if sum(segments.counts) != checkpoints:
        told = ",".join(map(str, segments.counts))
        raise ValueError(f"segments {told} are of {sum(segments.counts)} checkpoints, and the model has {checkpoints}; name one for each")
    steps = 0
    for number, part in enumerate(model.parts):
        check_optimizer(part, number)
        optimizer = optimizer_of(part)
        if (optimizer is None) != (optimizer_of(model.parts[-1]) is None):
            names = ", ".join(map(optimizer_name, model.parts))
            raise ValueError(f"the checkpoints' optimizers are {names}; save each with its optimizer, or none of them")
        if optimizer is None:
            continue
        made = int(optimizer.iterations)
        if WEIGHTS_ALONE < made < steps:
            raise ValueError(
                f"checkpoint {number} was saved after {made} steps of its optimizer, one before it after {steps}; name them in the order "
                "of training, and of a model that was compiled anew in between, those after that alone"
            )
        steps = max(made, steps)
    _check_momentum(model, settings, segments)


def _check_momentum(model: ExplainedModel, settings: SegmentSettings, segments: Segments) -> None:
    """Refuses rates each of which is the learning rate of all its checkpoints over 1 − μ; of one checkpoint, saved after the rate was
    lowered, it may be just that."""
    told = [settings.rates[segments.of_checkpoint(number)] for number in range(len(model.parts))]
    for part, rate in zip(model.parts, told, strict=True):
        momentum, optimizer = momentum_of(part), optimizer_of(part)
        if optimizer is None or not momentum or not math.isclose(rate * (1 - momentum), float(optimizer.learning_rate), rel_tol=1e-3):
            return
    momentum = momentum_of(model.parts[-1])
    given, own = (", ".join(f"{rate * factor:g}" for rate in settings.rates) for factor in (1, 1 - momentum))
    raise ValueError(
        f"segment_rates {given} are the checkpoints' learning rates over 1 - {momentum:g}, their momentum, which is read from them; write "
        f"the learning rates themselves, {own}"
    )


def scales_of(model: ExplainedModel, segments: Segments) -> list[StepScales]:
    """P and κ of each segment's steps."""
    return [step_scales([model.parts[each] for each in segments.checkpoints(segment)]) for segment in range(len(segments.counts))]


def root_weights(model: ExplainedModel) -> list[float]:
    """√η_c, which each checkpoint's gradients are multiplied by; see `CheckpointSum`."""
    return [weight**0.5 for weight in model.part_weights] if isinstance(model, CheckpointSum) else [1.0]


def learned(eigenvalues: np.ndarray, horizon: float) -> np.ndarray:
    """F's eigenvalues (1 − exp(−η K σ)) / σ, η K where σ is 0."""
    exponents = horizon * np.maximum(eigenvalues, 0)
    return horizon * np.divide(-np.expm1(-exponents), exponents, out=np.ones_like(exponents), where=exponents > 0)


def forgotten(eigenvalues: np.ndarray, horizon: float) -> np.ndarray:
    """The eigenvalues exp(−η K σ) of what a segment leaves of a change before it."""
    return np.exp(-horizon * np.maximum(eigenvalues, 0))


def shift_of(steps: StepScales, horizon: float) -> np.ndarray:
    """(κ + 1/(η K)) / P, which is beside H where one damped inverse is taken for F: [P], or [1]; see `source_gauss_newton_cg`."""
    return (steps.decays + 1 / horizon) / steps.scales


def damping_of(options: FinishOptions) -> float:
    """What is added to H; `auto` adds nothing, since F needs none."""
    return 0.0 if isinstance(options.damping, str) else float(options.damping)


def facts_of(segments: Segments, model: ExplainedModel, examples: int, options: FinishOptions) -> dict[str, Any]:
    """What the meta of both operators has."""
    return {
        "damping": damping_of(options),
        "damping_rule": options.damping if isinstance(options.damping, str) else "fixed",
        "leave_one_out": False,
        "examples": examples,
        "size": model.size,
        "fingerprint": model.fingerprint(),
        "segments": list(segments.counts),
        "horizons": list(segments.horizons),
        "root_weights": root_weights(model),
        "optimizers": [optimizer_name(part) for part in model.parts],
    }


def from_facts(meta: Mapping[str, Any]) -> tuple[Segments, list[float]]:
    """The segments of an operator, and √η_c of each checkpoint."""
    return Segments(tuple(meta["segments"]), tuple(meta["horizons"])), list(meta["root_weights"])
