"""How far a step of a checkpoint's optimizer goes: θ ← θ − η (P ∇L + κ θ), P and κ of each weight.

What the optimizer remembers of earlier gradients is in P, taken as constant (Bae et al. 2024, 2405.12186, on preconditioned steps). Of
Keras's, with their own variables m, v, after t steps:

    SGD, momentum μ       P = 1 / (1 − μ), the sum of all that a gradient adds to later steps
    Adam, AdamW           P = √(1 − β₂ᵗ) / (√v + ε); the momentum's parts add up to 1. amsgrad: v its largest so far
    RMSprop, momentum μ   P = 1 / ((1 − μ) √(v + ε)); centered: v less the mean gradient's square

κ is the decay of weights beside the loss (`weight_decay=` of any of them), which neither P nor the momentum multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from beam_influence.influence_ops.model.influence_model import InfluenceModel
from beam_influence.influence_ops.model.network import to_numpy
from beam_influence.influence_ops.model.optimizer_state import WEIGHTS_ALONE
from beam_influence.influence_ops.types import Float64Vector

_NONE = "none"


class StepScales(NamedTuple):
    """P and κ of a segment, [P] each, or [1] where they are those of all weights.

    Attributes:
      scales: P.
      decays: κ.
    """

    scales: Float64Vector
    decays: Float64Vector


def optimizer_of(model: InfluenceModel) -> keras.optimizers.Optimizer | None:
    """The optimizer that a checkpoint holds; None: none, or Keras's own of a model compiled with a loss alone, which made no step."""
    optimizer = getattr(model.network.original, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.RMSprop) or int(optimizer.iterations) > 0:
        return optimizer
    default = keras.optimizers.RMSprop(name=optimizer.name)  # Keras counts on in names
    return None if optimizer.get_config() == default.get_config() else optimizer


def optimizer_name(model: InfluenceModel) -> str:
    """The class of a checkpoint's optimizer, or `none`."""
    optimizer = optimizer_of(model)
    return _NONE if optimizer is None else type(optimizer).__name__


def momentum_of(model: InfluenceModel) -> float:
    """μ where a gradient's later parts add up to 1 / (1 − μ) of a step; 0 of Adam, whose own add up to 1."""
    optimizer = optimizer_of(model)
    return float(optimizer.momentum) if isinstance(optimizer, (keras.optimizers.SGD, keras.optimizers.RMSprop)) else 0.0


def check_optimizer(model: InfluenceModel, number: int) -> None:
    """Refuses a checkpoint whose optimizer's steps are not of the form above, or not known.

    Args:
      number: of the checkpoint.

    Raises:
      ValueError: the message says which, and the mend.
    """
    optimizer = optimizer_of(model)
    if optimizer is not None:
        _check_kind(optimizer, number)
    unread = getattr(model.network.original, "unread_optimizer", None)
    if unread is not None:
        raise ValueError(
            f"checkpoint {number} {unread}, so how far its training moves each weight is not known; save it during training by "
            "model.save('checkpoint.keras'), compiled as it is trained, of float32, with the same layers trainable; a .weights.h5 "
            "file needs a --model with the same optimizer"
        )
    if optimizer is None:
        return
    name = type(optimizer).__name__
    if type(optimizer) is not keras.optimizers.SGD and int(optimizer.iterations) <= 0:
        why = "is a file of weights alone" if int(optimizer.iterations) == WEIGHTS_ALONE else "was saved before the first step"
        raise ValueError(
            f"checkpoint {number} {why}, so how far {name} moves each weight is not known; save it during training with its optimizer, "
            "model.save('checkpoint.keras')"
        )
    if optimizer.weight_decay and model.weight_decay:
        raise ValueError(
            f"{name} decays weights by itself (weight_decay={optimizer.weight_decay}), which SOURCE takes from the checkpoint; leave "
            f"--weight_decay {model.weight_decay} out"
        )


def _check_kind(optimizer: keras.optimizers.Optimizer, number: int) -> None:
    name = type(optimizer).__name__
    if type(optimizer) not in _INVERSES:
        raise ValueError(
            f"SOURCE unrolls SGD, Adam, AdamW and RMSprop, and checkpoint {number} was compiled with {name}, whose steps are others; use "
            "--curvature ekfac or gauss_newton"
        )
    for option in ("clipnorm", "global_clipnorm", "clipvalue", "use_ema", "gradient_accumulation_steps"):
        value = getattr(optimizer, option)
        if value:
            clips = f"where it changed none, set model.optimizer.{option} = None and save it again, else " if "clip" in option else ""
            raise ValueError(
                f"checkpoint {number} was compiled with {name}({option}={value}), which makes other steps than SOURCE unrolls; {clips}use "
                "--curvature ekfac or gauss_newton"
            )


def step_scales(parts: Sequence[InfluenceModel]) -> StepScales:
    """P and κ of a segment with these checkpoints, which `check_optimizer` has let through.

    1/P and κ are the checkpoints' mean: of a weight that no gradient had reached at one of them, where P is 1/ε, that of the others counts.

    Raises:
      ValueError: a watched weight is none of those that the optimizer was made for.
    """
    inverse, decays = np.zeros(1), np.zeros(1)
    for part in parts:
        of_part, decays_of_part = _of_checkpoint(part)
        inverse, decays = inverse + of_part / len(parts), decays + decays_of_part / len(parts)
    return StepScales(1 / inverse, decays)


def _of_checkpoint(part: InfluenceModel) -> tuple[Float64Vector, Float64Vector]:
    """1/P and κ."""
    optimizer = optimizer_of(part)
    if optimizer is None:
        return np.ones(1), np.zeros(1)
    trained = part.network.original.trainable_variables
    known = optimizer._trainable_variables if optimizer.built else trained
    slots = {id(variable): slot for slot, variable in enumerate(known)}  # in the order in which the optimizer was given them
    places = {id(variable): place for place, variable in enumerate(part.model.trainable_variables)}
    found = [slots.get(id(trained[places[id(variable)]])) for variable in part.variables]
    watched = [slot for slot in found if slot is not None]
    if len(watched) < len(found):
        raise ValueError(
            f"the optimizer {type(optimizer).__name__} was made for {len(known)} weights, and {len(found) - len(watched)} of the "
            f"{len(found)} that are watched are none of them; save the checkpoint with the layers trainable that were trained"
        )
    decays, sizes = [], []
    for slot in watched:
        decays.append(optimizer.weight_decay if optimizer.weight_decay and optimizer._use_weight_decay(known[slot]) else 0.0)
        sizes.append(int(np.prod(known[slot].shape)))
    return _INVERSES[type(optimizer)](optimizer, watched), np.repeat(decays, sizes) if any(decays) else np.zeros(1)


def _values(optimizer: keras.optimizers.Optimizer, name: str, watched: Sequence[int]) -> Float64Vector:
    variables: Sequence[keras.Variable] = getattr(optimizer, name)
    return np.concatenate([to_numpy(variables[slot].value).ravel() for slot in watched])


def _squares(optimizer: keras.optimizers.Optimizer, name: str, watched: Sequence[int]) -> Float64Vector:
    """Means of squared gradients.

    Raises:
      ValueError: numbers that are none.
    """
    found = _values(optimizer, name, watched)
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(
            f"what should be the means of squared gradients of the optimizer {type(optimizer).__name__} has negative or infinite numbers: "
            "the checkpoint's file is of another optimizer; load it into a model that is compiled as it was trained"
        )
    return found


def _sgd(optimizer: keras.optimizers.SGD, watched: Sequence[int]) -> Float64Vector:
    return np.full(1, 1 - float(optimizer.momentum))


def _adam(optimizer: keras.optimizers.Adam, watched: Sequence[int]) -> Float64Vector:
    squares = _squares(optimizer, "_velocity_hats" if optimizer.amsgrad else "_velocities", watched)
    correction = (1 - float(optimizer.beta_2) ** int(optimizer.iterations)) ** 0.5
    return (np.sqrt(squares) + float(optimizer.epsilon)) / correction


def _rmsprop(optimizer: keras.optimizers.RMSprop, watched: Sequence[int]) -> Float64Vector:
    squares = _squares(optimizer, "_velocities", watched)
    if optimizer.centered:
        squares = np.maximum(squares - _values(optimizer, "_average_gradients", watched) ** 2, 0)
    return (1 - float(optimizer.momentum)) * np.sqrt(squares + float(optimizer.epsilon))


_INVERSES: dict[type, Callable[..., Float64Vector]] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.AdamW: _adam,
    keras.optimizers.RMSprop: _rmsprop,
}
"""1/P of the watched weights, by the optimizer's class."""
