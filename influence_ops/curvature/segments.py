"""SOURCE: influence by approximately unrolling the training run, segment by segment (Bae et al. 2024, 2405.12186, equation 12).

In a segment l of K_l steps with learning rate η_l, gradients and curvature are taken as those of its checkpoints' mean, ḡ_l and H_l:

    I(z, t) = g(t)ᵀ Σ_l [Π_{m > l} exp(−η_m K_m H_m)] F_l ḡ_l(z),     F_l = (1 − exp(−η_l K_l H_l)) H_l⁻¹,

later segments to the left, g(t) at the last checkpoint. F is H⁻¹ in directions that the segment has learned, and η K, as if H were not
there, in those that it has not: the inverse needs no damping.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_influence.influence_ops.model.checkpoints import CheckpointSum
from beam_influence.influence_ops.model.explained_model import ExplainedModel
from beam_influence.influence_ops.settings import SegmentSettings

_SGD = "SGD"
_DEFAULT = "RMSprop"  # Keras's own where a model is compiled with a loss alone; then it has made no step


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


def check_segments(model: ExplainedModel, segments: Segments) -> None:
    """Refuses a model that the segments are not of.

    Raises:
      ValueError: it has another number of checkpoints, or was compiled with an optimizer other than SGD, or a checkpoint was saved after
        fewer steps than the one before it.
    """
    checkpoints = len(model.parts)
    if sum(segments.counts) != checkpoints:
        told = ",".join(map(str, segments.counts))
        raise ValueError(f"segments {told} are of {sum(segments.counts)} checkpoints, and the model has {checkpoints}; name one for each")
    steps = 0
    for number, part in enumerate(model.parts):
        optimizer = getattr(part.network.original, "optimizer", None)
        if optimizer is None:
            continue
        if int(optimizer.iterations) < steps:  # of weights alone, all have those of the model that they were loaded into
            raise ValueError(
                f"checkpoint {number} was saved after {int(optimizer.iterations)} steps of training, one before it after {steps}; name "
                "them in the order of training"
            )
        steps = int(optimizer.iterations)
        name = type(optimizer).__name__
        if name not in (_SGD, _DEFAULT) or (name == _DEFAULT and int(optimizer.iterations) > 0):
            raise ValueError(
                f"SOURCE unrolls SGD, and the model was compiled with {name}, whose steps are others; compile a model that was trained "
                "with SGD so, else use --curvature ekfac or gauss_newton"
            )


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


def facts_of(segments: Segments, model: ExplainedModel, examples: int, damping: float | str) -> dict[str, Any]:
    """What the meta of both operators has; `auto` adds no damping, since F needs none."""
    return {
        "damping": 0.0 if isinstance(damping, str) else float(damping),
        "damping_rule": damping if isinstance(damping, str) else "fixed",
        "leave_one_out": False,
        "examples": examples,
        "size": model.size,
        "fingerprint": model.fingerprint(),
        "segments": list(segments.counts),
        "horizons": list(segments.horizons),
        "root_weights": root_weights(model),
    }


def from_facts(meta: Mapping[str, Any]) -> tuple[Segments, list[float]]:
    """The segments of an operator, and √η_c of each checkpoint."""
    return Segments(tuple(meta["segments"]), tuple(meta["horizons"])), list(meta["root_weights"])
